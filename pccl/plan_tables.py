"""All planners compared on a network: as tables, and as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pccl.network_files import UNITS, read_edges, read_network
from pccl.topology import GRAPHS, Network, Plan

__all__ = ["Comparison", "as_data", "compare_files", "show_comparisons"]

# A linear program for a larger full mesh takes longer than people wait.
_EXACT_RANKS_MAX = 12
_EXACT_SECONDS_MAX = 30.0
# Columns of a terminal that hold who sends most and what each plan waits for, too.
_WIDE = 130


@dataclass(frozen=True)
class Comparison:
    """All plans on one set of links."""

    graph: str  # "all links", or the name of the overlay
    network: Network
    plans: list[Plan]  # the quickest first
    best_rate: float | None  # of trees, by the linear program; None: not computed

    @property
    def bound(self) -> float:
        """What no schedule exceeds, as far as it is known."""
        bound = self.network.bound
        return bound if self.best_rate is None else min(bound, self.best_rate)


def compare_files(
    matrix: Path,
    bytes_count: int,
    *,
    latency: Path | None = None,
    caps: Path | None = None,
    unit: str = "Mbit/s",
    graphs: list[str] | None = None,
    outward: list[str] | None = None,
    degree: int = 4,
    seed: int = 0,
) -> list[Comparison]:
    """Compare all planners on the links of a matrix, and on each of `graphs` over them.

    Raises:
        ValueError: a file, a name or a graph is wrong, or does not connect everybody.
    """
    network = read_network(matrix, latency=latency, caps=caps, unit=unit)
    if outward:
        unknown = [name for name in outward if name not in network.names]
        if unknown:
            raise ValueError(f"--outward: there is no member {unknown[0]!r}")
        network = network.accepting([name not in outward for name in network.names])
    comparisons = [_compare("all links", network, bytes_count)]
    for graph in graphs or []:
        if graph in GRAPHS:
            edges = network.graph(graph, degree=degree, seed=seed)
        elif Path(graph).suffix or Path(graph).exists():
            edges = read_edges(Path(graph), network.names)
        else:
            raise ValueError(f"--graph {graph}: neither a file nor one of {', '.join(GRAPHS)}")
        comparisons.append(_compare(graph, network.restricted(edges), bytes_count))
    return comparisons


def _compare(graph: str, network: Network, bytes_count: int) -> Comparison:
    try:
        plans = network.compare(bytes_count)
    except ValueError as error:
        reason = str(error).removeprefix("find_routes: ")
        for rank in range(network.world_size - 1, -1, -1):
            reason = reason.replace(f"rank {rank}", f"{network.names[rank]} (rank {rank})")
        raise ValueError(f"{graph}: {reason}") from None
    return Comparison(graph, network, plans, _exact_rate(network))


def _exact_rate(network: Network) -> float | None:
    """Only where it can differ from the bound that is known, and in a bearable time."""
    if not network.is_sparse or not 1 < network.world_size <= _EXACT_RANKS_MAX:
        return None
    try:
        from pccl.topology_bound import best_rate

        return best_rate(network, seconds_max=_EXACT_SECONDS_MAX)
    except (ImportError, TimeoutError):
        return None


def show_comparisons(comparisons: list[Comparison], unit: str, console: Console) -> None:
    """Print a table for each set of links."""
    for comparison in comparisons:
        console.print(_table(comparison, unit, is_wide=console.width >= _WIDE))
        cut, total = (rate / UNITS[unit] for rate in comparison.network.bounds)
        text = (
            f"bounds: {cut:.4g} {unit} by the narrowest cut, {total:.4g} by what all send together"
        )
        if comparison.best_rate is not None:
            text += f"; {comparison.best_rate / UNITS[unit]:.4g} by any trees (linear program)"
        elif comparison.network.is_sparse:
            text += (
                f"; links are missing, so the true one may be lower (known with scipy, up to "
                f"{_EXACT_RANKS_MAX} members)"
            )
        console.print(Text(text), soft_wrap=True)
        sites = comparison.network.sites()
        if len(set(sites)) > 1:
            console.print(Text(f"sites: {_site_names(comparison.network, sites)}"), soft_wrap=True)


def _site_names(network: Network, sites: list[int]) -> str:
    members: dict[int, list[str]] = {}
    for name, site in zip(network.names, sites, strict=True):
        members.setdefault(site, []).append(name)
    return "; ".join(", ".join(names) for names in members.values())


def _table(comparison: Comparison, unit: str, is_wide: bool) -> Table:
    plans = comparison.plans
    size = f"{plans[0].bytes_count:,} bytes".replace(",", " ")
    title = f"{comparison.graph}: all_reduce of {size} among {comparison.network.world_size}"
    table = Table(title=Text(title), title_justify="left")
    if not is_wide:
        table.box, table.padding = SIMPLE, 0
    table.add_column("algorithm", no_wrap=True)
    for column in ("seconds", unit, "of bound", "no latency", "chunks", "steps"):
        table.add_column(column, justify="right", no_wrap=True)
    if is_wide:
        table.add_column("sends most")
        table.add_column("waits for")
    for place, plan in enumerate(plans):
        sent = max(plan.bytes_sent)
        busiest = comparison.network.names[plan.bytes_sent.index(sent)]
        wide = (
            Text(f"{busiest} ({sent / max(plan.bytes_count, 1):.2f} times)"),
            Text(name_of(comparison.network, plan.bottleneck)),
        )
        table.add_row(
            Text(plan.algorithm, style="green" if place == 0 else ""),
            f"{plan.seconds:.4g}",
            f"{plan.bytes_per_second / UNITS[unit]:.4g}",
            f"{plan.bytes_per_second / comparison.bound:.1%}",
            f"{plan.bytes_per_second_at_most / comparison.bound:.1%}",
            str(len(plan.chunks)),
            str(plan.steps),
            *(wide if is_wide else ()),
        )
    return table


def name_of(network: Network, resource: tuple[str, int] | tuple[str, int, int]) -> str:
    """A link or an end of a member, in words."""
    kind, *ranks = resource
    names = [network.names[rank] for rank in ranks]
    return f"{names[0]} to {names[1]}" if kind == "link" else f"{names[0]} {kind}s"


def as_data(comparisons: list[Comparison]) -> list[dict[str, Any]]:
    """Everything, for JSON; rates in bytes a second."""
    return [
        {
            "graph": comparison.graph,
            "members": comparison.network.names,
            "bound_by_cut": comparison.network.bounds[0],
            "bound_by_sum": comparison.network.bounds[1],
            "best_rate_of_trees": comparison.best_rate,
            "sites": comparison.network.sites(),
            "plans": [
                {
                    "algorithm": plan.algorithm,
                    "bytes": plan.bytes_count,
                    "seconds": plan.seconds,
                    "bytes_per_second": plan.bytes_per_second,
                    "fraction_of_bound": plan.bytes_per_second / comparison.bound,
                    "fraction_without_latency": plan.bytes_per_second_at_most / comparison.bound,
                    "steps": plan.steps,
                    "bytes_sent": plan.bytes_sent,
                    "bottleneck": name_of(comparison.network, plan.bottleneck),
                    "chunks": plan.chunks,
                }
                for plan in comparison.plans
            ],
        }
        for comparison in comparisons
    ]
