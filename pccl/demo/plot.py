"""A demo as a picture: loss, throughput and members over time, with kills and joins marked."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pccl.demo.verdict import Verdict

__all__ = ["plot_demo"]

_LINE = "#0b6e99"
# kind of event -> color, marker, name in the legend
_MARKS = {
    "member killed": ("#c8442c", "x", "kill -9 of a member"),
    "coordinator killed": ("#7b3fb5", "X", "kill -9 of the coordinator"),
    "member in": ("#2a9d5c", "^", "a member comes in"),
}
# Throughput is that of so many seconds around; less than a recovery, more than a step.
_WINDOW_SECONDS = 1.0


def plot_demo(
    steps: Sequence[dict[str, Any]],
    events: Sequence[dict[str, Any]],
    verdict: Verdict,
    path: Path,
) -> None:
    """Draw `steps` and `events` as demo.json has them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        3, 1, figsize=(11, 7.4), sharex=True, height_ratios=[2.2, 1.4, 0.8], layout="constrained"
    )
    kills = verdict.member_kills + verdict.coordinator_kills
    end = "FAILED" if verdict.faults else f"{verdict.identical} members bit-identical at the end"
    axes[0].set_title(
        f"{verdict.steps} steps, {kills} times kill -9, {verdict.steps_lost} steps lost: {end}",
        loc="left",
        fontsize=13,
        fontweight="bold",
        pad=34,
    )
    seconds = [step["seconds"] for step in steps]
    losses = [step["loss"] for step in steps]
    axes[0].plot(seconds, losses, color=_LINE, linewidth=0.7, alpha=0.3)
    axes[0].plot(seconds, _smoothed(losses), color=_LINE, linewidth=1.8)
    axes[0].set_ylabel("loss, nats per byte")
    times, speeds = _throughput(steps)
    axes[1].fill_between(times, speeds, color=_LINE, alpha=0.15, linewidth=0)
    axes[1].plot(times, speeds, color=_LINE, linewidth=1.4)
    axes[1].set_ylabel("tokens per second")
    axes[1].yaxis.set_major_formatter(lambda value, _position: f"{value:,.0f}")
    counts = [max(map(len, step["contributors"])) for step in steps]
    axes[2].step(seconds, counts, where="post", color=_LINE, linewidth=1.4)
    axes[2].set_ylabel("members\nin a step")
    axes[2].set_yticks(range(max(counts) + 1))
    axes[2].set_xlabel("seconds since the first step")
    _draw_marks(axes, events, seconds, _smoothed(losses))
    for axis in axes:
        axis.grid(which="major", alpha=0.25, linewidth=0.7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlim(0, seconds[-1])
    for axis in axes[1:]:
        axis.set_ylim(bottom=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_marks(
    axes: Any, events: Sequence[dict[str, Any]], seconds: Sequence[float], losses: Sequence[float]
) -> None:
    for kind, (color, marker, name) in _MARKS.items():
        # The first members came in before the first step.
        found = [event["at"] for event in events if event["kind"] == kind and event["step"] > 0]
        if kind != "member in":
            for at in found:
                for axis in axes:
                    axis.axvline(at, color=color, linewidth=0.8, alpha=0.35)
        heights = [_at(at, seconds, losses) for at in found]
        axes[0].scatter(
            found, heights, color=color, marker=marker, s=46, zorder=3, label=name, clip_on=False
        )
    axes[0].legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(-0.01, 1.0))


def _at(time: float, seconds: Sequence[float], values: Sequence[float]) -> float:
    """The value of the last step before `time`."""
    before = [value for second, value in zip(seconds, values, strict=True) if second <= time]
    return before[-1] if before else values[0]


def _throughput(steps: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    count = max(2, int(steps[-1]["seconds"] / (_WINDOW_SECONDS / 4)))
    times = [index * steps[-1]["seconds"] / (count - 1) for index in range(count)]
    speeds = []
    for time in times:
        begin = max(0.0, time - _WINDOW_SECONDS / 2)
        end = min(steps[-1]["seconds"], time + _WINDOW_SECONDS / 2)
        tokens = sum(step["tokens"] for step in steps if begin < step["seconds"] <= end)
        speeds.append(tokens / max(end - begin, 1e-9))
    return times, speeds


def _smoothed(values: Sequence[float]) -> list[float]:
    """The mean around each value, over a fiftieth of all, symmetric at the ends too."""
    reach = max(1, len(values) // 100)
    found = []
    for index in range(len(values)):
        near = min(reach, index, len(values) - 1 - index)
        found.append(statistics.fmean(values[index - near : index + near + 1]))
    return found
