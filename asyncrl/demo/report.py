"""What a demo leaves: the last lines on the terminal, demo.json and demo.png."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asyncrl.demo.verdict import DemoRecord, DemoVerdict

__all__ = ["show_verdict", "write_report"]


def write_report(folder: Path, record: DemoRecord, verdict: DemoVerdict) -> None:
    """Write demo.json, and demo.png if there was a step."""
    document = {"verdict": asdict(verdict), **asdict(record)}
    (folder / "demo.json").write_text(json.dumps(document, indent=1) + "\n")
    if record.trainer_steps:
        from asyncrl.demo.plot import plot_demo

        plot_demo(record, folder / "demo.png")


def show_verdict(verdict: DemoVerdict, folder: Path, console: Console) -> None:
    """Print who got what, and what came of it; the last line is ok or FAILED."""
    table = Table(box=None, pad_edge=False)
    for name in ("", "accepted", "refused", "units", "stake", "claimable", "pending", "why"):
        table.add_column(name, justify="left" if name in ("", "why") else "right")
    for name, account in sorted(verdict.accounts.items()):
        files = account["files"]
        counts = (files.get("accepted", 0), files.get("refused", 0))
        coins = [account[key] for key in ("units", "stake", "claimable", "pending")]
        reason = Text(account["ban_reason"].partition(":")[0], style="red")
        table.add_row(name, *map(str, (*counts, *coins)), reason)
    console.print(table)
    first, last = verdict.accuracy_first, verdict.accuracy_last
    if first and last:
        for name in ("greedy", "sampled"):
            console.print(f"held-out words right, {name}: {first[name]:.3f} to {last[name]:.3f}")
    console.print(f"trainers waited {100 * verdict.wait_share:.0f} % of their time for rollouts")
    console.print(f"report: {folder}: demo.png, demo.json", soft_wrap=True)
    for fault in verdict.faults:
        console.print(Text(f"wrong: {fault}", style="red"), soft_wrap=True)
    console.print("[bold red]FAILED[/]" if verdict.faults else "[bold green]ok[/]")
