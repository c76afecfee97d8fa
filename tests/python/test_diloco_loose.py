"""Methods without a common round or a common theta: asynchronous, decoupled, gossip."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from diloco_reference import Workers, flat, make_inner, make_model, train_step, values
from thread_ranks import run_ranks
from torch import Tensor

import diloco
import pccl
from diloco.asynchronous import DelayedNesterov
from pccl.topology import GOSSIP_GRAPHS, gossip_matrix, report_gossip

# --- gossip ---


def gossip(comm: pccl.Communicator, steps: int, settings: diloco.Settings) -> list[Any]:
    model = make_model(seed=comm.rank)
    inner = make_inner(model)
    seen: list[Any] = []
    with diloco.DiLoCo(comm, model, inner, settings, warmup_sync_steps=0) as run:
        run.on_round.append(lambda run: seen.append((run.state.theta.clone(), run.info)))
        for step in range(steps):
            train_step(model, inner, comm.rank, step)
    return seen


@pytest.mark.parametrize(
    ("graph", "momentum"), [("random_pairs", 0.5), ("ring", 0.0), ("small_world", 0.3)]
)
def test_neighbours_average_as_the_matrix_says(graph: str, momentum: float) -> None:
    settings = diloco.variants.noloco(sync_every=3, graph=graph, outer_momentum=momentum, seed=7)
    found = run_ranks(5, lambda comm: gossip(comm, 12, settings))
    workers = Workers(5)
    theta = torch.stack([flat(values(model)) for model in workers.models])
    m = torch.zeros_like(theta)
    for round_index in range(4):
        workers.train(3)
        delta = theta - torch.stack([flat(values(model)) for model in workers.models])
        mixing = torch.tensor(gossip_matrix(graph, 5, round_index, 7), dtype=torch.float32)
        m = momentum * m + 0.7 * (mixing @ delta) + 0.7 * (theta - mixing @ theta)
        theta = theta - m
        for member, model in enumerate(workers.models):
            torch.nn.utils.vector_to_parameters(theta[member].clone(), model.parameters())
            torch.testing.assert_close(
                found[member][round_index][0], theta[member], rtol=5e-5, atol=5e-6
            )
    info = found[0][-1][1]
    assert info.spectral_gap == report_gossip(graph, 5, seed=7).spectral_gap
    assert 0 < info.own_disagreement < 0.2


def test_plain_gossip_over_an_exact_graph_is_local_sgd() -> None:
    settings = diloco.variants.gossip(sync_every=3, graph="base_2")
    found = run_ranks(2, lambda comm: gossip(comm, 9, settings))
    workers = Workers(2)
    for round_index in range(3):
        workers.train(3)
        mean = torch.stack([flat(values(model)) for model in workers.models]).mean(0)
        for member, model in enumerate(workers.models):
            torch.nn.utils.vector_to_parameters(mean.clone(), model.parameters())
            theta = found[member][round_index][0]
            torch.testing.assert_close(theta, mean, rtol=1e-5, atol=1e-6)


def test_every_graph_is_a_setting() -> None:
    for graph in GOSSIP_GRAPHS:
        assert diloco.variants.gossip(graph=graph).graph == graph
    with pytest.raises(ValueError, match="graph: expected one of"):
        diloco.variants.gossip(graph="star")


# --- delayed Nesterov ---


def test_delayed_nesterov_is_algorithm_3() -> None:
    torch.manual_seed(0)
    outer = DelayedNesterov(torch.zeros(5), 0.7, 0.9, 3)
    theta = torch.randn(5)
    wanted, m, buffer = theta.clone(), torch.zeros(5), torch.zeros(5)
    for push in range(1, 10):
        delta = torch.randn(5)
        outer.step(theta, delta, 1)
        buffer += delta
        wanted -= 0.7 * delta / 3
        if push % 3 == 0:
            m = 0.9 * m + buffer / 3
            wanted -= 0.7 * 0.9 * m
            buffer = torch.zeros(5)
        torch.testing.assert_close(theta, wanted)


def test_with_a_period_of_one_it_is_nesterov() -> None:
    outer = DelayedNesterov(torch.zeros(5), 0.7, 0.9, 1)
    theta = torch.randn(5)
    other = theta.clone().requires_grad_()
    sgd = torch.optim.SGD([other], lr=0.7, momentum=0.9, nesterov=True)
    for _ in range(4):
        delta = torch.randn(5)
        outer.step(theta, delta, 1)
        other.grad = delta
        sgd.step()
        torch.testing.assert_close(theta, other.detach())


# --- asynchronous ---


class Recorder:
    """What each member measured, in its order."""

    def __init__(self) -> None:
        self.deltas: dict[str, list[Tensor]] = {}
        self.lock = threading.Lock()

    def watch(self, run: diloco.DiLoCo) -> None:
        measure = run.state.measure

        def recorded(fragment: int, delta: Tensor) -> None:
            measure(fragment, delta)
            with self.lock:
                self.deltas.setdefault(run.members.name, []).append(delta.clone())

        run.state.measure = recorded  # type: ignore[method-assign]


def replay(infos: list[diloco.SyncInfo], deltas: dict[str, list[Tensor]], outer: Any) -> Tensor:
    """theta from what the members measured and who was merged when."""
    theta = flat(values(make_model()))
    left = {name: iter(found) for name, found in deltas.items()}
    for info in infos:
        mean = torch.zeros_like(theta)
        for name in info.contributors:
            mean += info.weights[name] * next(left[name])
        outer(theta, mean, len(info.contributors))
    assert [list(rest) for rest in left.values()] == [[] for _ in left]
    return theta


def train_loosely(
    comm: pccl.Communicator, recorder: Recorder, merges: int, slow: int, settings: diloco.Settings
) -> tuple[list[diloco.SyncInfo], Tensor]:
    model = make_model()
    inner = make_inner(model)
    infos: list[diloco.SyncInfo] = []
    options = {"on_sync": infos.append, "warmup_sync_steps": 0}
    with diloco.DiLoCo(comm, model, inner, settings, **options) as run:  # type: ignore[arg-type]
        recorder.watch(run)
        while run.round < merges:
            train_step(model, inner, comm.rank, run.round_step)
            time.sleep(0.02 if comm.rank == slow else 0)
    # Whoever is done weighs nothing in the merges of the others, and holds the same theta.
    return infos, run.state.theta.detach().clone()


@pytest.mark.parametrize(
    "settings",
    [
        diloco.variants.async_local_sgd(sync_every=4, momentum_every=3),
        diloco.variants.decoupled(sync_every=4, quorum=2, grace_seconds=0.01),
    ],
)
def test_merges_replayed_in_one_process_give_the_same_theta(settings: diloco.Settings) -> None:
    recorder = Recorder()
    found = run_ranks(3, lambda comm: train_loosely(comm, recorder, 8, 2, settings))
    infos, theta = found[0]
    for other, other_theta in found[1:]:
        assert torch.equal(other_theta, theta)
        assert [i.hash for i in other] == [i.hash for i in infos]
        assert [i.weights for i in other] == [i.weights for i in infos]
    assert len({info.hash for info in infos}) == len(infos)
    m, buffer, pending = torch.zeros_like(theta), torch.zeros_like(theta), 0
    every = settings.momentum_every

    def outer(theta: Tensor, mean: Tensor, count: int) -> None:
        """Algorithm 3, push by push at once; with a period of one plain Nesterov."""
        nonlocal m, buffer, pending
        if every == 1:
            m = 0.9 * m + mean
            theta -= 0.7 * (mean + 0.9 * m)
            return
        theta -= 0.7 * mean * min(count, every) / every
        buffer = buffer + count * mean
        pending += count
        if pending >= every:
            m = 0.9 * m + buffer / pending
            theta -= 0.7 * 0.9 * m
            buffer, pending = torch.zeros_like(buffer), 0

    torch.testing.assert_close(replay(infos, recorder.deltas, outer), theta, rtol=1e-4, atol=1e-5)
    if settings.quorum == 2:
        assert min(len(info.contributors) for info in infos[:3]) >= 2


def test_a_slow_member_does_fewer_steps_a_round() -> None:
    def train(comm: pccl.Communicator) -> list[diloco.SyncInfo]:
        model = make_model()
        inner = make_inner(model)
        infos: list[diloco.SyncInfo] = []
        options = {"sync_every": 12, "warmup_sync_steps": 0, "dynamic_steps": True}
        with diloco.DiLoCo(comm, model, inner, on_sync=infos.append, **options) as run:
            while run.round < 4:
                train_step(model, inner, comm.rank, run.step)
                time.sleep(0.1 * comm.rank)
        return infos

    fast, slow = run_ranks(2, train)
    assert [info.hash for info in fast] == [info.hash for info in slow]
    assert (fast[0].own_steps, slow[0].own_steps) == (12, 12)
    assert slow[-1].own_steps < fast[-1].own_steps == 12
    steps = slow[-1].own_steps
    assert slow[-1].weights["rank 1"] == pytest.approx(steps / (steps + 12))
    assert fast[-1].step == 4 * 12
