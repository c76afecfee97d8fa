"""Records every benchmark of this folder, one after the other, in benchmarks/results/.

python benchmarks/all.py             about 10 minutes on 2 cores, which should be idle
python benchmarks/all.py --quick     small sizes: do they all run?
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from common import RESULTS

from pccl.bench.machine import describe_machine, is_busy, machine_line

FOLDER = Path(__file__).resolve().parent
# program and arguments; arguments with --quick
PROGRAMS = (
    (["all_reduce_vs_gloo.py"], ["--quick"]),
    (["all_reduce_vs_gloo.py", "--backend", "gloo"], ["--quick"]),  # the noise: all ratios are 1
    (["ddp_step.py"], ["--megabytes", "1", "--steps", "3"]),
    (["memory.py"], ["--megabytes", "4"]),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: do they all run?")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    options = parser.parse_args()
    machine = describe_machine()
    print(machine_line(machine))
    if is_busy(machine):
        print("Other programs use this machine: the numbers will mislead.")
    failed = []
    for words, quick in PROGRAMS:
        name = " ".join([*words, *(quick if options.quick else [])])
        print(f"\n=== {name}", flush=True)
        began = time.monotonic()
        command = [sys.executable, str(FOLDER / words[0]), *words[1:]]
        command += quick if options.quick else []
        code = subprocess.run([*command, "--results", str(options.results)], check=False).returncode
        print(f"=== {name}: {time.monotonic() - began:.0f} s, exit code {code}", flush=True)
        if code != 0:
            failed.append(name)
    print(
        f"\nfailed: {', '.join(failed)}" if failed else f"\nall written to {options.results.name}/"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
