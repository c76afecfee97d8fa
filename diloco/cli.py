"""The command `diloco`."""

from pathlib import Path
from typing import Annotated

try:
    import typer
    from rich.console import Console
    from rich.text import Text
except ImportError as missing:  # The library itself needs neither.
    raise SystemExit(
        f"diloco: {missing}. The command line needs: pip install 'pccl-collectives[diloco]'"
    ) from None

__all__ = ["main"]

app = typer.Typer(
    name="diloco",
    help="Train one model on many weakly connected machines that talk once in many steps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; the entry point `diloco`."""
    app()


@app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
def launch(
    command: Annotated[
        list[str], typer.Argument(metavar="PROGRAM [ARGUMENTS]...", help="it calls pccl.join()")
    ],
    members: Annotated[int, typer.Option(help="to start on this machine")] = 4,
    name: Annotated[str, typer.Option(help="of the run")] = "diloco",
    host: Annotated[
        str,
        typer.Option(
            help="under which other machines reach this one; default: found by itself; 127.0.0.1: "
            "from here only"
        ),
    ] = "",
    restarts: Annotated[int, typer.Option(help="of members that failed, in all")] = 0,
) -> None:
    """Start a coordinator and members here; print the command with which other machines join.

    diloco launch --members 4 train.py --steps 1000

    The program needs no rank and no address: pccl.join() reads both from the environment. The
    first member has the terminal; a member that fails is shown, and the others go on.
    """
    from diloco.launch import LaunchOptions
    from diloco.launch import launch as run_launch

    try:
        options = LaunchOptions(
            command=command, members=members, name=name, host=host, restarts=restarts
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    try:
        code = run_launch(options, Console(highlight=False))
    except OSError as error:
        Console(stderr=True).print(Text(f"diloco launch: {error}"), soft_wrap=True)
        code = 1
    raise typer.Exit(code)


@app.command(context_settings={"ignore_unknown_options": True})
def demo(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="more of examples/train_diloco.py: --batch 4 ...")
    ] = None,
    members: Annotated[int, typer.Option(help="that train together")] = 4,
    kill: Annotated[int, typer.Option(help="members by kill -9; for each a fresh one joins")] = 2,
    steps: Annotated[int, typer.Option(help="inner steps of the run")] = 400,
    sync_every: Annotated[int, typer.Option(help="inner steps between two outer ones")] = 20,
    warmup: Annotated[int, typer.Option(help="first steps, with averaged gradients")] = 60,
    codec: Annotated[str, typer.Option(help="for what members send: int8, int4, ...")] = "none",
    seed: Annotated[int, typer.Option(help="of who is killed")] = 0,
    out: Annotated[Path, typer.Option(help="folder for the members' files and report.png")] = Path(
        "runs/diloco_demo"
    ),
) -> None:
    """Train a small model here with DiLoCo while members are killed and fresh ones join.

    diloco demo --members 4 --kill 2

    It ends with the report. Exit code 1 when the members differed after any outer step, or
    anything else was wrong. Ctrl+C ends all processes.
    """
    from diloco.demo import DemoOptions, run_demo

    try:
        options = DemoOptions(
            members=members, kills=kill, steps=steps, sync_every=sync_every, warmup=warmup,
            codec=codec, arguments=tuple(arguments or ()), seed=seed, out=out,
        )  # fmt: skip
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    raise typer.Exit(run_demo(options, Console(highlight=False)))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="folder with the members' member-*.jsonl")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="the picture; default: RUN/report.png")
    ] = None,
) -> None:
    """Show what a run did: loss over steps, bytes and seconds, joins and deaths, hashes.

    The files of members on other machines can simply be copied into the folder. Exit code 1 when
    the members differ in any outer step, or something else was wrong.
    """
    from diloco.report import make_report, read_run, show_report

    console = Console(highlight=False)
    try:
        found = make_report(read_run(run))
    except (OSError, ValueError) as error:
        Console(stderr=True).print(Text(f"diloco report: {error}"), soft_wrap=True)
        raise typer.Exit(1) from None
    if found.merges:
        from diloco.report_plot import plot_report

        picture = out or run / "report.png"
        plot_report(found, picture)
        console.print(f"[bold]report[/]   {picture}", soft_wrap=True)
    show_report(found, run, console)
    raise typer.Exit(bool(found.faults) or not found.merges)
