"""What a trainer is told, and what it tells of each step."""

from __future__ import annotations

from dataclasses import dataclass, field

from asyncrl.guard import GuardOptions
from asyncrl.loss import LossOptions
from asyncrl.rewards import RewardOptions

__all__ = ["ASYNC_LEVEL_MAX", "OuterOptions", "StepReport", "TrainerOptions"]

ASYNC_LEVEL_MAX = 8


@dataclass(frozen=True, kw_only=True)
class OuterOptions:
    """The outer optimizer of DiLoCo: SGD with Nesterov momentum on what the members moved by."""

    learning_rate: float = 0.7
    momentum: float = 0.6


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """The defaults learn `spell_backward`; other values that do, and that collapse: asyncrl.md."""

    step_count: int = 180
    """The learning rate falls linearly to 0 there."""

    learning_rate: float = 7e-5
    warm_up_steps: int = 5
    minibatch_count: int = 4
    shard_count: int = 2
    """Parts of a minibatch that go to the members in turn. With as many members or fewer, sums are
    taken in one order, and any number of members up to it gives the same bytes if it is 2."""

    beta2: float = 0.99
    weight_decay: float = 0.01
    gradient_norm_max: float = 0.5
    async_level: int = 2
    """Rollouts of a policy at most so many versions old are taken; so many are kept."""

    temperature: float = 1.0
    row_tokens: int = 64
    good_every: int = 5
    """Steps between the weights that the guard may return to."""

    outer: OuterOptions | None = None
    """None: gradients are summed in every minibatch. Else members take the minibatches of a step on
    their own and are merged at its end, at one part of minibatch_count of the bytes (DiLoCo)."""

    loss: LossOptions = field(default_factory=LossOptions)
    rewards: RewardOptions = field(default_factory=RewardOptions)
    guard: GuardOptions = field(default_factory=GuardOptions)

    def __post_init__(self) -> None:
        if not 0 <= self.async_level <= ASYNC_LEVEL_MAX:
            raise ValueError(
                f"async_level: expected 0 to {ASYNC_LEVEL_MAX}, got {self.async_level}"
            )
        for name in ("step_count", "minibatch_count", "shard_count", "good_every", "row_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class StepReport:
    """What a step was like; the same on every member."""

    version: int
    """Of the weights that it made."""

    digest: str
    """SHA-256 of those weights."""

    score: float
    """Mean over all rollouts."""

    staleness: float
    """Versions between the policy that sampled and the one that learned, mean."""

    token_count: int
    entropy: float
    kl: float
    clip_share: float
    gradient_norm: float
    learning_rate: float
    members: int
    returned: str
    """Why the guard went back to the last good weights; "": it did not."""
