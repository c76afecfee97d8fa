"""Other engines behind `Generator`: Hugging Face's `generate`, and vLLM where it is installed.

Both sample by the same seeded noise, given to them as a logits processor, and take the arg max.
"""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

from asyncrl.generator import Completion, GeneratorOptions, check_prompts, prefill
from asyncrl.model import Decoder
from asyncrl.sampling import gumbel_noise_rows
from asyncrl.tokenizer import EOS, PAD

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["HuggingFaceGenerator", "SeededNoise", "VllmGenerator", "as_llama"]


def as_llama(model: Decoder) -> PreTrainedModel:
    """The same weights as Hugging Face's `LlamaForCausalLM`: the same logits but for rounding."""
    transformers: Any = importlib.import_module("transformers")
    config = model.config
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocabulary_count,
            hidden_size=config.width,
            intermediate_size=config.feed_forward_width,
            num_hidden_layers=config.layer_count,
            num_attention_heads=config.head_count,
            max_position_embeddings=config.context_max,
            rms_norm_eps=1e-6,
            rope_theta=config.rope_base,
            tie_word_embeddings=False,
            pad_token_id=PAD,
            bos_token_id=None,
            eos_token_id=EOS,
        )
    )
    llama.load_state_dict(model.state_dict())
    return llama.eval()  # type: ignore[no-any-return]


class SeededNoise:
    """A logits processor, as engines call it: scores / temperature + the noise of this token."""

    def __init__(self, seeds: Sequence[bytes], prompt_count: int, temperature: float) -> None:
        """`prompt_count`: tokens before the first that is sampled, padding included."""
        self._seeds = seeds
        self._prompt_count = prompt_count
        self._temperature = temperature

    def __call__(self, tokens_BT: Tensor, scores_BV: Tensor) -> Tensor:  # noqa: N803
        token_index = tokens_BT.shape[1] - self._prompt_count
        noise = gumbel_noise_rows(self._seeds, [token_index] * len(self._seeds), scores_BV.shape[1])
        noisy = scores_BV.float() / self._temperature + torch.from_numpy(noise).to(scores_BV.device)
        return noisy


class HuggingFaceGenerator:
    """`generate` of any causal model of transformers whose last hidden states feed its head."""

    def __init__(self, model: PreTrainedModel, *, eos: int = EOS, pad: int = PAD) -> None:
        self.model = model
        self.eos = eos
        self.pad = pad

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[bytes], options: GeneratorOptions
    ) -> list[Completion]:
        """See Generator.generate()."""
        check_prompts(prompts, seeds)
        if not prompts:
            return []
        longest = max(map(len, prompts))
        pads = [longest - len(prompt) for prompt in prompts]
        rows = [[self.pad] * pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)]
        mask = [[0] * pad + [1] * (longest - pad) for pad in pads]
        model: Any = self.model
        made = model.generate(
            torch.tensor(rows, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            max_new_tokens=options.token_count_max,
            do_sample=False,
            eos_token_id=self.eos,
            pad_token_id=self.pad,
            logits_processor=[SeededNoise(seeds, longest, options.temperature)],
            return_dict_in_generate=True,
            output_logits=True,
            output_hidden_states=True,
        )
        logits_BTV = torch.stack(made.logits, dim=1).float().cpu() / options.temperature  # noqa: N806
        # Of each step the last layer: the prompt at first, then a token at a time.
        hidden_BTC = torch.cat([step[-1] for step in made.hidden_states], dim=1)  # noqa: N806
        completions = []
        for row, pad in enumerate(pads):
            tokens = _until(made.sequences[row, longest:].tolist(), self.eos)
            taken = logits_BTV[row, : len(tokens)].log_softmax(-1)
            completions.append(
                Completion(
                    tokens,
                    taken.gather(1, torch.tensor(tokens)[:, None])[:, 0].numpy(),
                    hidden_BTC[row, pad : longest + len(tokens) - 1].float().cpu().numpy(),
                )
            )
        return completions


def _until(tokens: list[int], eos: int) -> list[int]:
    return tokens[: tokens.index(eos) + 1] if eos in tokens else tokens


class VllmGenerator:
    """vLLM, for models that need it; the hidden states come from one prefill of our own decoder.

    vLLM gives no hidden states out, so a proof is built from a prefill, at the price of validation.
    """

    def __init__(self, folder: Path, model: Decoder, **engine_options: Any) -> None:
        """Open the engine.

        Args:
            folder: a checkpoint as `as_llama(model).save_pretrained(folder)` writes it.
            model: the same weights.
            engine_options: of `vllm.LLM`.

        Raises:
            ImportError: vLLM is not installed.
        """
        if importlib.util.find_spec("vllm") is None:
            raise ImportError("VllmGenerator: vllm is not installed; pip install vllm, with a GPU")
        self._vllm: Any = importlib.import_module("vllm")
        self._engine = self._vllm.LLM(str(folder), skip_tokenizer_init=True, **engine_options)
        self.model = model

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[bytes], options: GeneratorOptions
    ) -> list[Completion]:
        """See Generator.generate()."""
        check_prompts(prompts, seeds)
        parameters = [
            self._vllm.SamplingParams(
                temperature=0.0,
                max_tokens=options.token_count_max,
                stop_token_ids=[EOS],
                detokenize=False,
                logits_processors=[_OfOneRow(seed, options.temperature)],
            )
            for seed in seeds
        ]
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        answers = self._engine.generate(asked, parameters, use_tqdm=False)
        tokens = [_until(list(answer.outputs[0].token_ids), EOS) for answer in answers]
        return complete_by_prefill(self.model, prompts, tokens, options)


class _OfOneRow:
    """vLLM calls a processor of one request with the tokens so far and its row of logits."""

    def __init__(self, seed: bytes, temperature: float) -> None:
        self._seed = seed
        self._temperature = temperature

    def __call__(self, tokens: Sequence[int], scores: Tensor) -> Tensor:
        noise = gumbel_noise_rows([self._seed], [len(tokens)], scores.shape[0])[0]
        return scores.float() / self._temperature + torch.from_numpy(noise).to(scores.device)


@torch.no_grad()
def complete_by_prefill(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    tokens: Sequence[Sequence[int]],
    options: GeneratorOptions,
) -> list[Completion]:
    """What `model` would have recorded while it sampled these tokens: one prefill of all rows."""
    completions = []
    rows = [[*prompt, *made[:-1]] for prompt, made in zip(prompts, tokens, strict=True)]
    longest = max(map(len, rows), default=0)
    tokens_BT = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])  # noqa: N806
    real_BT = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]  # noqa: N806
    computed = prefill(model, tokens_BT.to(model.device), real_BT.to(model.device))
    logits_BTV, hidden_BTC = (tensor.cpu() for tensor in computed)  # noqa: N806
    for row, (prompt, made) in enumerate(zip(prompts, tokens, strict=True)):
        end = len(prompt) + len(made) - 1
        logits = logits_BTV[row, len(prompt) - 1 : end] / options.temperature
        taken = logits.log_softmax(-1).gather(1, torch.tensor(made)[:, None])[:, 0]
        completions.append(
            Completion(
                list(made), taken.numpy().astype(numpy.float32), hidden_BTC[row, :end].numpy()
            )
        )
    return completions
