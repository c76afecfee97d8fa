"""Completions of prompts, token by token, with what a proof needs of the way there.

Each token is the arg max of logits / temperature + Gumbel noise from the seed of its rollout: a
sample of the policy, and yet one that anybody with the weights and the seed can draw again. No
engine has a random state, so batches can be cut and ordered as one likes.
"""
# ruff: noqa: N803, N806 (tensor names end with their shape)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from asyncrl.model import Decoder, KeyValueCache, causal_mask
from asyncrl.sampling import gumbel_noise_rows
from asyncrl.tokenizer import EOS, PAD

__all__ = [
    "CachedGenerator",
    "Completion",
    "Generator",
    "GeneratorOptions",
    "check_prompts",
    "prefill",
]


@dataclass(frozen=True, kw_only=True)
class GeneratorOptions:
    token_count_max: int = 10
    """Tokens of a completion, EOS included."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.token_count_max < 1:
            raise ValueError(f"token_count_max: expected at least 1, got {self.token_count_max}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature: expected more than 0, got {self.temperature}")


@dataclass(frozen=True)
class Completion:
    """What one prompt became."""

    tokens: list[int]
    """At most `token_count_max`, EOS included; without EOS it was cut there."""

    log_probabilities: NDArray[numpy.float32]
    """[tokens], of each token, at the options' temperature."""

    hidden: NDArray[numpy.float32]
    """[prompt + tokens - 1, width]: last hidden states (what the head multiplies), of every
    position but the last, which nothing was computed from. Row prompt - 1 gave the first token."""


class Generator(Protocol):
    """An engine that holds a policy."""

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[bytes], options: GeneratorOptions
    ) -> list[Completion]:
        """One completion a prompt; token t of it is drawn with noise of (its seed, t).

        Raises:
            ValueError: an empty prompt, or not as many seeds as prompts.
        """


class CachedGenerator:
    """Batched, with a cache of keys and values: for small models, on the model's device."""

    def __init__(self, model: Decoder) -> None:
        self.model = model

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[bytes], options: GeneratorOptions
    ) -> list[Completion]:
        """See Generator.generate().

        Prompts are padded on the left, so that all rows end at one place. What one row gets does
        not depend on the others but by rounding, about 1e-6 of a logit.
        """
        check_prompts(prompts, seeds)
        made = [_Growing() for _ in prompts]
        device = self.model.device
        rows = torch.arange(len(prompts), device=device)  # of the batch: which prompt each one is
        cache = KeyValueCache(self.model.config.layer_count)
        tokens_BT, real_BS = (padded.to(device) for padded in _pad_left(prompts))
        lengths = real_BS.sum(1)
        for step in range(options.token_count_max if prompts else 0):
            if step == 0:
                logits_BTV, hidden_BTC = prefill(self.model, tokens_BT, real_BS, cache)
            else:
                logits_BTV, hidden_BTC = self.model(
                    tokens_BT,
                    positions_BT=(lengths + step - 1)[:, None],
                    mask_BTS=real_BS[:, None],
                    cache=cache,
                )
            logits = logits_BTV[:, -1] / options.temperature
            noise = gumbel_noise_rows(
                [seeds[row] for row in rows.tolist()], [step] * len(rows), logits.shape[1]
            )
            tokens = (logits + torch.from_numpy(noise).to(device)).argmax(1)
            taken = logits.log_softmax(1).gather(1, tokens[:, None])[:, 0]
            new_from = tokens_BT.shape[1] - (lengths if step == 0 else torch.ones_like(rows))
            columns = (rows, tokens, taken, new_from)
            found = zip(*(column.tolist() for column in columns), strict=True)
            for at, (row, token, log_probability, begin) in enumerate(found):
                made[row].add(token, log_probability, hidden_BTC[at, begin:])
            going = (tokens != EOS).nonzero()[:, 0]
            if len(going) == 0:
                break
            rows, lengths, tokens_BT = rows[going], lengths[going], tokens[going, None]
            real_BS = functional.pad(real_BS[going], (0, 1), value=True)
            cache.keep(going)
        return [one.finish() for one in made]


class _Growing:
    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._log_probabilities: list[float] = []
        self._hidden: list[Tensor] = []

    def add(self, token: int, log_probability: float, hidden_TC: Tensor) -> None:
        self._tokens.append(token)
        self._log_probabilities.append(log_probability)
        self._hidden.append(hidden_TC)

    def finish(self) -> Completion:
        log_probabilities = numpy.array(self._log_probabilities, numpy.float32)
        hidden = torch.cat(self._hidden).float().cpu().numpy()
        return Completion(self._tokens, log_probabilities, hidden)


def _pad_left(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Tokens [rows, longest], and which of them are real."""
    longest = max(map(len, rows), default=0)
    tokens = torch.tensor([[PAD] * (longest - len(row)) + list(row) for row in rows])
    counts = torch.tensor([len(row) for row in rows])
    return tokens, torch.arange(longest) >= longest - counts[:, None]


def prefill(
    model: Decoder, tokens_BT: Tensor, real_BT: Tensor, cache: KeyValueCache | None = None
) -> tuple[Tensor, Tensor]:
    """Logits and hidden states of whole rows, padded on the left or on the right.

    Args:
        tokens_BT: int64.
        real_BT: bool, false for padding; what comes out there means nothing.
        cache: empty; is filled.
    """
    time = tokens_BT.shape[1]
    positions_BT = (real_BT.cumsum(1) - 1).clamp(min=0)
    mask_BTS = real_BT[:, None] & causal_mask(time, real_BT.device)
    # Padding looks at itself: a softmax over nothing would be NaN.
    mask_BTS = mask_BTS | torch.eye(time, dtype=torch.bool, device=real_BT.device)
    result: tuple[Tensor, Tensor] = model(
        tokens_BT, positions_BT=positions_BT, mask_BTS=mask_BTS, cache=cache
    )
    return result


def check_prompts(prompts: Sequence[Sequence[int]], seeds: Sequence[bytes]) -> None:
    """Raises ValueError as Generator.generate() says."""
    if len(prompts) != len(seeds):
        raise ValueError(f"generate: {len(prompts)} prompts with {len(seeds)} seeds")
    if not all(prompts):
        raise ValueError("generate: an empty prompt has no next token")
