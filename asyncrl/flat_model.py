"""A model's parameters as one vector: what is averaged, kept by version, compared and saved."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from asyncrl.model import Decoder

__all__ = ["FlatModel"]


class FlatModel:
    """`model` with its parameters and gradients moved into two vectors.

    `sums` is [parameters + extra_count] float32: the gradient, and behind it whatever else is
    summed over the members in the same operation.
    """

    def __init__(self, model: Decoder, extra_count: int) -> None:
        named = list(model.named_parameters())
        self.model = model
        self.count = sum(parameter.numel() for _, parameter in named)
        self.weights = torch.empty(self.count)
        self.sums = torch.zeros(self.count + extra_count)
        self.gradient = self.sums[: self.count]
        self.extra = self.sums[self.count :]
        self._shapes = [(name, parameter.shape) for name, parameter in named]
        weights, gradients = self.views(self.weights), self.views(self.gradient)
        for name, parameter in named:
            weights[name].copy_(parameter.detach())
            parameter.data = weights[name]
            parameter.grad = gradients[name]

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """`vector` [parameters] as tensors by name, sharing its memory."""
        found, offset = {}, 0
        for name, shape in self._shapes:
            found[name] = vector[offset : offset + shape.numel()].view(shape)
            offset += shape.numel()
        return found

    def call(self, weights: Tensor, *arguments: Tensor, **named: Any) -> tuple[Tensor, Tensor]:
        """What the model computes with other weights [parameters], without a gradient."""
        with torch.no_grad():
            result: tuple[Tensor, Tensor] = torch.func.functional_call(
                self.model, self.views(weights), arguments, named
            )
        return result

    @property
    def digest(self) -> str:
        """SHA-256 of the weights, hexadecimal."""
        return hashlib.sha256(self.weights.numpy().tobytes()).hexdigest()
