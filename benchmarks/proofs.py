"""What a proof costs: building and verifying, by width and by how many go in one call.

    python benchmarks/proofs.py          half a minute, one core

Seconds are those of the thread's processor time, per proof of 32 rows of random hidden states; the
least of the rounds, since other programs on the machine only ever add to it.

Writes proofs.md and .json to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
from common import RESULTS, head, write

from asyncrl.proof import build_proofs, verify_proofs
from pccl.bench.machine import describe_machine

WIDTHS = (192, 1024, 4096)
COUNTS = (1, 64)
ROWS = 32


def milliseconds(call: Callable[[], object], count: int, rounds: int) -> float:
    call()
    spent = []
    for _ in range(rounds):
        begin = time.thread_time()
        call()
        spent.append(time.thread_time() - begin)
    return min(spent) / count * 1000


def measure(width: int, count: int, rounds: int) -> dict[str, float]:
    random = numpy.random.default_rng(0)
    hidden: list[Any] = [
        random.normal(size=(ROWS, width)).astype(numpy.float32) for _ in range(count)
    ]
    proofs = build_proofs(hidden)
    return {
        "width": width,
        "count": count,
        "build_ms": milliseconds(lambda: build_proofs(hidden), count, rounds),
        "verify_ms": milliseconds(lambda: verify_proofs(hidden, proofs), count, rounds),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=41, help="of 64 proofs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    options = parser.parse_args()
    rows = [
        measure(width, count, options.rounds * max(COUNTS) // count)
        for width in WIDTHS
        for count in COUNTS
    ]
    machine = describe_machine()
    lines = head("Proofs: milliseconds of one core for each", machine)
    lines += ["| hidden size | proofs a call | build, ms | verify, ms |", "|---|---|---|---|"]
    lines += [
        f"| {row['width']} | {row['count']} | {row['build_ms']:.2f} | {row['verify_ms']:.2f} |"
        for row in rows
    ]
    write(options.results, "proofs", {"machine": machine, "rows": rows}, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
