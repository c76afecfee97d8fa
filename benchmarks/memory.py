"""Memory that a collective needs beside the caller's tensors, per process.

    python benchmarks/memory.py                       256 MB, 4 ranks: pccl by TCP and memory, gloo
    python benchmarks/memory.py --megabytes 16        smaller: does it run?

Each backend and transport runs in fresh processes. A rank fills its tensors, and has a small
operation behind it, so that connections and threads are there. Then, for each collective: reset the
kernel's record of the peak (/proc/self/clear_refs), call it three times, read the peak. What stays
allocated after an earlier collective counts again for the later ones. Memory shared between
processes counts in full for each that maps it. Linux only. Writes memory.json and .md to
benchmarks/results/.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common import RESULTS, collect, head, write
from torch import Tensor

from pccl._autoload import register
from pccl.bench.collectives import Buffers, fill, make_call, make_case
from pccl.bench.machine import describe_machine
from pccl.bench.options import COLLECTIVES, BenchOptions
from pccl.launch import run_rank

MEASURED = tuple(name for name in COLLECTIVES if name != "barrier")  # that has no tensor
IN_PLACE = ("all_reduce", "broadcast", "reduce")  # all that torch.distributed has for these
ARMS = (("pccl", "tcp"), ("pccl", "memory"), ("gloo", "tcp"))
CALLS = 3
MIB = 2**20
# The design's promise: 64 MB, or 10 % of the tensor, whichever is more.
ALLOWED_BYTES = 64 * MIB
ALLOWED_SHARE = 0.1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--megabytes", type=int, default=256, help="of the tensor (2^20 bytes)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    parser.add_argument("--backend", default="pccl", help=argparse.SUPPRESS)
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if "RANK" in os.environ:
        run_rank(lambda: run(options))
    if not Path("/proc/self/clear_refs").exists():
        print("memory: needs Linux's /proc/self/clear_refs", file=sys.stderr)
        return 2
    machine = describe_machine()
    extra: dict[str, dict[str, list[int]]] = {}
    for backend, transport in ARMS:
        name = f"{backend}, {transport}"
        print(f"{name} ...", flush=True)
        arguments = ["--megabytes", str(options.megabytes), "--backend", backend]
        extra[name] = collect(arguments, options.processes, transport)
    document = {
        "machine": machine,
        "world_size": options.processes,
        "tensor_bytes": options.megabytes * MIB,
        "extra_bytes_by_rank": extra,
    }
    write(options.results, "memory", document, report(options, machine, extra))
    return 0


def report(
    options: argparse.Namespace, machine: dict[str, Any], extra: dict[str, dict[str, list[int]]]
) -> list[str]:
    """Return the lines of the table; what exceeds the promise is bold."""
    allowed = max(ALLOWED_BYTES, ALLOWED_SHARE * options.megabytes * MIB)
    title = f"Memory beside the caller's tensors: {options.megabytes} MB, {options.processes} ranks"
    lines = head(title, machine)
    lines += [
        "MB (2^20 bytes) at the peak beyond the tensors, of the rank that needs most. Promised: at "
        f"most {allowed / MIB:.0f}; **more is bold**.",
        "",
        "| collective | " + " | ".join(extra) + " |",
        "| :--- |" + " ---: |" * len(extra),
    ]
    for collective in MEASURED:
        most = [max(ranks[collective]) for ranks in extra.values()]
        cells = [
            f"**{count / MIB:.1f}**" if count > allowed else f"{count / MIB:.1f}" for count in most
        ]
        lines.append(f"| {collective} | " + " | ".join(cells) + " |")
    return lines


def run(options: argparse.Namespace) -> int:
    """One rank: measure all collectives; rank 0 writes what all of them needed."""
    register()
    torch.set_num_threads(1)
    dist.init_process_group(options.backend)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    buffers = Buffers(options.megabytes * MIB // 4, torch.float32)
    # Every page of both buffers is there before the first measurement.
    whole = make_case(BenchOptions(), options.megabytes * MIB, rank, world_size)
    fill(whole, *buffers.of(whole, in_place=False))
    for collective in MEASURED:  # connections and Python's own growth are not what is measured
        call_once(collective, 4096, buffers)
    resident = read_bytes("VmRSS")
    extra: dict[str, list[int]] = {}
    for collective in MEASURED:
        Path("/proc/self/clear_refs").write_text("5")
        for _ in range(CALLS):
            call_once(collective, options.megabytes * MIB, buffers)
        extra[collective] = all_gather(read_bytes("VmHWM") - resident)
    if rank == 0:
        options.part.write_text(json.dumps(extra))
    dist.barrier()
    dist.destroy_process_group()
    return 0


def call_once(collective: str, bytes: int, buffers: Buffers) -> None:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    case = make_case(BenchOptions(collective=collective), bytes, rank, world_size)
    source, target = buffers.of(case, in_place=collective in IN_PLACE)
    make_call(case, source, target)(None)


def all_gather(value: int) -> list[int]:
    gathered: list[Tensor] = [
        torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())
    ]
    dist.all_gather(gathered, torch.tensor([value]))
    return [int(tensor) for tensor in gathered]


def read_bytes(field: str) -> int:
    """Return a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    sys.exit(main())
