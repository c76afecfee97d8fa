"""The `pccl` command: coordinators, benchmarks, and facts about this installation."""

import json as json_format
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

try:
    import typer
    from rich.console import Console
    from rich.text import Text
except ImportError as missing:  # The library itself needs neither.
    raise SystemExit(
        f"pccl: {missing}. The command line needs: pip install 'pccl-collectives[cli]'"
    ) from None

from pccl import bench_command, keys_command, plan_command, tokens_command, topology_command
from pccl.address import DEFAULT_STATUS_PORT, RunAddress

__all__ = ["main"]

app = typer.Typer(
    name="pccl",
    help="Collective communication for PyTorch over machines that nobody owns together.",
    epilog="In a program: torch.distributed.init_process_group('pccl'). Train an example over pccl "
    "and gloo: scripts/train --ddp.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


for _command in (
    *(keys_command.keygen, keys_command.invite, keys_command.revoke),
    tokens_command.tokens,
    plan_command.plan,
    topology_command.topology,
    bench_command.bench,
):
    app.command()(_command)


def main() -> None:
    """Run the command line."""
    app()


@app.command()
def info() -> None:
    """Show versions, kernels, torch, the addresses of this host, and settings."""
    from pccl.info import collect_info

    console = Console(highlight=False)
    for name, value in collect_info().items():
        style = "red" if value.startswith(("WRONG", "not built")) else ""
        console.print(f"[bold]{name:<10}[/] ", Text(value, style=style), soft_wrap=True, sep="")


@app.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
def coordinator(context: typer.Context) -> None:
    """Decide who is in a run; print the address that its members join with."""
    from pccl.coordinator_command import main as run_coordinator

    raise typer.Exit(run_coordinator(context.args))


@app.command()
def status(
    address: Annotated[str, typer.Argument(help="pccl://host:port/run#key")],
    json: Annotated[bool, typer.Option("--json", help="print it as data")] = False,
    status_port: Annotated[
        int, typer.Option(help="of the coordinator's status page")
    ] = DEFAULT_STATUS_PORT,
) -> None:
    """Show who is in a run, and what happened last."""
    from pccl.status_command import StatusUnknown, fetch_status, show_status

    try:
        found = fetch_status(RunAddress.parse(address), status_port)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    except StatusUnknown as error:
        Console(stderr=True).print(Text(f"pccl status: {error}"), soft_wrap=True)
        raise typer.Exit(1) from None
    if json:
        print(json_format.dumps(found, indent=2))
    else:
        show_status(found, Console(highlight=False))


@app.command()
def demo(
    members: Annotated[int, typer.Option(help="that train together, 3 or more")] = 4,
    kill: Annotated[int, typer.Option(help="kill -9 in all; a quarter the coordinator's")] = 20,
    steps: Annotated[int, typer.Option(help="at least; it ends after the last kill")] = 200,
    seed: Annotated[int, typer.Option(help="of the model, and of who is killed when")] = 0,
    out: Annotated[Path, typer.Option(help="folder for demo.png and demo.json")] = Path(
        "runs/demo"
    ),
) -> None:
    """Train a small model here while its members and the coordinator are killed, again and again.

    pccl demo --members 4 --kill 20

    Whoever is killed is started again. Exit code 1 when a step was lost, bytes differ at the end,
    or anything else was wrong. Ctrl+C ends all processes.
    """
    try:
        from pccl.demo.run import DemoOptions, run_demo

        for needed in ("matplotlib", "torch"):  # by the processes that it starts, and at its end
            if find_spec(needed) is None:
                raise ImportError(f"No module named {needed!r}")
    except ImportError as missing:
        raise SystemExit(
            f"pccl demo: {missing}. It needs: pip install 'pccl-collectives[bench,cli]'"
        ) from None
    try:
        options = DemoOptions(members=members, kills=kill, steps=steps, seed=seed, out=out)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    raise typer.Exit(run_demo(options, Console(highlight=False)))


@app.command()
def doctor(
    address: Annotated[str, typer.Argument(help="pccl://host:port/run#key.token, or host:port")],
    json: Annotated[bool, typer.Option("--json", help="print it as data")] = False,
    status_port: Annotated[
        int, typer.Option(help="of the coordinator's status page")
    ] = DEFAULT_STATUS_PORT,
) -> None:
    """Say whether this machine can take part in a run, and how to mend what can't work.

    Exit code 1 when something failed; a warning is none.
    """
    from dataclasses import asdict

    from pccl.doctor import examine

    try:
        place = RunAddress.parse(address if "://" in address else f"pccl://{address}/doctor")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    run = place if "://" in address else None
    checks = []
    console = Console(highlight=False)
    styles = {"ok": "green", "warning": "yellow", "FAILED": "red"}
    for check in examine(run, place.host, place.port, status_port):
        checks.append(check)
        if json:
            continue
        line = Text(f"{check.state:<8}", style=styles[check.state])
        console.print(line + Text(f"{check.name}: {check.value}", style=""), soft_wrap=True)
        if check.fix:
            console.print(Text(f"{'':8}fix: {check.fix}"), soft_wrap=True)
    if json:
        print(json_format.dumps([asdict(check) for check in checks], indent=2))
    raise typer.Exit(any(check.state == "FAILED" for check in checks))


@app.command()
def trace(
    files: Annotated[list[Path], typer.Argument(help="flight records, one of each member")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="draw the timeline, a lane a member")
    ] = None,
) -> None:
    """Merge members' flight records: what stood still, who was waited for, what differs.

    PCCL_TRACE_DIR names the folder to which members write them when an operation fails.

    pccl trace traces/*.jsonl --out timeline.png
    """
    from pccl.trace import TraceError, absent_members, align, read_record, summarize

    try:
        records = [read_record(path) for path in files]
    except TraceError as error:
        Console(stderr=True).print(Text(f"pccl trace: {error}"), soft_wrap=True)
        raise typer.Exit(1) from None
    records.sort(key=lambda record: (record.run, record.rank or 0, record.member))
    how_aligned = align(records)
    records += absent_members(records)
    print("\n".join(summarize(records, how_aligned)))
    if out is None:
        return
    try:
        from pccl.trace_plot import plot_timeline

        plot_timeline(records, how_aligned, out)
    except ImportError as missing:
        raise SystemExit(
            f"pccl trace: {missing}. --out needs: pip install 'pccl-collectives[bench]'"
        ) from None
