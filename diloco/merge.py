"""The merge of a round: who contributes how much, who is left out and why, and the average.

Members first tell each other a few numbers of their contributions (`Report`). What follows from
them is computed alike at every member (`judge`), and then one all_reduce makes the average.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from diloco.members import Members
from diloco.settings import Settings

__all__ = ["Contribution", "Outcome", "Verdict", "judge"]

Reports = npt.NDArray[Any]  # [members], of _REPORT

_REPORT = np.dtype(
    [
        ("member", "S24"),
        ("round", "<i8"),
        ("tokens", "<i8"),
        ("samples", "<i8"),
        ("steps", "<i8"),
        ("norm", "<f8"),
        ("bad", "<i8"),  # elements that are NaN or infinite
        ("rate", "<f8"),  # steps a second
        ("loss", "<f8"),
        ("flags", "<i8"),  # of asynchronous merges
        ("digest", "V16"),  # of theta and the outer optimizer's state before the merge
    ]
)

# An outlier is one among others: fewer contributions have no median to speak of.
_OUTLIER_MEMBERS_MIN = 3


@dataclass
class Contribution:
    """What this member did since it last contributed."""

    tokens: int = 0
    samples: int = 0
    steps: int = 0
    compute_seconds: float = 0.0
    sync_seconds: float = 0.0
    loss: float = math.nan
    norm: float = 0.0  # of the pseudo-gradient
    bad: int = 0  # elements of it that are NaN or infinite

    @property
    def rate(self) -> float:
        return self.steps / self.compute_seconds if self.compute_seconds > 0 else 0.0


@dataclass(frozen=True)
class Verdict:
    """What all members conclude from the reports."""

    weights: tuple[float, ...]  # by rank; the largest is 1, who is left out has 0
    scales: tuple[float, ...]  # by rank: the contribution is multiplied by it
    excluded: dict[str, str]  # member -> why

    @property
    def total(self) -> float:
        return math.fsum(self.weights)


@dataclass
class Outcome:
    """A merge as this member saw it; equal at all members, except the seconds."""

    reports: Reports
    verdict: Verdict
    own: int  # this member's place in the reports
    wait_seconds: float = 0.0  # until all had reported
    reduce_seconds: float = 0.0
    contribution: Contribution = field(default_factory=Contribution)  # of this member

    @property
    def weight(self) -> float:
        """Of this member."""
        return self.verdict.weights[self.own]

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(report["member"].decode() for report in self.reports)

    @property
    def contributors(self) -> tuple[str, ...]:
        pairs = zip(self.members, self.verdict.weights, strict=True)
        return tuple(member for member, weight in pairs if weight > 0)

    def sum_of(self, name: str) -> int:
        """Over those that contributed."""
        pairs = zip(self.reports[name], self.verdict.weights, strict=True)
        return sum(int(value) for value, weight in pairs if weight > 0)


def judge(reports: Reports, settings: Settings) -> Verdict:
    """Weigh the contributions; leave out what is not finite, and outliers.

    A member that did no steps weighs 0 and is not excluded. Outliers are contributions with more
    than `outlier_ratio` times the median norm of all (of three or more). `clip_to_median` scales
    the larger ones down to the median norm.

    Source of clipping: Covenant-72B, arXiv 2603.08163.
    """
    weights = [_raw_weight(report, settings.weights) for report in reports]
    scales = [1.0] * len(weights)
    excluded: dict[str, str] = {}
    names = [report["member"].decode() for report in reports]
    for rank, report in enumerate(reports):
        if report["steps"] > 0 and (report["bad"] or not math.isfinite(report["norm"])):
            weights[rank] = 0.0
            excluded[names[rank]] = f"{int(report['bad'])} elements are NaN or infinite"
    norms = [float(report["norm"]) for report in reports]
    present = [norms[rank] for rank in range(len(weights)) if weights[rank] > 0]
    median = float(np.median(present)) if present else 0.0
    if len(present) >= _OUTLIER_MEMBERS_MIN:
        for rank, norm in enumerate(norms):
            if weights[rank] > 0 and norm > settings.outlier_ratio * median:
                weights[rank] = 0.0
                excluded[names[rank]] = (
                    f"its norm of {norm:.3g} is {norm / median if median else math.inf:.3g} times "
                    f"the median, at most {settings.outlier_ratio:g} are taken"
                )
    if settings.clip_to_median:
        scales = [median / norm if norm > median else 1.0 for norm in norms]
    largest = max(weights, default=0.0)
    shares = tuple(weight / largest if largest else 0.0 for weight in weights)
    return Verdict(shares, tuple(scales), excluded)


def _raw_weight(report: Any, rule: str) -> float:
    steps = int(report["steps"])
    if steps == 0:
        return 0.0
    # Nobody counted: a step is a step.
    tokens, samples = int(report["tokens"]) or steps, int(report["samples"]) or steps
    return {
        "tokens": float(tokens),
        "samples": float(samples),
        "steps": float(steps),
        "equal": 1.0,
        "tokens_by_rate": tokens * (tokens / steps),
    }[rule]


def make_report(name: str, contribution: Contribution, round_index: int, digest: str) -> Reports:
    report = np.zeros(1, _REPORT)
    report["member"] = name.encode()
    report["round"] = round_index
    report["digest"] = np.void(bytes.fromhex(digest[:32]).ljust(16, b"\0"))
    for key in ("tokens", "samples", "steps", "norm", "bad", "rate", "loss"):
        report[key] = getattr(contribution, key)
    return report


def exchange(members: Members, report: Reports) -> tuple[Reports, int]:
    """Everybody's report, and the place of this member's among them."""
    rows = members.gather(np.ascontiguousarray(report).view(np.uint8))
    reports = np.ascontiguousarray(rows).view(_REPORT).reshape(-1)
    own = [index for index, other in enumerate(reports) if other["member"] == report["member"][0]]
    assert len(own) == 1, f"{report['member'][0]!r} reports {len(own)} times"
    return reports, own[0]


def merge(
    members: Members,
    settings: Settings,
    report: Reports,
    flat: Tensor,
    average: Callable[[Outcome], None],
) -> Outcome:
    """Average `flat` over the members, in place, by the weights that follow from all reports.

    `average` does it, once `flat` holds what this member contributes. Where nobody contributes,
    `flat` becomes zeros and nothing is sent but the reports.
    """
    begin = time.monotonic()
    reports, own = exchange(members, report)
    verdict = judge(reports, settings)
    outcome = Outcome(reports, verdict, own, wait_seconds=time.monotonic() - begin)
    if outcome.weight == 0:
        flat.zero_()
    elif verdict.scales[own] != 1:
        flat.mul_(verdict.scales[own])
    if verdict.total > 0:
        begin = time.monotonic()
        average(outcome)
        outcome.reduce_seconds = time.monotonic() - begin
    return outcome
