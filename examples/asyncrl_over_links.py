"""Rollout workers behind 20 Mbit/s and 150 ms: the demo of asyncrl on ten hosts (wanlab, root).

    python examples/asyncrl_over_links.py [--steps 60] [--cheat oracle]

The trainers, their coordinators and the origin share one host, relays and validators have one each
with 100 Mbit/s, and every worker one with 20 Mbit/s whose packets take 75 ms to anybody. WANLAB
names the folder of wanlab.py, which makes hosts out of network namespaces. Otherwise this is
`python -m asyncrl.demo`, with its page (to be seen from those hosts only), kills and verdict.
"""

import itertools
import os
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Column, Table

from asyncrl.demo.run import DemoOptions, run_demo
from pccl.bench.wanlab import load_wanlab

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "wanlab"
# name -> (rate of its line, both ways; one-way delay to everybody, milliseconds)
CENTER = ("1gbit", 2)
NEAR = ("100mbit", 10)
FAR = ("20mbit", 75)
HOSTS = {"center": CENTER, **dict.fromkeys(("relay 1", "relay 2"), NEAR)}
HOSTS |= dict.fromkeys(("validator 1", "validator 2"), NEAR)


def main(
    steps: Annotated[int, typer.Option(min=3)] = 60,
    cheat: str = "oracle",
    workers: Annotated[int, typer.Option(min=1)] = 3,
    files_per_step: Annotated[int, typer.Option(min=1)] = 4,
    honest_files: Annotated[int, typer.Option(help="of the cheater, before it begins")] = 2,
    warm_steps: Annotated[int, typer.Option(min=1)] = DemoOptions.warm_steps,
    evaluate_every: Annotated[int, typer.Option(min=0)] = 20,
    held_out_draws: Annotated[int, typer.Option(min=64)] = DemoOptions.held_out_draws,
    out: Path = Path("runs/asyncrl-over-links"),
    warm_folder: Path = DemoOptions.warm_folder,
) -> None:
    torch.set_num_threads(1)
    options = DemoOptions(
        cheat=cheat, steps=steps, workers=workers, files_per_step=files_per_step,
        honest_files=honest_files, warm_steps=warm_steps, evaluate_every=evaluate_every,
        held_out_draws=held_out_draws, async_level=4, out=out, warm_folder=warm_folder,
    )  # fmt: skip
    names = [f"worker {number}" for number in range(1, workers + 1)] + ["cheater"]
    lines = {**HOSTS, **dict.fromkeys(names, FAR)}
    wanlab, reason = load_wanlab(Path(os.environ.get("WANLAB", "") or BESIDE))
    if wanlab is None or reason:
        raise SystemExit(f"asyncrl_over_links.py: {reason}")
    with wanlab.Lab(seed=1) as lab:
        hosts = {
            name: lab.add_host(name.replace(" ", ""), up=rate, down=rate)
            for name, (rate, _) in lines.items()
        }
        for (one, (_, here)), (other, (_, there)) in itertools.combinations(lines.items(), 2):
            lab.link(hosts[one], hosts[other], rtt=f"{2 * max(here, there)}ms")
        code = run_demo(
            options, Console(highlight=False), lambda name: hosts.get(name, hosts["center"])
        )
        show_traffic(lab.stats()["pairs"])
    sys.exit(code)


def show_traffic(pairs: dict[tuple[str, str], dict[str, int]]) -> None:
    table = Table("host", *(Column(name, justify="right") for name in ("MB sent", "MB received")))
    for host in sorted({name for pair in pairs for name in pair}):
        sums = [
            sum(one["bytes"] for pair, one in pairs.items() if pair[end] == host) for end in (0, 1)
        ]
        table.add_row(host, *(f"{total / 1e6:.1f}" for total in sums))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
