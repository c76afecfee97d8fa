"""Sampling that anybody can do again: noise and prompts are functions of who samples what.

A token is the arg max of logits / temperature + Gumbel noise, which is a sample of the softmax
(Gumbel 1954; Maddison et al., A* Sampling, NeurIPS 2014). The noise comes from a counter-based
generator, so that it depends on (seed, token index, vocabulary index) and on nothing else: not on
the batch, its order, threads, or what was drawn before. Whoever has the logits can say which token
an honest rollout worker had to take; so best-of-n, greedy, another temperature and answers written
by hand all show.

Knows numpy only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

__all__ = ["SEED_BYTES", "SubmissionScope", "choice_gaps", "gumbel_noise", "gumbel_noise_rows"]

# The key of Philox4x32.
SEED_BYTES = 8

_PHILOX_ROUNDS = 10
_PHILOX_MULTIPLIERS = (numpy.uint64(0xD2511F53), numpy.uint64(0xCD9E8D57))
_PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = numpy.uint64(0xFFFFFFFF)
_HALF = numpy.uint64(32)


@dataclass(frozen=True, kw_only=True)
class SubmissionScope:
    """What the prompts and the noise of one submission depend on; nothing in it can be chosen.

    A rollout worker that wants easier prompts or luckier noise would need another address, and
    each has a stake; or another submission number, and they are taken in order.
    """

    run_id: str
    address: str
    """Of the rollout worker's key."""

    step: int
    """Of training: what the rollouts are for."""

    submission_index: int
    """0, 1, ... of this address in this step."""

    def prompt_indices(self, count: int, prompt_count: int) -> list[int]:
        """The prompts to take: `count` numbers from 0 to prompt_count - 1, repeats allowed."""
        if prompt_count < 1:
            raise ValueError(f"prompt_count: expected at least 1, got {prompt_count}")
        return [
            int.from_bytes(self._digest(f"prompt {place}", 16), "big") % prompt_count
            for place in range(count)
        ]

    def rollout_seed(self, place: int) -> bytes:
        """The seed of the noise of the rollout at this place of the submission: SEED_BYTES."""
        return self._digest(f"noise {place}", SEED_BYTES)

    def _digest(self, purpose: str, digest_bytes: int) -> bytes:
        # Lengths first: no two scopes can be written alike.
        parts = (self.run_id, self.address, str(self.step), str(self.submission_index), purpose)
        encoded = [part.encode() for part in parts]
        message = b"".join(len(part).to_bytes(4, "big") + part for part in encoded)
        return hashlib.blake2b(
            message, digest_size=digest_bytes, person=b"asyncrl-sampling"
        ).digest()


def gumbel_noise(seed: bytes, token_index: int, vocabulary_count: int) -> NDArray[numpy.float32]:
    """Noise [vocabulary_count] for token `token_index` of the rollout with this seed."""
    noise: NDArray[numpy.float32] = gumbel_noise_rows([seed], [token_index], vocabulary_count)[0]
    return noise


def gumbel_noise_rows(
    seeds: Sequence[bytes], token_indices: Sequence[int], vocabulary_count: int
) -> NDArray[numpy.float32]:
    """Standard Gumbel noise [rows, vocabulary_count], a row for each (seed, token index).

    -log(-log u) with u = (32 bits + 0.5) / 2^32, in float64, rounded to float32: between -3.1 and
    22.2. About 40 ns a number.

    Args:
        seeds: SEED_BYTES each.
        token_indices: as many, each from 0 to 2^32 - 1; 0 is the first token of the completion.

    Raises:
        ValueError: counts differ, or a seed has another length.
    """
    if len(seeds) != len(token_indices):
        raise ValueError(f"gumbel_noise: {len(seeds)} seeds, {len(token_indices)} token indices")
    if any(len(seed) != SEED_BYTES for seed in seeds):
        raise ValueError(f"gumbel_noise: a seed has {SEED_BYTES} bytes")
    rows, blocks = len(seeds), -(-vocabulary_count // 4)
    key = numpy.frombuffer(b"".join(seeds), ">u4").reshape(rows, 2, 1).astype(numpy.uint64)
    counter = numpy.zeros((4, rows, blocks), numpy.uint64)
    counter[0] = numpy.arange(blocks, dtype=numpy.uint64)
    counter[1] = numpy.asarray(token_indices, numpy.uint64).reshape(rows, 1)
    words = philox4x32(counter, (key[:, 0], key[:, 1]))
    uniform = (words.transpose(1, 2, 0).reshape(rows, 4 * blocks) + 0.5) * 2.0**-32
    noise: NDArray[numpy.float32]
    noise = (-numpy.log(-numpy.log(uniform[:, :vocabulary_count]))).astype(numpy.float32)
    return noise


def choice_gaps(
    logits_TV: NDArray[numpy.float32],  # noqa: N803 (the name ends with the shape)
    tokens: Sequence[int],
    seed: bytes,
    *,
    temperature: float,
) -> NDArray[numpy.float32]:
    """How far each token was from the one that the noise chose: [tokens], 0 where it is that one.

    In units of logits / temperature + noise. Rounding of the logits moves it by as much as them.

    Args:
        logits_TV: [tokens, vocabulary], what each token was drawn from.
        tokens: the completion, from its first token on.
    """
    scores = logits_TV / numpy.float32(temperature)
    count, vocabulary_count = scores.shape
    scores = scores + gumbel_noise_rows([seed] * count, range(count), vocabulary_count)
    taken = scores[numpy.arange(count), numpy.asarray(tokens, numpy.int64)]
    gaps: NDArray[numpy.float32] = scores.max(axis=1) - taken
    return gaps


def philox4x32(
    counter: NDArray[numpy.uint64], key: tuple[NDArray[numpy.uint64], NDArray[numpy.uint64]]
) -> NDArray[numpy.uint64]:
    """Philox4x32-10: 4 words of 32 bits from each counter and key, in the low half of uint64.

    Args:
        counter: [4, ...], each below 2^32.
        key: two arrays that broadcast against [...].

    Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_PHILOX_ROUNDS):
        p0, p1 = c0 * _PHILOX_MULTIPLIERS[0], c2 * _PHILOX_MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _MASK, (p0 >> _HALF) ^ c3 ^ k1, p0 & _MASK
        k0 = (k0 + numpy.uint64(_PHILOX_WEYL[0])) & _MASK
        k1 = (k1 + numpy.uint64(_PHILOX_WEYL[1])) & _MASK
    return numpy.stack([c0, c1, c2, c3])
