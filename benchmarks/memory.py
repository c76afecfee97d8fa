"""Memory that an all_reduce needs beside the caller's tensor, per process.

    python benchmarks/memory.py --processes 4 --megabytes 256

Each backend and transport runs in fresh processes. A rank fills its tensor, resets the kernel's
record of its peak (/proc/self/clear_refs), reduces three times, and reads the peak. Memory shared
between processes counts in full for each that maps it (RSS), and by its share in the last column
(PSS). Linux only.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console

from pccl._autoload import register
from pccl.bench.machine import describe_machine, machine_line
from pccl.launch import launch, run_rank

REDUCTIONS = 3
# The design's promise: 64 MB, or 10 % of the tensor, whichever is more.
ALLOWED_BYTES = 64 * 2**20
ALLOWED_SHARE = 0.1
MIB = 2**20


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--megabytes", type=int, default=256, help="of the tensor (2^20 bytes)")
    parser.add_argument("--backend", help="measure only this one, over --transport")
    parser.add_argument("--transport", choices=("tcp", "memory"), default="memory")
    options = parser.parse_args()
    if "RANK" in os.environ:
        run_rank(lambda: run(options))
    if not Path("/proc/self/clear_refs").exists():
        print("memory: needs Linux's /proc/self/clear_refs", file=sys.stderr)
        return 2
    arms = [("pccl", "tcp"), ("pccl", "memory"), ("gloo", "tcp")]
    if options.backend:
        arms = [(options.backend, options.transport)]
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]all_reduce of {options.megabytes} MB, {options.processes} ranks[/]")
    console.print(f"[dim]{machine_line(describe_machine())}[/]\n")
    console.print(f"[bold]{'backend':<14} {'extra at peak, by rank (RSS)':<44} after it (PSS)[/]")
    for backend, transport in arms:
        # Later options win, so ours follow the caller's.
        command = [sys.executable, *sys.argv, "--backend", backend, "--transport", transport]
        environment = {"OMP_NUM_THREADS": "1", "PCCL_SHARED_MEMORY": str(int(transport != "tcp"))}
        code = launch(command, options.processes, environment=environment)
        if code != 0:
            return code
    return 0


def run(options: argparse.Namespace) -> int:
    """One rank; rank 0 prints the line of this backend."""
    register()
    torch.set_num_threads(1)
    dist.init_process_group(options.backend)
    tensor = torch.ones(options.megabytes * MIB // 4)
    # Connections, threads and Python's own growth are not what is measured.
    dist.all_reduce(torch.ones(1024))
    gathered: list[list[int]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, [0, 0])
    resident, shared_out = read_kib("/proc/self/status", "VmRSS"), pss()
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(REDUCTIONS):
        dist.all_reduce(tensor)
    peak = read_kib("/proc/self/status", "VmHWM")
    dist.all_gather_object(gathered, [peak - resident, pss() - shared_out])
    if dist.get_rank() == 0:
        name = f"{options.backend}, {options.transport}"
        extra = [peak_bytes / MIB for peak_bytes, _ in gathered]
        after = max(pss_bytes for _, pss_bytes in gathered) / MIB
        allowed = max(ALLOWED_BYTES, ALLOWED_SHARE * options.megabytes * MIB) / MIB
        style = "green" if max(extra) <= allowed else "bold red"
        numbers = "  ".join(f"{value:5.1f}" for value in extra)
        console = Console(highlight=False, soft_wrap=True)
        console.print(
            f"{name:<14} [{style}]{f'{numbers} MB':<44}[/] {after:5.1f} MB at most"
            f"   [dim]{json.dumps(statistics())}[/]"
        )
    dist.barrier()
    dist.destroy_process_group()
    return 0


def read_kib(path: str, field: str) -> int:
    """Return a field of a /proc file, in bytes."""
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"{path} has no {field}")


def pss() -> int:
    return read_kib("/proc/self/smaps_rollup", "Pss")


def statistics() -> dict[str, int]:
    """Return what the backend sent, by transport, where it counts."""
    read = getattr(dist.group.WORLD, "statistics", dict)
    return {name: value for name, value in read().items() if name.startswith("bytes_sent")}


if __name__ == "__main__":
    sys.exit(main())
