"""Bus bandwidth over size as a picture; with two backends also how they compare."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pccl.bench.options import format_bytes
from pccl.bench.result import Row, Spread, spread

__all__ = ["plot_rows"]

_COLORS = ("#0b6e99", "#e07b39", "#2a9d5c", "#8a4f9e", "#777777", "#b8442c")
_TICKS_MAX = 14  # sizes named on the axis; with more, every second or third is
_PLACEMENT = "in_place"


def plot_rows(rows: Sequence[Row], title: str, subtitle: str, path: Path) -> None:
    """Draw busbw over size, on logarithmic axes; with two backends the paired ratio below it.

    In place where the collective has it: torch.distributed's own way; out of place otherwise.

    Raises:
        ValueError: no rows with a size (a barrier has none).
        ImportError: matplotlib is not installed (`pip install 'pccl-collectives[bench]'`).
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in rows if row.bytes > 0]
    if not rows:
        raise ValueError("plot: nothing to draw, a barrier has no size")
    first_backend = next(iter(rows[0].backends.values()))
    placement = _PLACEMENT if _PLACEMENT in first_backend else "out_of_place"
    ratios = [ratio for row in rows if (ratio := row.ratios(placement)) is not None]
    panels = 2 if ratios else 1
    figure, axes = plt.subplots(
        panels,
        1,
        figsize=(9, 4.2 + 2.1 * (panels - 1)),
        sharex=True,
        squeeze=False,
        height_ratios=[2.2, 1][:panels],
        layout="constrained",
    )
    upper = axes[0][0]
    upper.set_title(title, loc="left", fontsize=13, fontweight="bold", pad=36)
    first = rows[0]
    kind = "" if first.op == "none" else f", {first.op}"
    shown = f"{first.dtype}{kind}, {placement.replace('_', ' ')}: median, shaded p10 to p90"
    upper.text(
        0, 1.03, f"{subtitle}\n{shown}", transform=upper.transAxes, fontsize=9, color="#555555"
    )
    x = [row.bytes for row in rows]
    for color, backend in zip(_COLORS, rows[0].backends, strict=False):
        measured = [row.backends[backend][placement] for row in rows]
        times = [spread(measurement.seconds) for measurement in measured]
        y = [measurement.bus_bandwidth for measurement in measured]
        # A slow repetition (p90 of the time) is a low bandwidth.
        low = [value * time.p50 / time.p90 for value, time in zip(y, times, strict=True)]
        high = [value * time.p50 / time.p10 for value, time in zip(y, times, strict=True)]
        upper.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        upper.plot(x, y, color=color, marker="o", markersize=4, linewidth=1.8, label=backend)
    upper.set_xscale("log", base=2)
    upper.set_yscale("log")
    upper.yaxis.set_major_formatter(lambda value, _position: _speed(value))
    upper.set_ylabel("bus bandwidth")
    if len(rows[0].backends) > 1:
        upper.legend(frameon=False, loc="lower right")
    if ratios:
        _draw_ratios(axes[1][0], x, ratios, list(rows[0].backends))
    bottom = axes[-1][0]
    named = x[:: -(-len(x) // _TICKS_MAX)]
    bottom.set_xticks(named, [format_bytes(size) for size in named])
    bottom.tick_params(axis="x", which="minor", bottom=False)
    bottom.set_xlabel("size in bytes")
    for (axis,) in axes:
        axis.grid(which="major", alpha=0.25, linewidth=0.7)
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _speed(gigabytes: float) -> str:
    for unit, factor in (("GB/s", 1.0), ("MB/s", 1e3)):
        if gigabytes * factor >= 0.999:
            return f"{gigabytes * factor:g} {unit}"
    return f"{gigabytes * 1e6:g} KB/s"


def _draw_ratios(axis: Any, x: list[int], ratios: list[Spread], names: list[str]) -> None:
    middle = [ratio.p50 for ratio in ratios]
    low, high = [ratio.p10 for ratio in ratios], [ratio.p90 for ratio in ratios]
    axis.fill_between(x, low, high, color=_COLORS[0], alpha=0.15, linewidth=0)
    axis.plot(x, middle, color=_COLORS[0], marker="o", markersize=4, linewidth=1.8)
    axis.axhline(1, color=_COLORS[1], linewidth=1.2)
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(lambda value, _position: f"{value:g}x")
    axis.set_ylabel(f"time of {names[1]} /\ntime of {names[0]}")
    for size, ratio in zip(x, middle, strict=True):
        axis.annotate(
            f"{ratio:.1f}",
            (size, ratio),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color="#333333",
        )
    axis.margins(y=0.2)
