"""Proofs that hidden states were really computed: 258 bytes for 32 tokens.

A proof is a polynomial through the 128 largest of the hidden states of 32 positions, at their
indices. Who recomputes the hidden states, on other hardware and in another batch shape, finds the
largest at nearly the same places with nearly the same values; other weights, prompts or numeric
types do not give them.

The bytes are those of the published format (TOPLOC: Ong et al., ICML 2025; package `toploc` 0.1.6):
modulus, then 128 coefficients of x^0 first, each a big-endian uint16; docs/rollout_proofs.md draws
them. Everything that a stranger can write there is either judged or refused with ProofMalformed.

Knows numpy only.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

from asyncrl.proof.polynomial import PRIME, Integers, evaluate, interpolate

__all__ = ["ProofErrors", "ProofFormat", "ProofMalformed", "build_proofs", "verify_proofs"]

# Smaller ones would make most indices collide; an honest proof needs one just below PRIME.
_MODULUS_MIN = 1 << 15
# dtype -> (numpy's names of what may hold it, bits of the mantissa in a proof).
_DTYPES = {
    "fp32": (("float32",), 7),
    "bf16": (("uint16", "float32"), 7),
    "fp16": (("float16",), 10),
}
# Chunks that go through the field at once: 256 of them hold 20 MB.
_BATCH_CHUNKS = 256


class ProofMalformed(ValueError):
    """Bytes that no honest builder makes: wrong length, modulus or coefficient."""


@dataclass(frozen=True, kw_only=True)
class ProofFormat:
    """What both sides have to agree on."""

    dtype: str = "fp32"
    """Of the hidden states: "fp32" (float32 arrays, rounded to bf16 here), "bf16" (their bits in
    uint16 arrays, or their values in float32 arrays) or "fp16" (float16 arrays)."""

    point_count: int = 128
    rows_per_proof: int = 32
    """Positions, one row of hidden states each."""

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype: expected one of {sorted(_DTYPES)}, got {self.dtype!r}")
        if self.point_count < 1 or self.rows_per_proof < 1:
            raise ValueError(f"expected positive counts, got {self}")

    @property
    def proof_bytes(self) -> int:
        return 2 + 2 * self.point_count

    def proof_count(self, row_count: int) -> int:
        return -(-row_count // self.rows_per_proof)


@dataclass(frozen=True)
class ProofErrors:
    """How far one proof is from the hidden states of whoever verifies it."""

    exponent_mismatches: int
    """Points, of 128, whose sign or exponent differs."""

    mantissa_mean: float
    """Of the others, in units of the last place of bf16 or fp16; infinite if there are none."""

    mantissa_median: float


def build_proofs(
    hidden: Sequence[NDArray[Any]], proof_format: ProofFormat | None = None
) -> list[bytes]:
    """The proofs of each rollout, one after the other: `proof_bytes` for each 32 rows.

    About 0.1 ms a proof at width 192 and 64 rollouts a call, 0.25 ms in calls of one.

    Args:
        hidden: last hidden states of each rollout, [rows, width], of the format's dtype.

    Raises:
        ValueError: an array of another shape or dtype, without rows, or with NaN or Inf in it.
    """
    chosen = proof_format or ProofFormat()
    chunks: list[_Chunk] = []
    counts = []
    for states in hidden:
        made = _chunks(states, chosen)
        counts.append(len(made))
        chunks += made
    moduli = [_injective_modulus(chunk.indices) for chunk in chunks]
    proofs: list[bytes] = []
    for begin in range(0, len(chunks), _BATCH_CHUNKS):
        batch = slice(begin, begin + _BATCH_CHUNKS)
        proofs += _build_batch(chunks[batch], moduli[batch], chosen)
    ends = numpy.cumsum([0, *counts]).tolist()
    return [b"".join(proofs[begin:end]) for begin, end in itertools.pairwise(ends)]


def verify_proofs(
    hidden: Sequence[NDArray[Any]],
    proofs: Sequence[bytes],
    proof_format: ProofFormat | None = None,
) -> list[list[ProofErrors]]:
    """The errors of each proof of each rollout; whether they are small enough is the caller's.

    About 0.06 ms a proof at width 192 and 64 rollouts a call, 0.13 ms in calls of one.

    Args:
        hidden: recomputed, as for build_proofs().
        proofs: the bytes of each rollout.

    Raises:
        ProofMalformed: bytes that no honest builder makes for so many rows; the rollout is named.
        ValueError: as of build_proofs(), or not as many proofs as rollouts.
    """
    chosen = proof_format or ProofFormat()
    if len(hidden) != len(proofs):
        raise ValueError(f"verify_proofs: {len(hidden)} hidden states, {len(proofs)} proofs")
    chunks: list[_Chunk] = []
    words: list[Integers] = []
    counts = []
    for index, (states, proof) in enumerate(zip(hidden, proofs, strict=True)):
        chunks += _chunks(states, chosen)
        name, width = f"rollout {index}", states.shape[1]
        found = parse_proofs(proof, len(states), chosen, name=name, width=width)
        words += list(found)
        counts.append(len(found))
    errors: list[ProofErrors] = []
    for begin in range(0, len(chunks), _BATCH_CHUNKS):
        batch = slice(begin, begin + _BATCH_CHUNKS)
        errors += _verify_batch(chunks[batch], words[batch], chosen)
    ends = numpy.cumsum([0, *counts]).tolist()
    return [errors[begin:end] for begin, end in itertools.pairwise(ends)]


def parse_proofs(
    proof: bytes,
    row_count: int,
    proof_format: ProofFormat,
    *,
    name: str = "proof",
    width: int = PRIME,
) -> Integers:
    """Modulus and coefficients [proofs, 1 + point_count] of one rollout's bytes.

    Args:
        width: of the hidden states, where it is known. Where no index is beyond PRIME, there is one
            honest modulus; another one would make other bytes of the same proof.

    Raises:
        ProofMalformed: see there.
    """
    count, size = proof_format.proof_count(row_count), proof_format.proof_bytes
    if len(proof) != count * size:
        raise ProofMalformed(
            f"{name}: {count} proofs of {size} bytes for {row_count} rows, got {len(proof)} bytes"
        )
    words: Integers = numpy.frombuffer(proof, ">u2").reshape(count, -1).astype(numpy.int64)
    moduli, coefficients = words[:, 0], words[:, 1:]
    least = PRIME if proof_format.rows_per_proof * width <= PRIME else _MODULUS_MIN + 1
    if ((moduli < least) | (moduli > PRIME)).any():
        raise ProofMalformed(f"{name}: modulus {moduli.tolist()}, expected {least} to {PRIME}")
    if (coefficients >= PRIME).any():
        raise ProofMalformed(f"{name}: coefficient {coefficients.max()} is not below {PRIME}")
    return words


@dataclass(frozen=True)
class _Chunk:
    """The largest values of up to 32 rows."""

    indices: Integers
    """[points], into the flattened rows. Fewer than `point_count` only where there are fewer."""

    bits: Integers
    """[points], the value there as a 16-bit pattern."""


def _chunks(states: NDArray[Any], proof_format: ProofFormat) -> list[_Chunk]:
    holders = _DTYPES[proof_format.dtype][0]
    if states.ndim != 2 or states.dtype.name not in holders or not states.size:
        raise ValueError(
            f"hidden states: expected {' or '.join(holders)} [rows, width] for "
            f"{proof_format.dtype}, got {states.dtype.name} {list(states.shape)}"
        )
    held = numpy.ascontiguousarray(states)
    is_fp32 = held.dtype == numpy.float32
    if is_fp32:
        patterns, infinity = held.view(numpy.uint32), 0x7F800000
    else:
        patterns = held.view(numpy.uint16)
        infinity = 0x7C00 if proof_format.dtype == "fp16" else 0x7F80
    magnitudes = patterns & (numpy.iinfo(patterns.dtype).max >> 1)
    if magnitudes.max() >= infinity:
        raise ValueError("hidden states: NaN or Inf")
    chunks = []
    for begin in range(0, len(states), proof_format.rows_per_proof):
        rows = slice(begin, begin + proof_format.rows_per_proof)
        indices = _largest(magnitudes[rows].reshape(-1), proof_format.point_count)
        bits = patterns[rows].reshape(-1)[indices].astype(numpy.int64)
        if is_fp32:
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # the nearest bf16, ties to even
        chunks.append(_Chunk(indices, bits))
    return chunks


def _largest(magnitudes: NDArray[Any], count: int) -> Integers:
    """Indices of the `count` largest; of equal ones those at the smaller indices."""
    if len(magnitudes) <= count:
        return numpy.arange(len(magnitudes))
    # `count` groups have a value that is at least this one, so that many reach it, and few more.
    groups = 2 * count
    least = 0
    if len(magnitudes) > 2 * groups:
        whole = len(magnitudes) // groups * groups
        largest = magnitudes[:whole].reshape(-1, groups).max(axis=0)
        least = numpy.partition(largest, count)[count]
    near = numpy.flatnonzero(magnitudes >= least)
    values = magnitudes[near]
    # Partitioning values and searching for them is several times faster than argpartition.
    smallest = numpy.partition(values, len(values) - count)[len(values) - count]
    found: Integers = near[values >= smallest]
    if len(found) > count:
        is_equal = magnitudes[found] == smallest
        larger, equal = found[~is_equal], found[is_equal]
        found = numpy.concatenate([larger, equal[: count - len(larger)]])
    return found


def _injective_modulus(indices: Integers) -> int:
    """The largest modulus, PRIME at most, that keeps the indices distinct."""
    if indices.max() < PRIME:
        return PRIME
    for modulus in range(PRIME, _MODULUS_MIN, -1):
        if len(numpy.unique(indices % modulus)) == len(indices):
            return modulus
    raise ValueError(f"hidden states: no modulus keeps {len(indices)} indices distinct")


def _build_batch(
    chunks: Sequence[_Chunk], moduli: Sequence[int], proof_format: ProofFormat
) -> list[bytes]:
    words = numpy.zeros((len(chunks), 1 + proof_format.point_count), ">u2")
    words[:, 0] = moduli
    for count, places in _by_point_count(chunks).items():
        x = numpy.stack([chunks[place].indices % moduli[place] for place in places])
        y = numpy.stack([chunks[place].bits for place in places])
        words[places, 1 : 1 + count] = interpolate(x, y)
    return [row.tobytes() for row in words]


def _verify_batch(
    chunks: Sequence[_Chunk], words: Sequence[Integers], proof_format: ProofFormat
) -> list[ProofErrors]:
    errors: list[ProofErrors | None] = [None] * len(chunks)
    mantissa_bits = _DTYPES[proof_format.dtype][1]
    for places in _by_point_count(chunks).values():
        x = numpy.stack([chunks[place].indices % words[place][0] for place in places])
        claimed = evaluate(numpy.stack([words[place][1:] for place in places]), x)
        own = numpy.stack([chunks[place].bits for place in places])
        same = claimed >> mantissa_bits == own >> mantissa_bits  # sign and exponent
        mask = (1 << mantissa_bits) - 1
        # Those that are not compared come last when sorted.
        differences = numpy.where(same, abs((claimed & mask) - (own & mask)), mask + 1)
        ordered = numpy.sort(differences, axis=1)
        sums = (differences * same).sum(axis=1).tolist()
        for row, (place, count) in enumerate(zip(places, same.sum(axis=1).tolist(), strict=True)):
            mismatches = own.shape[1] - count
            errors[place] = (
                ProofErrors(mismatches, sums[row] / count, float(ordered[row, count // 2]))
                if count
                else ProofErrors(mismatches, float("inf"), float("inf"))
            )
    return [error for error in errors if error is not None]


def _by_point_count(chunks: Sequence[_Chunk]) -> dict[int, list[int]]:
    places: dict[int, list[int]] = {}
    for place, chunk in enumerate(chunks):
        places.setdefault(len(chunk.indices), []).append(place)
    return places
