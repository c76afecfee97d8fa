"""A plan as a picture: the map of links, where it is full, and its largest trees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pccl.plan_tables import Comparison, name_of
from pccl.topology import Network

__all__ = ["plot_plan"]

_BOTTLENECK = "#c23b3b"
_MEMBER = "#20303c"
_TREES_MAX = 6


def plot_plan(
    comparison: Comparison,
    unit: str,
    per_unit: float,
    path: Path,
    unmeasured: frozenset[tuple[int, int]] = frozenset(),
) -> None:
    """Draw the quickest plan of `comparison` to a file (.svg or .png); `unmeasured` links dashed.

    Raises:
        ImportError: matplotlib is not installed (`pip install 'pccl-collectives[bench]'`).
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    network, plan = comparison.network, comparison.plans[0]
    places = _places(network)
    figure = plt.figure(figsize=(15, 8.2), layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=[1.05, 1])
    left, right = halves
    _draw_map(left, comparison, places, (unit, per_unit), unmeasured)
    trees = sorted(plan.chunks, key=lambda chunk: -chunk["count"])
    total = sum(chunk["count"] for chunk in trees) or 1
    axes = right.subplots(3, 2).ravel()
    colors = matplotlib.colormaps["tab10"]
    for index, axis in enumerate(axes):
        axis.axis("off")
        axis.set_aspect("equal")
        axis.margins(0.16)
        if index < min(len(trees), _TREES_MAX):
            share = trees[index]["count"] / total
            _draw_tree(axis, network, trees[index], share, places, colors(index))
    shown = sum(chunk["count"] for chunk in trees[:_TREES_MAX]) / total
    right.suptitle(
        f"the largest {min(len(trees), _TREES_MAX)} of {len(trees)} trees: {shown:.0%} of the bytes"
        "\nsolid: results down; dotted: contributions up",
        fontsize=10,
    )
    fraction = plan.bytes_per_second / comparison.bound
    figure.suptitle(
        f"{comparison.graph}: {plan.algorithm}, {plan.bytes_count:,} bytes in "
        f"{plan.seconds:.4g} s, {plan.bytes_per_second / per_unit:.4g} {unit}, "
        f"{fraction:.0%} of the bound"
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _places(network: Network) -> Any:
    """[rank, 2]: by latency, as on a map (classical scaling), else on a circle."""
    size = network.world_size
    angles = np.pi / 2 - 2 * np.pi * np.arange(size) / size
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    distances = (network.latencies + network.latencies.T) / 2
    np.fill_diagonal(distances, 0)
    if size < 4 or not distances.any():
        return circle
    center = np.eye(size) - 1 / size
    values, vectors = np.linalg.eigh(-0.5 * center @ distances**2 @ center)
    places = vectors[:, -2:] * np.sqrt(np.maximum(values[-2:], 0))
    places = places / max(np.abs(places).max(), 1e-12)
    return _spread(places)


def _spread(places: Any) -> Any:
    """Push apart those that would lie on each other; the seedless order keeps pictures alike."""
    least = 0.5 / np.sqrt(len(places))
    places = places + 1e-3 * np.stack([np.cos(range(len(places))), np.sin(range(len(places)))], 1)
    for _ in range(200):
        gaps = places[:, None] - places[None, :]
        lengths = np.linalg.norm(gaps, axis=2) + np.eye(len(places))
        push = np.maximum(least - lengths, 0) * (1 - np.eye(len(places)))
        places = places + (gaps / lengths[..., None] * push[..., None]).sum(axis=1) / 2
    return places


def _draw_map(
    figure: Any,
    comparison: Comparison,
    places: Any,
    scale: tuple[str, float],
    unmeasured: frozenset[tuple[int, int]],
) -> None:
    import matplotlib
    from matplotlib.colors import LogNorm

    network, plan, (unit, per_unit) = comparison.network, comparison.plans[0], scale

    axis = figure.subplots()
    axis.axis("off")
    axis.set_aspect("equal")
    axis.margins(0.12)
    rates = {edge: network.rates[edge] / per_unit for edge in network.edges}
    norm = LogNorm(min(rates.values()) * 0.999, max(rates.values()) * 1.001)
    colors = matplotlib.colormaps["viridis"]
    for edge, rate in rates.items():
        width = 0.6 + 2.2 * float(norm(rate))
        style = ":" if edge in unmeasured else "-"
        color = colors(norm(rate))
        _arrow(axis, places, edge, color=color, width=width, alpha=0.75, style=style)
    bottleneck = plan.bottleneck
    if len(bottleneck) == 3:
        _arrow(axis, places, bottleneck[1:], color=_BOTTLENECK, width=4.5, alpha=1)
    for rank, name in enumerate(network.names):
        is_full = len(bottleneck) == 2 and bottleneck[1] == rank
        axis.scatter(*places[rank], s=190, color=_BOTTLENECK if is_full else _MEMBER, zorder=5)
        axis.annotate(str(rank), places[rank], color="white", ha="center", va="center", zorder=6)
        axis.annotate(
            name,
            places[rank],
            xytext=(0, 13),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.8},
            zorder=6,
        )
    title = f"red: {name_of(network, bottleneck)}, which is full all the time"
    if unmeasured:
        title += f"\ndotted: not measured yet ({len(unmeasured)} of {len(rates)})"
    axis.set_title(title, fontsize=10)
    mapping = matplotlib.cm.ScalarMappable(norm=norm, cmap=colors)
    bar = figure.colorbar(mapping, ax=axis, orientation="horizontal", shrink=0.7)
    bar.set_label(f"rate of a link, {unit}")
    ticks = np.geomspace(min(rates.values()), max(rates.values()), 5)
    bar.set_ticks(ticks, labels=[f"{float(f'{tick:.3g}'):,g}" for tick in ticks], minor=False)
    bar.minorticks_off()


def _draw_tree(
    axis: Any, network: Network, chunk: dict[str, Any], share: float, places: Any, color: Any
) -> None:
    for edge in chunk["up"]:
        _arrow(axis, places, edge, color=color, width=1.1, alpha=0.7, style=":")
    for edge in chunk["down"]:
        _arrow(axis, places, edge, color=color, width=1.8, alpha=1)
    axis.scatter(*places.T, s=45, color=_MEMBER, zorder=5)
    for root in chunk["core"]:
        axis.scatter(*places[root], s=150, color=color, edgecolor=_MEMBER, zorder=6)
    roots = ", ".join(network.names[root] for root in chunk["core"][:3])
    axis.set_title(f"{share:.1%} at {roots}", fontsize=9)


def _arrow(
    axis: Any, places: Any, edge: Any, *, color: Any, width: float, alpha: float, style: str = "-"
) -> None:
    """Bent, so that both directions of a pair can be seen."""
    from matplotlib.patches import FancyArrowPatch

    sender, receiver = edge
    axis.add_patch(
        FancyArrowPatch(
            places[sender], places[receiver], connectionstyle="arc3,rad=0.12", arrowstyle="-|>",
            mutation_scale=5 + 2 * width, shrinkA=8, shrinkB=8, color=color, linewidth=width,
            alpha=alpha, linestyle=style, zorder=1 + width / 10,
        )
    )  # fmt: skip
