"""What strangers cost a run: the same all_reduce with nobody at the door, and with a crowd.

    python benchmarks/strangers.py [--rounds 15] [--rate 200]

Two members reduce 4 MiB over TCP, again and again. In every other second somebody knocks at both of
them and at the coordinator, `--rate` times a second in all: garbage, HTTP, a handshake of another
version, one that stops in the middle, lengths beyond all limits, and who connects and says nothing.
What the caller itself computes is part of what it costs.
"""

import argparse
import json
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
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


def take_part(address: str, stop: Path) -> None:
    """A member: says where it is, and after each few calls that they are done."""
    tensor = np.zeros(BYTES // 4, np.float32)
    ends = np.zeros(1, np.float32)
    with pccl.join(address, world_size_min=MEMBERS) as comm:
        print(json.dumps([member.address for member in comm.members]), flush=True)
        while not ends[0]:
            for _ in range(CALLS):
                comm.all_reduce(tensor)
            print(json.dumps(time.monotonic()), flush=True)
            ends[0] = stop.exists()
            comm.all_reduce(ends, "max")


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


def measure(rounds: int, rate: float) -> tuple[list[float], list[float], int]:
    """Calls a second without strangers and with them, by round; and how many strangers came."""
    with tempfile.TemporaryDirectory() as folder:
        stop = Path(folder) / "stop"
        options = pccl.CoordinatorOptions(
            port=0,
            bind="127.0.0.1",
            database=Path(folder) / "coordinator.db",
            listen_seconds=0,
        )
        with pccl.Coordinator(options) as coordinator:
            address = f"pccl://127.0.0.1:{coordinator.port}/bench"
            command = [sys.executable, sys.argv[0], "--member", address, "--stop", str(stop)]
            local = {"PCCL_SHARED_MEMORY": "0", "PCCL_HOST": "127.0.0.1"}
            members = [
                subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **local})
                for _ in range(MEMBERS)
            ]
            first = members[0].stdout
            assert first is not None
            places = [("127.0.0.1", coordinator.port)]
            for text in json.loads(first.readline()):
                places.append(("127.0.0.1", int(text.rpartition(":")[2])))
            intervals = []
            knocks = 0
            for index in range(2 * (rounds + 1)):
                begin = time.monotonic()
                is_attacked = index % 4 in (1, 2)  # calm, attacked, attacked, calm
                if is_attacked:
                    knocks += knock(places, rate, begin + SECONDS)
                else:
                    time.sleep(SECONDS)
                intervals.append((begin, time.monotonic(), is_attacked))
            stop.touch()
            done = [float(line) for line in first]
            codes = [member.wait() for member in members]
            if any(codes):
                raise SystemExit("benchmarks/strangers.py: a member failed")
    speeds: dict[bool, list[float]] = {False: [], True: []}
    for begin, end, is_attacked in intervals[2:]:  # the first two warm up
        inside = [at for at in done if begin <= at <= end]
        speeds[is_attacked].append(CALLS * (len(inside) - 1) / (inside[-1] - inside[0]))
    return speeds[False], speeds[True], knocks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rate", type=float, default=200, help="strangers a second")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--member", default="", help=argparse.SUPPRESS)
    parser.add_argument("--stop", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.member:
        take_part(options.member, options.stop)
        return
    machine = describe_machine()
    calm, attacked, knocks = measure(options.rounds, options.rate)
    ratio = spread([a / c for a, c in zip(attacked, calm, strict=False)])
    text = ratio_text({"p10": ratio.p10, "p50": ratio.p50, "p90": ratio.p90})
    lines = head("Strangers at the door, all_reduce of 4 MiB, 2 members over TCP", machine)
    lines += [
        f"{knocks} strangers, {options.rate:g} a second, at both members and the coordinator:",
        f"calls a second over those without strangers: {text}",
    ]
    document = {"machine": machine, "calm": calm, "attacked": attacked, "knocks": knocks}
    write(options.results, "strangers", document, lines)


if __name__ == "__main__":
    main()
