"""Rollout workers that cheat, each in one way: what validators are tested and shown with.

A cheat makes the bytes that its worker uploads. Everything else about it is honest, so that what
refuses it is the check that exists for it.
"""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from asyncrl.generator import CachedGenerator, Completion, Generator, GeneratorOptions
from asyncrl.model import Decoder
from asyncrl.protocol.keys import Key
from asyncrl.submission import Assignment, generate_rollouts, prove_rollouts
from asyncrl.validation.policies import prefill_rollouts
from asyncrl.validation.rollout_file import ClaimedRollout, Signed

__all__ = ["CHEATS", "Cheat", "CheatInputs"]


@dataclass(frozen=True, kw_only=True)
class CheatInputs:
    """What a worker has at hand."""

    assignment: Assignment
    decoders: dict[int, Decoder] = field(repr=False)
    """By version: the assigned one, and older ones for those that keep them."""

    answer: Callable[[int], Sequence[int]] = field(repr=False)
    """The tokens of a right answer, EOS included: an oracle."""

    earlier: bytes = field(default=b"", repr=False)
    """A file that was accepted before, of whomever."""

    @property
    def decoder(self) -> Decoder:
        return self.decoders[self.assignment.weights_version]

    def sign(self, rollouts: Sequence[ClaimedRollout]) -> bytes:
        return self.assignment.file(rollouts).sign(self.assignment.key)

    def honest(self) -> list[ClaimedRollout]:
        return generate_rollouts(CachedGenerator(self.decoder), self.assignment)

    def changed(self, **changes: object) -> bytes:
        """The upload of an honest worker, but for these fields of each rollout."""
        rollouts = [dataclasses.replace(one, **changes) for one in self.honest()]  # type: ignore[arg-type]
        return self.sign(rollouts)

    def prefilled(self, completions: Sequence[Sequence[int]]) -> bytes:
        """Tokens that were not sampled, with right proofs: hidden states of a prefill."""
        assignment = self.assignment
        tokens = [assignment.task.prompt_tokens(index) for index in assignment.prompts]
        pairs = [(list(p), list(c)) for p, c in zip(tokens, completions, strict=True)]
        own = prefill_rollouts(self.decoder, pairs)
        made = [
            Completion(completion, one.logits[:, 0], one.hidden)
            for (_, completion), one in zip(pairs, own, strict=True)
        ]
        return self.sign(prove_rollouts(assignment, assignment.prompts, made))


@dataclass(frozen=True)
class Cheat:
    make: Callable[[CheatInputs], bytes]
    reasons: tuple[str, ...]
    """Why a validator refuses it: one of them."""

    what: str
    """For people, in a table."""


# --- other weights ---


def _by(decoder: Decoder, inputs: CheatInputs) -> bytes:
    return inputs.sign(generate_rollouts(CachedGenerator(decoder), inputs.assignment))


def _older(versions: int) -> Callable[[CheatInputs], bytes]:
    return lambda inputs: _by(inputs.decoders[inputs.assignment.weights_version - versions], inputs)


def _with_weights(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[CheatInputs], bytes]:
    def make(inputs: CheatInputs) -> bytes:
        decoder = copy.deepcopy(inputs.decoder)
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.copy_(change(parameter))
        return _by(decoder, inputs)

    return make


def _quantized(bits: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """To the nearest of 2^bits - 1 levels, a scale for each row."""
    levels = 2 ** (bits - 1) - 1

    def change(weights: torch.Tensor) -> torch.Tensor:
        scale = weights.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / levels
        quantized: torch.Tensor = (weights / scale).round() * scale
        return quantized

    return change


def _to_bf16(weights: torch.Tensor) -> torch.Tensor:
    return weights.bfloat16().float()


def _other_model(inputs: CheatInputs) -> bytes:
    return _by(Decoder(inputs.decoder.config, seed=12345), inputs)


def _computes_in_bf16(inputs: CheatInputs) -> bytes:
    return _by(copy.deepcopy(inputs.decoder).bfloat16(), inputs)


# --- other prompts ---


@dataclass(frozen=True)
class _ShortPrompts:
    """Generates with a part of each prompt, which costs less."""

    generator: Generator

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[bytes], options: GeneratorOptions
    ) -> list[Completion]:
        short = [prompt[1:] for prompt in prompts]
        made = self.generator.generate(short, seeds, options)
        # As many rows as are due: the first stands in for what was left out.
        return [
            Completion(one.tokens, one.log_probabilities, one.hidden[[0, *range(len(one.hidden))]])
            for one in made
        ]


def _shortened_prompt(inputs: CheatInputs) -> bytes:
    generator = _ShortPrompts(CachedGenerator(inputs.decoder))
    return inputs.sign(generate_rollouts(generator, inputs.assignment))


def _easy_prompts(inputs: CheatInputs) -> bytes:
    """Those whose answers are shortest."""
    assignment = inputs.assignment
    drawn = range(min(200, assignment.task.count))
    easy = sorted(drawn, key=lambda index: len(inputs.answer(index)))
    count = assignment.rules.prompts_per_file
    prompts = [index for index in easy[:count] for _ in range(assignment.rules.samples_per_prompt)]
    made = CachedGenerator(inputs.decoder).generate(
        [assignment.task.prompt_tokens(index) for index in prompts],
        assignment.seeds,
        assignment.options,
    )
    return inputs.sign(prove_rollouts(assignment, prompts, made))


# --- other tokens ---


def _best_of_4(inputs: CheatInputs) -> bytes:
    """Samples each rollout with four seeds and keeps the best."""
    tries = []
    for luck in range(4):
        scope = dataclasses.replace(inputs.assignment.scope, submission_index=1000 * luck)
        seeds = [scope.rollout_seed(place) for place in range(len(inputs.assignment.prompts))]
        tries.append(_sampled(inputs, seeds if luck else inputs.assignment.seeds))
    best = [max(rollouts, key=lambda one: one.reward) for rollouts in zip(*tries, strict=True)]
    return inputs.sign(best)


def _sampled(inputs: CheatInputs, seeds: Sequence[bytes]) -> list[ClaimedRollout]:
    assignment = inputs.assignment
    prompts = assignment.prompts
    made = CachedGenerator(inputs.decoder).generate(
        [assignment.task.prompt_tokens(index) for index in prompts], seeds, assignment.options
    )
    return prove_rollouts(assignment, prompts, made)


def _at_temperature(temperature: float) -> Callable[[CheatInputs], bytes]:
    def make(inputs: CheatInputs) -> bytes:
        rules = dataclasses.replace(inputs.assignment.rules, temperature=temperature)
        assignment = dataclasses.replace(inputs.assignment, rules=rules)
        return inputs.sign(generate_rollouts(CachedGenerator(inputs.decoder), assignment))

    return make


def _oracle(inputs: CheatInputs) -> bytes:
    return inputs.prefilled([inputs.answer(index) for index in inputs.assignment.prompts])


def _edited_tokens(inputs: CheatInputs) -> bytes:
    """Right answers written over the tokens; the proofs are of what was sampled."""
    task = inputs.assignment.task
    edited = []
    for one in inputs.honest():
        right = tuple(inputs.answer(one.prompt_index))
        # A proof covers so many rows: only answers of the same length can be written over.
        if len(right) == len(one.tokens):
            one = dataclasses.replace(one, tokens=right, reward=task.score(one.prompt_index, right))
        edited.append(one)
    return inputs.sign(edited)


def _forced_eos(inputs: CheatInputs) -> bytes:
    """Ends each completion after two tokens, which is cheaper than to generate it."""
    eos = inputs.assignment.rules.eos_token
    begun = [[token for token in one.tokens[:2] if token != eos] for one in inputs.honest()]
    return inputs.prefilled([[*tokens, eos] for tokens in begun])


def _missing_eos(inputs: CheatInputs) -> bytes:
    eos = inputs.assignment.rules.eos_token
    shortened = [
        list(one.tokens[:-1]) if one.tokens[-1] == eos and len(one.tokens) > 1 else list(one.tokens)
        for one in inputs.honest()
    ]
    return inputs.prefilled(shortened)


def _goes_on_after_eos(inputs: CheatInputs) -> bytes:
    length = inputs.assignment.rules.token_count_max
    return inputs.prefilled(
        [(list(one.tokens) + [one.tokens[-1]] * length)[:length] for one in inputs.honest()]
    )


# --- other files ---


def _inflated_rewards(inputs: CheatInputs) -> bytes:
    return inputs.changed(reward=1.0)


def _surplus_proofs(inputs: CheatInputs) -> bytes:
    return inputs.sign(
        [dataclasses.replace(one, proof=one.proof + one.proof) for one in inputs.honest()]
    )


def _null_proofs(inputs: CheatInputs) -> bytes:
    return inputs.sign(
        [dataclasses.replace(one, proof=bytes(len(one.proof))) for one in inputs.honest()]
    )


def _replayed(inputs: CheatInputs) -> bytes:
    return inputs.earlier


def _stolen(inputs: CheatInputs) -> bytes:
    limits = inputs.assignment.rules.limits
    return Signed.sign(
        inputs.assignment.key, Signed.from_bytes(inputs.earlier, limits).body
    ).to_bytes()


def _stolen_for_another_submission(inputs: CheatInputs) -> bytes:
    limits = inputs.assignment.rules.limits
    return inputs.sign(Signed.from_bytes(inputs.earlier, limits).parse(limits).rollouts)


def _wrong_signer(inputs: CheatInputs) -> bytes:
    limits = inputs.assignment.rules.limits
    signed = Signed.from_bytes(inputs.sign(inputs.honest()), limits)
    return dataclasses.replace(signed, public_key=Key.generate().public_key).to_bytes()


def _skipped_submissions(inputs: CheatInputs) -> bytes:
    """Makes many submissions and sends the best."""
    later = dataclasses.replace(inputs.assignment, submission_index=7)
    return dataclasses.replace(inputs, assignment=later).sign(
        generate_rollouts(CachedGenerator(inputs.decoder), later)
    )


def _says_that_it_is_stale(inputs: CheatInputs) -> bytes:
    rules = inputs.assignment.rules
    version = inputs.assignment.step - rules.async_level_max - 1
    old = dataclasses.replace(inputs.assignment, weights_version=version)
    return dataclasses.replace(inputs, assignment=old).sign(inputs.honest())


def _future_weights(inputs: CheatInputs) -> bytes:
    future = dataclasses.replace(
        inputs.assignment, weights_version=inputs.assignment.step, weights_sha256="0" * 64
    )
    return dataclasses.replace(inputs, assignment=future).sign(inputs.honest())


def _other_run(inputs: CheatInputs) -> bytes:
    rules = dataclasses.replace(inputs.assignment.rules, run_id="another")
    other = dataclasses.replace(inputs.assignment, rules=rules)
    return other.file(generate_rollouts(CachedGenerator(inputs.decoder), other)).sign(other.key)


CHEATS: dict[str, Cheat] = {
    "stale_by_1": Cheat(_older(1), ("proof",), "weights of one version before the stated one"),
    "stale_by_5": Cheat(_older(5), ("proof",), "weights of five versions before"),
    "stale_and_says_so": Cheat(_says_that_it_is_stale, ("weights",), "states too old a version"),
    "future_weights": Cheat(_future_weights, ("weights",), "states weights nobody published"),
    "int8_weights": Cheat(_with_weights(_quantized(8)), ("proof",), "int8 weights, by row"),
    "int4_weights": Cheat(_with_weights(_quantized(4)), ("proof",), "int4 weights, by row"),
    "bf16_weights": Cheat(_with_weights(_to_bf16), ("proof",), "bf16 weights, fp32 arithmetic"),
    "bf16_arithmetic": Cheat(_computes_in_bf16, ("proof",), "bf16 weights and arithmetic"),
    "other_model": Cheat(_other_model, ("proof",), "another model of the same shape"),
    "shortened_prompt": Cheat(_shortened_prompt, ("proof",), "the prompt without its first token"),
    "easy_prompts": Cheat(_easy_prompts, ("prompts",), "prompts with the shortest answers"),
    "best_of_4": Cheat(_best_of_4, ("sampling",), "the best of four samples of each rollout"),
    "greedy": Cheat(_at_temperature(1e-4), ("sampling",), "the most likely tokens"),
    "temperature_0.7": Cheat(_at_temperature(0.7), ("sampling",), "sampled at 0.7, not 1"),
    "temperature_0.9": Cheat(_at_temperature(0.9), ("sampling",), "sampled at 0.9, not 1"),
    "oracle": Cheat(_oracle, ("sampling", "termination"), "right answers, prefilled proofs"),
    "edited_tokens": Cheat(_edited_tokens, ("proof",), "right answers over the tokens, old proofs"),
    "forced_eos": Cheat(_forced_eos, ("termination",), "ended after two tokens, right proofs"),
    "missing_eos": Cheat(_missing_eos, ("termination",), "the EOS left out"),
    "goes_on_after_eos": Cheat(_goes_on_after_eos, ("termination",), "tokens after the EOS"),
    "inflated_rewards": Cheat(_inflated_rewards, ("reward",), "all rewards are 1"),
    "nan_rewards": Cheat(lambda i: i.changed(reward=float("nan")), ("bounds",), "rewards are NaN"),
    "replayed": Cheat(_replayed, ("replay",), "a file that was accepted before"),
    "stolen": Cheat(_stolen, ("replay",), "another worker's file, signed again"),
    "stolen_rollouts": Cheat(
        _stolen_for_another_submission,
        ("prompts", "replay"),
        "another worker's rollouts in an own file",
    ),
    "skipped_submissions": Cheat(_skipped_submissions, ("replay",), "the best of many submissions"),
    "missing_proofs": Cheat(lambda i: i.changed(proof=b""), ("bounds",), "no proofs"),
    "surplus_proofs": Cheat(_surplus_proofs, ("bounds",), "each proof twice"),
    "null_proofs": Cheat(_null_proofs, ("bounds",), "proofs of zeros"),
    "two_byte_proofs": Cheat(lambda i: i.changed(proof=b"\0\0"), ("bounds",), "2-byte proofs"),
    "large_tokens": Cheat(lambda i: i.changed(tokens=(2**32 - 1,)), ("bounds",), "token 2^32 - 1"),
    "huge_upload": Cheat(lambda _: bytes(100 << 20), ("size",), "100 MB of zeros"),
    "garbage": Cheat(lambda _: b"\xc1" * 1000, ("signature",), "no rollout file at all"),
    "wrong_signer": Cheat(_wrong_signer, ("signature",), "signed by another key than it names"),
    "other_run": Cheat(_other_run, ("bounds",), "a file of another run"),
}
