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

    def __init__(self, model: Decoder, extra_count: int, device: str = "cpu") -> None:
        """The model goes to `device`; the vectors stay on the host, where they are summed."""
        self.model = model.to(device)
        named = list(model.named_parameters())
        is_cuda = model.device.type == "cuda"
        self.count = sum(parameter.numel() for _, parameter in named)
        self.weights = torch.empty(self.count, pin_memory=is_cuda)
        self.sums = torch.zeros(self.count + extra_count, pin_memory=is_cuda)
        self.gradient = self.sums[: self.count]
        self.extra = self.sums[self.count :]
        self._shapes = [(name, parameter.shape) for name, parameter in named]
        # What the model computes with, and puts gradients into; on the CPU these are the vectors.
        self._weights_there = self.weights.to(model.device)
        self._gradient_there = self.gradient.to(model.device)
        weights, gradients = self.views(self._weights_there), self.views(self._gradient_there)
        for name, parameter in named:
            weights[name].copy_(parameter.detach())
            parameter.data = weights[name]
            parameter.grad = gradients[name]
        self.weights.copy_(self._weights_there)

    def refresh(self) -> None:
        """Have the model compute with `weights`."""
        self._weights_there.copy_(self.weights)

    def begin(self) -> None:
        """The same, and sum gradients from 0."""
        self.refresh()
        self._gradient_there.zero_()
        self.sums.zero_()

    def end(self) -> None:
        """Have the model's gradient in `sums`."""
        self.gradient.copy_(self._gradient_there)

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
                self.model, self.views(weights.to(self.model.device)), arguments, named
            )
        return result

    @property
    def digest(self) -> str:
        """SHA-256 of the weights, hexadecimal."""
        return hashlib.sha256(self.weights.numpy().tobytes()).hexdigest()
