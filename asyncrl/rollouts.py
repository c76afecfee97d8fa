"""Rollouts as the trainer takes them, and several of them in one row."""
# ruff: noqa: N806, N815 (tensor names end with their shape)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from asyncrl.model import causal_mask
from asyncrl.tokenizer import PAD

__all__ = ["Group", "PackedRows", "Rollout", "pack"]


@dataclass(frozen=True)
class Rollout:
    """One completion. Nothing in it is a worker's claim but the tokens, and those are proven."""

    prompt: list[int]
    tokens: list[int]
    score: float
    """Of the environment, 0 to 1, computed on the trusted side."""


@dataclass(frozen=True)
class Group:
    """Rollouts of one prompt by one policy."""

    weight_version: int
    rollouts: list[Rollout]


@dataclass(frozen=True)
class PackedRows:
    """Sequences one after the other in rows; none sees its neighbours.

    The sampled tokens of all sequences, N of them, lie in the order of the sequences.
    """

    tokens_BT: Tensor
    positions_BT: Tensor
    mask_BTS: Tensor
    place_N: Tensor
    """[N] int64, where in the flattened rows the logits of each sampled token are."""
    targets_N: Tensor
    """[N] int64, the sampled tokens."""
    sequence_N: Tensor
    """[N] int64, the number of the sequence that each belongs to."""

    def to(self, device: torch.device) -> PackedRows:
        moved = {one.name: getattr(self, one.name).to(device) for one in fields(self)}
        return PackedRows(**moved)


def pack(sequences: Sequence[tuple[list[int], list[int]]], row_tokens: int = 64) -> PackedRows:
    """Put (prompt, completion) pairs into rows of `row_tokens`, each where it fits first.

    The last token of a sequence is only predicted, so it takes no place.

    Raises:
        ValueError: no sequence, an empty prompt or completion, or one longer than a row.
    """
    if not sequences or not all(prompt and tokens for prompt, tokens in sequences):
        raise ValueError("pack: expected sequences with a prompt and a completion")
    free: list[int] = []  # tokens left in each row
    starts = []  # (row, column) of each sequence
    for prompt, tokens in sequences:
        count = len(prompt) + len(tokens) - 1
        if count > row_tokens:
            raise ValueError(f"pack: a sequence of {count} tokens, and rows of {row_tokens}")
        row = next((row for row, left in enumerate(free) if left >= count), len(free))
        if row == len(free):
            free.append(row_tokens)
        starts.append((row, row_tokens - free[row]))
        free[row] -= count
    shape = (len(free), row_tokens)
    tokens_BT = torch.full(shape, PAD)
    positions_BT = torch.zeros(shape, dtype=torch.int64)
    # Padding is a sequence of its own.
    owner_BT = torch.full(shape, -1)
    place: list[int] = []
    targets: list[int] = []
    owner: list[int] = []
    for number, ((prompt, tokens), (row, column)) in enumerate(zip(sequences, starts, strict=True)):
        end = column + len(prompt) + len(tokens) - 1
        tokens_BT[row, column:end] = torch.tensor([*prompt, *tokens[:-1]])
        positions_BT[row, column:end] = torch.arange(end - column)
        owner_BT[row, column:end] = number
        first = row * row_tokens + column + len(prompt) - 1
        place += range(first, first + len(tokens))
        targets += tokens
        owner += [number] * len(tokens)
    same = owner_BT[:, :, None] == owner_BT[:, None, :]
    mask_BTS = same & causal_mask(row_tokens)
    return PackedRows(
        tokens_BT,
        positions_BT,
        mask_BTS,
        torch.tensor(place),
        torch.tensor(targets),
        torch.tensor(owner),
    )
