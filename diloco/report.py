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

__all__ = ["MemberLog", "Report", "Round", "make_report", "read_run", "show_report"]

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
    left: bool  # it said so; else it died, or still runs

    @property
    def last_at(self) -> float:
        """When it wrote its last line."""
        rows = [self.start, *self.inner[-1:], *self.outer[-1:]]
        return max(float(row.get("at", 0.0)) for row in rows)


@dataclass(frozen=True)
class Round:
    """One outer step, as all members saw it."""

    number: int
    step: int
    seconds: float  # since the first line of the run
    loss: float  # mean over contributors, weighted by nothing
    tokens: float
    members: int
    contributors: int
    bytes_sent: float  # mean over members
    sync_seconds: float  # mean over members


@dataclass(frozen=True)
class Report:
    """What came of a run; nothing was wrong if `faults` is empty."""

    rounds: Sequence[Round]
    joins: Sequence[tuple[float, str]]  # seconds, member; those that came after the beginning
    deaths: Sequence[tuple[float, str]]
    leaves: Sequence[tuple[float, str]]
    parameters: int
    settings: Mapping[str, Any]
    utilisation: float  # of all members, over all their time
    hash: str  # after the last round
    rounds_identical: int  # in which all members that wrote a hash wrote the same one
    faults: Sequence[str]

    @property
    def loss_first(self) -> float:
        """Of the first rounds."""
        return _mean([found.loss for found in self.rounds[: self._few]])

    @property
    def loss_last(self) -> float:
        """Of the last rounds."""
        return _mean([found.loss for found in self.rounds[-self._few :]])

    @property
    def _few(self) -> int:
        return max(1, int(len(self.rounds) * _FINAL_SHARE))

    @property
    def bytes_sent(self) -> float:
        """By a member that was in from beginning to end, on average."""
        return sum(found.bytes_sent for found in self.rounds)

    @property
    def bytes_of_ddp(self) -> float:
        """What a ring would send in as many steps: 2 (P - 1) / P of the gradient in each."""
        total, before = 0.0, 0
        for found in self.rounds:
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
    told: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for log in logs:
        for row in log.outer:
            told[row["round"]].append(row)
    faults = _find_faults(told, logs)
    rounds = [_merge(number, told[number], began) for number in sorted(told)]
    joins, deaths, leaves = _find_changes(told, logs, began)
    starts = [log.start for log in logs if log.start]
    syncs = [(log.outer[-1]["utilisation"], log.outer[-1]["seconds"]) for log in logs if log.outer]
    whole = sum(seconds for _, seconds in syncs)
    hashes = {n: {row["hash"] for row in rows if row["hash"]} for n, rows in told.items()}
    last = hashes[max(hashes)] if hashes else set()
    return Report(
        rounds=rounds,
        joins=joins,
        deaths=deaths,
        leaves=leaves,
        parameters=max((start["parameters"] for start in starts), default=0),
        settings=starts[0]["settings"] if starts else {},
        utilisation=sum(part * seconds for part, seconds in syncs) / max(whole, 1e-9),
        hash=next(iter(last)) if len(last) == 1 else "",
        rounds_identical=sum(len(found) == 1 for found in hashes.values()),
        faults=faults[:_FAULTS_MAX],
    )


def show_report(report: Report, folder: Path, console: Console) -> None:
    """Print the table; the last line is ok or FAILED."""
    rounds = report.rounds
    if not rounds:
        console.print(f"[bold red]FAILED[/]: no outer step was done, see {folder}")
        return
    seconds = rounds[-1].seconds
    tokens = sum(found.tokens for found in rounds)
    per_round = report.bytes_sent / len(rounds)
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    lines = {
        "steps": f"{rounds[-1].step:,} in {len(rounds)} outer steps, {seconds:,.1f} s",
        "loss": f"{report.loss_first:.3f} to {report.loss_last:.3f}",
        "speed": f"{tokens / max(seconds, 1e-9):,.0f} tokens/s of all members, "
        f"{report.utilisation:.1%} of the time computing",
        "bytes": f"{per_round / 1e6:.2f} MB a member and outer step, "
        f"{report.bytes_sent / 1e6:.1f} MB in all{_fewer(report)}",
        "members": f"{min(found.members for found in rounds)} to "
        f"{max(found.members for found in rounds)}: {len(report.deaths)} died, "
        f"{len(report.joins)} joined on the way, {len(report.leaves)} left",
        "hashes": f"equal in {report.rounds_identical} of {len(rounds)} outer steps, the last is "
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
            f"[bold green]ok[/]: {len(rounds)} outer steps, all members hold the same bytes in each"
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
    member = path.stem.removeprefix("member-")
    return MemberLog(member, start, rows["inner"], rows["outer"], bool(rows["end"]))


def _merge(number: int, rows: Sequence[Mapping[str, Any]], began: float) -> Round:
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    return Round(
        number=number,
        step=rows[0]["step"],
        seconds=max(row["at"] for row in rows) - began,
        loss=_mean(losses),
        tokens=rows[0]["tokens"],
        members=max(len(row["members"]) for row in rows),
        contributors=len(rows[0]["contributors"]),
        bytes_sent=_mean([row["bytes_sent"] for row in rows]),
        sync_seconds=_mean([row["sync_seconds"] for row in rows]),
    )


def _find_changes(
    told: Mapping[int, Sequence[Mapping[str, Any]]], logs: Sequence[MemberLog], began: float
) -> tuple[list[tuple[float, str]], list[tuple[float, str]], list[tuple[float, str]]]:
    """Who came after the beginning, who died and who left before the end."""
    numbers = sorted(told)
    joins = []
    for before, after in pairwise(numbers):
        old = {name for row in told[before] for name in row["members"]}
        new = {name for row in told[after] for name in row["members"]} - old
        at = max(row["at"] for row in told[before]) - began
        joins += [(at, name) for name in sorted(new)]
    last = numbers[-1] if numbers else 0
    deaths, leaves = [], []
    for log in logs:
        if not log.left:
            deaths.append((log.last_at - began, log.member))
        elif not log.outer or log.outer[-1]["round"] < last:
            leaves.append((log.last_at - began, log.member))
    return joins, sorted(deaths), sorted(leaves)


def _find_faults(
    told: Mapping[int, Sequence[Mapping[str, Any]]], logs: Sequence[MemberLog]
) -> list[str]:
    faults = []
    for number in range(1, max(told, default=0) + 1):
        rows = told.get(number, [])
        if not rows:
            faults.append(f"round {number} was done by nobody")
        for name in ("hash", "step", "tokens", "contributors"):
            values = {str(row[name]) for row in rows}
            if len(values) > 1:
                faults.append(f"round {number}: the members differ in {name!r}: {sorted(values)}")
        for row in rows:
            for member, why in (row.get("excluded") or {}).items():
                faults.append(f"round {number}: {member} was excluded: {why}")
    for log in logs:
        rounds = [row["round"] for row in log.outer]
        if any(after != before + 1 for before, after in pairwise(rounds)):
            faults.append(f"member {log.member} left rounds out or did some twice")
    return list(dict.fromkeys(faults))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
