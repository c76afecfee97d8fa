"""What a member knows of the last merge."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from diloco.merge import Outcome

__all__ = ["SyncInfo"]


@dataclass(frozen=True)
class SyncInfo:
    """One merge. All members have the same values, except where "own" is said."""

    round: int  # its index
    step: int  # the run's inner steps until then
    fragment: int  # that was merged
    hash: str  # SHA-256 of the fragment's theta and outer state; of gossip: own
    members: tuple[str, ...]  # that took part
    contributors: tuple[str, ...]  # whose contribution has a weight
    weights: dict[str, float]  # member -> share of the merge, they sum up to 1
    excluded: dict[str, str]  # member -> why
    tokens: int  # of the merge, over the contributors
    samples: int
    total_tokens: int  # of the run
    losses: dict[str, float] = field(default_factory=dict)  # member -> mean of what it logged
    own: str = ""  # this member's name
    own_loss: float = float("nan")
    own_steps: int = 0
    own_tokens: int = 0
    own_bytes_sent: int = 0  # since the merge before
    own_compute_seconds: float = 0.0  # between the syncs
    own_wait_seconds: float = 0.0  # for the others
    own_reduce_seconds: float = 0.0
    own_sync_seconds: float = 0.0  # all of it, as long as the training stood still
    # Of gossip: own distance from the neighbours' mean, relative to own norm; the graph's spectral
    # gap (1: all agree after a period); neighbours that did not send.
    own_disagreement: float = 0.0
    spectral_gap: float = 1.0
    own_missing: tuple[str, ...] = ()

    @property
    def utilization(self) -> float:
        """Own part of the time in which the training did not stand still."""
        whole = self.own_compute_seconds + self.own_sync_seconds
        return self.own_compute_seconds / whole if whole else 1.0


def make_info(outcome: Outcome, **values: Any) -> SyncInfo:
    """What follows from the merge itself, and `values`."""
    total = outcome.verdict.total
    weights = {
        member: weight / total
        for member, weight in zip(outcome.members, outcome.verdict.weights, strict=True)
        if weight > 0
    }
    contribution = outcome.contribution
    return SyncInfo(
        members=outcome.members,
        contributors=outcome.contributors,
        weights=weights,
        excluded=outcome.verdict.excluded,
        tokens=outcome.sum_of("tokens"),
        samples=outcome.sum_of("samples"),
        losses=dict(zip(outcome.members, outcome.reports["loss"].tolist(), strict=True)),
        own=outcome.members[outcome.own],
        own_loss=contribution.loss,
        own_steps=contribution.steps,
        own_tokens=contribution.tokens,
        own_compute_seconds=contribution.compute_seconds,
        own_wait_seconds=outcome.wait_seconds,
        own_reduce_seconds=outcome.reduce_seconds,
        own_sync_seconds=contribution.sync_seconds,
        **values,
    )
