"""The learning rate as a function of the run's step, so that a newcomer begins where the run is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["RunSchedule", "constant", "cosine", "wsd"]

Curve = Callable[[int], float]
"""From a step of the run, counted from 0, to the share of the peak learning rate."""


def constant(warmup: int = 0) -> Curve:
    """A linear rise over `warmup` steps, then the peak."""
    _check("constant", warmup=warmup)
    return lambda step: min(1.0, (step + 1) / max(1, warmup))


def cosine(steps: int, warmup: int = 0, floor: float = 0.1) -> Curve:
    """A linear rise, then half a cosine down to `floor` of the peak at `steps`, and `floor` on.

    Source: Loshchilov and Hutter, SGDR, ICLR 2017; the floor as in DiLoCo, arXiv 2311.08105.
    """
    _check("cosine", steps=steps - 1, warmup=warmup, rest=steps - warmup, floor=floor)
    rise = constant(warmup)

    def curve(step: int) -> float:
        if step < warmup:
            return rise(step)
        part = min(1.0, (step - warmup) / max(1, steps - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * part))

    return curve


def wsd(steps: int, warmup: int = 0, decay: int = 0, floor: float = 0.0) -> Curve:
    """Warm-up, stable, decay: a linear rise, the peak, then 1 - sqrt over the last `decay` steps.

    The end can be moved while the run goes on, as long as the decay has not begun.

    Source: Hu et al., MiniCPM, arXiv 2404.06395; the square root: Hägele et al., arXiv 2405.18392,
    as INTELLECT-1 used it, arXiv 2412.01152.
    """
    _check(
        "wsd", steps=steps - 1, warmup=warmup, decay=decay, rest=steps - warmup - decay, floor=floor
    )
    rise = constant(warmup)

    def curve(step: int) -> float:
        if step < steps - decay or decay == 0:
            return rise(step)
        part = min(1.0, (step - (steps - decay)) / decay)
        return floor + (1 - floor) * (1 - math.sqrt(part))

    return curve


class RunSchedule(LRScheduler):
    """Sets the learning rate of each step from the run's step, whoever counts it.

    It is a scheduler of torch, so trainers that want one take it; its step() changes nothing, as it
    is the optimizer's own step that looks at the run. The peak is each group's learning rate when
    this is made.

    Args:
        optimizer: any of torch; its param_groups are written just before each of its steps.
        curve: cosine(...), wsd(...), constant(...), or any function of the step.
        clock: returns the run's step; `lambda: diloco.step`.
    """

    def __init__(self, optimizer: Optimizer, curve: Curve, clock: Callable[[], int]) -> None:
        self._curve, self._clock = curve, clock
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.optimizer = optimizer
        self.base_lrs = [float(group["initial_lr"]) for group in optimizer.param_groups]
        self.last_epoch = 0
        self._step_count = 1
        optimizer.register_step_pre_hook(self._set)
        self._set()

    def get_lr(self) -> list[float | Any]:
        """The learning rates of the run's step."""
        share = self._curve(self._clock())
        return [base * share for base in self.base_lrs]

    def get_last_lr(self) -> list[float | Any]:
        """Those that are set."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def step(self, epoch: int | None = None) -> None:
        """Nothing: the run's step decides."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing but the peaks: the step is the run's."""
        return {"base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the peaks back."""
        self.base_lrs = list(state_dict["base_lrs"])
        self._set()

    def _set(self, *_: Any) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate


def _check(name: str, **numbers: float) -> None:
    wrong = {key: value for key, value in numbers.items() if value < 0}
    if wrong or numbers.get("floor", 0) > 1:
        raise ValueError(
            f"{name}: expected steps >= 1, warmup and decay within them, 0 <= floor <= 1, "
            f"got {numbers}"
        )
