"""Where honest rounding ends: the numbers by which proofs and sampled tokens are judged."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy

from asyncrl.proof.proof import ProofErrors

__all__ = [
    "PUBLISHED",
    "Published",
    "Thresholds",
    "calibrated",
    "default_thresholds",
    "load_thresholds",
    "save_thresholds",
]

# Made by the command that is in it.
_SHIPPED = Path(__file__).with_name("thresholds.json")


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Bounds for one model in one numeric type; `python -m asyncrl.proof.calibrate` measures them.

    A file of rollouts is judged as a whole as well: weights of a slightly other precision make
    errors in each proof that no single honest proof excludes, but their sum over a file does.
    """

    dtype: str = "fp32"
    exponent_mismatches_max: int = 4
    """Of one proof; their sum over a file this and `exponent_mismatches_mean_max` a proof."""

    mantissa_mean_max: float = 0.5
    """Of one proof, likewise."""

    exponent_mismatches_mean_max: float = 0.05
    mantissa_mean_mean_max: float = 0.01
    gap_max: float = 1e-3
    """Of one token, of logits / temperature + noise. A token can only differ from the validator's
    where two scores are nearer than twice the rounding of the logits, so none may be beyond."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{field.name}: expected a finite number from 0 on, got {value}")

    def refuse_proofs(self, errors: Sequence[ProofErrors]) -> str | None:
        """Why these proofs of one file are not honest; None if nothing speaks against them."""
        for index, error in enumerate(errors):
            is_near = error.exponent_mismatches <= self.exponent_mismatches_max
            if not (is_near and error.mantissa_mean <= self.mantissa_mean_max):
                return (
                    f"proof {index} of {len(errors)}: {error.exponent_mismatches} exponents and "
                    f"{error.mantissa_mean:.3g} units of mantissa differ; at most "
                    f"{self.exponent_mismatches_max} and {self.mantissa_mean_max:.3g} may"
                )
        exponents = sum(error.exponent_mismatches for error in errors)
        mantissas = sum(error.mantissa_mean for error in errors)
        exponents_max = (
            self.exponent_mismatches_max + len(errors) * self.exponent_mismatches_mean_max
        )
        mantissas_max = self.mantissa_mean_max + len(errors) * self.mantissa_mean_mean_max
        if exponents > exponents_max or mantissas > mantissas_max:
            return (
                f"{len(errors)} proofs together: {exponents} exponents and {mantissas:.3g} units "
                f"of mantissa differ; at most {exponents_max:.3g} and {mantissas_max:.3g} may"
            )
        return None


def save_thresholds(path: Path, made: Sequence[Thresholds], origin: Mapping[str, object]) -> None:
    """Write the bounds of some dtypes, and beside them how they came about: any JSON."""
    bounds = [dataclasses.asdict(one) for one in made]
    path.write_text(json.dumps({**origin, "thresholds": bounds}, indent=1) + "\n")


def load_thresholds(path: Path) -> dict[str, Thresholds]:
    """The bounds of each dtype. Raises ValueError where the file holds none."""
    try:
        found = [Thresholds(**one) for one in json.loads(path.read_text())["thresholds"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"thresholds {path}: {error}") from None
    return {one.dtype: one for one in found}


@functools.cache
def default_thresholds(dtype: str = "fp32") -> Thresholds:
    """Those that ship: of the default model on the CPU that they were calibrated on, with room.

    Raises:
        KeyError: no such dtype.
    """
    return load_thresholds(_SHIPPED)[dtype]


@dataclass(frozen=True, kw_only=True)
class Published:
    """The thresholds of the published experiments (1 to 70 billion parameters, bf16, many GPUs)."""

    exponent_mismatches_max: int = 38
    mantissa_mean_max: float = 10.0
    mantissa_median_max: float = 8.0

    def accepts(self, error: ProofErrors) -> bool:
        return (
            error.exponent_mismatches <= self.exponent_mismatches_max
            and error.mantissa_mean <= self.mantissa_mean_max
            and error.mantissa_median <= self.mantissa_median_max
        )


PUBLISHED = Published()


def calibrated(
    dtype: str, files: Sequence[Sequence[ProofErrors]], gaps: Sequence[float]
) -> Thresholds:
    """Bounds with room around what honest rollouts showed.

    Twice the largest of one proof, twice the largest mean of a file, three times the largest gap;
    and never less than a floor, because some thousand proofs do not show the rarest.

    Args:
        files: the errors of all proofs, file by file, under other threads and batch shapes.
        gaps: the largest of each rollout.
    """
    exponents = [numpy.array([error.exponent_mismatches for error in file]) for file in files]
    mantissas = [numpy.array([error.mantissa_mean for error in file]) for file in files]
    if not sum(map(len, files)) or not len(gaps):
        raise ValueError("calibrated: no rollouts")
    return Thresholds(
        dtype=dtype,
        exponent_mismatches_max=max(4, 2 * max(int(file.max()) for file in exponents)),
        mantissa_mean_max=round(max(0.1, 2 * max(float(file.max()) for file in mantissas)), 4),
        exponent_mismatches_mean_max=round(
            max(0.02, 2 * max(float(file.mean()) for file in exponents)), 4
        ),
        mantissa_mean_mean_max=round(
            max(0.002, 2 * max(float(file.mean()) for file in mantissas)), 4
        ),
        gap_max=float(f"{max(1e-4, 3 * max(gaps)):.2g}"),
    )
