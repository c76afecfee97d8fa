"""`pccl bench`: the command line of the benchmark."""

import json as json_format
import sys
from pathlib import Path
from typing import Annotated

import typer

from pccl.bench.options import COLLECTIVES, DTYPES, OPS, BenchOptions, parse_bytes

__all__ = ["bench"]

# Panels of `pccl bench --help`.
_SIZES, _DATA, _TIME, _OUTPUT, _LAB = "Sizes", "Data", "How long", "Output", "Lab"


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _bench_lab(spec_file: Path, folder: Path | None, json_path: str) -> int:
    from pccl.bench.lab import lab_table, network_of, read_job, run_lab
    from pccl.bench.machine import describe_machine, machine_line
    from pccl.bench.wanlab import load_wanlab
    from pccl.config import wanlab_folder

    module, reason = load_wanlab(folder or wanlab_folder())
    if module is None or reason:
        raise typer.BadParameter(f"--lab: {reason}")
    try:
        spec = module.load_spec(spec_file)
        job = read_job(spec)
        network = network_of(spec, module)
    except (OSError, ValueError, TypeError, module.WanlabError) as error:
        raise typer.BadParameter(f"--lab {spec_file}: {error}") from None
    machine = describe_machine()
    print(f"{len(network.names)} hosts; {machine_line(machine)}\n", flush=True)
    try:
        found = run_lab(spec, job, module)
    except (RuntimeError, OSError) as error:
        print(f"pccl bench: {error}", file=sys.stderr)
        return 1
    lines = lab_table(found, network, network)
    print("\n".join(lines))
    if json_path:
        document = {"machine": machine, "spec": spec, **found}
        Path(json_path).write_text(json_format.dumps(document, indent=1) + "\n")
    return 0


def bench(
    collective: Annotated[
        str, typer.Option(help=", ".join(COLLECTIVES) + "; several with commas; or all")
    ] = "all_reduce",
    backend: Annotated[str, typer.Option(help="torch.distributed backend")] = "pccl",
    compare: Annotated[str, typer.Option(help="second backend, measured in turn: gloo")] = "",
    processes: Annotated[int, typer.Option(help="ranks to start here; torchrun overrides")] = 4,
    transport: Annotated[str, typer.Option(help="auto, tcp or memory (pccl only)")] = "auto",
    smallest: Annotated[
        str,
        typer.Option(
            "--min-bytes",
            "-b",
            metavar="SIZE",
            help="first size: 4, 64K, 1M, 1G",
            rich_help_panel=_SIZES,
        ),
    ] = "4",
    # Not --max: torchrun takes that, also behind the program's name, for its own --max-restarts.
    largest: Annotated[
        str,
        typer.Option("--max-bytes", "-e", metavar="SIZE", help="last size", rich_help_panel=_SIZES),
    ] = "64M",
    factor: Annotated[
        int, typer.Option("--factor", "-f", help="from size to size", rich_help_panel=_SIZES)
    ] = 4,
    sizes: Annotated[
        str,
        typer.Option(
            metavar="SIZE,...", help="these sizes instead of first to last", rich_help_panel=_SIZES
        ),
    ] = "",
    placement: Annotated[
        str, typer.Option(help="both, in_place or out_of_place", rich_help_panel=_SIZES)
    ] = "both",
    dtype: Annotated[
        str, typer.Option(help="one of: " + ", ".join(DTYPES), rich_help_panel=_DATA)
    ] = "float32",
    op: Annotated[
        str, typer.Option(help="one of: " + ", ".join(OPS), rich_help_panel=_DATA)
    ] = "sum",
    codec: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="all_reduces in each of these beside the plain one: int8,int4",
            rich_help_panel=_DATA,
        ),
    ] = "",
    root: Annotated[
        int, typer.Option(help="rank, for collectives that have one", rich_help_panel=_DATA)
    ] = 0,
    check: Annotated[
        bool, typer.Option(help="count wrong values in results", rich_help_panel=_DATA)
    ] = True,
    seconds: Annotated[
        float, typer.Option(help="per size, placement and backend", rich_help_panel=_TIME)
    ] = 0.4,
    iterations: Annotated[
        int, typer.Option(help="calls per repetition; 0: by --seconds", rich_help_panel=_TIME)
    ] = 0,
    repetitions: Annotated[
        int, typer.Option(help="sample size; 0: by --seconds, 5 to 21", rich_help_panel=_TIME)
    ] = 0,
    warmup: Annotated[
        int, typer.Option(help="calls before the first repetition", rich_help_panel=_TIME)
    ] = 3,
    error: Annotated[
        bool,
        typer.Option(
            "--error",
            help="columns for bytes on the wire and the relative error of all_reduces",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    json: Annotated[
        str, typer.Option(metavar="FILE", help="write everything measured", rich_help_panel=_OUTPUT)
    ] = "",
    plot: Annotated[
        str, typer.Option(metavar="FILE.png", help="draw busbw over size", rich_help_panel=_OUTPUT)
    ] = "",
    lab: Annotated[
        Path | None,
        typer.Option(
            metavar="SPEC.json",
            help="between the hosts of this network instead; of the other options --json counts",
            rich_help_panel=_LAB,
        ),
    ] = None,
    wanlab: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="of wanlab.py, which makes the hosts (root); default: the variable WANLAB",
            rich_help_panel=_LAB,
        ),
    ] = None,
) -> None:
    """Measure collectives; the table is that of nccl-tests.

    pccl bench --compare gloo -e 256M --plot a.png

    pccl bench --collective all --processes 2 --transport tcp

    pccl bench --codec int8,int4 --error -b 1M

    torchrun --nproc-per-node 4 -m pccl bench --max-bytes 1G

    pccl bench --lab examples/lab.json

    Starts its own ranks, or is one under a launcher. Exit code 1 when a result was wrong.
    """
    if lab is not None:
        raise typer.Exit(_bench_lab(lab, wanlab, json))
    try:
        options = BenchOptions(
            collective=collective,
            backend=backend,
            compare=compare,
            processes=processes,
            bytes_min=_size(smallest),
            bytes_max=_size(largest),
            factor=factor,
            bytes_list=tuple(_size(text) for text in sizes.split(",") if text),
            placement=placement,
            dtype=dtype,
            op=op,
            codec=codec,
            error=error,
            root=root,
            seconds=seconds,
            iterations=iterations,
            repetitions=repetitions,
            warmup=warmup,
            check=check,
            transport=transport,
            json_path=json,
            plot_path=plot,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    try:
        from pccl.bench.run import run_bench
    except ImportError as missing:
        raise SystemExit(
            f"pccl bench: {missing}. It needs: pip install 'pccl-collectives[bench]'"
        ) from None
    try:
        code = run_bench(options, [sys.executable, "-m", "pccl", *sys.argv[1:]])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    raise typer.Exit(code)
