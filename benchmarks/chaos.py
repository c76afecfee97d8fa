"""What is left of a run's speed when its members are killed, and whether a result is ever wrong.

    python benchmarks/chaos.py                                                     5 min
    python benchmarks/chaos.py --every 4 --kills 1200 --steps 0 --name chaos_long  10 min

Four members on this machine do steps: a pause in place of the computation, an all_reduce of 4 MiB,
an update of the state. One of them is killed (SIGKILL) every 10, 30 or 100 steps, a sixth of the
kills are the coordinator's, and whoever was killed is started again at once. Goodput is steps a
second, over that of the run without a kill just before; contributions are those of all members.
Each element of each result is compared with what its contributors must give.
"""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import RESULTS, head, write
from rich.console import Console

from pccl.bench.machine import describe_machine
from pccl.demo.run import Demo, DemoOptions
from pccl.demo.verdict import Verdict

MEMBERS = 4
COORDINATOR_SHARE = 1 / 6
PROGRAM = Path(__file__).resolve().with_name("chaos_member.py")
LINE = "#0b6e99"


@dataclass(frozen=True)
class Outcome:
    steps: int
    seconds: float
    steps_per_second: float
    contributions_per_second: float
    wrong_elements: int
    verdict: Verdict


def run(console: Console, every: int, kills: int, steps: int, seed: int) -> Outcome:
    """Do `steps` steps or more, `kills` kills, one every `every` steps.

    Raises:
        DemoFailed: nobody does a step for 90 s, or a process ended by itself.
    """
    options = DemoOptions(
        members=MEMBERS,
        kills=kills,
        steps=steps,
        seed=seed,
        coordinator_share=COORDINATOR_SHARE,
        kill_every=every,
        program=PROGRAM,
    )
    demo = Demo(options, console)
    demo.run()
    verdict = demo.judge("")
    first_said: dict[int, dict[str, Any]] = {}
    for record in demo.records():
        for said in record.steps:
            if said["at"] < first_said.get(said["step"], {"at": float("inf")})["at"]:
                first_said[said["step"]] = said
    in_turn = [first_said[step] for step in sorted(first_said)]
    seconds = in_turn[-1]["at"] - in_turn[0]["at"]
    contributions = sum(max(map(len, said["contributors"])) for said in in_turn[1:])
    return Outcome(
        steps=len(in_turn),
        seconds=seconds,
        steps_per_second=(len(in_turn) - 1) / seconds,
        contributions_per_second=contributions / seconds,
        wrong_elements=sum(int(said["loss"]) for r in demo.records() for said in r.steps),
        verdict=verdict,
    )


def measure(every: int, kills: int, steps: int, seed: int, console: Console) -> dict[str, Any]:
    """One run without a kill, and one with them."""
    kills = kills or max(1, steps // every)
    console.print(f"one kill per {every} steps: {kills} kills")
    calm = run(console, 0, 0, max(100, steps // 4), seed)
    wild = run(console, every, kills, steps or 1, seed)
    verdict = wild.verdict
    return {
        "every": every,
        "goodput": wild.steps_per_second / calm.steps_per_second,
        "contributions": wild.contributions_per_second / calm.contributions_per_second,
        "recovery_median": verdict.recovery_median,
        "recovery_p99": verdict.recovery_p99,
        "recovery_max": max(verdict.recovery_seconds, default=0.0),
        "calm": asdict(calm),
        "wild": asdict(wild),
    }


def report(found: list[dict[str, Any]], machine: dict[str, Any]) -> list[str]:
    lines = [
        *head("Chaos: kill -9 of members and of the coordinator", machine),
        "| one kill per | kills (coordinator) | steps | goodput | contributions | "
        "recovery median | p99 | max | steps lost | wrong elements | faults |",
        "|" + "---|" * 11,
    ]
    for row in found:
        wild = row["wild"]
        verdict = wild["verdict"]
        kills = verdict["member_kills"] + verdict["coordinator_kills"]
        cells = [
            f"{row['every']} steps",
            f"{kills} ({verdict['coordinator_kills']})",
            str(wild["steps"]),
            f"**{row['goodput']:.0%}**",
            f"{row['contributions']:.0%}",
            f"{row['recovery_median']:.3f} s",
            f"{row['recovery_p99']:.3f} s",
            f"{row['recovery_max']:.3f} s",
            str(verdict["steps_lost"]),
            str(wild["wrong_elements"]),
            str(len(verdict["faults"])),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def plot(found: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    names = [f"{row['every']}" for row in found]
    for offset, key, label in (
        (-0.2, "goodput", "steps"),
        (0.2, "contributions", "contributions"),
    ):
        places = [index + offset for index in range(len(found))]
        bars = axes[0].bar(
            places,
            [100 * row[key] for row in found],
            0.38,
            label=label,
            color=LINE,
            alpha=1 if key == "goodput" else 0.45,
        )
        axes[0].bar_label(bars, fmt="%.0f", label_type="center", color="white")
    axes[0].set_xticks(range(len(found)), names)
    axes[0].axhline(100, color="black", linewidth=0.8)
    axes[0].set_xlabel("steps from kill to kill")
    axes[0].set_ylabel("percent of the rate without a kill")
    axes[0].set_title("Goodput", loc="left", fontweight="bold")
    axes[0].legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    for row, name in zip(found, names, strict=True):
        seconds = sorted(row["wild"]["verdict"]["recovery_seconds"])
        share = [(index + 1) / len(seconds) for index in range(len(seconds))]
        axes[1].step(seconds, share, where="post", label=f"{name} steps from kill to kill")
    axes[1].set_xlabel("seconds from the death to the next step without the dead")
    axes[1].set_ylabel("share of the deaths")
    axes[1].set_title("Recovery", loc="left", fontweight="bold")
    axes[1].set_xlim(left=0)
    axes[1].legend(frameon=False, loc="lower right")
    for axis in axes:
        axis.grid(alpha=0.25, linewidth=0.7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--kills", type=int, default=0, help="0: as many as fit into --steps")
    parser.add_argument("--steps", type=int, default=1000, help="at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="chaos", help="of the files in --results")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    console = Console(highlight=False)
    machine = describe_machine()
    found = [
        measure(every, options.kills, options.steps, options.seed, console)
        for every in options.every
    ]
    write(
        options.results,
        options.name,
        {"machine": machine, "rows": found},
        report(found, machine),
    )
    plot(found, options.results / f"{options.name}.png")
    verdicts = [row[part]["verdict"] for row in found for part in ("calm", "wild")]
    faults = [fault for verdict in verdicts for fault in verdict["faults"]]
    for fault in faults:
        console.print(f"wrong: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
