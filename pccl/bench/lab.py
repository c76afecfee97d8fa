"""`pccl bench --lab`: all_reduces between hosts of a lab, beside gloo and the bound.

A description is that of wanlab (hosts, links, regions), with one entry more, "bench": see LabJob.
Every way holds its group in the same processes, one a host, and they take turns call by call.
"""

from __future__ import annotations

import functools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import pccl
from pccl.bench.options import format_bytes, parse_bytes
from pccl.topology import Network

__all__ = ["LabJob", "lab_table", "network_of", "read_job", "run_lab"]

# Of links and hosts without a limit of their own, bytes a second: the lab carries less.
UNLIMITED = 1e9
_LOOK_SECONDS = 0.05
_CALL_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class LabJob:
    """What the hosts do; the entry "bench" of a description.

    Args:
        sizes: of the tensors, bytes of float32: "4K", "64M".
        ways: what is compared: an algorithm ("auto", "ring", "packed_trees"; docs/collectives.md)
            or "gloo". Behind "@4" over so many sockets a connection, behind ":fixed" plans don't
            follow the links, behind "+int8" in that codec, in this order.
        calls: of each way and size; the median is that of the last ones, 3 or half of them.
        sockets: of each connection; 0: as measured, as in pccl.Config.
        congestion_control: what the hosts' kernels use by default ("cubic"); "": this one's.
        graph: as in pccl.Config; "": every pair of hosts talks.
        slow_at: for `on_slow` of run_lab(): before this call of the first size; -1: never.
    """

    sizes: tuple[str, ...] = ("64M",)
    ways: tuple[str, ...] = ("auto", "ring", "gloo")
    calls: int = 6
    sockets: int = 0
    congestion_control: str = ""
    graph: str = ""
    slow_at: int = -1

    def __post_init__(self) -> None:
        if not self.sizes or not self.ways or self.ways == ("gloo",):
            raise ValueError("bench: expected at least one size, and one way beside gloo")
        for size in self.sizes:
            if parse_bytes(size) % 4:
                raise ValueError(f"bench: sizes are whole float32, not {size}")
        for way in self.ways:
            if not re.fullmatch(r"[a-z_]+(@[0-9]{1,2})?(:fixed)?(\+[a-z0-9_]+)?", way):
                raise ValueError(f"bench: ways: expected one like 'auto@4:fixed+int8', got {way!r}")
        if self.calls < 1:
            raise ValueError(f"bench: calls: expected 1 or more, got {self.calls}")


def read_job(spec: Mapping[str, Any]) -> LabJob:
    """The entry "bench" of a description.

    Raises:
        ValueError: fewer than two hosts, or an entry that is none.
    """
    if len(spec.get("hosts", {})) < 2:
        raise ValueError('lab: expected "hosts" with two or more')
    job = dict(spec.get("bench", {}))
    unknown = set(job) - {field.name for field in fields(LabJob)}
    if unknown:
        raise ValueError(f'lab: "bench" has no {", ".join(sorted(unknown))}')
    for name in ("sizes", "ways"):
        if name in job:
            job[name] = tuple(job[name])
    return LabJob(**job)


class _Drawing:
    """Takes a description as wanlab's Lab does, and keeps the figures."""

    def __init__(self, wanlab: ModuleType) -> None:
        self._wanlab = wanlab
        self.hosts: dict[str, dict[str, Any]] = {}
        self.pairs: dict[tuple[str, str], dict[str, Any]] = {}

    def add_host(self, name: str, **options: Any) -> None:
        self.hosts[name] = options

    def pair(self, source: str, target: str, **options: Any) -> None:
        self.pairs.setdefault((source, target), {}).update(options)

    def link(self, first: str, second: str, rtt: Any = None, **options: Any) -> None:
        if rtt is not None:
            options["delay"] = self._wanlab.parse_time(rtt) / 2
        self.pair(first, second, **options)
        self.pair(second, first, **options)


def network_of(spec: Mapping[str, Any], wanlab: ModuleType) -> Network:
    """The described network: its bound, its latencies.

    Raises:
        wanlab.WanlabError: a figure that is none.
    """
    drawing = _Drawing(wanlab)
    wanlab.Lab._build(drawing, spec)
    names = list(drawing.hosts)

    def rate(options: Mapping[str, Any], key: str) -> float:
        return (wanlab.parse_rate(options.get(key)) or 8 * UNLIMITED) / 8

    def figures(read: Callable[[Mapping[str, Any]], float]) -> Any:
        return [[read(drawing.pairs.get((a, b), {})) for b in names] for a in names]

    return Network(
        figures(lambda options: rate(options, "rate")),
        figures(lambda options: wanlab.parse_time(options.get("delay", 0))),
        out_bytes_per_second=[rate(drawing.hosts[name], "up") for name in names],
        in_bytes_per_second=[rate(drawing.hosts[name], "down") for name in names],
        names=names,
    )


def run_lab(
    spec: Mapping[str, Any],
    job: LabJob,
    wanlab: ModuleType,
    *,
    seed: int = 1,
    on_slow: Callable[[Any], None] = lambda lab: None,
) -> dict[str, Any]:
    """Make the lab and measure; seconds [way][size][call], plans [way][size], the lab's counters.

    Raises:
        RuntimeError: a host's process failed; its error has been shown.
    """
    with tempfile.TemporaryDirectory() as folder, wanlab.Lab.from_spec(spec, seed=seed) as lab:
        hosts = list(lab.hosts.values())
        if job.congestion_control:
            for host in hosts:
                host.congestion_control(job.congestion_control)
        told = {**asdict(job), "folder": folder, "hosts": [host.addr for host in hosts]}
        Path(folder, "job.json").write_text(json.dumps(told))
        command = [sys.executable, "-m", "pccl.bench.lab", folder]
        ranks = [host.popen([*command, str(rank)]) for rank, host in enumerate(hosts)]
        try:
            _watch(ranks, lambda: on_slow(lab), Path(folder, "slow"))
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        found: dict[str, Any] = json.loads(Path(folder, "part.json").read_text())
        stats = lab.stats()
        pairs = {" -> ".join(pair): value for pair, value in stats["pairs"].items()}
        return {**found, "lab": {**stats, "pairs": pairs}}


def _watch(ranks: list[subprocess.Popen[bytes]], on_slow: Callable[[], None], slow: Path) -> None:
    """Until all have ended, or one has failed."""
    while any(process.poll() is None for process in ranks):
        if slow.exists():
            slow.unlink()
            on_slow()
        if any(process.returncode for process in ranks):
            break
        time.sleep(_LOOK_SECONDS)
    if any(process.returncode for process in ranks):
        raise RuntimeError("a host's process failed; its error has been shown")


def lab_table(found: Mapping[str, Any], network: Network, bounds: Network) -> list[str]:
    """Lines of markdown. `bounds`: the network as it was at the end."""
    cut, total = network.bounds
    lines = [
        f"Bound: {min(cut, total) * 8e-6:.1f} Mbit/s (cut {cut * 8e-6:.1f}, sum "
        f"{total * 8e-6:.1f}); no call is faster than the farthest two hosts are apart.",
        "",
        "| size | way | plan | first call, s | last calls, median, s | Mbit/s | of the bound |",
        "|---|---|---|---|---|---|---|",
    ]
    least = float(network.latencies.max())
    for size in next(iter(found["seconds"].values())):
        for way, by_size in found["seconds"].items():
            seconds = by_size[size]
            late = statistics.median(seconds[-max(3, len(seconds) // 2) :])
            best = max(int(size) / bounds.bound, least)
            plan = found["plans"].get(way, {}).get(size, "")
            lines.append(
                f"| {format_bytes(int(size))} | {way} | {plan} | {seconds[0]:.3f} | {late:.3f} | "
                f"{int(size) * 8e-6 / late:.1f} | {100 * best / late:.0f} % |"
            )
    return lines


# --- a host's process ---


def _open_ways(told: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """The group of each way but gloo's."""
    groups: dict[str, Any] = {}
    for way in told["ways"]:
        if way == "gloo":
            continue
        name, _, fixed = way.partition("+")[0].partition(":")
        algorithm, _, sockets = name.partition("@")
        config = pccl.Config(
            shared_memory=False,
            bind=told["hosts"][rank],
            insecure=True,
            sockets=int(sockets or told["sockets"]),
            graph=told["graph"],
            timeout_seconds=_CALL_SECONDS,
            algorithm=algorithm,
            deterministic=fixed == "fixed",
        )
        groups[way] = pccl.init(
            f"file://{told['folder']}/{way.replace(':', '-')}",
            rank=rank,
            world_size=len(told["hosts"]),
            config=config,
        )
    return groups


def _open_gloo(told: Mapping[str, Any], rank: int) -> Callable[[Any], Any]:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    world_size = len(told["hosts"])
    store = dist.FileStore(f"{told['folder']}/gloo", world_size)  # type: ignore[attr-defined]
    dist.init_process_group(
        "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=_CALL_SECONDS),
    )
    return lambda tensor: dist.all_reduce(torch.from_numpy(tensor))


def _measure(told: Mapping[str, Any], rank: int) -> None:
    """Every way in turn, call by call."""
    groups = _open_ways(told, rank)
    calls: dict[str, Callable[[Any], Any]] = {
        way: functools.partial(group.all_reduce, codec=way.partition("+")[2])
        for way, group in groups.items()
    }
    if "gloo" in told["ways"]:
        calls["gloo"] = _open_gloo(told, rank)
    clock = next(iter(groups.values()))
    world_size = len(told["hosts"])
    expected = world_size * (world_size + 1) / 2
    sizes = [parse_bytes(size) for size in told["sizes"]]
    seconds: dict[str, dict[int, list[float]]] = {
        way: {size: [] for size in sizes} for way in told["ways"]
    }
    for size in sizes:
        tensor = np.zeros(size // 4, np.float32)
        for call in range(told["calls"]):
            if rank == 0 and call == told["slow_at"] and size == sizes[0]:
                Path(told["folder"], "slow").touch()
            for way in told["ways"]:
                tensor[:] = rank + 1
                clock.barrier()
                begin = time.perf_counter()
                calls[way](tensor)
                taken = np.array([time.perf_counter() - begin])
                clock.all_reduce(taken, "max")  # the slowest host's
                seconds[way][size].append(float(taken[0]))
                tolerance = 0.05 * expected if "+" in way else 0
                assert np.abs(tensor - expected).max(initial=0) <= tolerance, (way, tensor)
                if rank == 0:
                    shown = f"{format_bytes(size)}, call {call}: {way} {taken[0]:.3f} s"
                    print(shown, file=sys.stderr, flush=True)
    plans = {
        way: {size: group.plan("all_reduce", size // 4) for size in sizes}
        for way, group in groups.items()
    }
    if rank == 0:
        part = Path(told["folder"], "part.json")
        part.write_text(json.dumps({"seconds": seconds, "plans": plans}))
    clock.barrier()
    for group in groups.values():
        group.close()


if __name__ == "__main__":
    _measure(json.loads(Path(sys.argv[1], "job.json").read_text()), int(sys.argv[2]))
