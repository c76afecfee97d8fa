"""The `pccl` command: coordinators, benchmarks, and facts about this installation."""

import json as json_format
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
    from rich.console import Console
    from rich.text import Text
except ImportError as missing:  # The library itself needs neither.
    raise SystemExit(
        f"pccl: {missing}. The command line needs: pip install 'pccl-collectives[cli]'"
    ) from None

from pccl import bench_command, keys_command, plan_command, tokens_command, topology_command
from pccl.address import DEFAULT_PORT, RunAddress
from pccl.status_page import DEFAULT_STATUS_PORT

__all__ = ["main"]

# Panels of `pccl coordinator --help`.
_PLACE, _RUNS, _KEYS, _LOSS, _PAGE = (
    *("Where it listens", "Runs", "Who is let in", "Who is lost"),
    "Status page",
)

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


def _seconds(help_text: str) -> Any:
    return typer.Option(metavar="SECONDS", help=help_text, rich_help_panel=_LOSS)


for _command in (
    *(keys_command.keygen, keys_command.invite, keys_command.revoke),
    tokens_command.tokens,
    plan_command.plan,
    topology_command.topology,
    bench_command.bench,
):
    app.command()(_command)


def main() -> None:
    """Run the command line; the entry point `pccl`."""
    app()


@app.command()
def info() -> None:
    """Show versions, kernels, torch, the addresses of this host, and settings."""
    from pccl.info import collect_info

    console = Console(highlight=False)
    for name, value in collect_info().items():
        style = "red" if value.startswith(("WRONG", "not built")) else ""
        console.print(f"[bold]{name:<10}[/] ", Text(value, style=style), soft_wrap=True, sep="")


@app.command()
def coordinator(
    port: Annotated[
        int, typer.Option(help="where members reach it; 0: any", rich_help_panel=_PLACE)
    ] = DEFAULT_PORT,
    host: Annotated[
        list[str],
        typer.Option(
            help="under which members reach it, best first; default: found by itself",
            rich_help_panel=_PLACE,
        ),
    ] = [],  # noqa: B006  # typer copies it
    bind: Annotated[
        str, typer.Option(help="local address to listen on", rich_help_panel=_PLACE)
    ] = "",
    database: Annotated[
        Path | None,
        typer.Option(
            help="what it must not forget; default: $XDG_STATE_HOME/pccl/coordinator.db",
            rich_help_panel=_RUNS,
        ),
    ] = None,
    name: Annotated[
        list[str],
        typer.Option(
            help="a run to look after, may be repeated; default: any", rich_help_panel=_RUNS
        ),
    ] = [],  # noqa: B006
    world_size_min: Annotated[
        list[int],
        typer.Option(
            "--min",
            metavar="MEMBERS",
            help="to begin and to go on with; for all runs, or one a --name",
            rich_help_panel=_RUNS,
        ),
    ] = [],  # noqa: B006
    key: Annotated[
        Path | None,
        typer.Option(
            help="file with its key, made if it is not there; default: beside the database",
            rich_help_panel=_KEYS,
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="no keys, no TLS: whoever reaches it is in; members say insecure=True",
            rich_help_panel=_KEYS,
        ),
    ] = False,
    abandon: Annotated[
        str,
        typer.Option(
            metavar="RUN",
            help="declare all members of that run gone for good, if none answers, and end",
            rich_help_panel=_LOSS,
        ),
    ] = "",
    silence: Annotated[float, _seconds("who says nothing for so long is out")] = 10.0,
    heartbeat: Annotated[float, _seconds("between two reports")] = 0.5,
    link_grace: Annotated[
        float, _seconds("two members that can't reach each other for so long part")
    ] = 10.0,
    takeover: Annotated[
        float, _seconds("after so long without it a member takes its place")
    ] = 10.0,
    listen: Annotated[
        float, _seconds("with a new database, before a run begins: members of a lost one may live")
    ] = 4.0,
    status: Annotated[bool, typer.Option(help="serve it", rich_help_panel=_PAGE)] = True,
    status_port: Annotated[
        int, typer.Option(help="0: any", rich_help_panel=_PAGE)
    ] = DEFAULT_STATUS_PORT,
    status_host: Annotated[
        str,
        typer.Option(
            help="local address; everybody who reaches it can read it", rich_help_panel=_PAGE
        ),
    ] = "127.0.0.1",
) -> None:
    """Decide who is in a run; print the address that its members join with.

    pccl coordinator --name my-run --min 2

    Ends politely with Ctrl+C or SIGTERM; members go on meanwhile. The same command takes up where
    the last one ended, however that was.
    """
    from pccl.config import Config
    from pccl.coordinator import CoordinatorOptions
    from pccl.coordinator_command import StatusOptions, abandon_run, run_coordinator

    if len(world_size_min) not in (0, 1, len(name)) or (world_size_min and not name):
        raise typer.BadParameter("--min: expected one for all runs, or one behind each --name")
    sizes = world_size_min * len(name) if len(world_size_min) == 1 else world_size_min
    try:
        options = CoordinatorOptions(
            port=port,
            bind=bind,
            hosts=tuple(host),
            database=database,
            key=key,
            insecure=insecure,
            tls="auto" if insecure else Config.from_environment().tls,
            runs=dict(zip(name, sizes or [1] * len(name), strict=True)),
            heartbeat_seconds=heartbeat,
            silence_seconds=silence,
            link_grace_seconds=link_grace,
            takeover_seconds=takeover,
            listen_seconds=listen,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if abandon:
        raise typer.Exit(abandon_run(options, abandon))
    page = StatusOptions(enabled=status, host=status_host, port=status_port)
    raise typer.Exit(run_coordinator(options, page))


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
