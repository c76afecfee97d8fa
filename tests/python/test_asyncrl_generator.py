"""asyncrl/model.py, generator.py and engines.py: one policy, the same completions everywhere."""

from pathlib import Path

import numpy
import pytest
import torch

from asyncrl.engines import (
    HuggingFaceGenerator,
    VllmGenerator,
    _OfOneRow,
    as_llama,
    complete_by_prefill,
)
from asyncrl.generator import CachedGenerator, Completion, GeneratorOptions
from asyncrl.model import Decoder, ModelConfig, load_weights, read_weights, save_weights
from asyncrl.sampling import SEED_BYTES, gumbel_noise
from asyncrl.tokenizer import EOS, decode, encode

SMALL = ModelConfig(width=48, layer_count=2, head_count=3, feed_forward_width=96, context_max=40)
PROMPTS = [encode(text) for text in ("sun>", "a", "backward>", "12 + 30 =", "word>")]
SEEDS = [bytes([number]) * SEED_BYTES for number in range(len(PROMPTS))]
OPTIONS = GeneratorOptions(token_count_max=12, temperature=0.9)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def model() -> Decoder:
    found = Decoder(SMALL, seed=3)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.mul_(4 if parameter.dim() == 2 else 1)  # further from uniform
        found.lm_head.weight[EOS] += 0.5
    return found


def sample_one_by_one(model: Decoder, prompt: list[int], seed: bytes) -> Completion:
    """The reference: no batch, no cache, no padding; the whole row again for each token."""
    row, taken = list(prompt), []
    for index in range(OPTIONS.token_count_max):
        with torch.no_grad():
            logits, hidden = model(torch.tensor([row]))
        scores = logits[0, -1].numpy() / numpy.float32(OPTIONS.temperature)
        token = int(numpy.argmax(scores + gumbel_noise(seed, index, SMALL.vocabulary_count)))
        taken.append(scores[token] - numpy.log(numpy.exp(scores).sum()))
        row.append(token)
        if token == EOS:
            break
    return Completion(row[len(prompt) :], numpy.array(taken, numpy.float32), hidden[0].numpy())


def agree(found: Completion, wanted: Completion) -> None:
    assert found.tokens == wanted.tokens
    numpy.testing.assert_allclose(found.log_probabilities, wanted.log_probabilities, atol=1e-5)
    numpy.testing.assert_allclose(found.hidden, wanted.hidden, atol=1e-5)


def test_a_completion_depends_on_prompt_and_seed_and_not_on_its_batch(model: Decoder) -> None:
    wanted = [sample_one_by_one(model, *one) for one in zip(PROMPTS, SEEDS, strict=True)]
    # Some end by themselves and some are cut, or the test shows less than it says.
    assert {one.tokens[-1] == EOS for one in wanted} == {True, False}
    generator = CachedGenerator(model)
    for order in ([0, 1, 2, 3, 4], [4, 2, 0], [3], [1, 1, 2]):
        made = generator.generate(
            [PROMPTS[at] for at in order], [SEEDS[at] for at in order], OPTIONS
        )
        for at, found in zip(order, made, strict=True):
            agree(found, wanted[at])
            assert found.hidden.shape == (len(PROMPTS[at]) + len(found.tokens) - 1, SMALL.width)


def test_hugging_face_generates_the_same_from_the_same_weights(model: Decoder) -> None:
    wanted = CachedGenerator(model).generate(PROMPTS, SEEDS, OPTIONS)
    made = HuggingFaceGenerator(as_llama(model)).generate(PROMPTS, SEEDS, OPTIONS)
    for found, one in zip(made, wanted, strict=True):
        agree(found, one)


def test_a_prefill_of_the_whole_row_finds_what_the_cache_recorded(model: Decoder) -> None:
    wanted = CachedGenerator(model).generate(PROMPTS, SEEDS, OPTIONS)
    made = complete_by_prefill(model, PROMPTS, [one.tokens for one in wanted], OPTIONS)
    for found, one in zip(made, wanted, strict=True):
        agree(found, one)


def test_vllm_is_refused_where_it_is_not_and_its_processor_draws_the_same(
    model: Decoder, tmp_path: Path
) -> None:
    with pytest.raises(ImportError, match="vllm is not installed"):
        VllmGenerator(tmp_path, model)
    (wanted,) = CachedGenerator(model).generate(PROMPTS[:1], SEEDS[:1], OPTIONS)
    processor, made = _OfOneRow(SEEDS[0], OPTIONS.temperature), []
    for _ in wanted.tokens:
        with torch.no_grad():
            logits, _hidden = model(torch.tensor([[*PROMPTS[0], *made]]))
        made.append(int(processor(made, logits[0, -1]).argmax()))
    assert made == wanted.tokens


def test_bad_calls_are_errors_before_anything_is_computed(model: Decoder) -> None:
    generator = CachedGenerator(model)
    assert generator.generate([], [], OPTIONS) == []
    with pytest.raises(ValueError, match="1 prompts with 2 seeds"):
        generator.generate(PROMPTS[:1], SEEDS[:2], OPTIONS)
    with pytest.raises(ValueError, match="empty prompt"):
        generator.generate([[]], SEEDS[:1], OPTIONS)
    with pytest.raises(ValueError, match="temperature"):
        GeneratorOptions(temperature=0.0)
    with pytest.raises(ValueError, match="token_count_max"):
        GeneratorOptions(token_count_max=0)
    with pytest.raises(ValueError, match="at most 40 tokens"):
        model(torch.ones(1, 41, dtype=torch.int64))


def test_weights_come_back_from_their_file_byte_for_byte(model: Decoder, tmp_path: Path) -> None:
    save_weights(model, tmp_path / "a.safetensors")
    config, tensors = read_weights(tmp_path / "a.safetensors")
    assert (config, config.hash) == (SMALL, SMALL.hash)
    assert ModelConfig(width=96).hash != ModelConfig().hash
    other = Decoder(config, seed=4)
    load_weights(other, tensors)
    save_weights(other, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_weights_that_do_not_fit_change_nothing(model: Decoder, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = next(iter(before))
    for bad, why in (
        ({first: before[first]}, "names differ"),
        ({**before, first: before[first][1:]}, "expected torch.float32"),
        ({**before, first: before[first] * float("nan")}, "NaN or Inf"),
    ):
        with pytest.raises(ValueError, match=why):
            load_weights(model, bad)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    path = tmp_path / "garbage"
    path.write_bytes(b"garbage")
    with pytest.raises(ValueError, match="weights"):
        read_weights(path)


def test_the_default_model_has_the_size_that_is_promised() -> None:
    assert Decoder(ModelConfig()).parameter_count == 1_795_776


def test_text_becomes_tokens_and_text_again() -> None:
    text = "spell 9 words: backward>\n"
    assert decode([*encode(text.upper()), EOS, 5, 6]) == text
    with pytest.raises(ValueError, match="no token for 'ß'"):
        encode("ß")
    with pytest.raises(ValueError, match="got 64"):
        decode([64])
