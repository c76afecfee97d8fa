"""Learning curves of asyncrl in one process: seeds, async levels, controls, settings that collapse.

    python benchmarks/rl_learning.py --run default --seed 0 --async-level 2   # one curve, as JSON
    python benchmarks/rl_learning.py --list
    python benchmarks/rl_learning.py --table runs/*.jsonl  # of recorded curves

Rollouts of a step are sampled by the policy of `async_level` versions before. The held-out words
are in no other split and chose nothing. Times are CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from asyncrl.environment import ReasoningGym
from asyncrl.generator import CachedGenerator, GeneratorOptions
from asyncrl.guard import GuardOptions
from asyncrl.model import Decoder, ModelConfig, load_policy, load_weights
from asyncrl.rewards import RewardOptions
from asyncrl.rollouts import Group, Rollout
from asyncrl.sampling import SubmissionScope
from asyncrl.tokenizer import EOS, decode, encode
from asyncrl.trainer import Trainer, TrainerOptions
from asyncrl.warm_start import cached_warm_start

PROMPTS, GROUP = 32, 8
OPTIONS = GeneratorOptions()

# The settings of the runs that are recorded; the last two collapse without the guard.
RUNS = {
    "default": TrainerOptions(),
    "constant": TrainerOptions(step_count=10_000, learning_rate=5e-5),
    "fast": TrainerOptions(learning_rate=3e-4, step_count=10_000),
    "reckless": TrainerOptions(
        learning_rate=5e-4,
        warm_up_steps=0,
        step_count=10_000,
        rewards=RewardOptions(divide_by_deviation=True),
    ),
}


def sample(
    policy: Decoder, environment: ReasoningGym, scope: SubmissionScope, groups: int
) -> list[list[Rollout]]:
    """`groups` groups of GROUP rollouts, each of one prompt."""
    indexes = scope.prompt_indices(groups, environment.count)
    prompts = [encode(environment.prompt(index)) for index in indexes for _ in range(GROUP)]
    seeds = [scope.rollout_seed(place) for place in range(len(prompts))]
    made = CachedGenerator(policy).generate(prompts, seeds, OPTIONS)
    found = []
    for place, index in enumerate(indexes):
        rollouts = []
        for at in range(place * GROUP, (place + 1) * GROUP):
            tokens = made[at].tokens
            score = environment.score(index, decode(tokens)) if tokens[-1] == EOS else 0.0
            rollouts.append(Rollout(prompts[at], tokens, score))
        found.append(rollouts)
    return found


def evaluate(policy: Decoder, environment: ReasoningGym, temperature: float) -> float:
    """Share of all prompts of `environment` that are answered right."""
    options = dataclasses.replace(OPTIONS, temperature=temperature)
    prompts = [encode(environment.prompt(index)) for index in range(environment.count)]
    seeds = [index.to_bytes(8, "big") for index in range(environment.count)]
    made = CachedGenerator(policy).generate(prompts, seeds, options)
    right = sum(
        one.tokens[-1] == EOS and environment.score(index, decode(one.tokens)) == 1.0
        for index, one in enumerate(made)
    )
    return right / environment.count


def learn(
    chosen: argparse.Namespace, options: TrainerOptions, say: Callable[[dict[str, object]], None]
) -> None:
    train = ReasoningGym()
    held_out = ReasoningGym(split="held_out", draw_count=chosen.held_out)
    start = cached_warm_start(chosen.warm, train, ModelConfig())
    trainer = Trainer(load_policy(start), options)
    behaviour = load_policy(start)
    shuffle = random.Random(chosen.seed)
    kept = {0: {name: value.clone() for name, value in trainer.model.state_dict().items()}}
    spent = 0.0
    for step in range(chosen.steps + 1):
        if step % chosen.every == 0:
            accuracy = {
                name: round(evaluate(trainer.model, held_out, temperature), 4)
                for name, temperature in (("greedy", 1e-6), ("sampled", 1.0))
            }
            say({"step": step, "held_out": held_out.count, "cpu_s": round(spent, 1), **accuracy})
        if step == chosen.steps:
            break
        begun = time.process_time()
        version = max(0, step - options.async_level)
        load_weights(behaviour, kept[version])
        scope = SubmissionScope(
            run_id=f"benchmark {chosen.seed}", address="", step=step, submission_index=0
        )
        groups = [Group(version, rollouts) for rollouts in sample(behaviour, train, scope, PROMPTS)]
        if chosen.shuffled:
            groups = shuffled(groups, shuffle)
        report = trainer.step(groups)
        weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        kept[trainer.version] = weights
        kept.pop(version - 1, None)
        spent += time.process_time() - begun
        say({key: _short(value) for key, value in dataclasses.asdict(report).items()})


def shuffled(groups: list[Group], order: random.Random) -> list[Group]:
    """The control: the same scores, given to rollouts at random."""
    scores = [one.score for group in groups for one in group.rollouts]
    order.shuffle(scores)
    left = iter(scores)
    return [
        Group(
            group.weight_version,
            [dataclasses.replace(one, score=next(left)) for one in group.rollouts],
        )
        for group in groups
    ]


def table(paths: list[Path]) -> str:
    """A row of markdown for each recorded curve."""
    rows = ["| run | seed | async | step: greedy / sampled | returns of the guard | CPU s |"]
    rows.append("|---|---|---|---|---|---|")
    for path in paths:
        head, *lines = (json.loads(line) for line in path.read_text().splitlines())
        name = head["run"] + (" shuffled" if head["shuffled"] == "True" else "")
        name += " no guard" if head["no_guard"] == "True" else ""
        if head.get("learning_rate", "0") not in ("0", "0.0"):
            name += f" lr {float(head['learning_rate']):g}"
        found = [one for one in lines if "held_out" in one]
        curve = ", ".join(f"{o['step']}: {o['greedy']:.2f} / {o['sampled']:.2f}" for o in found)
        returns = [
            f"{one['version'] - 1} ({one['returned']})" for one in lines if one.get("returned")
        ]
        cells = [name, head["seed"], head["async_level"], curve, "; ".join(returns) or "none"]
        rows.append("| " + " | ".join([*cells, f"{found[-1]['cpu_s']:.0f}"]) + " |")
    return "\n".join(rows)


def _short(value: object) -> object:
    return round(value, 5) if isinstance(value, float) else value


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", choices=sorted(RUNS), default="default")
    parser.add_argument("--list", action="store_true", help="print the settings of all runs")
    parser.add_argument("--table", type=Path, nargs="+", help="print what these runs came to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=70)
    parser.add_argument("--async-level", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=0, help="0: that of the run")
    parser.add_argument("--no-guard", action="store_true")
    parser.add_argument("--shuffled", action="store_true", help="the control")
    parser.add_argument("--every", type=int, default=10, help="steps between evaluations")
    parser.add_argument("--held-out", type=int, default=16384, help="draws of the held-out split")
    parser.add_argument("--warm", type=Path, default=Path("runs/asyncrl"), help="folder")
    chosen = parser.parse_args()
    if chosen.list:
        for name, options in RUNS.items():
            print(name, options)
        return 0
    if chosen.table:
        print(table(chosen.table))
        return 0
    torch.set_num_threads(1)
    base = RUNS[chosen.run]
    options = dataclasses.replace(
        base,
        step_count=chosen.steps if base.step_count < 10_000 else base.step_count,
        async_level=chosen.async_level,
        learning_rate=chosen.learning_rate or base.learning_rate,
        guard=GuardOptions(is_on=not chosen.no_guard),
    )

    def say(what: dict[str, object]) -> None:
        print(json.dumps(what), flush=True)

    say({"run": chosen.run, **{key: str(value) for key, value in vars(chosen).items()}})
    learn(chosen, options, say)
    return 0


if __name__ == "__main__":
    sys.exit(main())
