"""The timeline of several members' flight records as a picture: a lane each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pccl.trace import Record, first_time

__all__ = ["plot_timeline"]

_BARS = {"ended": "#0b6e99", "stopped": "#e0a639", "failed": "#c23b3b", "running": "#c23b3b"}
_BAR_NAMES = {
    "ended": "operation",
    "stopped": "stopped by a lost member, goes on in the next quorum",
    "failed": "failed, or still running at the end",
}
# event -> (marker, color, name in the legend)
_MARKS = {
    "connection_broken": ("x", "#c23b3b", "connection broken"),
    "connection_lost": ("X", "#7a0000", "connection lost"),
    "connection_resumed": ("P", "#2f8f4e", "connection resumed"),
    "socket_replaced": ("1", "#e07b39", "socket replaced"),
    "stripes_changed": ("2", "#3b6fc2", "more or fewer sockets, or another congestion control"),
    "coordinator_lost": ("s", "#7a5ba8", "coordinator lost"),
    "taken_over": ("^", "#7a5ba8", "took the coordinator's place"),
    "quorum_entered": ("D", "#2f8f4e", "quorum entered"),
    "killed": ("X", "#000000", "killed, as others saw it"),
    "lost": ("X", "#555555", "lost, as others saw it"),
    "evicted": ("v", "#7a0000", "evicted"),
    "group_broken": ("*", "#c23b3b", "group broken"),
    "operation_error": ("*", "#c23b3b", "error"),
}
_RECOVERY_COLOR = "#8bc6a0"
_WITHOUT = re.compile(r"without ([0-9a-f]{8})")
# Bars are at least this share of the picture wide, or a short operation would not be seen.
_WIDTH_MIN = 0.0015


def plot_timeline(records: Sequence[Record], how_aligned: str, path: Path) -> None:
    """Draw operations as bars, and what else happened as marks on its member's lane.

    Raises:
        ImportError: matplotlib is not installed (`pip install 'pccl-collectives[bench]'`).
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    origin = first_time(records)
    end = max(record.at(record.written) for record in records) - origin
    figure, axis = plt.subplots(figsize=(12, 2.4 + 0.85 * len(records)), layout="constrained")
    drawn: dict[str, Any] = {}
    for lane, record in enumerate(records):
        axis.axhline(lane, color="#dddddd", linewidth=0.8, zorder=0)
        if record.fate:
            _draw_absent(axis, lane, record, origin, drawn)
            continue
        _draw_operations(axis, lane, record, origin, end, drawn)
        _draw_recoveries(axis, lane, record, origin, drawn)
        _draw_events(axis, lane, record, origin, drawn)
        written = record.at(record.written) - origin
        axis.plot([written], [lane], marker="|", markersize=16, color="#555555", zorder=4)
    runs = ", ".join(sorted({record.run for record in records}))
    axis.set_title(f"run {runs}", loc="left", fontsize=13, fontweight="bold", pad=20)
    axis.text(0, 1.02, how_aligned, transform=axis.transAxes, fontsize=9, color="#555555")
    axis.set_yticks(range(len(records)), [_lane_name(record) for record in records], fontsize=9)
    axis.set_ylim(len(records) - 0.4, -0.6)
    axis.set_xlim(-0.01 * end, 1.01 * end or 1)
    axis.set_xlabel("seconds from the first event; | is where a record ends")
    axis.grid(axis="x", alpha=0.25, linewidth=0.7)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    figure.legend(
        drawn.values(), drawn.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _lane_name(record: Record) -> str:
    rank = "" if record.rank is None else f"rank {record.rank}\n"
    fate = f"\n{record.fate}, no record" if record.fate else ""
    return f"{rank}{record.member}\n{record.address}{fate}"


def _draw_absent(
    axis: Any, lane: int, record: Record, origin: float, drawn: dict[str, Any]
) -> None:
    """From when others first saw it in to when they saw it gone."""
    begin, end = (event["monotonic_seconds"] - origin for event in record.events)
    drawn["in, without a record"] = axis.broken_barh(
        [(begin, end - begin)], (lane - 0.12, 0.24), facecolor="#bbbbbb", hatch="//", zorder=1
    )
    _draw_events(axis, lane, record, origin, drawn)


def _draw_operations(
    axis: Any, lane: int, record: Record, origin: float, total: float, drawn: dict[str, Any]
) -> None:
    bars: dict[str, list[tuple[float, float]]] = {}
    for attempt in record.attempts:
        begin = record.at(attempt.begin) - origin
        end = record.at(record.written if attempt.end is None else attempt.end) - origin
        kind = "failed" if attempt.outcome == "running" else attempt.outcome
        bars.setdefault(kind, []).append((begin, max(end - begin, _WIDTH_MIN * total)))
        if attempt.outcome in ("failed", "running"):
            label = f"#{attempt.number} {attempt.call.partition('(')[0]}"
            axis.annotate(label, (begin, lane - 0.28), fontsize=8, color=_BARS[kind], va="bottom")
    for kind, spans in bars.items():
        drawn[_BAR_NAMES[kind]] = axis.broken_barh(
            spans, (lane - 0.25, 0.5), facecolor=_BARS[kind], alpha=0.75, zorder=2
        )


def _draw_recoveries(
    axis: Any, lane: int, record: Record, origin: float, drawn: dict[str, Any]
) -> None:
    begun: dict[int, float] = {}
    for event in record.events:
        at = record.at(event["monotonic_seconds"]) - origin
        if event["event"] == "recovery_begun":
            begun.setdefault(event["number"], at)
        elif event["event"] == "recovery_ended" and event["number"] in begun:
            begin = begun.pop(event["number"])
            drawn["recovery"] = axis.broken_barh(
                [(begin, at - begin)], (lane - 0.36, 0.72), facecolor=_RECOVERY_COLOR, zorder=1
            )


def _draw_events(
    axis: Any, lane: int, record: Record, origin: float, drawn: dict[str, Any]
) -> None:
    for event in record.events:
        if event["event"] not in _MARKS:
            continue
        marker, color, name = _MARKS[event["event"]]
        at = record.at(event["monotonic_seconds"]) - origin
        is_quorum = event["event"] == "quorum_entered"
        height = 0.3 if is_quorum else -0.3
        (drawn[name],) = axis.plot(
            [at],
            [lane + height],
            marker=marker,
            color=color,
            markersize=9,
            linestyle="none",
            zorder=3,
        )
        if is_quorum:
            lost = "".join(f" without {member}" for member in _WITHOUT.findall(event["text"]))
            axis.annotate(
                f"q{event['number']}{lost}", (at, lane + 0.38), fontsize=8, color=color, va="top"
            )
