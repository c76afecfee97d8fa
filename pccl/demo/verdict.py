"""What a demo's members said, judged: was every step done once, by everybody, with the same bytes?

Pure functions of what was recorded, so that each fault can be planted in a test.
"""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

__all__ = ["Event", "Record", "Verdict", "judge"]

# More of one kind say nothing new.
_FAULTS_MAX = 20


@dataclass(frozen=True)
class Event:
    """Something that happened to a process."""

    at: float  # seconds, by the clock of the members' lines
    kind: str  # "member killed", "coordinator killed", "member in", "coordinator back"
    number: int  # of the member; 0: the coordinator
    member_id: str = ""
    step: int = 0  # the last one that anybody had done


@dataclass(frozen=True)
class Record:
    """What one member process said."""

    number: int
    member_id: str
    was_killed: bool
    steps: Sequence[dict[str, Any]]  # as examples/demo_member.py says them
    digest: str  # of its state at its end; "": it had none


@dataclass(frozen=True)
class Verdict:
    """What came of it; nothing was wrong if `faults` is empty."""

    steps: int
    steps_lost: int
    member_kills: int
    coordinator_kills: int
    identical: int  # of the members that were alive at the end
    alive: int
    digest: str
    recovery_seconds: Sequence[float]  # from each kill of a member to the next step without it
    pause_seconds: Sequence[float]  # longest between two steps while each coordinator was away
    loss_first: float
    loss_last: float
    faults: Sequence[str]

    @property
    def recovery_median(self) -> float:
        return statistics.median(self.recovery_seconds) if self.recovery_seconds else 0.0

    @property
    def recovery_p99(self) -> float:
        ordered = sorted(self.recovery_seconds)
        return ordered[-1 - len(ordered) // 100] if ordered else 0.0

    @property
    def pause_max(self) -> float:
        return max(self.pause_seconds, default=0.0)


def judge(records: Sequence[Record], events: Sequence[Event]) -> Verdict:
    """Compare what all members said of each step, and what they ended with.

    A step's update is in the model if the state after it is the one before the next step, at every
    member. So one chain of digests, with each number once, shows that no update is missing, none
    was made twice, and nobody went another way.
    """
    by_step: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        for said in record.steps:
            by_step[said["step"]].append({**said, "member_id": record.member_id})
    last = max(by_step, default=0)
    lost, faults = _find_step_faults(by_step, last)
    for record in records:
        numbers = [said["step"] for said in record.steps]
        if any(after != before + 1 for before, after in pairwise(numbers)):
            faults.append(f"member {record.number} left steps out or did some twice")
    alive = [record for record in records if not record.was_killed]
    digests = [record.digest for record in alive]
    common = max(set(digests), key=digests.count) if digests else ""
    identical = digests.count(common) if common else 0
    if not alive or identical < len(alive):
        faults.append(f"{identical} of {len(alive)} members ended with the same bytes")
    if last and by_step[last][0]["after"] != common:
        faults.append("the members ended with other bytes than those of the last step")
    done_at = {step: min(said["at"] for said in found) for step, found in by_step.items()}
    in_turn = sorted((said for found in by_step.values() for said in found), key=_said_at)
    recoveries, pauses = [], []
    for event in events:
        if event.kind == "member killed":
            seconds = _recovery_seconds(event, in_turn)
            if seconds is None:
                faults.append(f"no step was done without member {event.number} after its death")
            else:
                recoveries.append(seconds)
        elif event.kind == "coordinator killed":
            pauses.append(_pause_seconds(event, events, sorted(done_at.values())))
    losses = [by_step[step][0]["loss"] for step in sorted(by_step)]
    few = max(1, len(losses) // 20)
    return Verdict(
        steps=last,
        steps_lost=lost,
        member_kills=sum(event.kind == "member killed" for event in events),
        coordinator_kills=len(pauses),
        identical=identical,
        alive=len(alive),
        digest=common,
        recovery_seconds=recoveries,
        pause_seconds=pauses,
        loss_first=statistics.fmean(losses[:few]) if losses else 0.0,
        loss_last=statistics.fmean(losses[-few:]) if losses else 0.0,
        faults=faults[:_FAULTS_MAX],
    )


def _find_step_faults(by_step: dict[int, list[dict[str, Any]]], last: int) -> tuple[int, list[str]]:
    """How many steps' updates are not in the final model, as far as it can be seen; and what is."""
    faults: list[str] = []
    lost = 0
    before = ""
    for step in range(1, last + 1):
        found = by_step.get(step, [])
        if not found:
            lost += 1
            before = ""
            faults.append(f"step {step} was done by nobody")
            continue
        for key in ("before", "after", "contributors", "loss"):
            if any(said[key] != found[0][key] for said in found):
                faults.append(f"step {step}: the members differ in {key!r}")
        if before and any(said["before"] != before for said in found):
            lost += 1
            faults.append(f"step {step} began with other bytes than step {step - 1} ended with")
        before = found[0]["after"]
        everybody = {name for names in found[0]["contributors"] for name in names}
        for said in found:
            if said["member_id"] not in everybody:
                faults.append(f"step {step}: the gradient of {said['member_id']} is missing")
    return lost, faults


def _said_at(said: dict[str, Any]) -> float:
    return float(said["at"])


def _recovery_seconds(event: Event, in_turn: Sequence[dict[str, Any]]) -> float | None:
    for index in range(bisect_right(in_turn, event.at, key=_said_at), len(in_turn)):
        said = in_turn[index]
        if all(event.member_id not in names for names in said["contributors"]):
            return _said_at(said) - event.at
    return None


def _pause_seconds(killed: Event, events: Sequence[Event], done: Sequence[float]) -> float:
    back = [e.at for e in events if e.kind == "coordinator back" and e.at > killed.at]
    until = min(back, default=done[-1] if done else killed.at)
    gaps = [end - begin for begin, end in pairwise(done) if end > killed.at and begin < until]
    return max(gaps, default=0.0)
