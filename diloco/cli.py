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


@app.callback()
def _commands() -> None:
    """Keep `diloco report` a command of its own."""


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
    if found.rounds:
        from diloco.report_plot import plot_report

        picture = out or run / "report.png"
        plot_report(found, picture)
        console.print(f"[bold]report[/]   {picture}", soft_wrap=True)
    show_report(found, run, console)
    raise typer.Exit(bool(found.faults) or not found.rounds)
