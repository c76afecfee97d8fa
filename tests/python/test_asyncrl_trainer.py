"""asyncrl/trainer.py: the same bytes alone and in company, and back from a collapse."""

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from coordinator_processes import CoordinatorProcess
from thread_ranks import run_threads

import pccl
from asyncrl.guard import GuardOptions
from asyncrl.loss import policy_loss, token_log_probabilities
from asyncrl.model import Decoder, ModelConfig
from asyncrl.rewards import RewardOptions
from asyncrl.rollouts import Group, Rollout
from asyncrl.trainer import StepReport, Trainer, TrainerOptions
from asyncrl.trainer_options import OuterOptions

CONFIG = ModelConfig(width=24, layer_count=1, head_count=2, feed_forward_width=32, context_max=32)
OPTIONS = TrainerOptions(learning_rate=1e-3, row_tokens=16, good_every=1)
GROUPS, PATIENCE_SECONDS = 8, 60.0
JOIN = pccl.Config(bind="127.0.0.1", hosts=("127.0.0.1",), connect_timeout_seconds=30)


def groups_of(step: int, async_level: int = 2) -> list[Group]:
    """The same on every member; versions as old as allowed, and mixed."""
    chosen = random.Random(step)
    found = []
    for number in range(GROUPS):
        prompt = [chosen.randrange(2, 64) for _ in range(chosen.randrange(1, 6))]
        rollouts = [
            Rollout(
                prompt,
                [chosen.randrange(1, 64) for _ in range(chosen.randrange(1, 8))],
                chosen.random(),
            )
            for _ in range(4)
        ]
        found.append(Group(max(0, step - number % (async_level + 1)), rollouts))
    return found


def alone(steps: int, options: TrainerOptions = OPTIONS) -> list[StepReport]:
    torch.set_num_threads(1)
    trainer = Trainer(Decoder(CONFIG), options)
    return [trainer.step(groups_of(step)) for step in range(steps)]


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CoordinatorProcess]:
    with CoordinatorProcess(tmp_path_factory.mktemp("coordinator"), status=False) as process:
        yield process


def join(coordinator: CoordinatorProcess, run: str, members: int) -> pccl.ElasticCommunicator:
    address = f"pccl://127.0.0.1:{coordinator.port}/{run}"
    return pccl.join(address, world_size_min=members, timeout_seconds=PATIENCE_SECONDS, config=JOIN)


def in_company(
    coordinator: CoordinatorProcess,
    run: str,
    member: Callable[[Trainer, int], list[StepReport]],
    options: TrainerOptions = OPTIONS,
) -> list[list[StepReport]]:
    """`member` on two members of a run."""
    torch.set_num_threads(1)

    def take_part(number: int) -> list[StepReport]:
        with join(coordinator, run, 2) as comm:
            return member(Trainer(Decoder(CONFIG), options, comm), number)

    return run_threads(2, take_part)


def test_two_members_make_the_weights_that_one_makes_with_both_halves(
    coordinator: CoordinatorProcess,
) -> None:
    def train(trainer: Trainer, _: int) -> list[StepReport]:
        reports = []
        for step in range(4):
            trainer.sync()
            reports.append(trainer.step(groups_of(step)))
        return reports

    first, second = in_company(coordinator, "halves", train)
    wanted = alone(4)
    assert [one.members for one in first] == [2] * 4
    digests = [one.digest for one in wanted]
    assert len(set(digests)) == 4
    assert [one.digest for one in first] == [one.digest for one in second] == digests
    assert [one.token_count for one in first] == [one.token_count for one in wanted]


def diloco_by_a_loop(steps: int, outer: OuterOptions) -> list[torch.Tensor]:
    """Both members one after the other, with torch's own optimizers; theta after each step."""
    models = [Decoder(CONFIG), Decoder(CONFIG)]
    inner = [
        torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.01)
        for model in models
    ]
    theta = torch.nn.utils.parameters_to_vector(models[0].parameters()).detach().clone()
    merged = torch.optim.SGD(
        [theta], lr=outer.learning_rate, momentum=outer.momentum, nesterov=True
    )
    found = []
    for step in range(steps):
        rate = 1e-3 * min(1, (step + 1) / 5) * (1 - step / 180)
        policy = Decoder(CONFIG)
        torch.nn.utils.vector_to_parameters(theta.clone(), policy.parameters())
        moves, weights = [], []
        for number, (model, optimizer) in enumerate(zip(models, inner, strict=True)):
            torch.nn.utils.vector_to_parameters(theta.clone(), model.parameters())
            optimizer.param_groups[0]["lr"] = rate
            tokens = 0
            for at in range(4):
                optimizer.zero_grad()
                tokens += plain_minibatch(model, policy, groups_of(step, 0)[at::4][number::2])
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
            local = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
            moves.append((theta - local) * tokens)
            weights.append(tokens)
        theta.grad = sum(moves) / sum(weights)
        merged.step()
        found.append(theta.clone())
    return found


def plain_minibatch(model: Decoder, policy: Decoder, groups: list[Group]) -> int:
    """Backward of the mean over tokens, a sequence at a time; how many tokens."""
    count = sum(len(one.tokens) for group in groups for one in group.rollouts)
    for group in groups:
        mean = sum(one.score for one in group.rollouts) / len(group.rollouts)
        for one in group.rollouts:
            row, targets = torch.tensor([one.prompt + one.tokens[:-1]]), torch.tensor(one.tokens)
            logits = model(row)[0][0, len(one.prompt) - 1 :]
            with torch.no_grad():
                old = policy(row)[0][0, len(one.prompt) - 1 :]
                behaviour = token_log_probabilities(old, targets)
            advantages = torch.full(targets.shape, one.score - mean)
            sums = policy_loss(logits, targets, behaviour, advantages, OPTIONS.loss)
            (sums.loss / count).backward()
    return count


def test_with_diloco_members_go_alone_within_a_step_and_are_merged_at_its_end(
    coordinator: CoordinatorProcess,
) -> None:
    options = replace(OPTIONS, outer=OuterOptions())
    ends: list[numpy.ndarray] = []

    def train(trainer: Trainer, _: int) -> list[StepReport]:
        reports = []
        for step in range(3):
            trainer.sync()
            reports.append(trainer.step(groups_of(step, 0)))
        ends.append(trainer.state()["weights"].copy())
        return reports

    first, second = in_company(coordinator, "diloco", train, options)
    assert [one.digest for one in first] == [one.digest for one in second]
    wanted = diloco_by_a_loop(3, OuterOptions())[-1]
    assert (ends[0] == ends[1]).all()
    moved = ends[0] - Trainer(Decoder(CONFIG)).state()["weights"]
    assert numpy.abs(moved).max() > 1e-4
    numpy.testing.assert_allclose(ends[0], wanted.numpy(), atol=2e-5)


def test_a_member_may_go_and_another_come_and_gets_all_state(
    coordinator: CoordinatorProcess,
) -> None:
    has_gone, is_back = threading.Event(), threading.Event()

    def train(trainer: Trainer, number: int) -> list[StepReport]:
        reports = []
        assert trainer.comm is not None
        while trainer.version < 6:
            if number == 0 and trainer.version == 4:
                assert is_back.wait(PATIENCE_SECONDS)
                trainer.comm.wait_for_members(2, PATIENCE_SECONDS)
            trainer.sync()
            if trainer.version == 6:
                break
            reports.append(trainer.step(groups_of(trainer.version)))
            if number == 1 and trainer.version == 2:
                trainer.comm.leave()
                has_gone.set()
                return reports
            if number == 0 and trainer.version == 2:
                assert has_gone.wait(PATIENCE_SECONDS)
        return reports

    def come_back() -> list[StepReport]:
        assert has_gone.wait(PATIENCE_SECONDS)
        with join(coordinator, "elastic", 1) as comm:
            is_back.set()
            # Its own weights are others; they must not matter.
            return train(Trainer(Decoder(CONFIG, seed=9), OPTIONS, comm), 2)

    returned: list[list[StepReport]] = []
    thread = threading.Thread(target=lambda: returned.append(come_back()))
    thread.start()
    stayed, left = in_company(coordinator, "elastic", train)
    thread.join(PATIENCE_SECONDS)
    (late,) = returned
    wanted = [one.digest for one in alone(6)]
    assert [one.digest for one in stayed] == wanted
    assert [one.digest for one in left] == wanted[:2]
    assert late
    assert [one.digest for one in late] == wanted[-len(late) :]
    assert late[-1].members == 2


def test_rollouts_of_a_kept_policy_are_corrected_by_what_that_policy_said() -> None:
    """With the ratio taken against the wrong version the result is another."""
    trainer = Trainer(Decoder(CONFIG), OPTIONS)
    trainer.step(groups_of(0))
    before = trainer.model.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    groups = groups_of(1)
    parts = trainer._parts(groups)
    policies = {1: before, 0: Decoder(CONFIG).state_dict()}
    for part, version in zip(parts, (0, 1), strict=True):
        policy = Decoder(CONFIG)
        policy.load_state_dict(policies[version])
        wanted = []
        for group in groups:
            for one in group.rollouts if group.weight_version == version else ():
                with torch.no_grad():
                    logits, _ = policy(torch.tensor([one.prompt + one.tokens[:-1]]))
                rows = logits[0, len(one.prompt) - 1 :].log_softmax(-1)
                wanted += [float(row[token]) for row, token in zip(rows, one.tokens, strict=True)]
        numpy.testing.assert_allclose(part.behaviour.numpy(), wanted, atol=1e-5)


def test_rollouts_outside_the_window_are_refused_and_nothing_changes() -> None:
    trainer = Trainer(Decoder(CONFIG), OPTIONS)
    for step in range(4):
        trainer.step(groups_of(step))
    digest = trainer.digest
    good = groups_of(4)
    for bad in ([], [Group(1, good[0].rollouts)], [Group(5, good[0].rollouts)], [Group(4, [])]):
        with pytest.raises(ValueError, match="step 4"):
            trainer.step(bad)
    assert (trainer.version, trainer.digest) == (4, digest)
    with pytest.raises(ValueError, match="async_level: expected 0 to 8"):
        TrainerOptions(async_level=9)


def test_after_a_collapse_the_last_good_weights_are_back_and_the_rate_is_lower() -> None:
    trainer = Trainer(Decoder(CONFIG), OPTIONS)
    reports = [trainer.step(groups_of(step)) for step in range(6)]
    wrecked = [
        Group(
            group.weight_version, [Rollout(one.prompt, one.tokens, 0.0) for one in group.rollouts]
        )
        for group in groups_of(6)
    ]
    report = trainer.step(wrecked)
    assert "score 0" in report.returned
    # good_every is 1: the older of the two good ones is that of one step before.
    assert report.digest == reports[4].digest
    again = trainer.step([Group(7, group.rollouts) for group in groups_of(7)])
    assert again.returned == ""
    assert again.learning_rate < reports[5].learning_rate / 2
    off = Trainer(Decoder(CONFIG), TrainerOptions(row_tokens=16, guard=GuardOptions(is_on=False)))
    for step in range(6):
        off.step(groups_of(step))
    assert off.step(wrecked).returned == ""


def test_what_a_collapsed_policy_sampled_teaches_nothing() -> None:
    trainer = Trainer(Decoder(CONFIG), OPTIONS)
    for step in range(6):
        trainer.step(groups_of(step))
    zeros = [
        Group(6, [Rollout(one.prompt, one.tokens, 0.0) for one in group.rollouts])
        for group in groups_of(6)
    ]
    assert trainer.step(zeros).returned
    digest = trainer.digest
    report = trainer.step(zeros)
    assert (report.digest, report.token_count, report.returned) == (digest, 0, "")


def test_the_difficulty_filter_leaves_groups_out() -> None:
    options = TrainerOptions(row_tokens=16, rewards=RewardOptions(mean_score_min=0.5))
    groups = groups_of(0)
    kept = [group for group in groups if numpy.mean([one.score for one in group.rollouts]) >= 0.5]
    assert 0 < len(kept) < len(groups)
    report = Trainer(Decoder(CONFIG), options).step(groups)
    tokens = sum(len(one.tokens) for group in kept for one in group.rollouts)
    assert report.token_count == tokens


def test_a_checkpoint_goes_on_where_it_was_written(tmp_path: Path) -> None:
    wanted = [one.digest for one in alone(5)]
    trainer = Trainer(Decoder(CONFIG), OPTIONS)
    for step in range(3):
        trainer.step(groups_of(step))
    trainer.save(tmp_path / "checkpoint")
    later = Trainer(Decoder(CONFIG, seed=5), OPTIONS)
    later.load(tmp_path / "checkpoint")
    assert [later.step(groups_of(step)).digest for step in (3, 4)] == wanted[3:]
    other = Trainer(Decoder(CONFIG), TrainerOptions(async_level=1))
    with pytest.raises(ValueError, match="another model or async_level"):
        other.load(tmp_path / "checkpoint")
    (tmp_path / "garbage").write_bytes(b"garbage")
    with pytest.raises(ValueError, match="checkpoint"):
        other.load(tmp_path / "garbage")
