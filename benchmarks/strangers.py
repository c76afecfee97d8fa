"""What strangers cost a run: the same all_reduce with nobody at the door, and with a crowd.

    python benchmarks/strangers.py [--rounds 15] [--rate 200]

Two members reduce 4 MiB over TCP, again and again. For a second somebody knocks at both of them and
at the coordinator, `--rate` times a second in all: garbage, HTTP, a handshake of another version,
one that stops in the middle, lengths beyond all limits, and who connects and says nothing. Caller,
kernel and run share the machine's cores, so in another second the same crowd knocks at another run
that computes nothing: what is lost then is not the run's doing. In a third nobody knocks.
"""

import argparse
import itertools
import json
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
from common import RESULTS, head, ratio_text, write

import pccl
from pccl.bench.machine import describe_machine
from pccl.bench.result import spread

BYTES = 4 << 20
CALLS = 10  # from word to word
MEMBERS = 2
SECONDS = 1.0
HELLO = b"PCCH"
# docs/wire_format.md
GREETINGS = {
    "garbage": random.Random(1).randbytes(3000),
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "another version": HELLO + struct.pack("<HH", 9, 200) + bytes(200),
    "half a handshake": HELLO + struct.pack("<HH", 3, 300) + bytes(100),
    "a huge length": HELLO + struct.pack("<HH", 3, 65535) + bytes(1000),
    "silence": b"",
}
# Of those that stay; then the oldest leaves.
STAYING_MAX = 300


def take_part(address: str, stop: Path, is_idle: bool) -> None:
    """A member: says where it is, and after each few calls that they are done."""
    tensor = np.zeros(BYTES // 4, np.float32)
    ends = np.zeros(1, np.float32)
    with pccl.join(address, world_size_min=MEMBERS) as comm:
        print(json.dumps([member.address for member in comm.members]), flush=True)
        while is_idle and not stop.exists():
            time.sleep(0.1)
        while not is_idle and not ends[0]:
            for _ in range(CALLS):
                comm.all_reduce(tensor)
            print(json.dumps(time.monotonic()), flush=True)
            ends[0] = stop.exists()
            comm.all_reduce(ends, "max")


class BenchRun:
    """A coordinator and two members, as processes of their own."""

    def __init__(self, stack: ExitStack, stop: Path, name: str, *more: str) -> None:
        options = pccl.CoordinatorOptions(
            port=0, bind="127.0.0.1", database=stop.with_name(f"{name}.db"), listen_seconds=0
        )
        coordinator = stack.enter_context(pccl.Coordinator(options))
        address = f"pccl://127.0.0.1:{coordinator.port}/{name}"
        command = [sys.executable, sys.argv[0], "--member", address, "--stop", str(stop), *more]
        local = {"PCCL_SHARED_MEMORY": "0", "PCCL_HOST": "127.0.0.1"}
        self.members = [
            subprocess.Popen(command, stdout=output, env={**os.environ, **local})
            for output in (subprocess.PIPE, *[subprocess.DEVNULL] * (MEMBERS - 1))
        ]
        said = self.members[0].stdout
        assert said is not None
        # Where strangers may knock.
        self.places = [("127.0.0.1", coordinator.port)]
        for text in json.loads(said.readline()):
            self.places.append(("127.0.0.1", int(text.rpartition(":")[2])))
        # A full pipe would stop the member.
        self.lines: list[bytes] = []
        self.reader = threading.Thread(target=self.lines.extend, args=(said,))
        self.reader.start()

    def finish(self) -> list[float]:
        """When calls were done."""
        self.reader.join()
        codes = [member.wait() for member in self.members]
        if any(codes):
            raise SystemExit("benchmarks/strangers.py: a member failed")
        return [float(line) for line in self.lines]


def knock(places: list[tuple[str, int]], rate: float, until: float) -> int:
    """Call until then; return how often."""
    greetings = list(GREETINGS.values())
    staying: list[socket.socket] = []
    count = 0
    while time.monotonic() < until:
        with suppress(OSError):
            caller = socket.create_connection(places[count % len(places)], timeout=1)
            staying.append(caller)
            caller.sendall(greetings[count // len(places) % len(greetings)])
        count += 1
        if len(staying) > STAYING_MAX:
            staying.pop(0).close()
        time.sleep(1 / rate)
    for caller in staying:
        caller.close()
    return count


def measure(rounds: int, rate: float) -> tuple[dict[str, list[float]], int]:
    """Calls a second by who is knocked at, round by round; how many strangers came to the run."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stop = Path(folder) / "stop"
        run = BenchRun(stack, stop, "bench")
        elsewhere = BenchRun(stack, stop, "elsewhere", "--idle")
        places: dict[str, list[tuple[str, int]]] = {
            "nobody": [],
            "elsewhere": elsewhere.places,
            "run": run.places,
        }
        orders = list(itertools.permutations(places))
        intervals = []
        knocks = 0
        for index in range(rounds + 1):
            for door in orders[index % len(orders)]:
                begin = time.monotonic()
                if places[door]:
                    count = knock(places[door], rate, begin + SECONDS)
                    knocks += count if door == "run" else 0
                else:
                    time.sleep(SECONDS)
                intervals.append((begin, time.monotonic(), door))
        stop.touch()
        elsewhere.finish()
        done = run.finish()
    speeds: dict[str, list[float]] = {door: [] for door in places}
    for begin, end, door in intervals[len(places) :]:  # the first round warms up
        inside = [at for at in done if begin <= at <= end]
        speeds[door].append(CALLS * (len(inside) - 1) / (inside[-1] - inside[0]))
    return speeds, knocks


def shown(over: list[float], under: list[float]) -> str:
    ratio = spread([a / b for a, b in zip(over, under, strict=True)])
    return ratio_text({"p10": ratio.p10, "p50": ratio.p50, "p90": ratio.p90})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rate", type=float, default=200, help="strangers a second")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--member", default="", help=argparse.SUPPRESS)
    parser.add_argument("--stop", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--idle", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.member:
        take_part(options.member, options.stop, options.idle)
        return
    machine = describe_machine()
    speeds, knocks = measure(options.rounds, options.rate)
    lines = head("Strangers at the door, all_reduce of 4 MiB, 2 members over TCP", machine)
    lines += [
        f"{knocks} strangers, {options.rate:g} a second, at both members and the coordinator. "
        "Calls a second over those",
        "",
        f"- while the same strangers knock at another run on this machine: "
        f"{shown(speeds['run'], speeds['elsewhere'])}",
        f"- without strangers: {shown(speeds['run'], speeds['nobody'])}, and while they knock at "
        f"the other run {shown(speeds['elsewhere'], speeds['nobody'])}: callers take the "
        "machine's cores, too",
    ]
    document = {"machine": machine, "calls_per_second": speeds, "knocks": knocks}
    write(options.results, "strangers", document, lines)


if __name__ == "__main__":
    main()
