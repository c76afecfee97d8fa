"""Delayed, eager, streaming, local SGD and codecs, each against a loop in one process."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from diloco_reference import (
    Nesterov,
    Workers,
    flat,
    make_inner,
    make_model,
    set_values,
    train_step,
    values,
    weighted_mean,
)
from thread_ranks import run_ranks
from torch import Tensor

import diloco
import pccl
from diloco.outer import stable_up_to
from pccl.codecs import decode, encode

Seen = list[tuple[str, list[Tensor], list[Tensor]]]


def train(comm: pccl.Communicator, steps: int, **settings: Any) -> Seen:
    """Hash, theta and the model's own values, in the model's order, at the end of each round."""
    model = make_model()
    inner = make_inner(model)
    seen: Seen = []

    def see(run: diloco.DiLoCo) -> None:
        theta = {part.name: part.view(run.state.theta).clone() for part in run.state.parts}
        seen.append(
            (
                "" if run.info is None else run.info.hash,
                [theta[name] for name, _ in model.named_parameters()],
                values(model),
            )
        )

    with diloco.DiLoCo(comm, model, inner, **{"warmup_sync_steps": 0, **settings}) as run:
        run.on_round.append(see)
        for step in range(steps):
            train_step(model, inner, comm.rank, step)
    return seen


def compare(found: list[Seen], wanted: list[list[Tensor]], which: int = 1) -> None:
    for member in found:
        assert [entry[0] for entry in member] == [entry[0] for entry in found[0]]
        assert len(member) == len(wanted)
        for index, (entry, reference) in enumerate(zip(member, wanted, strict=True)):
            assert torch.equal(flat(entry[1]), flat(found[0][index][1]))
            torch.testing.assert_close(
                flat(entry[which]), flat(reference), rtol=5e-5, atol=5e-6, msg=f"round {index}"
            )


def run_delayed(rounds: int, steps: int, outer: Nesterov) -> list[list[Tensor]]:
    """arXiv 2502.12996, the average is applied a round late."""
    workers = Workers(2)
    theta, sent, seen = values(workers.models[0]), None, []
    for _ in range(rounds):
        workers.train(steps)
        deltas = workers.deltas(theta)
        if sent is not None:
            theta = outer.step(theta, weighted_mean(sent, [1, 1]))
        sent = deltas
        workers.install(theta)
        seen.append(theta)
    return seen


def test_a_delayed_average_is_applied_a_round_late() -> None:
    found = run_ranks(2, lambda comm: train(comm, 15, sync_every=3, method="delayed"))
    compare(found, run_delayed(5, 3, Nesterov(0.7, 0.0)))


def test_delayed_after_a_warm_start_begins_anew() -> None:
    found = run_ranks(
        2, lambda comm: train(comm, 12, sync_every=3, method="delayed", warmup_sync_steps=3)
    )
    hashes = [entry[0] for entry in found[0]]
    assert hashes == [entry[0] for entry in found[1]]
    # Of the warm start, nothing new yet, and two outer steps.
    assert len(set(hashes)) == 3
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_an_eager_member_has_its_own_part_at_once(momentum: float) -> None:
    options = {"sync_every": 3, "method": "eager", "outer_lr": 0.3, "outer_momentum": momentum}
    found = run_ranks(2, lambda comm: train(comm, 15, **options))
    compare(found, run_delayed_of_eager(found, momentum))
    # The paper's own recursion, a parameter vector and a momentum for each member.
    workers = Workers(2)
    starts = [values(model) for model in workers.models]
    outers = [Nesterov(0.3, momentum) for _ in starts]
    sent = [[torch.zeros_like(value) for value in start] for start in starts]
    for index in range(5):
        workers.train(3)
        now = [
            [s - v for s, v in zip(start, values(model), strict=True)]
            for start, model in zip(starts, workers.models, strict=True)
        ]
        mean = weighted_mean(sent, [1, 1])
        for member in range(2):
            eager = [
                m + (new - old) / 2
                for m, new, old in zip(mean, now[member], sent[member], strict=True)
            ]
            starts[member] = outers[member].step(starts[member], eager)
            set_values(workers.models[member], starts[member])
            torch.testing.assert_close(
                flat(found[member][index][2]), flat(starts[member]), rtol=1e-4, atol=1e-5
            )
        sent = now


def run_delayed_of_eager(found: list[Seen], momentum: float) -> list[list[Tensor]]:
    """theta from the members' own contributions: what they trained, from their own starts."""
    workers = Workers(2)
    outer = Nesterov(0.3, momentum)
    theta, sent, seen = values(workers.models[0]), None, []
    starts = [theta, theta]
    for index in range(5):
        workers.train(3)
        now = [
            [s - v for s, v in zip(start, values(model), strict=True)]
            for start, model in zip(starts, workers.models, strict=True)
        ]
        if sent is not None:
            theta = outer.step(theta, weighted_mean(sent, [1, 1]))
        sent = now
        starts = [found[member][index][2] for member in range(2)]
        for model, start in zip(workers.models, starts, strict=True):
            set_values(model, start)
        seen.append(theta)
    return seen


# Layers 0, 2, 3 and 5 of the model, dealt out alternately: indices of parameters.
FRAGMENTS = ([0, 1, 4, 5], [2, 3, 6, 7])


@pytest.mark.parametrize(
    ("delay", "keep_local"), [(0, 0.0), (1, 0.5), (2, 0.25), (3, 0.5), (1, 1.0)]
)
def test_fragments_travel_one_after_the_other(delay: int, keep_local: float) -> None:
    """Streaming DiLoCo, arXiv 2501.18512; with a delay of the whole period too."""
    options = {
        **{"sync_every": 6, "method": "streaming", "fragments": 2},
        **{"delay_steps": delay, "keep_local": keep_local},
    }
    found = run_ranks(2, lambda comm: train(comm, 24, **options))
    workers = Workers(2)
    theta = values(workers.models[0])
    outers = [Nesterov(0.7, 0.9), Nesterov(0.7, 0.9)]
    sent: dict[int, list[list[Tensor]]] = {}
    wanted = []
    for step in range(25):
        if step:
            workers.train(1)
        for fragment, chosen in enumerate(FRAGMENTS):
            arrives = step > 0 and step % 6 == 3 * (fragment + 1) % 6
            leaves = (step + delay) % 6 == 3 * (fragment + 1) % 6 and step > 0
            for now in (leaves and delay == 0, arrives, leaves and delay > 0):
                if now is arrives and arrives and fragment in sent:
                    part = [theta[i] for i in chosen]
                    mean = weighted_mean(sent.pop(fragment), [1, 1])
                    part = outers[fragment].step(part, mean)
                    for i, value in zip(chosen, part, strict=True):
                        theta[i] = value
                    for model in workers.models:
                        local = values(model)
                        for i in chosen:
                            local[i] = keep_local * local[i] + (1 - keep_local) * theta[i]
                        set_values(model, local)
                elif now and leaves and fragment not in sent:
                    deltas = workers.deltas(theta)
                    sent[fragment] = [[delta[i] for i in chosen] for delta in deltas]
        if step and step % 6 == 0:
            wanted.append(list(theta))
    compare(found, wanted)


def test_local_sgd_is_the_average_of_the_models() -> None:
    options = diloco.variants.local_sgd(sync_every=4)
    found = run_ranks(2, lambda comm: train(comm, 12, settings=options, warmup_sync_steps=0))
    workers = Workers(2)
    wanted = []
    for _ in range(3):
        workers.train(4)
        wanted.append(weighted_mean([values(model) for model in workers.models], [1, 1]))
        workers.install(wanted[-1])
    compare(found, wanted)


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_what_a_codec_loses_is_in_the_residuals_and_nowhere_else(codec: str) -> None:
    """theta = first theta - all that members measured + the mean of what they still owe."""
    options = {
        **{"sync_every": 2, "codec": codec, "error_feedback": True},
        **{"outer_lr": 1.0, "outer_momentum": 0.0},
    }

    def measured(comm: pccl.Communicator) -> tuple[str, Tensor, Tensor, Tensor]:
        model = make_model()
        inner = make_inner(model)
        total = torch.zeros_like(flat(values(model)))
        with diloco.DiLoCo(comm, model, inner, warmup_sync_steps=0, **options) as run:
            measure = run.state.measure

            def recorded(fragment: int, delta: Tensor) -> None:
                measure(fragment, delta)
                total.add_(delta)

            run.state.measure = recorded  # type: ignore[method-assign]
            for step in range(16):
                train_step(model, inner, comm.rank, step)
            [residual] = run.state_dict()["residual"].values()
            assert run.info is not None
            return run.info.hash, run.state.theta.clone(), total, residual

    (first, theta, one, owed), (second, other, two, owed_too) = run_ranks(2, measured)
    assert first == second
    assert torch.equal(theta, other)
    wanted = flat(values(make_model())) - (one + two) / 2 + (owed + owed_too) / 2
    torch.testing.assert_close(theta, wanted, rtol=1e-5, atol=2e-6)
    assert owed.abs().max() > 1e-5


def test_the_largest_elements_are_sent_and_the_rest_comes_later() -> None:
    """SparseLoCo, arXiv 2508.15706."""
    options = diloco.variants.sparse_loco(sync_every=2, codec="topk_2bit:64")
    found = run_ranks(2, lambda comm: train(comm, 16, settings=options))
    workers = Workers(2)
    theta = flat(values(workers.models[0]))
    residuals = [torch.zeros_like(theta) for _ in range(2)]
    shapes = values(workers.models[0])
    wanted = []
    for _ in range(8):
        workers.train(2)
        sent = []
        for residual, model in zip(residuals, workers.models, strict=True):
            residual.mul_(0.95).add_(theta - flat(values(model)))
            into = np.zeros(residual.numel(), np.float32)
            decode(encode(residual.numpy(), "topk_2bit:64"), into)
            sent.append(torch.from_numpy(into))
            residual -= sent[-1]
        theta = theta - (sent[0] + sent[1]) / 2
        pieces = theta.split([value.numel() for value in shapes])
        wanted.append([p.view(v.shape) for p, v in zip(pieces, shapes, strict=True)])
        workers.install(wanted[-1])
    compare(found, wanted)


def test_sparse_loco_has_its_papers_numbers() -> None:
    settings = diloco.variants.sparse_loco(sync_every=15)
    assert settings.codec == "topk_2bit:64"
    assert (settings.outer_lr, settings.outer_momentum) == (1.0, 0.0)
    assert settings.error_feedback is True
    assert settings.residual_decay == 0.95


def test_a_delay_that_diverges_is_warned_of_with_the_stable_choice() -> None:
    # The table of a quadratic: (lr, momentum) -> c, synchronous and a round late.
    for lr, momentum, together, late in (
        (1.0, 0.0, 2.0, 1.0),
        (0.7, 0.0, 2.0, 1.43),
        (0.7, 0.5, 2.0, 0.80),
        (0.7, 0.9, 1.94, 0.36),
        (0.2, 0.9, 2.0, 1.27),
    ):
        assert abs(stable_up_to(lr, momentum) - together) < 0.05
        assert abs(stable_up_to(lr, momentum, delayed=True) - late) < 0.03
    model = make_model()
    inner = make_inner(model)
    with pytest.warns(diloco.StabilityWarning, match=r"Stable: outer_lr=0\.7, outer_momentum=0"):
        diloco.DiLoCo(None, model, inner, method="delayed", outer_lr=0.7, outer_momentum=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        diloco.DiLoCo(None, model, inner, method="delayed")
        diloco.DiLoCo(None, model, inner)
