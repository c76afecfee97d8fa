"""Notices that a policy collapses, and says when to return to the last good weights.

Collapse does not heal: where every reward is 0 there is no gradient that leads back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

__all__ = ["Guard", "GuardOptions", "StepSigns"]

_HISTORY = 8


@dataclass(frozen=True, kw_only=True)
class GuardOptions:
    is_on: bool = True

    gradient_norm_factor: float = 20.0
    """Trips above so many times the median of the last good steps."""

    entropy_factor: float = 3.0
    """Trips above so many times the median of the last good steps."""

    entropy_min: float = 0.005
    """Trips below so many nats a token, where rewards are not almost all earned."""

    score_share_min: float = 0.5
    """Trips where the mean score is below this share of the median of the last good steps."""

    learning_rate_factor: float = 0.5
    """The learning rate is multiplied by it at each return."""


@dataclass(frozen=True)
class StepSigns:
    """What a step looked like, the same on every member."""

    entropy: float
    """Nats a token, mean."""

    gradient_norm: float
    """Of the step's minibatches before clipping, mean over tokens."""

    score: float
    """Mean of the rollouts."""


class Guard:
    """A function of the signs of the steps so far; members that saw the same decide the same."""

    def __init__(self, options: GuardOptions) -> None:
        self.options = options
        # [_HISTORY, 3] of good steps, the newest last; NaN: not yet. Part of the shared state.
        self.history: NDArray[numpy.float64] = numpy.full((_HISTORY, 3), math.nan)

    def judge(self, signs: StepSigns) -> str:
        """What is wrong with a step, in words; "" where nothing is, and it becomes history."""
        row = (signs.entropy, signs.gradient_norm, signs.score)
        if not all(math.isfinite(value) for value in row):
            return f"not finite: {signs}"
        known = self.history[~numpy.isnan(self.history[:, 0])]
        wrong = self._compare(signs, numpy.median(known, axis=0)) if len(known) >= 2 else ""
        if not wrong or not self.options.is_on:
            self.history[:-1] = self.history[1:]
            self.history[-1] = row
        return wrong if self.options.is_on else ""

    def _compare(self, signs: StepSigns, usual: NDArray[numpy.float64]) -> str:
        options = self.options
        entropy, gradient_norm, score = (float(value) for value in usual)
        if signs.gradient_norm > options.gradient_norm_factor * gradient_norm:
            return f"gradient norm {signs.gradient_norm:.3g}, usual is {gradient_norm:.3g}"
        if signs.entropy > options.entropy_factor * entropy:
            return f"entropy {signs.entropy:.3g} nats, usual is {entropy:.3g}"
        if signs.entropy < options.entropy_min and signs.score < 0.9:
            return f"entropy {signs.entropy:.3g} nats at a score of {signs.score:.3g}"
        if signs.score < options.score_share_min * score:
            return f"score {signs.score:.3g}, usual is {score:.3g}"
        return ""
