"""asyncrl/loss.py, rewards.py, rollouts.py, guard.py: against plain loops."""

import math

import numpy
import pytest
import torch

from asyncrl.guard import Guard, GuardOptions, StepSigns
from asyncrl.loss import LossOptions, policy_loss, token_log_probabilities
from asyncrl.model import Decoder, ModelConfig
from asyncrl.rewards import LengthReward, RewardOptions, group_advantages, is_instructive
from asyncrl.rollouts import pack

COUNT, VOCABULARY = 37, 11


def loss_by_a_loop(
    logits: torch.Tensor,
    targets: torch.Tensor,
    behaviour: torch.Tensor,
    advantages: torch.Tensor,
    options: LossOptions,
    reference: torch.Tensor,
) -> torch.Tensor:
    """Token by token, case by case."""
    total = logits.sum() * 0
    for row in range(len(targets)):
        probabilities = torch.exp(logits[row]) / torch.exp(logits[row]).sum()
        probability, advantage = probabilities[targets[row]], float(advantages[row])
        ratio = probability / torch.exp(behaviour[row])
        if advantage >= 0:
            gain = ratio * advantage if ratio < 1 + options.clip else (1 + options.clip) * advantage
        elif ratio < 1 - options.clip:
            gain = (1 - options.clip) * advantage
        else:
            gain = ratio * advantage if ratio < options.ratio_max else options.ratio_max * advantage
        odds = torch.exp(reference[row]) / probability
        kl = odds - torch.log(odds) - 1
        entropy = -(probabilities * torch.log(probabilities)).sum()
        total = total - gain + options.kl_coefficient * kl - options.entropy_coefficient * entropy
    return total


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_and_its_gradient_are_those_of_a_loop(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(COUNT, VOCABULARY, generator=random, dtype=torch.float64) * 2
    targets = torch.randint(VOCABULARY, (COUNT,), generator=random)
    # Ratios from 0.05 to 20, so that all branches are taken.
    own = token_log_probabilities(logits, targets)
    behaviour = own + (torch.rand(COUNT, generator=random, dtype=torch.float64) - 0.5) * 6
    reference = own + torch.randn(COUNT, generator=random, dtype=torch.float64) / 2
    advantages = torch.randn(COUNT, generator=random, dtype=torch.float64)
    options = LossOptions(kl_coefficient=0.3, entropy_coefficient=0.2)
    found_at, wanted_at = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found = policy_loss(found_at, targets, behaviour, advantages, options, reference_N=reference)
    wanted = loss_by_a_loop(wanted_at, targets, behaviour, advantages, options, reference)
    found.loss.backward()
    wanted.backward()
    assert found_at.grad is not None
    assert wanted_at.grad is not None
    torch.testing.assert_close(found.loss, wanted)
    torch.testing.assert_close(found_at.grad, wanted_at.grad)
    assert found.statistics[0] == COUNT
    assert 0 < found.statistics[4] < COUNT


def test_ratios_beyond_delta_have_no_gradient_and_stay_finite() -> None:
    logits = torch.zeros(2, VOCABULARY, requires_grad=True)
    behaviour = torch.tensor([-200.0, -5.0])
    options = LossOptions(kl_coefficient=0.0)
    found = policy_loss(
        logits, torch.tensor([1, 2]), behaviour, torch.tensor([-1.0, -1.0]), options
    )
    found.loss.backward()
    assert float(found.loss.detach()) == 2 * options.ratio_max
    assert logits.grad is not None
    assert not logits.grad.any()


def test_the_kl_term_pulls_towards_the_reference() -> None:
    logits = torch.tensor([[1.0, 0.0]], requires_grad=True)
    targets = torch.tensor([0])
    reference = token_log_probabilities(torch.tensor([[0.0, 0.0]]), targets)
    behaviour = token_log_probabilities(logits.detach(), targets)
    options = LossOptions(kl_coefficient=0.1)
    policy_loss(
        logits, targets, behaviour, torch.zeros(1), options, reference_N=reference
    ).loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, 0] > 0 > logits.grad[0, 1]  # descent makes token 0 less likely


def test_wrong_clips_are_refused() -> None:
    for bad in ({"clip": 0.0}, {"clip": 1.5}, {"ratio_max": 1.0}):
        with pytest.raises(ValueError, match="clip"):
            LossOptions(**bad)


def test_packed_sequences_do_not_see_each_other() -> None:
    model = Decoder(
        ModelConfig(width=48, layer_count=2, head_count=3, feed_forward_width=64), seed=1
    )
    random = torch.Generator().manual_seed(1)
    sequences = [
        (
            torch.randint(2, 64, (count,), generator=random).tolist(),
            torch.randint(2, 64, (more,), generator=random).tolist(),
        )
        for count, more in [(3, 5), (1, 1), (12, 5), (7, 7), (2, 3), (4, 9)]
    ]
    rows = pack(sequences, 16)
    assert rows.tokens_BT.shape == (4, 16)  # six sequences, 53 tokens
    with torch.no_grad():
        logits, _ = model(rows.tokens_BT, positions_BT=rows.positions_BT, mask_BTS=rows.mask_BTS)
        found = logits.flatten(0, 1)[rows.place_N]
        for number, (prompt, tokens) in enumerate(sequences):
            alone, _ = model(torch.tensor([prompt + tokens]))
            mine = rows.sequence_N == number
            torch.testing.assert_close(
                found[mine], alone[0, len(prompt) - 1 : -1], atol=1e-5, rtol=1e-4
            )
            assert rows.targets_N[mine].tolist() == tokens
    for bad in ([], [([], [1])], [([1], [])], [([1] * 10, [1] * 8)]):
        with pytest.raises(ValueError, match="pack"):
            pack(bad, 16)


def test_advantages_and_the_difficulty_filter() -> None:
    rewards = [1.0, 0.0, 0.0, 0.5]
    assert group_advantages(rewards, RewardOptions()).tolist() == [0.625, -0.375, -0.375, 0.125]
    scaled = group_advantages(rewards, RewardOptions(divide_by_deviation=True))
    assert scaled.std() == pytest.approx(1, abs=1e-4)
    assert not group_advantages([1.0, 1.0], RewardOptions(divide_by_deviation=True)).any()
    options = RewardOptions(mean_score_min=0.1, mean_score_max=0.8)
    passed = [is_instructive(scores, options) for scores in ([0, 0], [1, 0], [1, 1], [0.8, 0.8])]
    assert passed == [False, True, False, True]
    with pytest.raises(ValueError, match="mean_score_min"):
        RewardOptions(mean_score_min=0.9, mean_score_max=0.1)


def test_length_rewards() -> None:
    def of(kind: str, count: int) -> float:
        reward = LengthReward(kind=kind, target_tokens=10, weight=0.1)  # type: ignore[arg-type]
        return reward.apply(1.0, count)

    assert [of("none", count) for count in (1, 30)] == [1, 1]
    assert [of("exact", count) for count in (10, 8, 13)] == pytest.approx([1, 0.8, 0.7])
    assert [of("max", count) for count in (2, 9, 11, 30)] == pytest.approx([1, 0.6, 0.4, 0])
    assert [of("clip", count) for count in (2, 10, 11)] == [1, 1, 0]
    with pytest.raises(ValueError, match="target_tokens"):
        LengthReward(kind="exact")
    with pytest.raises(ValueError, match="kind"):
        LengthReward(kind="shorter", target_tokens=1)  # type: ignore[arg-type]


GOOD = StepSigns(entropy=0.5, gradient_norm=1.0, score=0.6)


@pytest.mark.parametrize(
    ("signs", "why"),
    [
        (StepSigns(entropy=0.5, gradient_norm=math.nan, score=0.6), "not finite"),
        (StepSigns(entropy=0.5, gradient_norm=50.0, score=0.6), "gradient norm 50"),
        (StepSigns(entropy=3.0, gradient_norm=1.0, score=0.6), "entropy 3 nats, usual is 0.5"),
        (StepSigns(entropy=0.001, gradient_norm=1.0, score=0.6), "at a score of 0.6"),
        (StepSigns(entropy=0.5, gradient_norm=1.0, score=0.1), "score 0.1, usual is 0.6"),
    ],
)
def test_the_guard_names_what_is_wrong_and_learns_from_good_steps_alone(
    signs: StepSigns, why: str
) -> None:
    guard = Guard(GuardOptions())
    assert [guard.judge(GOOD) for _ in range(5)] == [""] * 5
    before = guard.history.copy()
    assert why in guard.judge(signs)
    numpy.testing.assert_array_equal(guard.history, before)
    assert guard.judge(GOOD) == ""
    assert Guard(GuardOptions(is_on=False)).judge(signs) == "" or math.isnan(signs.gradient_norm)
