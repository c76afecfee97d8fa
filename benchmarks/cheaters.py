"""False acceptances and refusals of rollout files: ours, and what the published checks would do.

    python benchmarks/cheaters.py                     10,240 honest rollouts, about 10 minutes
    python benchmarks/cheaters.py --honest-files 8    a look

A policy of 1.8 million parameters is warmed up and trained for 12 steps of GRPO; thresholds are
those that ship, which were calibrated on other weights and other prompts. Each cheat of
asyncrl/cheats.py then makes files of 64 rollouts, and honest workers make theirs in several batch
shapes and thread counts.

Beside the verdicts stands what the published checks find in the same files: their thresholds for
each proof, seeded prompts, finite rewards, and an EOS of probability above 0.1 or the full length;
the last may fail in a tenth of a file, because honest ends of a small model fail it too. What they
do against copies and strangers is not public in a form that runs, so there is no number.

Writes cheaters.md and .json to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from common import RESULTS, head, write

from asyncrl.cheats import CHEATS, CheatInputs
from asyncrl.environment import ReasoningGym
from asyncrl.generator import CachedGenerator
from asyncrl.model import ModelConfig, load_policy, save_weights
from asyncrl.proof import ProofMalformed, verify_proofs
from asyncrl.proof.thresholds import PUBLISHED
from asyncrl.protocol.keys import Key
from asyncrl.rollouts import Group, Rollout
from asyncrl.sampling import choice_gaps
from asyncrl.submission import Assignment, generate_rollouts
from asyncrl.tokenizer import EOS, VOCABULARY_COUNT, decode, encode
from asyncrl.trainer import Trainer, TrainerOptions
from asyncrl.validation.checks import Rules
from asyncrl.validation.honest import InRows
from asyncrl.validation.policies import KeptPolicies
from asyncrl.validation.rollout_file import FileRefused, RolloutFile, Signed
from asyncrl.validation.validator import JudgeRequest, TextTask, Validator
from asyncrl.warm_start import cached_warm_start
from pccl.bench.machine import describe_machine

STEPS = 12
RULES = Rules(run_id="benchmark", eos_token=EOS, vocabulary_count=VOCABULARY_COUNT)
# (rows generated at once, threads there, rows recomputed at once)
SHAPES = ((64, 1, 128), (64, 1, 64), (32, 1, 128), (64, 2, 32), (64, 1, 7), (16, 1, 64), (7, 1, 64),
          (64, 1, 48), (5, 2, 64), (64, 1, 64))  # fmt: skip
# Outside of what the published checks are about.
NOT_COMPARED = {"replayed", "stolen", "stolen_rollouts", "skipped_submissions", "huge_upload",
                "garbage", "wrong_signer", "other_run", "stale_and_says_so",
                "future_weights", "large_tokens"}  # fmt: skip
# Of a file's rollouts, whose end the published check may dislike.
ENDS_SHARE_MAX = 0.1
# What version 0.1.6 of the published verifier does, given one tensor; given a list of tensors.
PUBLISHED_ON_MALFORMED = {
    "missing_proofs": "accepts: fewer results, no error",
    "surplus_proofs": "aborts (SIGABRT); accepts",
    "null_proofs": "dies (SIGFPE); refuses",
    "two_byte_proofs": "dies (SIGFPE; SIGSEGV)",
}


@dataclass
class Judged:
    """What a number of files came to."""

    files: int = 0
    refused: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    rollouts: int = 0
    rollouts_shown: int = 0
    """Whose own proof or tokens are beyond the bounds of one."""

    published_refused: int = 0
    published_rollouts: int = 0


@dataclass
class Bench:
    task: TextTask
    environment: ReasoningGym
    policies: KeptPolicies
    rules: Rules
    seconds: dict[str, float] = field(
        default_factory=lambda: defaultdict(float)
    )  # of the processor

    def inputs(self, seed: int, submission_index: int = 0) -> CheatInputs:
        return CheatInputs(
            assignment=Assignment(
                key=Key.from_seed(seed.to_bytes(32, "big")),
                task=self.task,
                rules=self.rules,
                step=STEPS + 1,
                submission_index=submission_index,
                weights_version=STEPS,
                weights_sha256=self.policies.weights[STEPS],
            ),
            decoders={version: self.policies.decoder(version) for version in self.policies.weights},
            answer=lambda index: [*encode(self.environment.answer(index) or ""), EOS],
        )

    def validator(self) -> Validator:
        return Validator(self.rules, self.task, self.policies)

    def judge(self, validator: Validator, data: bytes, submission_index: int, to: Judged) -> None:
        request = JudgeRequest(submission_index=submission_index, open_steps=[STEPS + 1])
        begin = time.process_time()
        verdict = validator.judge(data, request)
        self.seconds["judge"] += time.process_time() - begin
        to.files += 1
        to.refused += not verdict.accepted
        to.reasons[verdict.reason or "accepted"] += 1
        try:
            signed = Signed.from_bytes(data, self.rules.limits)
            file = signed.parse(self.rules.limits)
        except FileRefused:
            return
        self._look_at_rollouts(signed.address, file, to)

    def _look_at_rollouts(self, address: str, file: RolloutFile, to: Judged) -> None:
        """Each rollout by itself: who would refuse it."""
        if any(max(one.tokens) >= VOCABULARY_COUNT for one in file.rollouts):
            return
        prompts = [self.task.prompt_tokens(one.prompt_index) for one in file.rollouts]
        version = min(file.weights_version, STEPS)
        own = self.policies.recompute(version, prompts, file.rollouts)
        expected = file.scope(address).prompt_indices(self.rules.prompts_per_file, self.task.count)
        try:
            proofs = [one.proof for one in file.rollouts]
            errors = verify_proofs([one.hidden for one in own], proofs, self.rules.proof_format)
        except ProofMalformed:
            return
        bounds, refused, ends = self.rules.thresholds, 0, 0
        for place, (rollout, one, found) in enumerate(zip(file.rollouts, own, errors, strict=True)):
            seed = file.scope(address).rollout_seed(place)
            gaps = choice_gaps(one.logits, rollout.tokens, seed, temperature=1.0)
            is_far = bounds.refuse_proofs(found) is not None
            to.rollouts_shown += bool(is_far or gaps.max() > bounds.gap_max)
            is_drawn = rollout.prompt_index == expected[place // self.rules.samples_per_prompt]
            is_near = all(PUBLISHED.accepts(error) for error in found)
            ends_badly = not self._ends_as_published(rollout.tokens, one.logits[-1])
            refused += not (is_near and is_drawn and math.isfinite(rollout.reward))
            ends += ends_badly
            to.published_rollouts += ends_badly or not is_near
        to.rollouts += len(file.rollouts)
        to.published_refused += refused > 0 or ends > ENDS_SHARE_MAX * len(file.rollouts)

    def _ends_as_published(self, tokens: Sequence[int], logits: Any) -> bool:
        if tokens[-1] != EOS:
            return len(tokens) == self.rules.token_count_max
        odds = numpy.exp(logits - logits.max())
        return bool(odds[EOS] / odds.sum() > 0.1)


def train(folder: Path, warm: Path, environment: ReasoningGym, task: TextTask) -> KeptPolicies:
    """Versions 0 to STEPS of a policy, each a step of GRPO from the one before."""
    start = cached_warm_start(warm, environment, ModelConfig())
    trainer = Trainer(load_policy(start), TrainerOptions(async_level=0))
    policies = KeptPolicies()
    rules = dataclasses.replace(RULES, run_id="training", prompts_per_file=32)
    for step in range(STEPS + 1):
        path = folder / f"v{step}.safetensors"
        save_weights(trainer.model, path)
        policies.add(step, path)
        if step == STEPS:
            break
        assignment = Assignment(
            key=Key.from_seed(bytes(32)), task=task, rules=rules, step=step, submission_index=0,
            weights_version=step, weights_sha256="",
        )  # fmt: skip
        made = generate_rollouts(CachedGenerator(policies.decoder(step)), assignment)
        rollouts = [
            Rollout(task.prompt_tokens(one.prompt_index), list(one.tokens), one.reward)
            for one in made
        ]
        trainer.step([Group(step, rollouts[at : at + 8]) for at in range(0, len(rollouts), 8)])
    return policies


def honest(bench: Bench, file_count: int) -> Judged:
    found = Judged()
    validator = bench.validator()
    for index, shape in zip(range(file_count), itertools.cycle(SHAPES)):
        rows, threads, validator_rows = shape
        inputs = bench.inputs(1000 + index % 3, index // 3)
        torch.set_num_threads(threads)
        begin = time.process_time()
        generator = InRows(CachedGenerator(inputs.decoder), rows)
        data = inputs.sign(generate_rollouts(generator, inputs.assignment))
        if rows == 64 and threads == 1:
            bench.seconds["generate"] += time.process_time() - begin
            bench.seconds["generated"] += 1
        torch.set_num_threads(1)
        bench.policies.batch_rows = validator_rows
        bench.judge(validator, data, index // 3, found)
        bench.seconds["judged"] += 1
    bench.policies.batch_rows = 128
    return found


def cheat(bench: Bench, name: str, file_count: int) -> Judged:
    found = Judged()
    for index in range(file_count):
        validator = bench.validator()
        inputs = bench.inputs(2000 + index)
        other = bench.inputs(3000 + index)
        earlier = other.sign(other.honest())
        request = JudgeRequest(submission_index=0, open_steps=[STEPS + 1])
        assert validator.judge(earlier, request).accepted, "the honest one"
        data = CHEATS[name].make(dataclasses.replace(inputs, earlier=earlier))
        # Of the worker whose file is sent again, the coordinator has counted one.
        bench.judge(validator, data, int(name == "replayed"), found)
    return found


def published_text(name: str, judged: Judged) -> str:
    if name in NOT_COMPARED:
        return "|"
    if name in PUBLISHED_ON_MALFORMED:
        return f"{PUBLISHED_ON_MALFORMED[name]} |"
    return (
        f"{judged.published_refused} of {judged.files} | {share(judged.published_rollouts, judged)}"
    )


def share(count: int, judged: Judged) -> str:
    return f"{count / judged.rollouts:.0%}" if judged.rollouts else ""


def report(document: dict[str, Any], results: dict[str, Judged]) -> list[str]:
    thresholds = document["thresholds"]
    fair = results["honest"]
    lines = head(
        "Cheaters: files of 64 rollouts, ours and the published checks", document["machine"]
    )
    ours = f"{fair.refused} of {fair.files} files refused"
    lines += [
        f"Thresholds, as they ship (asyncrl/proof/thresholds.json), calibrated on other prompts "
        f"and weights: at most {thresholds['exponent_mismatches_max']} exponents and "
        f"{thresholds['mantissa_mean_max']} units of mantissa in a proof (a mean of "
        f"{thresholds['exponent_mismatches_mean_max']} and {thresholds['mantissa_mean_mean_max']} "
        f"over a file beside that), a gap of {thresholds['gap_max']:.0e} at a token.",
        "",
        f"**Honest: {ours} ({64 * fair.files:,} rollouts in {len(SHAPES)} batch shapes, 1 and 2 "
        f"threads); {fair.rollouts_shown} single rollouts beyond the bounds.** The published "
        f"checks: {fair.published_refused} files; {fair.published_rollouts} single rollouts, by "
        f"their EOS of probability below 0.1.",
        "",
        "| cheat | what | refused | as | of its rollouts show | published: refused | rollouts |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, judged in results.items():
        if name == "honest":
            continue
        cells = [
            name,
            CHEATS[name].what,
            f"**{judged.refused} of {judged.files}**",
            ", ".join(sorted(judged.reasons)),
            share(judged.rollouts_shown, judged),
            published_text(name, judged),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    seconds = document["seconds"]
    made, judged_s = seconds["generate"] / seconds["generated"], document["judge_seconds"]
    lines += [
        "",
        "Right reasons: " + ("all." if document["all_right"] else "**not all**."),
        "",
        f"A file costs {made:.3f} CPU seconds to generate and prove (64 rows at once) and "
        f"{judged_s:.3f} to judge in full: {judged_s / made:.0%}. One thread, the mean of all "
        f"honest files, all batch shapes of the validator among them.",
    ]
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--honest-files", type=int, default=160, help="of 64 rollouts")
    parser.add_argument("--cheat-files", type=int, default=3, help="of each cheat")
    parser.add_argument("--only", nargs="*", choices=list(CHEATS), help="these cheats")
    parser.add_argument("--warm", type=Path, default=Path("runs/asyncrl"), help="folder")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    environment = ReasoningGym()
    task = TextTask(environment, encode, decode)
    with tempfile.TemporaryDirectory() as folder:
        policies = train(Path(folder), options.warm, environment, task)
        bench = Bench(task, environment, policies, RULES)
        results = {"honest": honest(bench, options.honest_files)}
        print(results["honest"], flush=True)
        judge_seconds = bench.seconds["judge"] / bench.seconds["judged"]
        for name in options.only or CHEATS:
            results[name] = cheat(bench, name, options.cheat_files)
            print(f"{name}: {results[name]}", flush=True)
    all_right = all(
        set(judged.reasons) <= set(CHEATS[name].reasons)
        for name, judged in results.items()
        if name != "honest"
    )
    document = {
        "machine": describe_machine(),
        "thresholds": dataclasses.asdict(RULES.thresholds),
        "seconds": dict(bench.seconds),
        "judge_seconds": judge_seconds,
        "all_right": all_right,
        "results": {
            name: {**vars(judged), "reasons": dict(judged.reasons)}
            for name, judged in results.items()
        },
    }
    write(options.results, "cheaters", document, report(document, results))
    return 0 if all_right and not results["honest"].refused else 1


if __name__ == "__main__":
    sys.exit(main())
