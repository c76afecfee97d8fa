"""Outer optimizers: what moves theta once the pseudo-gradients are merged."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from diloco.settings import Settings

__all__ = ["OuterFactory", "OuterOptimizer", "StabilityWarning", "describe", "stable_up_to"]

OuterFactory = Callable[[list[Tensor]], Optimizer]

# The optimizer's temporaries are as large as one block; of a whole flat buffer they would be
# another copy of the model.
_BLOCK_ELEMENTS = 16 << 20


class StabilityWarning(UserWarning):
    """The outer settings let a quadratic diverge."""


def describe(factory: OuterFactory) -> str:
    """Name an optimizer and its numbers: what members must have in common."""
    optimizer = factory([torch.zeros(1, device="cpu", requires_grad=True)])
    numbers = ", ".join(f"{name}={value!r}" for name, value in sorted(optimizer.defaults.items()))
    return f"{type(optimizer).__name__}({numbers})"


class OuterOptimizer:
    """A torch optimizer over a flat theta, with its state in flat buffers.

    The default is SGD with Nesterov momentum in torch's form, m = mu m + delta and
    theta -= eta (delta + mu m), over blocks of theta: element by element, so that the bytes do not
    depend on threads. `state` holds one flat tensor for each value of the optimizer that is kept
    for each element, and the rest as vectors.
    """

    def __init__(self, theta: Tensor, fragments: list[slice], factory: OuterFactory) -> None:
        self._optimizers: list[Optimizer | None] = []
        self._blocks: list[list[tuple[slice, Tensor]]] = []
        self.state: dict[str, Tensor] = {}
        for index, where in enumerate(fragments):
            starts = range(where.start, where.stop, _BLOCK_ELEMENTS)
            slices = [slice(at, min(at + _BLOCK_ELEMENTS, where.stop)) for at in starts]
            blocks = [(at, theta[at].requires_grad_()) for at in slices]
            # A process may hold nothing of a fragment that is sharded.
            optimizer = factory([block for _, block in blocks]) if blocks else None
            self._optimizers.append(optimizer)
            self._blocks.append(blocks)
            if optimizer is not None:
                self._make_state(optimizer, index, theta.numel())

    def step(self, fragment: int, delta: Tensor) -> None:
        """Move a fragment of theta by the merged pseudo-gradient, a flat buffer."""
        optimizer = self._optimizers[fragment]
        if optimizer is None:
            return
        for where, block in self._blocks[fragment]:
            block.grad = delta[where]
        _step(optimizer)
        for _, block in self._blocks[fragment]:
            block.grad = None

    @torch.no_grad()
    def _make_state(self, optimizer: Optimizer, fragment: int, elements: int) -> None:
        """Have the optimizer make its state, by a step of zeros that is undone; then flatten it."""
        before = {block: set(optimizer.state.get(block, {})) for _, block in self._blocks[fragment]}
        values = [block.clone() for _, block in self._blocks[fragment]]
        for _, block in self._blocks[fragment]:
            block.grad = torch.zeros_like(block)
        _step(optimizer)
        for number, (where, block) in enumerate(self._blocks[fragment]):
            block.copy_(values[number])
            block.grad = None
            state = optimizer.state[block]
            for key, value in list(state.items()):
                if value is None:
                    continue
                made = torch.as_tensor(value, dtype=torch.float32, device="cpu").clone()
                if key not in before[block]:
                    made.zero_()
                name = key if made.shape == block.shape else f"{key}.{fragment}.{number}"
                if made.shape == block.shape:
                    flat = self.state.setdefault(name, torch.zeros(elements, device="cpu"))
                    flat[where] = made
                    state[key] = flat[where]
                else:
                    self.state[name] = made.reshape(-1)
                    state[key] = self.state[name].view(made.shape)


def _step(optimizer: Optimizer) -> None:
    with torch.device("cpu"):  # what it makes of its own, whatever the caller's default is
        optimizer.step()


def make_factory(settings: Settings) -> OuterFactory:
    """SGD with the settings' numbers."""
    lr, momentum = settings.outer_lr, settings.outer_momentum
    assert lr is not None
    assert momentum is not None

    def make(blocks: list[Tensor]) -> Optimizer:
        return SGD(blocks, lr=lr, momentum=momentum, nesterov=settings.nesterov and momentum > 0)

    return make


# --- stability ------------------------------------------------------------------------------------


def stable_up_to(
    lr: float, momentum: float, *, nesterov: bool = True, delayed: bool = False
) -> float:
    """Return the c below which every direction contracts; at most 2.

    A quadratic in one direction: the inner steps of a round remove the part c of the error, so
    delta = c * error (c = 1: all of it, more: they overshoot). `delayed`: delta is a round old.
    """
    kept = 2.0
    for c in np.arange(0.01, 2.0, 0.01):
        if _radius(c, lr, momentum, nesterov, delayed) >= 1:
            return float(c - 0.01)
    return kept


def _radius(c: float, lr: float, momentum: float, nesterov: bool, delayed: bool) -> float:
    # m' = mu m + d; x' = x - lr (d + mu m') with Nesterov, x - lr m' without.
    on_d = lr * (1 + momentum) if nesterov else lr
    on_m = lr * momentum * (momentum if nesterov else 1)
    if delayed:  # state (x, m, d): d' = c x
        matrix: Any = [[1, -on_m, -on_d], [0, momentum, 1], [c, 0, 0]]
    else:  # state (x, m)
        matrix = [[1 - on_d * c, -on_m], [c, momentum]]
    return float(np.abs(np.linalg.eigvals(np.array(matrix, dtype=float))).max())


def warn_if_unstable(settings: Settings) -> None:
    """Warn about a delayed outer step that diverges where a round removes most of the error."""
    if settings.outer != "sgd" or settings.delay_steps < settings.sync_every:
        return
    lr, momentum = settings.outer_lr, settings.outer_momentum
    assert lr is not None
    assert momentum is not None
    limit = stable_up_to(lr, momentum, nesterov=settings.nesterov, delayed=True)
    if limit < 1:
        warnings.warn(
            f"outer_lr={lr}, outer_momentum={momentum} with a delay of a round diverges in "
            f"directions in which a round removes more than {limit:.2f} of the error. Stable: "
            "outer_lr=0.7, outer_momentum=0 (also 0.3, 0.5)",
            StabilityWarning,
            stacklevel=4,
        )
