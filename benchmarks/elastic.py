"""What elasticity costs without a fault, and what the death of a member costs.

    python benchmarks/elastic.py [--rounds 15] [--deaths 8] [--bytes 268435456]

1. The same all_reduce in a plain group and in an elastic run, in turn, by the same processes.
2. One of four members is killed (SIGKILL) at a random moment of an all_reduce in place: how much
   longer the survivors' call takes than the one before it; also with the coordinator killed and
   started again at the same moment. Every element is checked on every survivor.
3. The same kill under gloo, beside it: what becomes of the survivors' call, and when.
"""

import argparse
import json
import os
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

SIZES = (4, 4096, 65536, 256 << 10, 1 << 20, 16 << 20, 256 << 20)
MEMBERS = 4
# Its default is half an hour; who is not a neighbour of the dead waits for it.
GLOO_TIMEOUT_SECONDS = 10
GLOO_DEATHS_MAX = 5


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
                options = pccl.CoordinatorOptions(
                    port=0, bind="127.0.0.1", database=database, listen_seconds=0
                )
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
    more = {"PCCL_SHARED_MEMORY": TRANSPORTS[transport], "PCCL_HOST": "127.0.0.1"}
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **more},
    )


def run_to_the_fourth_call(processes: "list[subprocess.Popen[str]]") -> float:
    """Return when all are in it, or about to begin it: the seconds of the third."""
    last = 1.0
    for round_number in range(4):
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "begin\n"
            if round_number == 3:
                continue
            said = json.loads(process.stdout.readline())
            assert said.get("right", True), said
            assert not said.get("error"), said
            last = said["seconds"]
    return last


def kill_one(size: int, transport: str, with_coordinator: bool, seed: int) -> tuple[float, bool]:
    """Seconds that the survivors' call took longer than the one before; whether all is right."""
    moment = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "-m",
            "pccl",
            "coordinator",
            "--bind",
            "127.0.0.1",
            "--no-status",
            "--listen",
            "0",
        ]
        command += ["--database", f"{folder}/coordinator.db", "--port"]
        coordinator = start([*command, "0"], transport)
        assert coordinator.stdout is not None
        address = coordinator.stdout.readline().strip().rsplit("/", 1)[0] + "/bench"
        port = address.rsplit(":", 1)[1].split("/")[0]
        members = [
            start([sys.argv[0], "--member", address, "--bytes", str(size)], transport)
            for _ in range(MEMBERS)
        ]
        last = run_to_the_fourth_call(members)
        time.sleep(moment.random() * last)
        members[3].send_signal(signal.SIGKILL)
        if with_coordinator:
            coordinator.kill()
            coordinator.wait()
            coordinator = start([*command, port], transport)
        extra = 0.0
        is_right = True
        for member in members[:3]:
            assert member.stdout is not None
            lines = [json.loads(line) for line in member.stdout if line != "begin\n"]
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


# --- the same in gloo ---


def take_part_in_gloo(store: str, rank: int, size: int) -> None:
    """A rank: reduces until its call fails, and says when that was."""
    import datetime

    import torch
    import torch.distributed as dist

    timeout = datetime.timedelta(seconds=GLOO_TIMEOUT_SECONDS)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=MEMBERS, timeout=timeout
    )
    tensor = torch.ones(size // 4)
    while True:
        tensor.fill_(1)
        print("begin", flush=True)
        begin = time.perf_counter()
        text = ""
        try:
            dist.all_reduce(tensor)
        except RuntimeError as error:
            text = str(error).splitlines()[0]
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "at": time.monotonic(), "error": text}), flush=True)
        if text:
            return


def kill_one_in_gloo(size: int, seed: int) -> list[tuple[float, str]]:
    """Seconds from the death to the end of each survivor's call, and its error."""
    moment = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.argv[0], "--gloo", f"{folder}/store", "--bytes", str(size), "--rank"]
        ranks = [start([*command, str(rank)], "tcp") for rank in range(MEMBERS)]
        last = run_to_the_fourth_call(ranks)
        time.sleep(moment.random() * last)
        ranks[3].send_signal(signal.SIGKILL)
        killed_at = time.monotonic()
        found = []
        for process in ranks[:3]:
            assert process.stdout is not None
            said = [json.loads(line) for line in process.stdout if line != "begin\n"]
            found.append((said[-1]["at"] - killed_at, said[-1]["error"]))
        for process in ranks:
            process.wait()
        return found


def measure_gloo(size: int, count: int) -> dict[str, Any]:
    found = [kill_one_in_gloo(size, seed) for seed in range(count)]
    survivors = [entry for one in found for entry in one]
    return {
        **quantiles([seconds for seconds, _ in survivors]),
        "max": max(seconds for seconds, _ in survivors),
        "last": statistics.median(max(seconds for seconds, _ in one) for one in found),
        "failed": sum(text != "" for _, text in survivors),
        "survivors": len(survivors),
        "deaths": count,
        "errors": sorted({text for _, text in survivors}),
    }


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
    gloo = document["gloo"]
    lines += [
        "",
        f"Under gloo, with a timeout of {GLOO_TIMEOUT_SECONDS} s, {gloo['failed']} of "
        f"{gloo['survivors']} survivors' calls ended in an error, {gloo['p50']:.2f} s after the "
        f"death (median), the last survivor's {gloo['last']:.2f} s after it; the job is over.",
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
    parser.add_argument("--gloo", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compare:
        compare(options.compare, options.rounds, options.part)
    elif options.member:
        take_part(options.member, options.bytes)
    elif options.gloo:
        take_part_in_gloo(options.gloo, options.rank, options.bytes)
    else:
        document = {
            "machine": describe_machine(),
            "deaths": measure_deaths(options.bytes, options.deaths),
            "gloo": measure_gloo(options.bytes, min(options.deaths, GLOO_DEATHS_MAX)),
            "overhead": measure_overhead(options.rounds),
        }
        write(options.results, "elastic", document, report(document, options.bytes))


if __name__ == "__main__":
    main()
