"""The progress bar of the demos: so many of how many, and a line of what is going on."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["make_bar"]


def make_bar(what: str, console: Console) -> Progress:
    """A bar that counts `what`, for tasks with a field `state`; nothing where nobody looks."""
    return Progress(
        TextColumn(what),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
