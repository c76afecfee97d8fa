"""Time of a DistributedDataParallel step: pccl, gloo, and without communication.

    python benchmarks/ddp_step.py --processes 4 --megabytes 32
    torchrun --nproc-per-node 4 benchmarks/ddp_step.py

Three copies of one model take their steps in turn, in the same processes: one whose gradients are
averaged by pccl, one by gloo, one by nobody. A step's time is the slowest rank's; ratios are paired
step by step.
"""

import argparse
import json
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pccl._autoload import register
from pccl.bench.machine import describe_machine, machine_line
from pccl.bench.result import Spread, spread
from pccl.launch import launch, run_rank

WIDTH_MIN = 64
BATCH = 16
ALONE = "no communication"


@dataclass(frozen=True)
class Arm:
    """One of the models that step in turn."""

    name: str
    model: DistributedDataParallel
    optimizer: torch.optim.Optimizer
    communicates: bool


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--backend", default="pccl")
    parser.add_argument("--compare", default="gloo")
    parser.add_argument("--megabytes", type=float, default=32, help="of parameters (10^6 bytes)")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40, help="of each arm")
    parser.add_argument("--json", type=Path, help="write times and machine to this file")
    options = parser.parse_args()
    if "RANK" not in os.environ:
        environment = {"OMP_NUM_THREADS": "1"}
        return launch([sys.executable, *sys.argv], options.processes, environment=environment)
    run_rank(lambda: run(options))


def run(options: argparse.Namespace) -> int:
    """One rank: build the arms, step them in turn, report on rank 0."""
    register()
    torch.set_num_threads(1)
    dist.init_process_group(options.backend)
    arms = build_arms(options)
    width = arms[0].model.module[0].in_features
    batch = torch.randn(BATCH, width, generator=torch.Generator().manual_seed(dist.get_rank()))
    for _ in range(3):  # DDP lays out its buckets in the first steps
        for arm in arms:
            step(arm, batch)
    seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for index in range(options.steps):
        for arm in arms[index % len(arms) :] + arms[: index % len(arms)]:
            dist.barrier()
            began = time.perf_counter()
            step(arm, batch)
            seconds[arm.name].append(time.perf_counter() - began)
    for name, local in seconds.items():
        slowest = torch.tensor(local, dtype=torch.float64)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        seconds[name] = slowest.tolist()
    if dist.get_rank() == 0:
        report(options, seconds, width)
    dist.barrier()
    dist.destroy_process_group()
    return 0


def build_arms(options: argparse.Namespace) -> list[Arm]:
    """Return three equal models: over the backend, over the one to compare with, over none."""
    width = max(WIDTH_MIN, round((options.megabytes * 1e6 / 4 / options.layers) ** 0.5))
    again = " #2" if options.compare == options.backend else ""
    groups = {
        options.backend: dist.group.WORLD,
        options.compare + again: dist.new_group(backend=options.compare),
        ALONE: dist.group.WORLD,
    }
    arms = []
    for name, group in groups.items():
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for _ in range(options.layers):
            layers += [nn.Linear(width, width), nn.SiLU()]
        model = DistributedDataParallel(nn.Sequential(*layers), process_group=group)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        arms.append(Arm(name, model, optimizer, communicates=name != ALONE))
    return arms


def step(arm: Arm, batch: torch.Tensor) -> None:
    """Forward, backward, optimizer."""
    alone: AbstractContextManager[Any] = nullcontext() if arm.communicates else arm.model.no_sync()
    with alone:
        loss = arm.model(batch).square().mean()
        torch.autograd.backward(loss)
    arm.optimizer.step()
    arm.optimizer.zero_grad()


def report(options: argparse.Namespace, seconds: dict[str, list[float]], width: int) -> None:
    """Print a line per arm, and write the JSON file."""
    console = Console(highlight=False, soft_wrap=True)
    machine = describe_machine()
    megabytes = options.layers * width * (width + 1) * 4 / 1e6
    console.print(
        f"[bold]DDP step[/]: {dist.get_world_size()} ranks, {megabytes:.1f} MB of gradients in "
        f"{options.layers} layers\n[dim]{machine_line(machine)}[/]\n"
    )
    console.print(f"[bold]{'arm':<18} {'median':>10} {'p10':>10} {'p90':>10}[/]")
    for name, sample in seconds.items():
        times = spread([value * 1e3 for value in sample])
        console.print(f"{name:<18} {times.p50:>7.1f} ms {times.p10:>7.1f} ms {times.p90:>7.1f} ms")
    first, second = list(seconds)[:2]
    whole = paired(seconds[second], seconds[first])
    console.print(
        f"\n{first} takes the step [bold]{whole.p50:.2f}x[/] as fast as {second} "
        f"({whole.p10:.2f}..{whole.p90:.2f}, paired)"
    )
    if options.json:
        document = {
            "machine": machine,
            "world_size": dist.get_world_size(),
            "gradient_megabytes": megabytes,
            "seconds": seconds,
            "ratio": {"p10": whole.p10, "p50": whole.p50, "p90": whole.p90},
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=1) + "\n")


def paired(slow: list[float], fast: list[float]) -> Spread:
    return spread([a / b for a, b in zip(slow, fast, strict=True)])


if __name__ == "__main__":
    sys.exit(main())
