"""Honest rollouts under many batch shapes and thread counts: what thresholds are measured on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from asyncrl.generator import CachedGenerator, Completion, Generator, GeneratorOptions
from asyncrl.model import Decoder
from asyncrl.proof.proof import ProofErrors, verify_proofs
from asyncrl.protocol.keys import Key
from asyncrl.sampling import choice_gaps
from asyncrl.submission import Assignment, generate_rollouts
from asyncrl.validation.checks import Rules, Task
from asyncrl.validation.policies import prefill_rollouts

__all__ = ["CALIBRATION_RUN", "HonestErrors", "InRows", "measure"]

# No other run has this name, so no rollout that is judged later is among those measured here.
CALIBRATION_RUN = "calibration"
_KEY = Key.from_seed(bytes(32))
# (rows generated at once, threads there, rows recomputed at once, threads there)
_SHAPES = ((64, 1, 64, 1), (64, 2, 7, 1), (7, 1, 64, 2), (1, 1, 64, 1), (32, 1, 5, 2))


@dataclass(frozen=True)
class HonestErrors:
    """What honest rollouts showed."""

    proofs: list[list[ProofErrors]]
    """File by file."""

    gaps: list[float]
    """The largest of each rollout."""


@dataclass(frozen=True)
class InRows:
    """A generator that is given a few prompts at once: another batch shape of the same."""

    generator: Generator
    rows: int

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[bytes], options: GeneratorOptions
    ) -> list[Completion]:
        found: list[Completion] = []
        for begin in range(0, len(prompts), self.rows):
            part = slice(begin, begin + self.rows)
            found += self.generator.generate(prompts[part], seeds[part], options)
        return found


def measure(model: Decoder, task: Task, rules: Rules, file_count: int) -> HonestErrors:
    """Errors of `file_count` files; their shapes and thread counts take turns."""
    found = HonestErrors([], [])
    threads = torch.get_num_threads()
    try:
        for index, shape in zip(range(file_count), itertools.cycle(_SHAPES)):
            _measure_file(model, task, rules, (index, *shape), found)
    finally:
        torch.set_num_threads(threads)
    return found


def _measure_file(
    model: Decoder,
    task: Task,
    rules: Rules,
    turn: tuple[int, int, int, int, int],
    found: HonestErrors,
) -> None:
    index, rows_there, threads_there, rows_here, threads_here = turn
    assignment = Assignment(
        key=_KEY,
        task=task,
        rules=replace(rules, run_id=CALIBRATION_RUN),
        step=index,
        submission_index=0,
        weights_version=0,
        weights_sha256="",
    )
    torch.set_num_threads(threads_there)
    rollouts = generate_rollouts(InRows(CachedGenerator(model), rows_there), assignment)
    torch.set_num_threads(threads_here)
    pairs = [(task.prompt_tokens(one.prompt_index), list(one.tokens)) for one in rollouts]
    own = [
        recomputed
        for begin in range(0, len(pairs), rows_here)
        for recomputed in prefill_rollouts(
            model, pairs[begin : begin + rows_here], rules.proof_format.dtype
        )
    ]
    errors = verify_proofs(
        [one.hidden for one in own], [one.proof for one in rollouts], rules.proof_format
    )
    found.proofs.append([error for one in errors for error in one])
    for seed, rollout, one in zip(assignment.seeds, rollouts, own, strict=True):
        gaps = choice_gaps(one.logits, rollout.tokens, seed, temperature=rules.temperature)
        found.gaps.append(float(gaps.max()))
