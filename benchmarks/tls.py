"""What TLS costs: the same calls, plain and through TLS.

    python benchmarks/tls.py [--rounds 9] [--processes 2]    on loopback, where nothing else limits
    python benchmarks/tls.py --rate 1gbit                    between hosts with such links (wanlab)

The same processes hold both groups and take turns, the order changing with every round.
"""

import argparse
import importlib
import itertools
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, collect, head, ratio_text, write

import pccl
from pccl.bench.machine import describe_machine
from pccl.bench.result import spread

SIZES = (4, 4096, 65536, 1 << 20, 16 << 20, 64 << 20)


def measure(folder: str, rounds: int, part: str) -> None:
    """A rank: both groups in turn."""
    bind = os.environ.get("WANLAB_ADDR", "127.0.0.1")
    tcp = pccl.Config(shared_memory=False, bind=bind, insecure=True)
    secure_tcp = pccl.Config(shared_memory=False, bind=bind, tls="always")
    with (
        meet(f"file://{folder}/plain", tcp) as plain,
        meet(f"file://{folder}/tls", secure_tcp) as secure,
    ):
        found = {}
        for size in SIZES:
            tensor = np.zeros(size // 4, np.float32)
            calls = max(1, min(500, (64 << 20) // max(size, 65536)))
            seconds: dict[str, list[float]] = {"plain": [], "tls": []}
            for round_number in range(rounds + 1):
                order = [("plain", plain), ("tls", secure)]
                for name, group in order if round_number % 2 else reversed(order):
                    plain.barrier()
                    begin = time.perf_counter()
                    for _ in range(calls):
                        group.all_reduce(tensor)
                    if round_number > 0:  # the first warms up
                        seconds[name].append((time.perf_counter() - begin) / calls)
            found[str(size)] = seconds
        assert secure.statistics()["secure_sockets"] > 0
        if plain.rank == 0:
            Path(part).write_text(json.dumps(found))
        plain.barrier()


def meet(place: str, config: pccl.Config) -> pccl.Communicator:
    rank, world_size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    return pccl.init(place, rank=rank, world_size=world_size, config=config)


def collect_on_hosts(arguments: list[str], processes: int, rate: str, part: Path) -> None:
    """Run this program on hosts that a link of `rate` and 1 ms joins."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))
    wide_area = importlib.import_module("wide_area")
    if wide_area.REASON:
        raise SystemExit(f"benchmarks/tls.py --rate: {wide_area.REASON}")
    with wide_area.WANLAB.Lab() as lab:
        hosts = [lab.add_host(f"h{rank}", up=rate, down=rate) for rank in range(processes)]
        for first, second in itertools.combinations(hosts, 2):
            lab.link(first, second, rtt="1ms")
        ranks = []
        for rank, host in enumerate(hosts):
            more = {"RANK": str(rank), "WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, sys.argv[0], *arguments, "--part", str(part)]
            ranks.append(host.popen(command, env={**os.environ, **more}))
        codes = [rank.wait() for rank in ranks]
        if any(codes):
            raise SystemExit("benchmarks/tls.py: a rank failed; its error has been shown")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rate", default="", help="of the links between hosts; empty: loopback")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        measure(options.folder, options.rounds, options.part)
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in ("plain", "tls"):
            (Path(folder) / name).mkdir()
        arguments = ["--folder", folder, "--rounds", str(options.rounds)]
        found: dict[str, Any]
        if options.rate:
            part = Path(folder) / "part.json"
            collect_on_hosts(arguments, options.processes, options.rate, part)
            found = json.loads(part.read_text())
        else:
            found = collect(arguments, options.processes, "tcp")
    machine = describe_machine()
    place = f"links of {options.rate}, 1 ms" if options.rate else "loopback"
    lines = head(f"TLS, {place}, all_reduce, {options.processes} processes", machine)
    lines += ["| bytes | plain, us | TLS, us | TLS / plain |", "|---|---|---|---|"]
    for size, seconds in found.items():
        pairs = zip(seconds["tls"], seconds["plain"], strict=True)
        ratio = spread([secure / plain for secure, plain in pairs])
        medians = [
            sorted(seconds[name])[len(seconds[name]) // 2] * 1e6 for name in ("plain", "tls")
        ]
        text = ratio_text({"p10": ratio.p10, "p50": ratio.p50, "p90": ratio.p90})
        lines.append(f"| {size} | {medians[0]:.0f} | {medians[1]:.0f} | {text} |")
    name = f"tls_{options.rate}" if options.rate else "tls"
    write(options.results, name, {"machine": machine, "seconds": found}, lines)


if __name__ == "__main__":
    main()
