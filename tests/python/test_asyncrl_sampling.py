"""Seeded sampling: the same noise everywhere, and really a sample of the softmax."""

import math
from dataclasses import replace

import numpy
import pytest

from asyncrl.sampling import (
    SEED_BYTES,
    SubmissionScope,
    choice_gaps,
    gumbel_noise,
    gumbel_noise_rows,
    philox4x32,
)

SCOPE = SubmissionScope(run_id="run", address="ab" * 20, step=3, submission_index=0)


# The known answers of the generator's authors (Random123, kat_vectors).
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_the_generator_gives_the_known_answers(
    counter: list[int], key: list[int], words: list[int]
) -> None:
    keys = (numpy.array([key[0]], numpy.uint64), numpy.array([key[1]], numpy.uint64))
    found = philox4x32(numpy.array(counter, numpy.uint64).reshape(4, 1), keys)
    assert found[:, 0].tolist() == words


@pytest.mark.parametrize("vocabulary_count", [1, 4, 64, 101])
def test_noise_depends_on_seed_and_index_alone(vocabulary_count: int) -> None:
    seeds = [SCOPE.rollout_seed(place) for place in range(7)]
    rows = gumbel_noise_rows(seeds, [5, 0, 2**32 - 1, 1, 1, 3, 4], vocabulary_count)
    assert rows.shape == (7, vocabulary_count)
    assert rows.dtype == numpy.float32
    assert numpy.isfinite(rows).all()
    alone = gumbel_noise(seeds[3], 1, vocabulary_count + 9)
    assert rows[3].tobytes() == alone[:vocabulary_count].tobytes()
    assert rows[4].tobytes() != rows[3].tobytes()
    assert gumbel_noise(seeds[3], 2, vocabulary_count).tobytes() != rows[3].tobytes()


def test_no_rows_are_no_noise() -> None:
    assert gumbel_noise_rows([], [], 64).shape == (0, 64)


def test_tokens_are_samples_of_the_softmax() -> None:
    probability = numpy.array([0.5, 0.3, 0.15, 0.05])
    count = 20_000
    noise = gumbel_noise_rows([b"\0" * SEED_BYTES] * count, range(count), 4)
    tokens = (numpy.log(probability) + noise).argmax(axis=1)
    found = numpy.bincount(tokens, minlength=4) / count
    # Five standard deviations; the seed is fixed, so this is no matter of luck.
    allowed = 5 * numpy.sqrt(probability * (1 - probability) / count)
    assert (abs(found - probability) < allowed).all(), found


def test_the_gap_is_zero_for_the_chosen_and_positive_for_others() -> None:
    seed = SCOPE.rollout_seed(0)
    logits = numpy.random.default_rng(0).normal(size=(9, 64)).astype(numpy.float32)
    noise = gumbel_noise_rows([seed] * 9, range(9), 64)
    scores = logits / numpy.float32(0.7) + noise
    tokens = scores.argmax(axis=1)
    assert not choice_gaps(logits, tokens.tolist(), seed, temperature=0.7).any()
    other = (tokens + 1) % 64
    gaps = choice_gaps(logits, other.tolist(), seed, temperature=0.7)
    expected = scores.max(axis=1) - scores[numpy.arange(9), other]
    assert (gaps > 0).all()
    assert gaps == pytest.approx(expected)
    assert choice_gaps(logits, tokens.tolist(), seed, temperature=1.0).any()


def test_everything_in_a_scope_changes_prompts_and_noise() -> None:
    others = [
        replace(SCOPE, run_id="runs"),
        replace(SCOPE, address="ac" * 20),
        replace(SCOPE, step=4),
        replace(SCOPE, submission_index=1),
    ]
    for other in others:
        assert other.rollout_seed(0) != SCOPE.rollout_seed(0)
        assert other.prompt_indices(8, 10_000) != SCOPE.prompt_indices(8, 10_000)
    assert SCOPE.rollout_seed(0) != SCOPE.rollout_seed(1)
    assert len(SCOPE.rollout_seed(0)) == SEED_BYTES
    assert replace(SCOPE, step=3).prompt_indices(8, 10_000) == SCOPE.prompt_indices(8, 10_000)


def test_prompts_are_spread_evenly() -> None:
    indices = SCOPE.prompt_indices(4000, 4)
    found = numpy.bincount(indices, minlength=4)
    assert len(found) == 4
    assert (abs(found - 1000) < 5 * math.sqrt(4000 * 0.25 * 0.75)).all()


def test_wrong_arguments_are_errors() -> None:
    with pytest.raises(ValueError, match="8 bytes"):
        gumbel_noise(b"short", 0, 4)
    with pytest.raises(ValueError, match="2 seeds, 1 token"):
        gumbel_noise_rows([b"\0" * 8] * 2, [0], 4)
    with pytest.raises(ValueError, match="prompt_count"):
        SCOPE.prompt_indices(1, 0)
