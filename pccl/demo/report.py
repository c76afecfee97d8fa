"""What a demo leaves: the last lines on the terminal, demo.json and demo.png."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from pccl.demo.verdict import Event, Record, Verdict

__all__ = ["show_verdict", "write_report"]

_SHOWN_DIGITS = 16  # of a sha256 in hex


def write_report(
    folder: Path,
    options: Mapping[str, Any],
    verdict: Verdict,
    records: Sequence[Record],
    events: Sequence[Event],
) -> None:
    """Write demo.json, and demo.png if there was a step; times count from the first step."""
    done: dict[int, dict[str, Any]] = {}
    for record in records:
        for said in record.steps:
            if said["at"] < done.get(said["step"], {"at": float("inf")})["at"]:
                done[said["step"]] = said
    begin = min((said["at"] for said in done.values()), default=0.0)
    steps = [
        {
            "step": step,
            "seconds": done[step]["at"] - begin,
            "loss": done[step]["loss"],
            "quorum": done[step]["quorum"],
            "contributors": done[step]["contributors"],
            "tokens": done[step]["tokens"] * max(map(len, done[step]["contributors"])),
            "state": done[step]["after"],
        }
        for step in sorted(done)
    ]
    happened = [{**asdict(event), "at": event.at - begin} for event in events]
    document = {
        "options": {name: str(value) for name, value in options.items()},
        "verdict": {
            **asdict(verdict),
            "recovery_seconds_median": verdict.recovery_median,
            "recovery_seconds_p99": verdict.recovery_p99,
        },
        "events": happened,
        "steps": steps,
    }
    (folder / "demo.json").write_text(json.dumps(document, indent=1) + "\n")
    if steps:
        from pccl.demo.plot import plot_demo

        plot_demo(steps, happened, verdict, folder / "demo.png")


def show_verdict(verdict: Verdict, folder: Path, console: Console) -> None:
    """Print what came of it; the last line is ok or FAILED."""
    kills = verdict.member_kills + verdict.coordinator_kills
    lines = {
        "steps": f"{verdict.steps}, each done once; {verdict.steps_lost} lost; loss "
        f"{verdict.loss_first:.2f} to {verdict.loss_last:.2f}",
        "kills": f"{kills} by kill -9: {verdict.member_kills} of members, "
        f"{verdict.coordinator_kills} of the coordinator",
        "recovery": f"median {verdict.recovery_median:.2f} s, p99 {verdict.recovery_p99:.2f} s "
        "from the death of a member to the next step without it",
        "away": f"{verdict.pause_max:.2f} s at most between two steps while the coordinator was "
        "away",
        "models": f"{verdict.identical} of {verdict.alive} members bit-identical, "
        f"sha256 {verdict.digest[:_SHOWN_DIGITS]}...",
        "report": f"{folder}: demo.png, demo.json",
    }
    if verdict.faults:
        lines["steps"] = f"{verdict.steps}; {verdict.steps_lost} lost"
    for name, text in lines.items():
        console.print(f"[bold]{name:<9}[/]", Text(text), soft_wrap=True)
    for fault in verdict.faults:
        console.print(Text(f"wrong: {fault}", style="red"), soft_wrap=True)
    if verdict.faults:
        console.print("[bold red]FAILED[/]")
    else:
        console.print(f"[bold green]ok[/]: {kills} kills survived, 0 steps lost")
