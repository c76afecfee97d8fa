"""All-reduce between far hosts with uneven links (wanlab, root), against the bound and gloo.

    python benchmarks/wan.py --shape even --hosts 4 --rate 100 --rtt 0.05 [--loss 0.1%]
    python benchmarks/wan.py --shape access --hosts 8      hosts with unlike up- and downlinks
    python benchmarks/wan.py --shape pairs --hosts 8       pairs with unlike links between them
    python benchmarks/wan.py --shape even --slow-at 3      from that call on one link has a fifth

Every way holds its group in the same processes, and they take turns call by call. The bound is what
no schedule that sends partial sums exceeds: the smallest cut, and all uplinks (or downlinks) over
2 (n - 1).
"""

import argparse
import functools
import importlib
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, head, write

import pccl
from pccl.bench.machine import describe_machine

MBIT = 1e6 / 8
# Mbit/s up and down, for hosts on unlike access lines.
ACCESS_UP = (100, 50, 20, 10, 10, 9.4, 5, 3)
ACCESS_DOWN = (100, 50, 20, 10, 10, 9.4, 10, 10)


@dataclass
class Shape:
    """A network: bytes a second, seconds; [from][to] by host."""

    up: list[float]
    down: list[float]
    pairs: list[list[float]]
    rtt: list[list[float]]
    loss: str = "0%"
    queue: str = "100ms"

    def bound(self) -> tuple[float, float]:
        """Return the cut bound and the sum bound, bytes a second of tensor."""
        hosts = range(len(self.up))
        cuts = []
        for size in range(1, len(self.up)):
            for inside in itertools.combinations(hosts, size):
                outside = [host for host in hosts if host not in inside]
                out = sum(min(self.up[a], sum(self.pairs[a][b] for b in outside)) for a in inside)
                into = sum(
                    min(self.down[b], sum(self.pairs[a][b] for a in inside)) for b in outside
                )
                cuts.append(min(out, into))
        outs = [min(self.up[a], sum(self.pairs[a][b] for b in hosts if b != a)) for a in hosts]
        ins = [min(self.down[b], sum(self.pairs[a][b] for a in hosts if a != b)) for b in hosts]
        return min(cuts), min(sum(outs), sum(ins)) / (2 * (len(self.up) - 1))


def shape_of(options: argparse.Namespace) -> Shape:
    n = options.hosts
    rtt = [[options.rtt] * n for _ in range(n)]
    rate = options.rate * MBIT
    if options.shape == "access":
        up = [ACCESS_UP[host % 8] * options.scale * MBIT for host in range(n)]
        down = [ACCESS_DOWN[host % 8] * options.scale * MBIT for host in range(n)]
        pairs = [[1e9] * n for _ in range(n)]
        return Shape(up, down, pairs, rtt, options.loss)
    if options.shape == "pairs":
        # Between 0.3 and 1.2 times the rate, and round trips of 12 to 238 ms, as between regions.
        draw = random.Random(options.seed)
        pairs = [[0.0] * n for _ in range(n)]
        for a, b in itertools.combinations(range(n), 2):
            pairs[a][b] = pairs[b][a] = rate * draw.uniform(0.3, 1.2)
            rtt[a][b] = rtt[b][a] = draw.uniform(0.012, 0.238)
        return Shape([1e9] * n, [1e9] * n, pairs, rtt, options.loss)
    return Shape([rate] * n, [rate] * n, [[1e9] * n for _ in range(n)], rtt, options.loss)


def build(lab: Any, shape: Shape) -> list[Any]:
    hosts = []
    for host, (up, down) in enumerate(zip(shape.up, shape.down, strict=True)):
        capped = {"up": f"{up / MBIT}mbit", "down": f"{down / MBIT}mbit"} if up < 1e9 else {}
        hosts.append(lab.add_host(f"h{host}", queue=shape.queue, **capped))
    for a, b in itertools.combinations(range(len(hosts)), 2):
        rate = shape.pairs[a][b]
        capped = {"rate": f"{rate / MBIT}mbit"} if rate < 1e9 else {}
        lab.link(hosts[a], hosts[b], rtt=f"{shape.rtt[a][b] * 1e3}ms", loss=shape.loss, **capped)
    return hosts


def measure(options: argparse.Namespace) -> None:
    """A rank: every way in turn, call by call."""
    rank, world_size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    config = pccl.Config(
        shared_memory=False,
        bind=os.environ["WANLAB_ADDR"],
        insecure=True,
        sockets=options.sockets,
        timeout_seconds=300,
    )
    groups: dict[str, Any] = {}
    for way in options.ways:
        if way == "gloo":
            continue
        algorithm, _, fixed = way.partition("+")[0].partition(":")
        groups[way] = pccl.init(
            f"file://{options.folder}/{way.replace(':', '-')}",
            rank=rank,
            world_size=world_size,
            config=pccl.Config(
                **{**vars(config), "algorithm": algorithm, "deterministic": fixed == "fixed"}
            ),
        )
    calls = {
        way: functools.partial(group.all_reduce, codec=way.partition("+")[2])
        for way, group in groups.items()
    }
    if "gloo" in options.ways:
        calls["gloo"] = gloo(rank, world_size, options.folder)
    clock = next(iter(groups.values()))
    tensor = np.zeros(options.bytes // 4, np.float32)
    seconds: dict[str, list[float]] = {way: [] for way in options.ways}
    plans = {}
    for call in range(options.calls):
        if call == options.slow_at and rank == 0:
            Path(options.folder, "slow").touch()
        for way in options.ways:
            tensor[:] = rank + 1
            clock.barrier()
            begin = time.perf_counter()
            calls[way](tensor)
            taken = np.array([time.perf_counter() - begin])
            clock.all_reduce(taken, "max")  # the slowest rank's
            seconds[way].append(float(taken[0]))
            expected = world_size * (world_size + 1) / 2
            tolerance = 0.05 * expected if "+" in way else 0
            assert np.abs(tensor - expected).max() <= tolerance, (way, tensor)
            if rank == 0:
                print(f"call {call}: {way} {seconds[way][-1]:.3f} s", flush=True)
    for way, group in groups.items():
        plans[way] = group.plan("all_reduce", tensor.size)
    if rank == 0:
        Path(options.part).write_text(json.dumps({"seconds": seconds, "plans": plans}))
    clock.barrier()
    for group in groups.values():
        group.close()


def gloo(rank: int, world_size: int, folder: str) -> Any:
    import torch
    import torch.distributed as dist

    store = dist.FileStore(f"{folder}/gloo", world_size)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    return lambda tensor: dist.all_reduce(torch.from_numpy(tensor))


def run(options: argparse.Namespace, shape: Shape) -> dict[str, Any]:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))
    wide_area = importlib.import_module("wide_area")
    if wide_area.REASON:
        raise SystemExit(f"benchmarks/wan.py: {wide_area.REASON}")
    with tempfile.TemporaryDirectory() as folder, wide_area.WANLAB.Lab(seed=options.seed) as lab:
        hosts = build(lab, shape)
        part = Path(folder) / "part.json"
        ranks = []
        for rank, host in enumerate(hosts):
            more = {"RANK": str(rank), "WORLD_SIZE": str(len(hosts)), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, *sys.argv, "--folder", folder, "--part", str(part)]
            ranks.append(host.popen(command, env={**os.environ, **more}))
        while any(process.poll() is None for process in ranks):
            if Path(folder, "slow").exists():
                Path(folder, "slow").unlink()
                slow_down(lab, hosts, shape, options)
            time.sleep(0.05)
        if any(process.returncode for process in ranks):
            raise SystemExit("benchmarks/wan.py: a rank failed; its error has been shown")
        found: dict[str, Any] = json.loads(part.read_text())
        stats = lab.stats()
        pairs = {" -> ".join(pair): value for pair, value in stats["pairs"].items()}
        found["lab"] = {**stats, "pairs": pairs}
        return found


def slow_down(lab: Any, hosts: list[Any], shape: Shape, options: argparse.Namespace) -> None:
    """The link between the first two hosts drops to a fifth."""
    rate = min(shape.pairs[0][1], shape.up[0]) / 5
    lab.link(hosts[0], hosts[1], rate=f"{rate / MBIT}mbit")
    shape.pairs[0][1] = shape.pairs[1][0] = rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=("even", "access", "pairs"), default="even")
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--rate", type=float, default=100, help="Mbit/s")
    parser.add_argument("--scale", type=float, default=1, help="of the access lines")
    parser.add_argument("--rtt", type=float, default=0.05, help="seconds")
    parser.add_argument("--loss", default="0%")
    parser.add_argument("--bytes", type=int, default=64 << 20)
    parser.add_argument("--calls", type=int, default=6)
    parser.add_argument("--sockets", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--slow-at", type=int, default=-1, help="call before which a link slows")
    parser.add_argument(
        "--ways",
        nargs="+",
        default=["auto", "auto:fixed", "ring", "gloo"],
        help="algorithm, or gloo; :fixed: deterministic; +int8: in that codec",
    )
    parser.add_argument("--name", default="", help="of the result files; empty: none")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        measure(options)
        return
    shape = shape_of(options)
    bounds = [shape.bound()]
    found = run(options, shape)
    bounds.append(shape.bound())
    machine = describe_machine()
    size = f"{options.bytes >> 20} MiB" if options.bytes >> 20 else f"{options.bytes} bytes"
    lines = head(f"All-reduce of {size}, {options.hosts} hosts", machine)
    # What is small costs latency: a value from each host to each takes that of the farthest two.
    least = max(max(row) for row in shape.rtt) / 2
    is_small = options.bytes / min(bounds[0]) < least
    cut, total = bounds[0]
    lines += [
        f"Bound: {min(cut, total) / MBIT:.1f} Mbit/s (cut {cut / MBIT:.1f}, sum "
        f"{total / MBIT:.1f}).",
        "",
        "| way | plan | first call | last calls, median, s | "
        + ("of the least latency |" if is_small else "Mbit/s | of the bound |"),
        "|---|---|---|---|---|" + ("" if is_small else "---|"),
    ]
    bound = min(bounds[-1])
    for way, seconds in found["seconds"].items():
        late = statistics.median(seconds[-max(3, options.calls // 2) :])
        rate = options.bytes / late
        line = f"| {way} | {found['plans'].get(way, '')} | {seconds[0]:.2f} | {late:.3f} | "
        line += (
            f"{late / least:.2f} |"
            if is_small
            else f"{rate / MBIT:.1f} | {100 * rate / bound:.0f} % |"
        )
        lines.append(line)
    if options.name:
        write(options.results, options.name, {"machine": machine, **found}, lines)
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
