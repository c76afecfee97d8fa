"""What an honest rollout worker uploads: prompts, completions, proofs and rewards of one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from asyncrl.generator import Completion, Generator, GeneratorOptions
from asyncrl.proof import build_proofs
from asyncrl.protocol.keys import Key
from asyncrl.sampling import SubmissionScope
from asyncrl.validation.checks import Rules, Task
from asyncrl.validation.rollout_file import ClaimedRollout, RolloutFile

__all__ = ["Assignment", "generate_rollouts", "prove_rollouts"]


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What one file is for."""

    key: Key = field(repr=False)
    task: Task = field(repr=False)
    rules: Rules = field(repr=False)
    step: int
    submission_index: int
    """How many files this key has uploaded for this step before."""

    weights_version: int
    weights_sha256: str

    @property
    def scope(self) -> SubmissionScope:
        return SubmissionScope(
            run_id=self.rules.run_id,
            address=self.key.address,
            step=self.step,
            submission_index=self.submission_index,
        )

    @property
    def prompts(self) -> list[int]:
        """The prompt of each rollout: `samples_per_prompt` times each that the scope draws."""
        drawn = self.scope.prompt_indices(self.rules.prompts_per_file, self.task.count)
        return [index for index in drawn for _ in range(self.rules.samples_per_prompt)]

    @property
    def seeds(self) -> list[bytes]:
        """The seed of each rollout's noise."""
        return [self.scope.rollout_seed(place) for place in range(self.rules.rollout_count)]

    @property
    def options(self) -> GeneratorOptions:
        return GeneratorOptions(
            token_count_max=self.rules.token_count_max, temperature=self.rules.temperature
        )

    def file(self, rollouts: Sequence[ClaimedRollout]) -> RolloutFile:
        """Its `sign(key)` is what is uploaded."""
        return RolloutFile(
            run_id=self.rules.run_id,
            step=self.step,
            submission_index=self.submission_index,
            weights_version=self.weights_version,
            weights_sha256=self.weights_sha256,
            rollouts=tuple(rollouts),
        )


def generate_rollouts(generator: Generator, assignment: Assignment) -> list[ClaimedRollout]:
    """The rollouts that are asked for, in their places."""
    prompts = assignment.prompts
    tokens = [assignment.task.prompt_tokens(index) for index in prompts]
    completions = generator.generate(tokens, assignment.seeds, assignment.options)
    return prove_rollouts(assignment, prompts, completions)


def prove_rollouts(
    assignment: Assignment, prompts: Sequence[int], completions: Sequence[Completion]
) -> list[ClaimedRollout]:
    """Proofs of the completions' hidden states, and the rewards of their tokens."""
    proof_format = assignment.rules.proof_format
    hidden = [one.hidden for one in completions]
    if proof_format.dtype == "fp16":
        hidden = [one.astype("float16") for one in hidden]
    proofs = build_proofs(hidden, proof_format)
    score = assignment.task.score
    return [
        ClaimedRollout(prompt, tuple(one.tokens), proof, score(prompt, one.tokens))
        for prompt, one, proof in zip(prompts, completions, proofs, strict=True)
    ]
