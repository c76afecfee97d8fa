"""What elasticity costs without a fault, and what the death of a member costs.

    python benchmarks/elastic.py [--rounds 15] [--deaths 8] [--bytes 268435456]

1. The same all_reduce in a plain group and in an elastic run, in turn, by the same processes.
2. One of four members is killed (SIGKILL) at a random moment of an all_reduce in place: how much
   longer the survivors' call takes than the one before it; also with the coordinator killed and
   started again at the same moment. Every element is checked on every survivor.
"""

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, TRANSPORTS, collect, head, ratio_text, write

import pccl
from pccl.bench.machine import describe_machine

SIZES = (4, 4096, 65536, 1 << 20, 16 << 20, 256 << 20)
MEMBERS = 4


def quantiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "p50": statistics.median(ordered),
        "p10": ordered[len(ordered) // 10],
        "p90": ordered[-1 - len(ordered) // 10],
        "p99": ordered[-1 - len(ordered) // 100],
    }


# --- without a fault ---


def compare(address: str, rounds: int, part: str) -> None:
    """A rank: both groups in turn, the order changing with every round."""
    with pccl.init() as plain, pccl.join(address, world_size_min=plain.world_size) as elastic:
        found = {}
        for size in SIZES:
            tensor = np.zeros(size // 4, np.float32)
            calls = max(1, min(2000, (64 << 20) // max(size, 32768)))
            ratios = []
            for round_number in range(rounds + 1):
                seconds = {}
                groups: list[Any] = [plain, elastic]
                for group in groups if round_number % 2 else reversed(groups):
                    plain.barrier()
                    begin = time.perf_counter()
                    for _ in range(calls):
                        group.all_reduce(tensor)
                    seconds[group] = (time.perf_counter() - begin) / calls
                if round_number > 0:  # the first warms up
                    ratios.append(seconds[elastic] / seconds[plain])
            found[str(size)] = quantiles(ratios)
        if plain.rank == 0:
            Path(part).write_text(json.dumps(found))
        plain.barrier()


def measure_overhead(rounds: int) -> dict[str, Any]:
    results = {}
    for transport in TRANSPORTS:
        for ranks in (2, 4):
            with tempfile.TemporaryDirectory() as folder:
                database = Path(folder) / "coordinator.db"
                options = pccl.CoordinatorOptions(port=0, bind="127.0.0.1", database=database)
                with pccl.Coordinator(options) as coordinator:
                    address = f"pccl://127.0.0.1:{coordinator.port}/bench"
                    arguments = ["--compare", address, "--rounds", str(rounds)]
                    results[f"{ranks} ranks, {transport}"] = collect(arguments, ranks, transport)
    return results


# --- deaths ---


def take_part(address: str, size: int) -> None:
    """A member: reduces until somebody is lost, and then once more."""
    tensor = np.ones(size // 4, np.float32)
    with pccl.join(address, world_size_min=MEMBERS) as comm:
        left = 2
        while left > 0:
            tensor[:] = 1
            print("begin", flush=True)
            begin = time.perf_counter()
            work = comm.all_reduce(tensor, async_op=True)
            assert work is not None
            work.wait()
            seconds = time.perf_counter() - begin
            is_right = all(
                bool((tensor[first:end] == len(members)).all())
                for first, end, members, _ in work.contributions
            )
            print(json.dumps({"seconds": seconds, "right": is_right}), flush=True)
            least = min(len(members) for _, _, members, _ in work.contributions)
            if least < MEMBERS:
                left -= 1


def start(command: list[str], transport: str) -> "subprocess.Popen[str]":
    from os import environ

    more = {"PCCL_SHARED_MEMORY": TRANSPORTS[transport], "PCCL_HOST": "127.0.0.1"}
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**environ, **more},
    )


def kill_one(size: int, transport: str, with_coordinator: bool, seed: int) -> tuple[float, bool]:
    """Seconds that the survivors' call took longer than the one before; whether all is right."""
    moment = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "pccl", "coordinator", "--bind", "127.0.0.1", "--no-status"]
        command += ["--database", f"{folder}/coordinator.db", "--port"]
        coordinator = start([*command, "0"], transport)
        assert coordinator.stdout is not None
        address = coordinator.stdout.readline().strip().rsplit("/", 1)[0] + "/bench"
        port = address.rsplit(":", 1)[1].split("/")[0]
        members = [
            start([sys.argv[0], "--member", address, "--bytes", str(size)], transport)
            for _ in range(MEMBERS)
        ]
        streams = [member.stdout for member in members]
        assert all(stream is not None for stream in streams)
        last = 1.0
        for round_number in range(4):
            for index, stream in enumerate(streams):
                assert stream is not None
                assert stream.readline() == "begin\n"
                if round_number == 3:
                    continue
                said = json.loads(stream.readline())
                assert said["right"]
                if index == 0:
                    last = said["seconds"]
        # All are in the fourth call, or about to begin it.
        time.sleep(moment.random() * last)
        members[3].send_signal(signal.SIGKILL)
        if with_coordinator:
            coordinator.kill()
            coordinator.wait()
            coordinator = start([*command, port], transport)
        extra = 0.0
        is_right = True
        for member, stream in zip(members[:3], streams[:3], strict=True):
            assert stream is not None
            lines = [json.loads(line) for line in stream if line != "begin\n"]
            is_right &= member.wait() == 0 and all(line["right"] for line in lines)
            extra = max(extra, max(line["seconds"] for line in lines) - last)
        members[3].wait()
        coordinator.send_signal(signal.SIGINT)
        coordinator.wait()
        return extra, is_right


def measure_deaths(size: int, count: int) -> dict[str, Any]:
    results = {}
    for transport in TRANSPORTS:
        for with_coordinator in (False, True):
            found = [kill_one(size, transport, with_coordinator, seed) for seed in range(count)]
            name = f"{transport}, coordinator {'killed, too' if with_coordinator else 'alive'}"
            results[name] = {
                **quantiles([extra for extra, _ in found]),
                "max": max(extra for extra, _ in found),
                "wrong": sum(not is_right for _, is_right in found),
                "deaths": count,
            }
            print(name, results[name], flush=True)
    return results


# --- report ---


def report(document: dict[str, Any], size: int) -> list[str]:
    lines = head("Elastic runs", document["machine"])
    sizes = list(next(iter(document["overhead"].values())))
    lines += [
        "Time of an all_reduce in an elastic run, over that of the same call in a plain group:"
    ]
    lines += ["", "| bytes | " + " | ".join(document["overhead"]) + " |"]
    lines += ["|" + "---|" * (len(document["overhead"]) + 1)]
    for name in sizes:
        cells = [ratio_text(found[name]) for found in document["overhead"].values()]
        lines += [f"| {name} | " + " | ".join(cells) + " |"]
    lines += ["", f"kill -9 of one of four in an all_reduce of {size >> 20} MiB in place, seconds"]
    lines[-1] += " that the survivors' call takes longer than the one before:"
    lines += ["", "| | median | p90 | max | deaths | wrong results |", "|---|---|---|---|---|---|"]
    for name, found in document["deaths"].items():
        lines += [
            f"| {name} | {found['p50']:.3f} | {found['p90']:.3f} | {found['max']:.3f} | "
            f"{found['deaths']} | {found['wrong']} |"
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--deaths", type=int, default=8)
    parser.add_argument("--bytes", type=int, default=256 << 20)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--compare", help=argparse.SUPPRESS)
    parser.add_argument("--member", help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compare:
        compare(options.compare, options.rounds, options.part)
    elif options.member:
        take_part(options.member, options.bytes)
    else:
        document = {
            "machine": describe_machine(),
            "deaths": measure_deaths(options.bytes, options.deaths),
            "overhead": measure_overhead(options.rounds),
        }
        write(options.results, "elastic", document, report(document, options.bytes))


if __name__ == "__main__":
    main()
