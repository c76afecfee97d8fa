"""A few supervised steps, so that a policy earns its first rewards.

python -m asyncrl.warm_start weights.safetensors
"""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import argparse
import hashlib
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from asyncrl.environment import ReasoningGym
from asyncrl.model import Decoder, ModelConfig, save_weights
from asyncrl.tokenizer import EOS, PAD, encode

__all__ = ["WarmStartOptions", "cached_warm_start", "warm_start"]

# Changes when the steps below do, so that no file of other steps is taken for theirs.
_RECIPE = 1


@dataclass(frozen=True, kw_only=True)
class WarmStartOptions:
    step_count: int = 125
    batch_count: int = 64
    learning_rate: float = 6e-4
    seed: int = 0


def warm_start(
    environment: ReasoningGym, config: ModelConfig, options: WarmStartOptions | None = None
) -> Decoder:
    """A decoder after `step_count` supervised steps on answers of `environment`.

    The same arguments give the same bytes on the same kind of machine. 125 steps of the default
    model take 30 seconds of one core.

    Raises:
        ValueError: the environment has no answers.
    """
    options = options or WarmStartOptions()
    model = Decoder(config, seed=options.seed)
    chosen = random.Random(options.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=options.learning_rate, betas=(0.9, 0.99), weight_decay=0.01
    )
    for step in range(options.step_count):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * min(1.0, (step + 1) / 10)
        tokens, is_answer = _batch(environment, chosen, options.batch_count)
        logits, _ = model(tokens[:, :-1])
        losses = functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
        )
        optimizer.zero_grad()
        losses[is_answer[:, 1:].flatten()].mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


def _batch(
    environment: ReasoningGym, chosen: random.Random, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded on the right: tokens [count, longest], and which of them the model has to learn."""
    rows = []
    for _ in range(count):
        index = chosen.randrange(environment.count)
        answer = environment.answer(index)
        if answer is None:
            raise ValueError(f"warm_start: {environment.name} has no answer to prompt {index}")
        rows.append((encode(environment.prompt(index)), [*encode(answer), EOS]))
    longest = max(len(prompt) + len(tail) for prompt, tail in rows)
    tokens = torch.full((count, longest), PAD)
    is_answer = torch.zeros(count, longest, dtype=torch.bool)
    for row, (prompt, tail) in enumerate(rows):
        end = len(prompt) + len(tail)
        tokens[row, :end] = torch.tensor(prompt + tail)
        is_answer[row, len(prompt) : end] = True
    return tokens, is_answer


def cached_warm_start(
    folder: Path,
    environment: ReasoningGym,
    config: ModelConfig,
    options: WarmStartOptions | None = None,
) -> Path:
    """The file of warm_start()'s weights in `folder`; made there if it is not."""
    options = options or WarmStartOptions()
    what = f"{_RECIPE} {environment.name} {config.json} {options}"
    path = folder / f"warm-{hashlib.sha256(what.encode()).hexdigest()[:16]}.safetensors"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(warm_start(environment, config, options), path)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path, help="the file to write")
    parser.add_argument("--steps", type=int, default=WarmStartOptions.step_count)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    options = WarmStartOptions(step_count=chosen.steps, seed=chosen.seed)
    save_weights(warm_start(ReasoningGym(), ModelConfig(), options), chosen.weights)
    return 0


if __name__ == "__main__":
    sys.exit(main())
