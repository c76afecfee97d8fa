"""From options to table, JSON file and picture: starts the ranks, or is one of them."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist
from rich.console import Console

from pccl._autoload import register
from pccl.bench.machine import describe_machine, is_busy, machine_line
from pccl.bench.measure import Rank, join, measure
from pccl.bench.options import BenchOptions
from pccl.bench.plot import plot_rows
from pccl.bench.result import Row
from pccl.bench.table import BenchTable
from pccl.bench.traffic import bytes_sent
from pccl.config import Config, Launch
from pccl.launch import launch, run_rank

__all__ = ["run_bench"]

SHARED_MEMORY = {"auto": None, "tcp": False, "memory": True}  # transport -> Config.shared_memory
WIDTH = 120  # columns of the table, also where the output is no terminal


def run_bench(options: BenchOptions, command: Sequence[str]) -> int:
    """Run the benchmark; return 0, 1 for wrong results, or the exit code of the rank that failed.

    Args:
        options: what to measure.
        command: the command line that comes here again in each rank.

    Raises:
        ValueError: a backend does not exist, or `root` is no rank; nothing was started.
    """
    try:
        place = Launch.from_environment()
    except ValueError:  # no launcher has started this process, so it becomes one
        _refuse_what_no_rank_could_do(options)
        shared_memory = SHARED_MEMORY[options.transport]
        environment = {"OMP_NUM_THREADS": "1"}  # as torchrun: one core per rank
        if shared_memory is not None:
            environment["PCCL_SHARED_MEMORY"] = str(int(shared_memory))
        return launch(command, options.processes, environment=environment)
    run_rank(lambda: _run(options, place))


def _refuse_what_no_rank_could_do(options: BenchOptions) -> None:
    register()
    for backend in (options.backend, options.compare):
        if backend and not dist.is_backend_available(backend):
            raise ValueError(f"bench: torch has no backend {backend!r} here")
    if options.root >= options.processes:
        raise ValueError(f"bench: root {options.root} is no rank of {options.processes}")


def _run(options: BenchOptions, place: Launch) -> int:
    shared_memory = SHARED_MEMORY[options.transport]
    if shared_memory not in (None, Config.from_environment().shared_memory):
        raise ValueError(
            f"bench: with a launcher, set PCCL_SHARED_MEMORY={int(bool(shared_memory))} yourself"
        )
    talks = place.rank == 0
    console = Console(width=WIDTH if not sys.stdout.isatty() else None, quiet=not talks)
    machine = describe_machine()
    console.print(f"[dim]{machine_line(machine)}[/]", soft_wrap=True, highlight=False)
    if is_busy(machine):
        console.print("[yellow]Other programs use this machine: the numbers will mislead.[/]")
    rank = join(options)
    rows: list[Row] = []
    for one in options.each():
        title = headline(one, place.world_size)
        console.print(f"\n[bold]{title}[/]\n", soft_wrap=True, highlight=False)
        table = BenchTable(console, one)
        table.print_head()
        rows += measure(one, rank, table.print_row)
    sent = sent_by_transport(rank, options.backend)
    table.print_foot(options, rows, sent)
    if talks:
        _write_files(options, place.world_size, rows, machine, sent, console)
    rank.exchange.leave()  # nobody leaves before rank 0 has written
    dist.destroy_process_group()
    return 1 if any(row.wrong for row in rows) else 0


def headline(options: BenchOptions, world_size: int) -> str:
    """Return what is measured, in one line."""
    against = f" against {options.compare}" if options.compare else ""
    codecs = f", codecs {options.codec}" if options.codec else ""
    transport = f", transport {options.transport}" if options.transport != "auto" else ""
    ranks = "1 rank" if world_size == 1 else f"{world_size} ranks"
    return f"{options.collective}: {options.backend}{against}, {ranks}{codecs}{transport}"


def sent_by_transport(rank: Rank, backend: str) -> dict[str, int]:
    """Return what this rank's process has sent: {} when the backend does not count."""
    sent = bytes_sent(rank.groups[backend])
    counts = {} if sent is None else {"by TCP": sent.tcp, "by memory": sent.memory}
    return {name: count for name, count in counts.items() if count}


def _write_files(
    options: BenchOptions,
    world_size: int,
    rows: list[Row],
    machine: dict[str, object],
    sent: dict[str, int],
    console: Console,
) -> None:
    if options.json_path:
        path = Path(options.json_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "machine": machine,
            "world_size": world_size,
            "options": options.to_dict(),
            "bytes_sent_by_rank_0": sent,
            "rows": [row.to_dict() for row in rows],
        }
        path.write_text(json.dumps(document, indent=1) + "\n")
        console.print(f"[dim]written: {path}[/]")
    if options.plot_path:
        title = headline(options, world_size)
        plot_rows(rows, title, machine_line(machine), Path(options.plot_path))
        console.print(f"[dim]written: {options.plot_path}[/]")
