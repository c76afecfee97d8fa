"""`diloco report RUN`: what the members' files say together, judged, as a table and a picture."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["MemberLog", "Merge", "Report", "make_report", "read_run", "show_report"]

_SHOWN_DIGITS = 16  # of a hash in hex
# More of one kind say nothing new.
_FAULTS_MAX = 20
_FINAL_SHARE = 0.1  # of the rounds: the last loss is their mean
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class MemberLog:
    """What one member wrote."""

    member: str
    start: Mapping[str, Any]
    inner: Sequence[Mapping[str, Any]]
    outer: Sequence[Mapping[str, Any]]
    results: Mapping[str, Any]
    left: bool  # it said so; else it died, or the run goes on

    @property
    def last_at(self) -> float:
        """When it wrote its last line."""
        rows = [self.start, *self.inner[-1:], *self.outer[-1:]]
        return max(float(row.get("at", 0.0)) for row in rows)


@dataclass(frozen=True)
class Merge:
    """One outer step, of the whole model or of a fragment, as all members saw it."""

    round: int
    fragment: int
    step: int
    seconds: float  # since the first line of the run
    loss: float  # mean over contributors, by their weights; NaN: nobody logged one
    total_tokens: int  # of the run until then
    members: int
    contributors: int
    bytes_sent: float  # since the last one, mean over members
    utilization: float  # since the last one, mean over members


@dataclass(frozen=True)
class Report:
    """What came of a run; nothing was wrong if `faults` is empty."""

    merges: Sequence[Merge]
    joins: Sequence[tuple[float, str]]  # seconds, member; those that came after the beginning
    deaths: Sequence[tuple[float, str]]
    leaves: Sequence[tuple[float, str]]
    parameters: int
    settings: Mapping[str, Any]
    utilization: float  # of all members, over all their time
    hash: str  # after the last merge
    merges_identical: int  # in which all members wrote the same hash
    results: Mapping[str, float]  # what was found at the end, mean over members
    faults: Sequence[str]

    @property
    def loss_first(self) -> float:
        """Of the first merges."""
        return _mean([found.loss for found in self.merges[: self._few]])

    @property
    def loss_last(self) -> float:
        """Of the last merges."""
        return _mean([found.loss for found in self.merges[-self._few :]])

    @property
    def _few(self) -> int:
        return max(1, int(len(self.merges) * _FINAL_SHARE))

    @property
    def bytes_sent(self) -> float:
        """By a member that was in from beginning to end, on average."""
        return sum(found.bytes_sent for found in self.merges)

    @property
    def bytes_of_ddp(self) -> float:
        """What a ring would send in as many steps: 2 (P - 1) / P of the gradient in each."""
        total, before = 0.0, 0
        for found in self.merges:
            part = 2 * (found.members - 1) / max(1, found.members)
            total += (found.step - before) * part * _FLOAT_BYTES * self.parameters
            before = found.step
        return total


def read_run(folder: Path) -> list[MemberLog]:
    """Read every member's file; a half line at the end of one is that of a killed member.

    Raises:
        ValueError: no such files, or one that is none of ours; the message names file and line.
    """
    paths = sorted(folder.glob("member-*.jsonl"))
    if not paths:
        raise ValueError(f"{folder}: no member-*.jsonl; diloco.Metrics writes them")
    return [_read_member(path) for path in paths]


def make_report(logs: Sequence[MemberLog]) -> Report:
    """Put the members' lines together and look for what must not be."""
    began = min(log.start.get("at", math.inf) for log in logs)
    told = _by_merge(logs)
    joins, deaths, leaves = _find_changes(told, logs, began)
    starts = [log.start for log in logs if log.start]
    hashes = [{row["hash"] for row in rows} for rows in told.values()]
    shares = [row["utilization"] for log in logs for row in log.outer[-1:]]
    results: dict[str, list[float]] = defaultdict(list)
    for log in logs:
        for name, value in log.results.items():
            results[name].append(math.nan if value is None else value)
    return Report(
        merges=[_merge(rows, began) for rows in told.values()],
        joins=joins,
        deaths=deaths,
        leaves=leaves,
        parameters=max((start["parameters"] for start in starts), default=0),
        settings=starts[0]["settings"] if starts else {},
        utilization=_mean(shares),
        hash=next(iter(hashes[-1])) if hashes and len(hashes[-1]) == 1 else "",
        merges_identical=sum(len(found) == 1 for found in hashes),
        results={name: _mean(values) for name, values in results.items()},
        faults=_find_faults(told, logs)[:_FAULTS_MAX],
    )


def show_report(report: Report, folder: Path, console: Console) -> None:
    """Print the table; the last line is ok or FAILED."""
    merges = report.merges
    if not merges:
        console.print(f"[bold red]FAILED[/]: no outer step was done, see {folder}")
        return
    seconds = merges[-1].seconds
    each = report.bytes_sent / len(merges)
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    lines = {
        "steps": f"{merges[-1].step:,} in {len(merges)} outer steps, {seconds:,.1f} s",
        "loss": f"{report.loss_first:.3f} to {report.loss_last:.3f}"
        + "".join(f", {name} {value:.3f}" for name, value in report.results.items()),
        "speed": f"{merges[-1].total_tokens / max(seconds, 1e-9):,.0f} tokens/s of all members, "
        f"{report.utilization:.1%} of the time computing",
        "bytes": f"{each / 1e6:.2f} MB a member and outer step, "
        f"{report.bytes_sent / 1e6:.1f} MB in all{_fewer(report)}",
        "members": f"{min(found.members for found in merges)} to "
        f"{max(found.members for found in merges)}: {len(report.deaths)} died, "
        f"{len(report.joins)} joined on the way, {len(report.leaves)} left",
        "hashes": f"equal in {report.merges_identical} of {len(merges)} outer steps, the last is "
        f"{report.hash[:_SHOWN_DIGITS] or 'not the same everywhere'}",
    }
    for name, text in lines.items():
        table.add_row(name, Text(text))
    console.print(table)
    for fault in report.faults:
        console.print(Text(f"wrong: {fault}", style="red"), soft_wrap=True)
    if report.faults:
        console.print("[bold red]FAILED[/]")
    else:
        console.print(
            f"[bold green]ok[/]: {len(merges)} outer steps, all members hold the same bytes in each"
        )


def _fewer(report: Report) -> str:
    if not report.bytes_sent or not report.bytes_of_ddp:
        return ""
    return f"; DDP: {report.bytes_of_ddp / report.bytes_sent:,.1f} times that"


def _read_member(path: Path) -> MemberLog:
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    lines = path.read_text(errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            rows[row["kind"]].append(row)
            float(row["at"])
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break
            raise ValueError(
                f"{path}:{number}: not a line of diloco.Metrics: {line[:80]}"
            ) from None
    start = rows["start"][0] if rows["start"] else {}
    member = str(start.get("member", path.stem.removeprefix("member-")))
    results = {name: row[name] for row in rows["result"] for name in row.keys() - {"at", "kind"}}
    left = bool(rows["end"])
    return MemberLog(member, start, rows["inner"], rows["outer"], results, left)


_Told = Mapping[tuple[int, int], Sequence[Mapping[str, Any]]]
"""(round, fragment) -> what each member said of that merge, in the order of the run."""


def _by_merge(logs: Sequence[MemberLog]) -> _Told:
    told: dict[tuple[int, int], list[Mapping[str, Any]]] = defaultdict(list)
    for log in logs:
        for row in log.outer:
            told[row["round"], row["fragment"]].append(row)
    return {key: told[key] for key in sorted(told, key=lambda key: (told[key][0]["step"], key))}


def _merge(rows: Sequence[Mapping[str, Any]], began: float) -> Merge:
    first = rows[0]
    pairs = [
        (first["losses"][member], weight)
        for member, weight in first["weights"].items()
        if first["losses"].get(member) is not None
    ]
    whole = sum(weight for _, weight in pairs)
    return Merge(
        round=first["round"],
        fragment=first["fragment"],
        step=first["step"],
        seconds=max(row["at"] for row in rows) - began,
        loss=sum(loss * weight for loss, weight in pairs) / whole if whole else math.nan,
        total_tokens=first["total_tokens"],
        members=len(first["members"]),
        contributors=len(first["contributors"]),
        bytes_sent=_mean([row["own_bytes_sent"] for row in rows]),
        utilization=_mean([_share(row) for row in rows]),
    )


def _share(row: Mapping[str, Any]) -> float:
    whole = row["own_compute_seconds"] + row["own_sync_seconds"]
    return float(row["own_compute_seconds"] / whole) if whole else 1.0


def _find_changes(
    told: _Told, logs: Sequence[MemberLog], began: float
) -> tuple[list[tuple[float, str]], list[tuple[float, str]], list[tuple[float, str]]]:
    """Who came after the beginning, who died and who left before the end."""
    joins = []
    for before, after in pairwise(told.values()):
        old = {name for row in before for name in row["members"]}
        new = {name for row in after for name in row["members"]} - old
        at = max(row["at"] for row in before) - began
        joins += [(at, name) for name in sorted(new)]
    last = max((row["round"] for log in logs for row in log.outer[-1:]), default=0)
    deaths: list[tuple[float, str]] = []
    leaves: list[tuple[float, str]] = []
    for log in logs:
        if not log.outer or log.outer[-1]["round"] < last:
            (leaves if log.left else deaths).append((log.last_at - began, log.member))
    return joins, sorted(deaths), sorted(leaves)


def _find_faults(told: _Told, logs: Sequence[MemberLog]) -> list[str]:
    faults = []
    numbers = sorted({number for number, _ in told})
    missing = set(range(numbers[0], numbers[-1] + 1)) - set(numbers) if numbers else set()
    faults += [f"round {number} was done by nobody" for number in sorted(missing)]
    for (number, fragment), rows in told.items():
        place = f"round {number}" + (f", fragment {fragment}" if fragment else "")
        for name in ("hash", "step", "total_tokens", "contributors"):
            values = {str(row[name]) for row in rows}
            if len(values) > 1:
                faults.append(f"{place}: the members differ in {name!r}: {sorted(values)}")
        for member, why in rows[0]["excluded"].items():
            faults.append(f"{place}: {member} was excluded: {why}")
    for log in logs:
        done = [(row["round"], row["fragment"]) for row in log.outer]
        rounds = sorted({number for number, _ in done})
        if len(done) > len(set(done)) or (rounds and rounds[-1] - rounds[0] >= len(rounds)):
            faults.append(f"member {log.member} left rounds out or did some twice")
    return faults


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
