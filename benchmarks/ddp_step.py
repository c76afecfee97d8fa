"""Time of a DistributedDataParallel step: pccl, gloo, and without communication.

    python benchmarks/ddp_step.py                              4 ranks, by TCP and by memory
    python benchmarks/ddp_step.py --megabytes 4 --steps 5      smaller: does it run?

Three copies of one model take their steps in turn, in the same processes: one whose gradients are
averaged by pccl, one by gloo, one by nobody. A step's time is the slowest rank's; ratios are paired
step by step. Writes ddp_step.json and .md to benchmarks/results/.
"""

import argparse
import json
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common import RESULTS, TRANSPORTS, collect, head, ratio_text, write
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pccl._autoload import register
from pccl.bench.machine import describe_machine
from pccl.bench.result import Spread, spread
from pccl.launch import run_rank

WIDTH_MIN = 64
BATCH = 16
COMPARED = "gloo"
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
    add = parser.add_argument
    add("--processes", type=int, default=4)
    add("--backend", default="pccl", help="gloo measures the noise (pccl)")
    add("--megabytes", type=float, default=32, help="of parameters (10^6 bytes)")
    add("--layers", type=int, default=8)
    add("--steps", type=int, default=40, help="of each copy")
    add("--results", type=Path, default=RESULTS, help="folder to write to")
    add("--part", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if "RANK" in os.environ:
        run_rank(lambda: run(options))
    machine = describe_machine()
    parts: dict[str, dict[str, Any]] = {}
    for transport in TRANSPORTS:
        print(f"{options.processes} ranks, {transport} ...", flush=True)
        parts[transport] = collect(sys.argv[1:], options.processes, transport)
    name = "ddp_step" if options.backend == "pccl" else f"ddp_step_{options.backend}"
    document = {"machine": machine, "world_size": options.processes, "parts": parts}
    write(options.results, name, document, report(options, machine, parts))
    return 0


def report(
    options: argparse.Namespace, machine: dict[str, Any], parts: dict[str, dict[str, Any]]
) -> list[str]:
    """Return the lines of a table: a line per transport and copy."""
    megabytes = next(iter(parts.values()))["gradient_bytes"] / 1e6
    title = f"DDP step: {options.processes} ranks, {megabytes:.1f} MB of gradients"
    lines = head(title, machine)
    lines += [
        f"{options.layers} layers, {options.steps} steps of each copy of the model, in turn. "
        "Median (p10 .. p90).",
        "",
        "| transport of pccl | copy | time of a step | of which communication | times faster |",
        "| :--- | :--- | ---: | ---: | ---: |",
    ]
    for transport, part in parts.items():
        first, second, alone = part["seconds"]
        bare = spread(part["seconds"][alone]).p50
        for name, seconds in part["seconds"].items():
            times = spread([value * 1e3 for value in seconds])
            cells = [transport if name == first else "", name]
            cells += [f"{times.p50:.1f} ms ({times.p10:.1f} .. {times.p90:.1f})"]
            cells += [f"{times.p50 - bare * 1e3:.1f} ms" if name != alone else ""]
            cells += [ratio_text(part["ratio"]) if name == first else ""]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"times faster: step over {second} / step over {first}, pair by pair."]
    return lines


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
        hand_over(options, seconds, width)
    dist.barrier()
    dist.destroy_process_group()
    return 0


def build_arms(options: argparse.Namespace) -> list[Arm]:
    """Return three equal models: over the backend, over the one to compare with, over none."""
    width = max(WIDTH_MIN, round((options.megabytes * 1e6 / 4 / options.layers) ** 0.5))
    again = " #2" if options.backend == COMPARED else ""
    groups = {
        options.backend: dist.group.WORLD,
        COMPARED + again: dist.new_group(backend=COMPARED),
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


def hand_over(options: argparse.Namespace, seconds: dict[str, list[float]], width: int) -> None:
    """Write what this part of the benchmark has found, for main()."""
    first, second = list(seconds)[:2]
    part = {
        "gradient_bytes": options.layers * width * (width + 1) * 4,
        "seconds": seconds,
        "ratio": asdict(paired(seconds[second], seconds[first])),
    }
    options.part.write_text(json.dumps(part))


def paired(slow: list[float], fast: list[float]) -> Spread:
    return spread([a / b for a, b in zip(slow, fast, strict=True)])


if __name__ == "__main__":
    sys.exit(main())
