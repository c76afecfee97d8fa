"""`python -m asyncrl.demo`: reinforcement learning by strangers, all of it on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from asyncrl.cheats import CHEATS
from asyncrl.demo.run import DemoOptions, run_demo


def main(
    cheat: Annotated[str, typer.Option(help=f"one of {', '.join(sorted(CHEATS))}")] = "oracle",
    steps: Annotated[int, typer.Option(min=3)] = DemoOptions.steps,
    workers: Annotated[int, typer.Option(help="honest ones", min=1)] = DemoOptions.workers,
    async_level: Annotated[int, typer.Option(min=0, max=8)] = DemoOptions.async_level,
    files_per_step: Annotated[int, typer.Option(min=1)] = DemoOptions.files_per_step,
    warm_steps: Annotated[int, typer.Option(min=1)] = DemoOptions.warm_steps,
    honest_files: Annotated[int, typer.Option(help="of the cheater, before it begins", min=0)] = (
        DemoOptions.honest_files
    ),
    evaluate_every: Annotated[int, typer.Option(min=0)] = DemoOptions.evaluate_every,
    out: Annotated[Path, typer.Option(help="folder for demo.png, demo.json and all files")] = (
        DemoOptions.out
    ),
    held_out_draws: Annotated[int, typer.Option(help="4096 are 511 words", min=64)] = (
        DemoOptions.held_out_draws
    ),
    warm_folder: Annotated[Path, typer.Option(help="keeps the weights to begin with")] = (
        DemoOptions.warm_folder
    ),
) -> None:
    """2 trainers, honest workers, a cheater, 2 validators, an origin, 2 relays, a coordinator.

    One trainer is killed and comes back, one relay is killed. Exit code 1: something was wrong.
    """
    if cheat not in CHEATS:
        raise typer.BadParameter(f"--cheat: expected one of {sorted(CHEATS)}, got {cheat!r}")
    torch.set_num_threads(1)
    options = DemoOptions(
        cheat=cheat,
        steps=steps,
        workers=workers,
        async_level=async_level,
        files_per_step=files_per_step,
        warm_steps=warm_steps,
        honest_files=honest_files,
        evaluate_every=evaluate_every,
        held_out_draws=held_out_draws,
        out=out,
        warm_folder=warm_folder,
    )
    sys.exit(run_demo(options, Console(highlight=False)))


if __name__ == "__main__":
    typer.run(main)
