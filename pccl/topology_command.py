"""`pccl topology`: the map of a run's links as its members measured them, and the plan for it."""

import json as json_format
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pccl.address import DEFAULT_STATUS_PORT, RunAddress
from pccl.bench.options import parse_bytes
from pccl.measured_topology import MeasuredNetwork, measured_network
from pccl.network_files import UNITS
from pccl.plan_tables import Comparison, as_data, show_comparisons

__all__ = ["topology"]

_UNIT = "Mbit/s"
# Wider matrices are for --json.
_COLUMNS_MAX = 12


def topology(
    address: Annotated[str, typer.Argument(help="pccl://host:port/run")],
    size: Annotated[
        str, typer.Option("--bytes", metavar="SIZE", help="of the vector that is planned for")
    ] = "64M",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="draw the map and the trees (or .png)")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print it as data")] = False,
    status_port: Annotated[
        int, typer.Option(help="of the coordinator's status page")
    ] = DEFAULT_STATUS_PORT,
) -> None:
    """Show the measured links of a run, and what each planner makes of them.

    pccl topology pccl://203.0.113.7:29400/my-run --out map.svg

    A link that has carried no full load yet counts as the middling one; it is marked.
    """
    from pccl.status_command import StatusUnknown, fetch_status

    try:
        place = RunAddress.parse(address)
        bytes_count = parse_bytes(size)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    try:
        (run,) = fetch_status(place, status_port)["runs"]
        measured = measured_network(run)
    except (StatusUnknown, ValueError) as error:
        Console(stderr=True).print(Text(f"pccl topology: {error}"), soft_wrap=True)
        raise typer.Exit(1) from None
    network = measured.network
    comparison = Comparison(f"run {run['name']}", network, network.compare(bytes_count), None)
    if json:
        print(json_format.dumps(_as_data(measured, comparison), indent=2))
    else:
        console = Console(highlight=False)
        if network.world_size <= _COLUMNS_MAX:
            console.print(_matrix(measured))
        if measured.unmeasured:
            text = (
                f"*: {len(measured.unmeasured)} of {len(network.edges)} links are not measured yet"
            )
            console.print(Text(f"{text}; they count as the middling one"), soft_wrap=True)
        show_comparisons([comparison], _UNIT, console)
    if out is None:
        return
    try:
        from pccl.plan_plot import plot_plan

        plot_plan(comparison, _UNIT, UNITS[_UNIT], out, measured.unmeasured)
    except ImportError as missing:
        raise SystemExit(
            f"pccl topology: {missing}. --out needs: pip install 'pccl-collectives[bench]'"
        ) from None


def _as_data(measured: MeasuredNetwork, comparison: Comparison) -> dict[str, object]:
    (data,) = as_data([comparison])
    return {
        **data,
        "bytes_per_second": measured.network.rates.tolist(),
        "latency_seconds": measured.network.latencies.tolist(),
        "unmeasured": sorted(measured.unmeasured),
    }


def _matrix(measured: MeasuredNetwork) -> Table:
    network = measured.network
    table = Table(title=f"rates in {_UNIT}, from the row to the column", title_justify="left")
    table.add_column("from")
    for name in network.names:
        table.add_column(Text(name), justify="right")
    for sender, name in enumerate(network.names):
        cells = [
            ""
            if sender == receiver
            else f"{network.rates[sender, receiver] / UNITS[_UNIT]:.4g}"
            + "*" * ((sender, receiver) in measured.unmeasured)
            for receiver in range(network.world_size)
        ]
        table.add_row(Text(name), *cells)
    return table
