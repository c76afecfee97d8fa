"""What the simulator of the membership protocol has been through, and how fast it is.

Reads the figures that `scripts/soak` printed (its output in a file), runs a batch of seeds and one
run of many members for their CPU time, and writes results/simulator.json and .md. Needs a built
`build-test-release/simulator`, which `scripts/soak --seeds 1` makes. With --add the figures go to
those that are recorded, of other seeds and the same protocol.
"""

import argparse
import itertools
import json
import re
import resource
import subprocess
from pathlib import Path
from typing import Any

from common import RESULTS, head, write

from pccl.bench.machine import describe_machine

SIMULATOR = Path(__file__).resolve().parents[1] / "build-test-release" / "simulator"
NAMES = {
    "seeds": "seeds",
    "violations": "violations",
    "events": "events",
    "quorums": "quorums agreed",
    "operations": "operations, at each member",
    "recovered": "of them recovered after deaths",
    "kills": "members killed",
    "coordinator crashes": "coordinators crashed",
    "takeovers": "takeovers",
    "seeds with too few left": "seeds with too few left to go on",
}


def figures(text: str) -> dict[str, int]:
    """The sums over all batches in the simulator's output."""
    total = dict.fromkeys(NAMES, 0)
    for line in text.splitlines():
        if not re.match(r"\d+ seeds: \d+ violations;", line):
            continue
        for name in NAMES:
            found = re.search(rf"(\d+) {name}\b(?! with)", line)
            assert found is not None, f"no {name} in {line!r}"
            total[name] += int(found[1])
    return total


def seeds_in(text: str) -> list[list[int]]:
    """First and last one of each batch that has ended."""
    batch = r"^soak: seeds (\d+) to (\d+)\n(?:seed .*\n)*\d+ seeds: "
    return [[int(a), int(b)] for a, b in re.findall(batch, text, re.MULTILINE)]


def join(ranges: list[list[int]]) -> list[list[int]]:
    """The same, in order and in one where they follow each other."""
    joined: list[list[int]] = []
    for first, last in sorted(ranges):
        if joined and first == joined[-1][1] + 1:
            joined[-1][1] = last
        else:
            joined.append([first, last])
    return joined


def run(*arguments: object) -> dict[str, Any]:
    """One call of the simulator: its figures and its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(
        [SIMULATOR, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    print(done.stdout, end="", flush=True)
    return figures(done.stdout) | {"cpu_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path, nargs="+", help="output of scripts/soak")
    parser.add_argument("--seeds", type=int, default=500, help="for the rate")
    parser.add_argument("--members", type=int, default=1000, help="of the large run")
    parser.add_argument("--add", action="store_true", help="to what is recorded")
    options = parser.parse_args()

    text = "\n".join(log.read_text() for log in options.log)
    soak: dict[str, Any] = figures(text)
    ranges = seeds_in(text)
    if options.add:
        before = json.loads((RESULTS / "simulator.json").read_text())["soak"]
        soak = {name: soak[name] + before[name] for name in NAMES}
        ranges += before["ranges"]
    ranges = join(ranges)
    if any(a[1] >= b[0] for a, b in itertools.pairwise(ranges)):
        raise SystemExit(f"benchmarks/simulator.py: some seeds are counted twice: {ranges}")
    if sum(last - first + 1 for first, last in ranges) != soak["seeds"]:
        raise SystemExit(f"benchmarks/simulator.py: {soak['seeds']} seeds, and not {ranges}")
    soak["ranges"] = ranges
    rate = run("--seeds", options.seeds)
    large = run("--seeds", 1, "--members", options.members, "--large")
    machine = describe_machine()
    per_second = rate["seeds"] / rate["cpu_seconds"]
    lines = head("The simulator of the membership protocol", machine)
    lines += ["| of `scripts/soak`, 3 to 8 members | |", "|---|---|"]
    lines += [f"| {shown} | {soak[name]:,} |" for name, shown in NAMES.items()]
    shown = ", ".join(f"{first:,} to {last:,}" for first, last in ranges)
    lines += [f"| which seeds | {shown} |"]
    lines += [
        "",
        f"{per_second:.0f} seeds a second on one core, each 75 s of protocol: a million take "
        f"{1e6 / per_second / 3600:.1f} hours of one core.",
        "",
        f"One run of {options.members:,} members: {large['events']:,} events, "
        f"{large['quorums']} quorums, {large['operations']:,} operations at members, "
        f"{large['recovered']:,} of them recovered, {large['kills']} members killed, "
        f"{large['violations']} violations; {large['cpu_seconds']:.0f} s of one core.",
    ]
    document = {"machine": machine, "soak": soak, "rate": rate, "large": large}
    write(RESULTS, "simulator", document, lines)


if __name__ == "__main__":
    main()
