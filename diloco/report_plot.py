"""A run as a picture: loss over steps, bytes and seconds, with joins and deaths marked."""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from diloco.report import Report

__all__ = ["plot_report"]

_LINE = "#0b6e99"
_GREY = "#8a8f98"
# of a report -> color, marker, name in the legend
_MARKS = {
    "deaths": ("#c8442c", "x", "a member dies"),
    "joins": ("#2a9d5c", "^", "a member joins"),
    "leaves": ("#7b3fb5", "v", "a member leaves"),
}


def plot_report(report: Report, path: Path) -> None:
    """Draw `report` into a PNG. Needs at least one merge."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        2, 3, figsize=(13, 6.6), height_ratios=[2.1, 1], layout="constrained"
    )
    merges = report.merges
    steps = [float(found.step) for found in merges]
    seconds = [found.seconds for found in merges]
    megabytes = [total / 1e6 for total in accumulate(found.bytes_sent for found in merges)]
    figure.suptitle(_title(report), x=0.01, ha="left", fontsize=13, fontweight="bold")
    losses = [found.loss for found in merges]
    smooth = _smoothed(losses)
    names = ("inner steps of the run", "MB sent by a member", "seconds")
    for index, (x, name) in enumerate(zip((steps, megabytes, seconds), names, strict=True)):
        axis = axes[0][index]
        axis.plot(x, losses, color=_LINE, linewidth=0.7, alpha=0.3)
        axis.plot(x, smooth, color=_LINE, linewidth=1.8)
        axis.set_xlabel(name)
        _draw_marks(axis, report, (seconds, x, smooth))
        axis.sharey(axes[0][0])
        axis.set_xlim(left=0)
    axes[0][0].set_ylabel("loss, mean over members")
    handles, labels = axes[0][0].get_legend_handles_labels()
    if handles:
        axes[0][0].legend(handles, labels, frameon=False, loc="upper right")
    _draw_members(axes[1][0], report, steps)
    _draw_bytes(axes[1][1], report, steps)
    _draw_time(axes[1][2], report, seconds)
    for axis in axes.flat:
        axis.grid(alpha=0.25, linewidth=0.7)
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _title(report: Report) -> str:
    merges = report.merges
    end = "FAILED" if report.faults else "the same bytes everywhere after each"
    return (
        f"{merges[-1].step:,} steps in {len(merges)} outer steps, {len(report.deaths)} deaths, "
        f"{len(report.joins)} joins: {end}"
    )


def _draw_marks(axis: Any, report: Report, curve: Sequence[Sequence[float]]) -> None:
    """Where a member came or went: by time, whatever the axis counts."""
    times, x, losses = curve
    for kind, (color, marker, name) in _MARKS.items():
        events = getattr(report, kind)
        if not events:
            continue
        places = [max(0, bisect_right(times, at) - 1) for at, _ in events]
        if kind != "joins":
            for place in places:
                axis.axvline(x[place], color=color, linewidth=0.8, alpha=0.35)
        axis.scatter(
            [x[place] for place in places],
            [losses[place] for place in places],
            color=color, marker=marker, s=46, zorder=3, label=name, clip_on=False,
        )  # fmt: skip


def _draw_members(axis: Any, report: Report, steps: Sequence[float]) -> None:
    members = [found.members for found in report.merges]
    axis.step(steps, members, where="pre", color=_GREY, linewidth=1.2, label="in")
    contributors = [found.contributors for found in report.merges]
    axis.step(steps, contributors, where="pre", color=_LINE, linewidth=1.6, label="contributed")
    axis.set_ylabel("members")
    axis.set_xlabel("inner steps of the run")
    axis.set_ylim(0, max(members) + 0.5)
    axis.set_yticks(range(max(members) + 1))
    axis.set_xlim(left=0)
    axis.legend(frameon=False, loc="lower left", fontsize=8, ncols=2)


def _draw_bytes(axis: Any, report: Report, steps: Sequence[float]) -> None:
    axis.step(
        steps, [found.bytes_sent / 1e6 for found in report.merges],
        where="pre", color=_LINE, linewidth=1.4,
    )  # fmt: skip
    axis.set_ylabel("MB sent by a member\nin an outer step")
    axis.set_xlabel("inner steps of the run")
    axis.set_ylim(bottom=0)
    axis.set_xlim(left=0)


def _draw_time(axis: Any, report: Report, seconds: Sequence[float]) -> None:
    shares = [100 * found.utilization for found in report.merges]
    axis.step(seconds, shares, where="pre", color=_LINE, linewidth=1.4)
    axis.set_ylabel("% of a round\nspent computing")
    axis.set_xlabel("seconds")
    axis.set_ylim(0, 103)
    axis.set_xlim(left=0)


def _smoothed(values: Sequence[float]) -> list[float]:
    """The mean around each value, over a fiftieth of all, symmetric at the ends too."""
    reach = len(values) // 100
    found = []
    for index in range(len(values)):
        near = min(reach, index, len(values) - 1 - index)
        found.append(statistics.fmean(values[index - near : index + near + 1]))
    return found
