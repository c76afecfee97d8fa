"""Synchronous DiLoCo against a loop in one process, over every kind of group."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from diloco_reference import (
    Nesterov,
    Workers,
    assert_close,
    flat,
    make_batch,
    make_inner,
    make_model,
    run_diloco,
    train_step,
    values,
)
from thread_ranks import run_ranks

import diloco
import pccl


def train(
    comm: pccl.Communicator | None, steps: int, batch: int = 4, **settings: Any
) -> list[tuple[str, torch.Tensor]]:
    """Hash and theta after each merge that ends a round."""
    model = make_model(seed=0 if comm is None else comm.rank)
    inner = make_inner(model)
    rank = 0 if comm is None else comm.rank
    seen = []
    with diloco.DiLoCo(comm, model, inner, **{"warmup_sync_steps": 0, **settings}) as run:
        run.on_round.append(lambda run: seen.append((run.info.hash, run.state.theta.clone())))
        for step in range(steps):
            train_step(model, inner, rank, step, batch)
            assert run.step == step + 1
    return seen


def compare(found: list[list[tuple[str, torch.Tensor]]], wanted: list[list[torch.Tensor]]) -> None:
    assert len(wanted) > 0
    for member in found:
        assert [digest for digest, _ in member] == [digest for digest, _ in found[0]]
        assert len(member) == len(wanted)
        for (_, theta), reference in zip(member, wanted, strict=True):
            assert_close(theta, reference)


@pytest.mark.parametrize("members", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0, 5])
def test_each_round_is_that_of_the_reference(members: int, warmup: int) -> None:
    found = run_ranks(
        members, lambda comm: train(comm, warmup + 9, sync_every=3, warmup_sync_steps=warmup)
    )
    reference = run_diloco(Workers(members), 3, 3, Nesterov(0.7, 0.9), warmup)
    compare(found, list(reference))


def test_one_member_without_a_group_is_plain_outer_sgd_bit_for_bit() -> None:
    [*found] = train(None, 12, sync_every=4, outer_lr=0.5, outer_momentum=0.5)
    model = make_model()
    inner = make_inner(model)
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).requires_grad_()
    outer = torch.optim.SGD([theta], lr=0.5, momentum=0.5, nesterov=True)
    for round_index in range(3):
        for step in range(4):
            train_step(model, inner, 0, 4 * round_index + step)
        theta.grad = theta.detach() - flat(values(model))
        outer.step()
        torch.nn.utils.vector_to_parameters(theta.detach().clone(), model.parameters())
        assert torch.equal(found[round_index][1], theta.detach())


def test_contributions_weigh_by_samples_of_a_round() -> None:
    batches = [2, 4, 10]
    found = run_ranks(3, lambda comm: train(comm, 6, batches[comm.rank], sync_every=3))
    compare(found, list(run_diloco(Workers(3, batches), 2, 3, Nesterov(0.7, 0.9))))


def test_equal_weights_are_a_plain_mean() -> None:
    batches = [2, 10]
    found = run_ranks(
        2, lambda comm: train(comm, 4, batches[comm.rank], sync_every=2, weights="equal")
    )
    workers = Workers(2, batches)
    theta, outer = values(workers.models[0]), Nesterov(0.7, 0.9)
    wanted = []
    for _ in range(2):
        workers.train(2)
        first, second = workers.deltas(theta)
        theta = outer.step(theta, [(a + b) / 2 for a, b in zip(first, second, strict=True)])
        workers.install(theta)
        wanted.append(theta)
    compare(found, wanted)


def test_any_torch_optimizer_can_be_the_outer_one() -> None:
    def make_adam(blocks: list[torch.Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(blocks, lr=0.01)

    found = run_ranks(2, lambda comm: train(comm, 9, sync_every=3, outer_optimizer=make_adam))
    workers = Workers(2)
    theta = [value.requires_grad_() for value in values(workers.models[0])]
    outer = torch.optim.Adam(theta, lr=0.01)
    wanted = []
    for _ in range(3):
        workers.train(3)
        first, second = workers.deltas([t.detach() for t in theta])
        for t, a, b in zip(theta, first, second, strict=True):
            t.grad = (a + b) / 2
        outer.step()
        wanted.append([t.detach().clone() for t in theta])
        workers.install(wanted[-1])
    compare(found, wanted)


def test_accumulation_groups_of_parameters_and_closures_change_nothing() -> None:
    def accumulate(comm: pccl.Communicator) -> torch.Tensor:
        model = make_model()
        halves = list(model.parameters())
        inner = torch.optim.AdamW(
            [{"params": halves[:2]}, {"params": halves[2:], "lr": 0.02}], lr=0.01
        )
        options = {"sync_every": 2, "warmup_sync_steps": 2}
        with diloco.DiLoCo(comm, model, inner, **options) as run:  # type: ignore[arg-type]
            for step in range(6):

                def closure(step: int = step) -> torch.Tensor:
                    inner.zero_grad()
                    inputs, wanted = make_batch(comm.rank, step)
                    for half in (slice(0, 2), slice(2, 4)):
                        loss = torch.nn.functional.mse_loss(model(inputs[half]), wanted[half]) / 2
                        loss.backward()  # type: ignore[no-untyped-call]
                    return loss

                if step % 2:
                    inner.step(closure)
                else:
                    closure()
                    inner.step()
            assert run.round == 3
            assert run.info is not None
            assert run.info.samples == 2 * 2 * 4
            return run.state.theta.clone()

    first, second = run_ranks(2, accumulate)
    assert torch.equal(first, second)
    # The same as one pass over each batch.
    workers = Workers(2)
    for model, inner in zip(workers.models, workers.inner, strict=True):
        halves = list(model.parameters())
        inner.param_groups.clear()
        inner.add_param_group({**inner.defaults, "params": halves[:2], "weight_decay": 0.01})
        inner.add_param_group(
            {**inner.defaults, "params": halves[2:], "lr": 0.02, "weight_decay": 0.01}
        )
    *_, last = run_diloco(workers, 2, 2, Nesterov(0.7, 0.9), warmup=2)
    assert_close(first, last)


def test_a_run_shorter_than_a_round_is_an_error_and_sync_ends_it() -> None:
    def too_short(comm: pccl.Communicator) -> None:
        with pytest.raises(RuntimeError, match="sync_every=50 is larger than the run: 3 steps"):
            train(comm, 3, sync_every=50)

    run_ranks(2, too_short)

    def ended(comm: pccl.Communicator) -> torch.Tensor:
        model = make_model()
        inner = make_inner(model)
        with diloco.DiLoCo(comm, model, inner, sync_every=50, warmup_sync_steps=0) as run:
            for step in range(3):
                train_step(model, inner, comm.rank, step)
            run.sync()
            assert (run.round, run.step, run.round_step) == (1, 3, 0)
            assert torch.equal(flat(values(model)), run.state.theta)
            return run.state.theta.clone()

    first, second = run_ranks(2, ended)
    assert torch.equal(first, second)
    *_, wanted = run_diloco(Workers(2), 1, 3, Nesterov(0.7, 0.9))
    assert_close(first, wanted)


def test_a_wrong_setting_names_itself() -> None:
    model = make_model()
    inner = make_inner(model)
    for change, message in (
        ({"sync_every": 0}, "sync_every: expected 1 or more"),
        ({"codec": "int3"}, "codec: .*int3"),
        ({"weights": "votes"}, "weights: expected one of"),
        ({"fragments": 3, "method": "streaming"}, "fragments: expected a divisor"),
        ({"fragments": 2}, "only with method='streaming'"),
        ({"method": "delayed", "delay_steps": 3}, "it is sync_every"),
        ({"outlier_ratio": 0.5}, "outlier_ratio: expected more than 1"),
    ):
        with pytest.raises(ValueError, match=message):
            diloco.DiLoCo(None, model, inner, **change)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="sync_evry"):
        diloco.DiLoCo(None, model, inner, sync_evry=3)
    with pytest.raises(TypeError, match=r"comm: expected what pccl\.join"):
        diloco.DiLoCo(7, model, inner)


def test_settings_that_differ_are_named_at_every_member_of_a_fixed_group() -> None:
    def enter(comm: pccl.Communicator) -> str:
        model = make_model()
        with pytest.raises(diloco.SettingsMismatch) as caught:
            diloco.DiLoCo(comm, model, make_inner(model), sync_every=10 + 5 * comm.rank).__enter__()
        return str(caught.value)

    first, second = run_ranks(2, enter)
    assert "rank 1 differs from rank 0: sync_every: 15 here, 10 in the run" in first
    assert "refused: sync_every: 15 here, 10 in the run" in second


def test_norms_are_averaged_without_the_outer_optimizer_and_half_precision_drifts_not() -> None:
    def train_norm(comm: pccl.Communicator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4)).bfloat16()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.3)
        inner = torch.optim.SGD(model.parameters(), lr=0.0)
        with diloco.DiLoCo(comm, model, inner, sync_every=2, warmup_sync_steps=0) as run:
            start = run.state.theta.clone()
            own = []
            for step in range(2):
                inputs, _ = make_batch(comm.rank, step)
                model(inputs.bfloat16()).sum().backward()
                own.append(model[1].running_mean.clone())  # type: ignore[union-attr, operator]
                inner.step()
            moved = run.state.theta - start
            # Nobody moved a parameter: the rounding of 0.3 is no step.
            assert not moved[: run.state.trained].any()
            return own[-1], model[1].running_mean.clone(), moved  # type: ignore[union-attr, operator]

    (mine, merged, _), (other, merged_too, _) = run_ranks(2, train_norm)
    assert torch.equal(merged, merged_too)
    assert not torch.equal(mine, other)
    torch.testing.assert_close(merged, ((mine.float() + other.float()) / 2).bfloat16())


@pytest.mark.parametrize(
    "options",
    [
        {"warmup_sync_steps": 4},
        {"method": "delayed"},
        {"method": "eager", "outer_lr": 0.3, "outer_momentum": 0.3},
        {"method": "streaming", "fragments": 2, "delay_steps": 1, "keep_local": 0.5},
        {"codec": "int4"},
        {"method": "gossip"},
    ],
)
def test_a_resumed_run_gives_the_bytes_of_one_that_was_not_interrupted(
    options: dict[str, Any],
) -> None:
    settings = {"warmup_sync_steps": 0, "sync_every": 4, **options}

    def train_from(comm: pccl.Communicator, saved: Any, rounds: int) -> tuple[Any, torch.Tensor]:
        model = make_model()
        inner = make_inner(model)
        run = diloco.DiLoCo(comm, model, inner, **settings)
        if saved is not None:
            model.load_state_dict(saved["model"])
            inner.load_state_dict(copy.deepcopy(saved["inner"]))
            run.load_state_dict(saved["run"])
        checkpoint: Any = None

        def save(run: diloco.DiLoCo) -> None:
            nonlocal checkpoint
            if run.round == 2:
                both = {"model": model.state_dict(), "inner": inner.state_dict()}
                checkpoint = copy.deepcopy({**both, "run": run.state_dict()})

        with run:
            run.on_round.append(save)
            while run.round < rounds:
                train_step(model, inner, comm.rank, run.step)
        return checkpoint, run.state.theta.detach().clone()

    whole = run_ranks(2, lambda comm: train_from(comm, None, 4))
    again = run_ranks(2, lambda comm: train_from(comm, whole[comm.rank][0], 4))
    for (_, wanted), (_, found) in zip(whole, again, strict=True):
        assert torch.equal(wanted, found)
    buffer = io.BytesIO()
    torch.save(whole[0][0]["run"], buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True)["settings"]
    if settings.get("method") != "gossip":  # three members go on from two
        three = run_ranks(3, lambda comm: train_from(comm, whole[comm.rank % 2][0], 4))
        assert torch.equal(three[0][1], three[2][1])


def test_a_checkpoint_of_other_settings_or_another_model_is_refused_whole() -> None:
    model = make_model()
    run = diloco.DiLoCo(None, model, make_inner(model), sync_every=5)
    saved = run.state_dict()
    other = diloco.DiLoCo(None, model, make_inner(model), sync_every=6)
    with pytest.raises(diloco.SettingsMismatch, match="sync_every: 6 here, 5 in the run"):
        other.load_state_dict(saved)
    wide = torch.nn.Linear(2, 2)
    another = diloco.DiLoCo(None, wide, make_inner(wide), sync_every=5)
    with pytest.raises(diloco.SettingsMismatch, match=r"parameter 0\.bias"):
        another.load_state_dict(saved)
    with run, pytest.raises(RuntimeError, match="before the `with` block"):
        run.load_state_dict(saved)


def test_a_newcomer_inherits_the_mean_of_the_inner_optimizers() -> None:
    def enter(comm: pccl.Communicator) -> list[dict[str, torch.Tensor]]:
        model = make_model()
        inner = make_inner(model)
        run = diloco.DiLoCo(comm, model, inner, inherit_inner_state=True)
        if comm.rank < 2:  # these two go on, the third is new
            for step in range(2 + comm.rank):
                train_step(model, inner, comm.rank, step)
            run.load_state_dict(run.state_dict())
        with run:
            assert run.newcomers == ("rank 2",)
            return [
                {key: value.clone() for key, value in inner.state[parameter].items()}
                for parameter in model.parameters()
            ]

    first, second, third = run_ranks(3, enter)
    for one, two, heir in zip(first, second, third, strict=True):
        assert sorted(heir) == ["exp_avg", "exp_avg_sq", "step"]
        for key, value in heir.items():
            torch.testing.assert_close(value, (one[key] + two[key]) / 2)
