"""From scores to advantages: length rewards, group means, and which groups teach nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy
from numpy.typing import NDArray

__all__ = ["LengthReward", "RewardOptions", "group_advantages", "is_instructive"]


@dataclass(frozen=True, kw_only=True)
class LengthReward:
    """How the length of a completion changes its reward (L1: Aggarwal and Welleck 2025).

    With t the target and n the tokens of the completion:
        exact: score - weight * |t - n|.
        max: score * clip(weight * (t - n) + 0.5, 0, 1).
        clip: score where n <= t, else 0.
    """

    kind: Literal["none", "exact", "max", "clip"] = "none"
    target_tokens: int = 0
    weight: float = 0.0003

    def __post_init__(self) -> None:
        if self.kind not in ("none", "exact", "max", "clip"):
            raise ValueError(f"kind: expected none, exact, max or clip, got {self.kind!r}")
        if self.kind != "none" and self.target_tokens < 1:
            raise ValueError(f"target_tokens: expected at least 1, got {self.target_tokens}")

    def apply(self, score: float, token_count: int) -> float:
        left = self.target_tokens - token_count
        if self.kind == "exact":
            return score - self.weight * abs(left)
        if self.kind == "max":
            return score * min(1.0, max(0.0, self.weight * left + 0.5))
        if self.kind == "clip":
            return score if left >= 0 else 0.0
        return score


@dataclass(frozen=True, kw_only=True)
class RewardOptions:
    length: LengthReward = field(default_factory=LengthReward)

    divide_by_deviation: bool = False
    """GRPO's original advantage; without, groups of nearly equal rewards weigh less (Dr. GRPO)."""

    mean_score_min: float = 0.0
    mean_score_max: float = 1.0
    """Groups whose mean score is outside teach nothing or are noise, and are left out."""

    def __post_init__(self) -> None:
        if not 0 <= self.mean_score_min <= self.mean_score_max <= 1:
            raise ValueError(
                "mean_score_min, mean_score_max: expected 0 <= min <= max <= 1, got "
                f"{self.mean_score_min}, {self.mean_score_max}"
            )


def group_advantages(rewards: Sequence[float], options: RewardOptions) -> NDArray[numpy.float32]:
    """Reward minus the mean of the group's (GRPO: Shao et al. 2024), [rollouts of the group]."""
    values = numpy.asarray(rewards, numpy.float64)
    advantages = values - values.mean()
    if options.divide_by_deviation:
        advantages /= values.std() + 1e-6
    result: NDArray[numpy.float32] = advantages.astype(numpy.float32)
    return result


def is_instructive(scores: Sequence[float], options: RewardOptions) -> bool:
    """Whether the difficulty filter lets the group pass."""
    mean = sum(scores) / len(scores)
    return options.mean_score_min <= mean <= options.mean_score_max
