"""DiLoCo's methods once more: one process, lists of tensors, nothing of the library."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

FEATURES = 6
BATCH = 4


@torch.no_grad()
def make_model(seed: int = 0) -> nn.Sequential:
    """Small, with several layers, biases and a norm; the same in any thread."""
    model = nn.Sequential(
        nn.Linear(FEATURES, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 8), nn.Tanh(),
        nn.Linear(8, 3),
    )  # fmt: skip
    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=random, device="cpu") * 0.3)
    return model


def make_batch(member: int, step: int, batch: int = BATCH) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1000 * step + member)
    inputs = torch.randn(batch, FEATURES, generator=random, device="cpu")
    inputs = inputs.to(torch.get_default_device())
    return inputs, (inputs[:, :3] * (1 + 0.1 * member)).tanh()


def make_inner(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def compute_gradients(model: nn.Module, member: int, step: int, batch: int = BATCH) -> Tensor:
    inputs, wanted = make_batch(member, step, batch)
    loss = nn.functional.mse_loss(model(inputs), wanted)
    loss.backward()
    return loss.detach()


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, member: int, step: int, batch: int = BATCH
) -> Tensor:
    loss = compute_gradients(model, member, step, batch)
    optimizer.step()
    optimizer.zero_grad()
    return loss


def values(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


@torch.no_grad()
def set_values(model: nn.Module, new: list[Tensor]) -> None:
    for parameter, value in zip(model.parameters(), new, strict=True):
        parameter.copy_(value)


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def weighted_mean(lists: list[list[Tensor]], weights: list[float]) -> list[Tensor]:
    total = sum(weights)
    return [
        sum((w * t for w, t in zip(weights, tensors, strict=True)), torch.zeros(())) / total
        for tensors in zip(*lists, strict=True)
    ]


@dataclass
class Nesterov:
    """m = mu m + d; theta -= lr (d + mu m); without momentum theta -= lr d."""

    lr: float
    momentum: float
    m: list[Tensor] | None = None

    def step(self, theta: list[Tensor], delta: list[Tensor]) -> list[Tensor]:
        if self.momentum == 0:
            return [t - self.lr * d for t, d in zip(theta, delta, strict=True)]
        old = self.m or [torch.zeros_like(d) for d in delta]
        self.m = [self.momentum * m + d for m, d in zip(old, delta, strict=True)]
        return [
            t - self.lr * (d + self.momentum * m)
            for t, d, m in zip(theta, delta, self.m, strict=True)
        ]


class Workers:
    """Members in one process: a model and an inner optimizer each."""

    def __init__(self, count: int, batches: list[int] | None = None) -> None:
        first = make_model()
        self.models = [copy.deepcopy(first) for _ in range(count)]
        self.inner = [make_inner(model) for model in self.models]
        self.batches = batches or [BATCH] * count
        self.step = 0

    def train(self, steps: int, each: Callable[[int], int] = lambda member: 0) -> None:
        """`steps` inner steps each; `each(member)` fewer of them."""
        for member, (model, inner) in enumerate(zip(self.models, self.inner, strict=True)):
            for step in range(self.step, self.step + steps - each(member)):
                train_step(model, inner, member, step, self.batches[member])
        self.step += steps

    def train_synchronously(self, steps: int) -> None:
        """With averaged gradients."""
        for _ in range(steps):
            for member, model in enumerate(self.models):
                compute_gradients(model, member, self.step, self.batches[member])
            pairs = zip(*[model.parameters() for model in self.models], strict=True)
            for parameters in pairs:
                gradients = [[p.grad] for p in parameters]
                [mean] = weighted_mean(gradients, [float(b) for b in self.batches])  # type: ignore[arg-type]
                for p in parameters:
                    p.grad = mean.clone()
            for inner in self.inner:
                inner.step()
                inner.zero_grad()
            self.step += 1

    def deltas(self, theta: list[Tensor]) -> list[list[Tensor]]:
        return [[t - v for t, v in zip(theta, values(model), strict=True)] for model in self.models]

    def install(self, theta: list[Tensor]) -> None:
        for model in self.models:
            set_values(model, theta)


def run_diloco(
    workers: Workers, rounds: int, sync_every: int, outer: Nesterov, warmup: int = 0
) -> Iterator[list[Tensor]]:
    """theta after each round of synchronous DiLoCo (arXiv 2311.08105, algorithm 1)."""
    theta = values(workers.models[0])
    weights = [float(batch) for batch in workers.batches]
    while workers.step < warmup:
        workers.train_synchronously(min(sync_every, warmup - workers.step))
        theta = weighted_mean([values(model) for model in workers.models], weights)
        workers.install(theta)
        yield theta
    for _ in range(rounds):
        workers.train(sync_every)
        theta = outer.step(theta, weighted_mean(workers.deltas(theta), weights))
        workers.install(theta)
        yield theta


def assert_close(found: Any, wanted: list[Tensor]) -> None:
    torch.testing.assert_close(found, flat(wanted).to(found.device), rtol=2e-5, atol=2e-6)
