"""The checks of a rollout file, cheapest first; each is named with the cheat that it exists for.

A check returns None, or why the file is refused. None of them trusts a number of the file: what
it states is compared with what follows from the run, the weights and the environment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy
from numpy.typing import NDArray

from asyncrl.proof import ProofFormat, ProofMalformed, verify_proofs
from asyncrl.proof.proof import parse_proofs
from asyncrl.proof.thresholds import Thresholds, default_thresholds
from asyncrl.sampling import choice_gaps
from asyncrl.validation.history import History
from asyncrl.validation.rollout_file import ClaimedRollout, FileLimits, RolloutFile

__all__ = [
    "REASONS",
    "Drawn",
    "Recomputed",
    "Refusal",
    "Rules",
    "Task",
    "Upload",
    "before_the_model",
    "check_replay",
    "with_the_model",
]

REASONS = (
    "size",
    "signature",
    "replay",
    "schema",
    "bounds",
    "prompts",
    "weights",
    "termination",
    "proof",
    "sampling",
    "reward",
    "duplicates",
    "crash",  # of the validator's process, or its limits: see isolated.py
)


@dataclass(frozen=True)
class Refusal:
    reason: str
    """One of REASONS."""

    detail: str
    """For people: what was found, where, and what was allowed."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What all files of a run have to obey; the same at every validator."""

    run_id: str
    eos_token: int
    vocabulary_count: int
    token_count_max: int = 10
    """Of a completion, EOS included."""

    prompts_per_file: int = 8
    samples_per_prompt: int = 8
    temperature: float = 1.0
    async_level_max: int = 2
    """How many versions the weights may be behind the step that the rollouts are for."""

    copies_share_max: float = 0.5
    """Of a file's rollouts that another address uploaded before, proofs and all. 1 allows all, for
    environments with so few prompts that honest rollouts of one version coincide."""

    proof_format: ProofFormat = field(default_factory=ProofFormat)
    thresholds: Thresholds = field(default_factory=default_thresholds)
    limits: FileLimits = field(default_factory=FileLimits)

    @property
    def rollout_count(self) -> int:
        return self.prompts_per_file * self.samples_per_prompt


class Task(Protocol):
    """What a validator asks of an environment, in tokens; see TextTask."""

    @property
    def count(self) -> int: ...

    def prompt_tokens(self, index: int) -> list[int]: ...

    def score(self, index: int, tokens: Sequence[int]) -> float: ...


@dataclass(frozen=True)
class Recomputed:
    """What the validator's own prefill of one rollout gives."""

    hidden: NDArray[Any]
    """[prompt + tokens - 1, width], in the proof format's dtype."""

    logits: NDArray[numpy.float32]
    """[tokens, vocabulary]: what each token of the completion was drawn from."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A file with all that it is compared with."""

    address: str
    """Who signed it."""

    file: RolloutFile
    submission_index: int
    """How many files of this address and step the coordinator took before."""

    open_steps: Sequence[int]
    """The steps that take rollouts now."""

    weights: dict[int, str] = field(repr=False)
    """version -> SHA-256 in hex of its file, of all versions that are kept."""

    rules: Rules = field(repr=False)
    history: History = field(repr=False)


# --- without a model: microseconds ---


def check_replay(address: str, content_sha256: str, history: History) -> Refusal | None:
    """Against a file of somebody else, signed again."""
    owner = history.owner(content_sha256) or address
    if owner != address:
        return Refusal("replay", f"these rollouts came from {owner} before")
    return None


def check_order(upload: Upload) -> Refusal | None:
    """Against a file sent twice, and a worker that makes many and sends the best of them.

    Whoever asks twice about one upload, because the answer got lost, gets it twice.
    """
    found, expected = upload.file.submission_index, upload.submission_index
    if found != expected:
        return Refusal(
            "replay", f"submission {found} of step {upload.file.step}, expected {expected}"
        )
    return None


def check_bounds(upload: Upload) -> Refusal | None:
    """Against NaN, token ids that crash an embedding, and files of another run."""
    file, rules = upload.file, upload.rules
    if file.run_id != rules.run_id:
        return Refusal("bounds", f"run {file.run_id[:80]!r}, expected {rules.run_id!r}")
    if len(file.rollouts) != rules.rollout_count:
        return Refusal("bounds", f"{len(file.rollouts)} rollouts, expected {rules.rollout_count}")
    for place, rollout in enumerate(file.rollouts):
        if not 1 <= len(rollout.tokens) <= rules.token_count_max:
            return Refusal(
                "bounds",
                f"rollout {place}: {len(rollout.tokens)} tokens, at most {rules.token_count_max}",
            )
        if max(rollout.tokens) >= rules.vocabulary_count:
            return Refusal("bounds", f"rollout {place}: token {max(rollout.tokens)}")
        if not math.isfinite(rollout.reward):
            return Refusal("bounds", f"rollout {place}: reward {rollout.reward}")
    return None


def check_prompts(upload: Upload, task: Task) -> Refusal | None:
    """Against picking easy prompts: they follow from address, step and submission."""
    rules = upload.rules
    scope = upload.file.scope(upload.address)
    expected = scope.prompt_indices(rules.prompts_per_file, task.count)
    for place, rollout in enumerate(upload.file.rollouts):
        prompt = expected[place // rules.samples_per_prompt]
        if rollout.prompt_index != prompt:
            return Refusal(
                "prompts", f"rollout {place}: prompt {rollout.prompt_index}, expected {prompt}"
            )
    return None


def check_proof_form(upload: Upload, task: Task) -> Refusal | None:
    """Against proofs that are missing, surplus, null, or that crash who reads them."""
    for place, rollout in enumerate(upload.file.rollouts):
        rows = len(task.prompt_tokens(rollout.prompt_index)) + len(rollout.tokens) - 1
        try:
            parse_proofs(rollout.proof, rows, upload.rules.proof_format, name=f"rollout {place}")
        except ProofMalformed as error:
            return Refusal("bounds", str(error))
    return None


def check_weights(upload: Upload) -> Refusal | None:
    """Against weights that are too old, not of this run, or from the future."""
    file, rules = upload.file, upload.rules
    if file.step not in upload.open_steps:
        return Refusal(
            "weights", f"step {file.step} takes no rollouts; open: {list(upload.open_steps)}"
        )
    age = file.step - file.weights_version
    if not 0 <= age <= rules.async_level_max:
        return Refusal(
            "weights",
            f"version {file.weights_version} for step {file.step}: {age} behind, at most "
            f"{rules.async_level_max}",
        )
    known = upload.weights.get(file.weights_version)
    if known != file.weights_sha256:
        return Refusal(
            "weights",
            f"version {file.weights_version} has SHA-256 {known}, stated: "
            f"{file.weights_sha256[:64]!r}",
        )
    return None


def check_termination(upload: Upload) -> Refusal | None:
    """Against completions that were cut short, or that go on after their end."""
    rules = upload.rules
    for place, rollout in enumerate(upload.file.rollouts):
        tokens = rollout.tokens
        if rules.eos_token in tokens[:-1]:
            return Refusal("termination", f"rollout {place}: tokens after EOS")
        if tokens[-1] != rules.eos_token and len(tokens) < rules.token_count_max:
            return Refusal(
                "termination",
                f"rollout {place}: {len(tokens)} tokens without EOS, cut only at "
                f"{rules.token_count_max}",
            )
    return None


# --- with the model: one prefill of the rollouts that were drawn ---


@dataclass(frozen=True)
class Drawn:
    """One rollout of those that are checked with the model."""

    place: int
    rollout: ClaimedRollout
    own: Recomputed


def check_proof(upload: Upload, drawn: Sequence[Drawn]) -> Refusal | None:
    """Against other weights, another precision of them, other prompts, and edited tokens."""
    hidden, proofs = [one.own.hidden for one in drawn], [one.rollout.proof for one in drawn]
    try:
        errors = verify_proofs(hidden, proofs, upload.rules.proof_format)
    except ProofMalformed as error:
        return Refusal("bounds", f"of those checked, {error}")
    refused = upload.rules.thresholds.refuse_proofs([error for found in errors for error in found])
    return None if refused is None else Refusal("proof", refused)


def check_sampling(upload: Upload, drawn: Sequence[Drawn]) -> Refusal | None:
    """Against tokens that were not sampled: greedy, best of n, another temperature, answers
    written by hand with proofs of a prefill; and an EOS that was forced ("termination")."""
    rules = upload.rules
    scope = upload.file.scope(upload.address)
    wrong: list[tuple[int, int, float]] = []  # place, token index, gap
    for one in drawn:
        gaps = choice_gaps(
            one.own.logits,
            one.rollout.tokens,
            scope.rollout_seed(one.place),
            temperature=rules.temperature,
        )
        wrong += [
            (one.place, int(at), float(gaps[at]))
            for at in numpy.flatnonzero(~(gaps <= rules.thresholds.gap_max))
        ]
    if not wrong:
        return None
    ends = [
        index
        for place, index, _ in wrong
        if upload.file.rollouts[place].tokens[index] == rules.eos_token
    ]
    place, index, gap = wrong[0]
    text = (
        f"{len(wrong)} tokens, the first at {index} of rollout {place}, are not those that the "
        f"noise chose; {gap:.3g} below, at most {rules.thresholds.gap_max:.3g}"
    )
    if len(ends) > len(wrong) / 2:
        return Refusal("termination", f"EOS was not sampled: {text}")
    return Refusal("sampling", text)


# --- after the model ---


def check_reward(upload: Upload, task: Task) -> Refusal | None:
    """Against inflated rewards; training uses the recomputed ones in any case."""
    for place, rollout in enumerate(upload.file.rollouts):
        expected = task.score(rollout.prompt_index, rollout.tokens)
        if not abs(rollout.reward - expected) <= 1e-6:
            return Refusal(
                "reward", f"rollout {place}: reward {rollout.reward:.6g}, it is {expected:.6g}"
            )
    return None


def check_duplicates(upload: Upload) -> Refusal | None:
    """Against one owner's many addresses that share their work, where a sample of a file is
    checked: copies show although nobody looks at the single rollout."""
    rollouts = upload.file.rollouts
    copies = sum(upload.history.is_copy(upload.address, rollout) for rollout in rollouts)
    if copies > upload.rules.copies_share_max * len(rollouts):
        return Refusal(
            "duplicates", f"{copies} of {len(rollouts)} completions came from other addresses"
        )
    return None


def before_the_model(upload: Upload, task: Task) -> Refusal | None:
    """All checks of a parsed file that need no model, in order."""
    return (
        check_order(upload)
        or check_bounds(upload)
        or check_prompts(upload, task)
        or check_proof_form(upload, task)
        or check_weights(upload)
        or check_termination(upload)
    )


def with_the_model(upload: Upload, task: Task, drawn: Sequence[Drawn]) -> Refusal | None:
    """The rest, in order."""
    return (
        check_proof(upload, drawn)
        or check_sampling(upload, drawn)
        or check_reward(upload, task)
        or check_duplicates(upload)
    )
