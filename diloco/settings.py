"""Settings of a run: the same at every member, with a digest, compared field by field."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pccl.codecs import encoded_bytes
from pccl.topology import GOSSIP_GRAPHS

__all__ = ["CODECS_THAT_LOSE", "METHODS", "WEIGHTS", "Settings", "SettingsMismatch"]

METHODS = ("synchronous", "delayed", "eager", "streaming", "asynchronous", "gossip")
WEIGHTS = ("tokens", "samples", "steps", "equal", "tokens_by_rate")
# What these lose is worth keeping for the next round; int8 loses too little.
CODECS_THAT_LOSE = ("int4", "int6", "topk")


class SettingsMismatch(ValueError):  # what happened, as in pccl
    """This member's settings or model are not those of the run; it has left, the run goes on."""


@dataclass(frozen=True)
class Settings:
    """What belongs to the run. The functions of `diloco.variants` make those of known methods."""

    sync_every: int = 100  # H: inner steps in a round
    method: str = "synchronous"
    # None: what suits the method, see _OUTER. `outer` describes the optimizer of a factory.
    outer: str = "sgd"
    outer_lr: float | None = None
    outer_momentum: float | None = None
    nesterov: bool = True
    codec: str = "none"  # of pccl, docs/codecs.md
    error_feedback: bool | None = None  # None: with a codec that loses much
    residual_decay: float = 1.0  # beta: what is left of the residual in each round
    fragments: int = 1  # P: parts of the model that sync at different times
    fragment_pattern: str = "strided"  # or "sequential": neighbouring layers together
    delay_steps: int = 0  # tau: inner steps between sending and applying
    keep_local: float = 0.0  # alpha: 0 takes the global parameters, 1 keeps the local ones
    weights: str = "tokens"
    outlier_ratio: float = 10.0  # contributions with a norm so many medians large are left out
    clip_to_median: bool = False  # scales larger contributions down to the median norm
    warmup_sync_steps: int = 100  # of a new run: gradients are averaged in every step; 0: none
    dynamic_steps: bool = False  # DyLU: slower members do fewer steps in a round
    quorum: int = 1  # of "asynchronous": so many finished members begin a merge
    grace_seconds: float = 0.0  # and others may still come for so long
    momentum_every: int = 1  # N of delayed Nesterov: momentum moves at every N-th merge
    graph: str = "random_pairs"  # of "gossip", see pccl.topology.GOSSIP_GRAPHS
    consensus_rate: float = 0.7  # gamma of gossip: how far towards the neighbours' mean
    inherit_inner_state: bool = False  # a newcomer gets a member's inner optimizer state
    seed: int = 0

    def __post_init__(self) -> None:
        lr, momentum = _OUTER.get(self.method, (0.7, 0.9))
        fill = {"outer_lr": lr, "outer_momentum": momentum}
        if self.error_feedback is None:
            fill["error_feedback"] = self.codec.startswith(CODECS_THAT_LOSE)
        for name, value in fill.items():
            if getattr(self, name) is None or name == "error_feedback":
                object.__setattr__(self, name, value)
        if self.method in ("delayed", "eager") and self.delay_steps == 0:
            object.__setattr__(self, "delay_steps", self.sync_every)
        for complaint in _complaints(self):
            raise ValueError(f"settings: {complaint}")

    def as_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @property
    def digest(self) -> str:
        """SHA-256 of all fields, 64 hex digits."""
        return hashlib.sha256(self.as_json().encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Raises ValueError: it is no JSON, or has fields that this version does not know."""
        values = json.loads(text)
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) - known:
            raise ValueError(f"settings: expected the fields {sorted(known)}, got {text[:200]}")
        return cls(**values)


# What suits a method: torch's Nesterov 0.7 / 0.9, except where it diverges or never was.
_OUTER = {"delayed": (0.7, 0.0), "eager": (0.7, 0.0), "gossip": (0.7, 0.5)}


def find_differences(own: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Sentences that name each field that differs, and both values."""
    return [
        f"{name}: {own.get(name, 'nothing')!r} here, {other.get(name, 'nothing')!r} in the run"
        for name in sorted({*own, *other})
        if own.get(name) != other.get(name)
    ]


def _complaints(settings: Settings) -> list[str]:
    s = settings
    assert s.outer_lr is not None
    assert s.outer_momentum is not None
    period = s.sync_every // max(1, s.fragments)
    checks = [
        (s.sync_every >= 1, f"sync_every: expected 1 or more, got {s.sync_every}"),
        (s.method in METHODS, f"method: expected one of {METHODS}, got {s.method!r}"),
        (s.weights in WEIGHTS, f"weights: expected one of {WEIGHTS}, got {s.weights!r}"),
        (0 < s.outer_lr < math.inf, f"outer_lr: expected a positive number, got {s.outer_lr}"),
        (0 <= s.outer_momentum < 1, f"outer_momentum: expected 0 to 1, got {s.outer_momentum}"),
        (0 <= s.keep_local <= 1, f"keep_local: expected 0 to 1, got {s.keep_local}"),
        (0 < s.residual_decay <= 1, f"residual_decay: expected 0 to 1, got {s.residual_decay}"),
        (s.outlier_ratio > 1, f"outlier_ratio: expected more than 1, got {s.outlier_ratio}"),
        (s.warmup_sync_steps >= 0, f"warmup_sync_steps: got {s.warmup_sync_steps}"),
        (s.graph in GOSSIP_GRAPHS, f"graph: expected one of {GOSSIP_GRAPHS}, got {s.graph!r}"),
        (
            s.codec == "none" or s.method != "gossip",
            "codec: gossip sends parameters, which no codec is for",
        ),
        (s.quorum >= 1, f"quorum: expected 1 or more, got {s.quorum}"),
        (s.momentum_every >= 1, f"momentum_every: expected 1 or more, got {s.momentum_every}"),
        (s.grace_seconds >= 0, f"grace_seconds: expected 0 or more, got {s.grace_seconds}"),
        (
            s.fragments >= 1 and s.sync_every % s.fragments == 0,
            f"fragments: expected a divisor of sync_every = {s.sync_every}, got {s.fragments}",
        ),
        (
            0 <= s.delay_steps <= period,
            f"delay_steps: expected 0 to sync_every / fragments = {period}, so that one fragment "
            f"at a time is under way, got {s.delay_steps}",
        ),
        (
            s.fragment_pattern in ("strided", "sequential"),
            f"fragment_pattern: expected strided or sequential, got {s.fragment_pattern!r}",
        ),
        (
            s.method == "streaming" or (s.fragments == 1 and s.keep_local == 0),
            "fragments, keep_local: only with method='streaming'",
        ),
        (
            s.method in ("streaming", "delayed", "eager") or s.delay_steps == 0,
            "delay_steps: only with method='streaming', 'delayed' or 'eager'",
        ),
        (
            s.method not in ("delayed", "eager") or s.delay_steps == s.sync_every,
            "delay_steps: of method='delayed' and 'eager' it is sync_every",
        ),
    ]
    checks += [
        (
            not s.codec.startswith("topk") or bool(s.error_feedback),
            "codec: a sparse one needs error_feedback=True",
        ),
    ]
    found = [complaint for is_fine, complaint in checks if not is_fine]
    try:
        encoded_bytes(s.codec, 1)  # refuses an unknown one
    except ValueError as error:
        found.append(f"codec: {error}")
    return found
