"""The warm start: gradients are averaged in every step, as in data parallel training.

DiLoCo's papers start from trained parameters. From random ones the default outer optimizer
overshoots so much that a short run ends behind one member alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import LBFGS, Optimizer

__all__ = ["averaging", "check_optimizer"]


def check_optimizer(optimizer: Optimizer, steps: int) -> None:
    if steps and isinstance(optimizer, LBFGS):
        raise ValueError(
            "warmup_sync_steps: LBFGS computes gradients several times a step, each member as "
            "often as it needs; set warmup_sync_steps=0"
        )


def averaging(
    average: Callable[[], None], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Have `average` called between the gradients and the step; returns changed arguments.

    A closure computes the gradients inside of optimizer.step(); else they are there.
    """
    # torch passes the optimizer itself as the first argument.
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        average()
        return None

    def compute() -> Any:
        with torch.enable_grad():
            loss = closure()
        average()
        return loss

    if "closure" in kwargs:
        return args, {**kwargs, "closure": compute}
    return (args[0], compute, *args[2:]), kwargs
