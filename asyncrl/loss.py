"""The loss of group relative policy optimization, token by token, clipped on both sides."""
# ruff: noqa: N803, N806 (tensor names end with their shape)

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LossOptions", "LossSums", "policy_loss", "token_log_probabilities"]

# exp() of more is of no use to anybody, and of 89 it is infinite.
_LOG_RATIO_MAX = 20.0


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    clip: float = 0.2
    """Epsilon: a ratio outside 1 - clip .. 1 + clip gains nothing more."""

    ratio_max: float = 4.0
    """Delta: bounds the ratio also where the advantage is negative, which epsilon does not."""

    kl_coefficient: float = 0.0
    entropy_coefficient: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.clip < 1 < self.ratio_max:
            raise ValueError(
                f"expected 0 < clip < 1 < ratio_max, got {self.clip} and {self.ratio_max}"
            )


@dataclass(frozen=True)
class LossSums:
    """Sums over tokens; the caller divides by the tokens of all members."""

    loss: Tensor
    """Scalar, with a gradient."""

    statistics: Tensor
    """[5] float32: tokens, loss, entropy, KL to the reference, tokens whose ratio was clipped."""


def token_log_probabilities(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """[N] log-probability of each target; logits already divided by the temperature."""
    return logits_NV.log_softmax(-1).gather(1, targets_N[:, None])[:, 0]


def policy_loss(
    logits_NV: Tensor,
    targets_N: Tensor,
    behaviour_N: Tensor,
    advantages_N: Tensor,
    options: LossOptions,
    *,
    reference_N: Tensor | None = None,
) -> LossSums:
    """Sum over tokens of -min(min(r, delta) A, clip(r, 1 - eps, 1 + eps) A), KL and entropy.

    r is the ratio of the policy's probability to that of the policy which sampled. The KL term is
    the estimate exp(d) - d - 1 with d = reference - policy, and its gradient goes to the policy.

    Args:
        logits_NV: [tokens, vocabulary] of the policy, divided by the temperature.
        targets_N: [tokens] int64, sampled.
        behaviour_N: [tokens] log-probabilities under the policy that sampled them.
        advantages_N: [tokens].
        options: coefficients.
        reference_N: [tokens] log-probabilities under the reference; None: no KL.

    Source: INTELLECT-2 (Prime Intellect 2025), two-sided clipping; Schulman 2020, Approximating KL
    Divergence, k3; DAPO (Yu et al. 2025), mean over tokens.
    """
    log_NV = logits_NV.log_softmax(-1)
    policy_N = log_NV.gather(1, targets_N[:, None])[:, 0]
    ratio_N = (policy_N - behaviour_N).clamp(-_LOG_RATIO_MAX, _LOG_RATIO_MAX).exp()
    bounded_N = ratio_N.clamp(max=options.ratio_max) * advantages_N
    clipped_N = ratio_N.clamp(1 - options.clip, 1 + options.clip) * advantages_N
    loss_N = -torch.minimum(bounded_N, clipped_N)
    entropy_N = -(log_NV.exp() * log_NV).sum(-1)
    kl_N = torch.zeros_like(policy_N)
    if reference_N is not None:
        gap_N = (reference_N - policy_N).clamp(-_LOG_RATIO_MAX, _LOG_RATIO_MAX)
        kl_N = gap_N.exp() - gap_N - 1
    loss_N = loss_N + options.kl_coefficient * kl_N - options.entropy_coefficient * entropy_N
    with torch.no_grad():
        is_clipped_N = (clipped_N < bounded_N) | (ratio_N > options.ratio_max)
        count = log_NV.new_tensor(float(len(targets_N)))
        sums = [loss_N.sum(), entropy_N.sum(), kl_N.sum(), is_clipped_N.sum().float()]
        statistics = torch.stack([count, *sums])
    return LossSums(loss_N.sum(), statistics)
