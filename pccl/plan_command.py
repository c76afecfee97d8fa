"""`pccl plan`: all planners compared on a network that is given as figures."""

import json as json_format
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from pccl.bench.options import parse_bytes

__all__ = ["plan"]


def plan(
    matrix: Annotated[Path, typer.Argument(help="CSV: rates, a line a sender; 0: no link")],
    size: Annotated[
        str, typer.Option("--bytes", metavar="SIZE", help="of the vector: 4, 64K, 100M, 1GB")
    ] = "1GB",
    latency: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="one way, milliseconds")
    ] = None,
    caps: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="name, out, in: of all links together")
    ] = None,
    unit: Annotated[str, typer.Option(help="of rates: Mbit/s, Gbit/s, MB/s or B/s")] = "Mbit/s",
    graph: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|FILE.csv", help="links of this graph only; several times"),
    ] = None,
    degree: Annotated[int, typer.Option(help="of --graph regular and small_world")] = 4,
    seed: Annotated[int, typer.Option(help="of --graph regular and small_world")] = 0,
    outward: Annotated[
        list[str] | None,
        typer.Option(metavar="MEMBER", help="accepts no connections; several times"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print it as data")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="draw the last table's quickest plan")
    ] = None,
) -> None:
    """Compare all ways of an all_reduce on a network given as figures, and with the bound.

    pccl plan rates.csv --latency ms.csv --bytes 1GB --plot plan.svg

    pccl plan rates.csv --caps caps.csv --graph regular --degree 4 --graph edges.csv
    """
    from pccl.network_files import UNITS
    from pccl.plan_tables import as_data, compare_files, show_comparisons

    if unit not in UNITS:
        raise typer.BadParameter(f"--unit {unit}: there are {', '.join(UNITS)}")
    try:
        comparisons = compare_files(
            matrix,
            parse_bytes(size),
            latency=latency,
            caps=caps,
            unit=unit,
            graphs=graph,
            outward=outward,
            degree=degree,
            seed=seed,
        )
    except ValueError as error:
        Console(stderr=True).print(Text(f"pccl plan: {error}"), soft_wrap=True)
        raise typer.Exit(1) from None
    if json:
        print(json_format.dumps(as_data(comparisons), indent=2))
    else:
        show_comparisons(comparisons, unit, Console(highlight=False))
    if plot is None:
        return
    try:
        from pccl.plan_plot import plot_plan

        plot_plan(comparisons[-1], unit, UNITS[unit], plot)
    except ImportError as missing:
        raise SystemExit(
            f"pccl plan: {missing}. --plot needs: pip install 'pccl-collectives[bench]'"
        ) from None
