"""Flight records of several members as one story: what stood still, and who was waited for."""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "Attempt",
    "Record",
    "TraceError",
    "absent_members",
    "align",
    "read_record",
    "summarize",
]

# A file is at most 4608 lines of at most 1 KiB.
_BYTES_MAX = 32 << 20
_EVENTS_SHOWN = 40
_WITH = re.compile(r"with(?:out)? ([0-9a-f]{8})")


class TraceError(ValueError):
    """A file is no flight record; the message says which, and why."""


@dataclass
class Attempt:
    """One operation as one member ran it, from its start to how it ended."""

    group: str
    number: int
    call: str  # "all_reduce(float32, sum, 4000 bytes)"
    begin: float
    end: float | None = None
    outcome: str = "running"  # ended, failed, stopped


@dataclass
class Record:
    """What one member recorded; times in seconds of its monotonic clock plus `offset`."""

    member: str
    address: str
    run: str
    clock: str  # equal where the monotonic clocks are the same
    written: float
    unix_minus_monotonic: float
    coordinator_offset: float | None
    lost_operations: int = 0
    offset: float = 0.0
    attempts: list[Attempt] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    groups: dict[str, str] = field(default_factory=dict)  # id -> name
    rank: int | None = None
    # "killed" or "lost": it wrote none, and this is what the others saw of it.
    fate: str = ""

    def at(self, monotonic: float) -> float:
        return monotonic + self.offset

    @property
    def name(self) -> str:
        rank = "" if self.rank is None else f"rank {self.rank}, "
        return f"{rank}{self.member}{f' ({self.address})' if self.address else ''}"

    def group_name(self, group: str) -> str:
        return self.groups.get(group, group)


def read_record(path: Path) -> Record:
    """Read what `flight_record()` returned, or a member wrote to PCCL_TRACE_DIR.

    Raises:
        TraceError: it can't be read, or is no flight record of this version.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_BYTES_MAX).decode(errors="replace")
        lines = [json.loads(line) for line in text.splitlines() if line]
        header = lines[0]
        if header["flight_record"] != 1:
            raise TraceError(f"{path}: a flight record of version {header['flight_record']}")
        record = Record(
            member=str(header["member"]),
            address=str(header["address"]),
            run=str(header["run"]),
            clock=str(header["clock"]),
            written=float(header["monotonic_seconds"]),
            unix_minus_monotonic=header["unix_seconds"] - header["monotonic_seconds"],
            coordinator_offset=header.get("coordinator_clock_offset_seconds"),
            lost_operations=int(header["lost_operations"]),
        )
        _take_lines(record, lines[1:])
    except TraceError:
        raise
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise TraceError(f"{path}: no flight record ({type(error).__name__}: {error})") from None
    return record


def _take_lines(record: Record, lines: Iterable[dict[str, Any]]) -> None:
    running: dict[tuple[str, int], Attempt] = {}
    for line in lines:
        event, at = line["event"], float(line["monotonic_seconds"])
        if "operation" not in line:
            if event == "connection_lost" and "error" not in line:
                line["event"] = "connection_closed"  # politely
            record.events.append(line)
            if event == "group_made":
                record.groups[line["group"]] = line["text"]
                record.rank = int(line["number"])
            continue
        key = (line["group"], int(line["number"]))
        if event == "started":
            reduces = "reduce" in line["operation"]
            root = f", root {line['root']}" if line["root"] >= 0 else ""
            call = (
                f"{line['operation']}({line['dtype']}{', ' + line['op'] if reduces else ''}{root}, "
                f"{line['bytes']} bytes)"
            )
            running[key] = Attempt(*key, call, at)
            record.attempts.append(running[key])
        elif key in running:
            attempt = running.pop(key)
            attempt.end, attempt.outcome = at, event


def align(records: Sequence[Record]) -> str:
    """Set every record's `offset` so that their times compare; returns how that was found."""
    if len({record.clock for record in records}) == 1:
        return "all on one host: the same clock"
    if all(record.coordinator_offset is not None for record in records):
        for record in records:
            record.offset = record.coordinator_offset or 0.0
        return "clocks compared through the coordinator"
    # A collective ends everywhere within a one-way delay, so common ends tell the offset.
    first = records[0]
    ends = _ends(first)
    for record in records:
        if record.clock == first.clock:
            continue
        common = [ends[key] - end for key, end in _ends(record).items() if key in ends]
        if common:
            record.offset = statistics.median(common)
        else:
            record.offset = record.unix_minus_monotonic - first.unix_minus_monotonic
    return "clocks compared by the ends of common operations, to about a one-way delay"


def _ends(record: Record) -> dict[tuple[str, int], float]:
    return {
        (attempt.group, attempt.number): attempt.end
        for attempt in record.attempts
        if attempt.end is not None and attempt.outcome == "ended" and _is_collective(attempt)
    }


def _is_collective(attempt: Attempt) -> bool:
    return not attempt.call.startswith("send_recv")


# --- who wrote none -------------------------------------------------------------------------------


def absent_members(records: Sequence[Record]) -> list[Record]:
    """Of members that died without leaving a record, what `records`, which are aligned, saw.

    Such a member was lost to somebody, or a quorum went on without it, and it said goodbye to
    nobody. It is "killed" where its process was seen to be gone, else "lost".
    """
    present = {record.member for record in records}
    seen: dict[str, list[_Sight]] = defaultdict(list)
    for record in records:
        for event in record.events:
            for member in _named_in(event) - present:
                seen[member].append(_Sight(record.at(event["monotonic_seconds"]), record, event))
    absent = []
    for member, sights in sorted(seen.items()):
        sights.sort(key=lambda sight: sight.at)
        ends = [sight for sight in sights if _is_end(sight.event, member)]
        if ends and not any(sight.event["event"] == "connection_closed" for sight in ends):
            absent.append(_absent(member, sights, ends))
    return absent


@dataclass
class _Sight:
    """One event in which a witness saw somebody else."""

    at: float
    witness: Record
    event: dict[str, Any]


def _named_in(event: dict[str, Any]) -> set[str]:
    if event["event"] == "quorum_entered":
        return set(_WITH.findall(event["text"]))
    return {event["member"]} if "member" in event else set()


def _is_end(event: dict[str, Any], member: str) -> bool:
    is_out = event["event"] == "quorum_entered" and f"without {member}" in event["text"]
    return is_out or event["event"] in ("connection_lost", "connection_closed")


def _absent(member: str, sights: Sequence[_Sight], ends: Sequence[_Sight]) -> Record:
    # Who is first may only have heard of it from the coordinator.
    gone = [sight for sight in ends if "process is gone" in sight.event["text"]]
    # "10.0.0.7:4123: its connection was closed"
    addresses = [s.event["text"].split(": ")[0] for s in sights if "member" in s.event]
    end = ends[0]
    record = Record(
        member=member,
        address=addresses[0] if addresses else "",
        run=end.witness.run,
        clock="",
        written=end.at,
        unix_minus_monotonic=0.0,
        coordinator_offset=None,
        fate="killed" if gone else "lost",
    )
    told = {**(gone or ends)[0].event, "event": record.fate, "monotonic_seconds": end.at}
    record.events.append(
        {**sights[0].event, "event": "first_seen", "monotonic_seconds": sights[0].at}
    )
    record.events.append(told)
    return record


# --- what it says ---------------------------------------------------------------------------------


def summarize(records: Sequence[Record], how_aligned: str) -> list[str]:
    """Sentences: who is in it, the first disagreement, what stood still, what happened."""
    origin = first_time(records)
    runs = sorted({record.run for record in records})
    count = sum(not record.fate for record in records)
    lines = [
        f"{count} members of run {', '.join(runs)}; {how_aligned}; times in seconds "
        "from the first event"
    ]
    for record in records:
        if record.fate:
            lines.append(
                f"  {record.name}: no record; {record.fate} at "
                f"{record.at(record.written) - origin:.3f}, as the others saw it"
            )
            continue
        ended = sum(attempt.outcome == "ended" for attempt in record.attempts)
        lost = (
            f", {record.lost_operations} older ones overwritten" if record.lost_operations else ""
        )
        lines.append(
            f"  {record.name}: {ended} operations ended{lost}; written at "
            f"{record.at(record.written) - origin:.3f}"
        )
    lines += ["", *_disagreement(records), *_stood_still(records, origin)]
    lines += ["", "What happened:", *_story(records, origin)]
    return lines


def first_time(records: Sequence[Record]) -> float:
    times = [
        record.at(time)
        for record in records
        for time in (
            *(attempt.begin for attempt in record.attempts),
            *(event["monotonic_seconds"] for event in record.events),
        )
    ]
    return min(times, default=0.0)


def _disagreement(records: Sequence[Record]) -> list[str]:
    """The first operation that members called differently, or only some of them called."""
    calls: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    for record in records:
        for attempt in record.attempts:
            if _is_collective(attempt):
                key = (record.group_name(attempt.group), attempt.number)
                calls[key][record.name] = attempt.call
    for (group, number), told in sorted(calls.items(), key=lambda entry: entry[0][1]):
        if len(set(told.values())) > 1:
            what = "; ".join(f"{call} on {name}" for name, call in told.items())
            return [f"Members disagree first at operation {number} of {group}: {what}"]
    for (group, number), told in sorted(calls.items(), key=lambda entry: entry[0][1]):
        in_group = [
            record
            for record in records
            if group in record.groups.values()
            and (oldest := _oldest(record, group)) is not None
            and oldest <= number
        ]
        missing = [record.name for record in in_group if record.name not in told]
        if missing:
            return [
                f"Operation {number} of {group}, {next(iter(told.values()))}, was never called on "
                f"{', '.join(missing)}"
            ]
    return ["Members agree on every operation that is recorded by all of them."]


def _oldest(record: Record, group: str) -> int | None:
    numbers = [a.number for a in record.attempts if record.group_name(a.group) == group]
    return min(numbers, default=None)


def _stood_still(records: Sequence[Record], origin: float) -> list[str]:
    lines = []
    for record in records:
        waiting = {
            (event.get("group"), event["number"]): event["text"]
            for event in record.events
            if event["event"] == "running"
        }
        stuck = [a for a in record.attempts if a.outcome in ("running", "failed")]
        for attempt in stuck[:4]:
            end = record.written if attempt.end is None else attempt.end
            phase = waiting.get((attempt.group, attempt.number), "")
            lines.append(
                f"{record.name}: operation {attempt.number} of {record.group_name(attempt.group)}, "
                f"{attempt.call}, begun at {record.at(attempt.begin) - origin:.3f}, "
                f"{attempt.outcome} after {end - attempt.begin:.3f} s"
                + (f"; {phase}" if phase else "")
            )
        if len(stuck) > 4:
            lines.append(f"{record.name}: and {len(stuck) - 4} more")
    return ["", "Stood still:", *(f"  {line}" for line in lines)] if lines else []


def _story(records: Sequence[Record], origin: float) -> list[str]:
    told = sorted(
        (
            (record.at(event["monotonic_seconds"]) - origin, record, event)
            for record in records
            for event in record.events
            if event["event"] not in ("group_made", "running", "first_seen")
        ),
        key=lambda entry: entry[0],
    )
    lines = [f"  ... {len(told) - _EVENTS_SHOWN} earlier"] if len(told) > _EVENTS_SHOWN else []
    for at, record, event in told[-_EVENTS_SHOWN:]:
        about = event.get("member", "")
        number = f" {event['number']}" if event["event"].startswith(("quorum", "recovery")) else ""
        error = f" {event['error']}:" if "error" in event else ""
        lines.append(
            f"  {at:10.4f}  {record.member}  {event['event']}{number}"
            f"{' ' + about if about else ''}:{error} {event['text']}"
        )
    return lines
