"""Checks of DiLoCo over groups of torch.distributed, and with FSDP2 inside of a member."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from diloco_reference import (
    Nesterov,
    Workers,
    assert_close,
    compute_gradients,
    flat,
    make_inner,
    make_model,
    run_diloco,
    train_step,
    values,
    weighted_mean,
)
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import diloco

ROUNDS, STEPS, WARMUP = 3, 3, 2


def _train(group: Any, **settings: Any) -> Tensor:
    model = make_model(seed=dist.get_rank())
    inner = make_inner(model)
    options = {"sync_every": STEPS, "warmup_sync_steps": WARMUP, **settings}
    with diloco.DiLoCo(group, model, inner, **options) as run:
        for step in range(WARMUP + ROUNDS * STEPS):
            train_step(model, inner, dist.get_rank(), step)
        assert run.world_size == 4
        return run.state.theta.detach().clone()


def diloco_over_a_group_of_pccl() -> Tensor:
    theta = _train(dist.group.WORLD)
    *_, wanted = run_diloco(Workers(4), ROUNDS, STEPS, Nesterov(0.7, 0.9), WARMUP)
    assert_close(theta, wanted)
    return theta


def the_callers_default_device_changes_nothing() -> list[Tensor]:
    def train(default: str) -> Tensor:
        model = make_model()
        inner = torch.optim.SGD(model.parameters(), lr=0.1)

        def outer(parameters: Any) -> torch.optim.Optimizer:
            return torch.optim.Adam(parameters, lr=0.1)

        with torch.device(default):
            run = diloco.DiLoCo(
                dist.group.WORLD,
                model,
                inner,
                sync_every=1,
                warmup_sync_steps=0,
                outer_optimizer=outer,
                codec="int8",
            )
        with run:
            for step in range(2):
                compute_gradients(model, dist.get_rank(), step)
                with torch.device(default):
                    inner.step()
                inner.zero_grad()
        return flat([parameter.detach() for parameter in model.parameters()])

    own = str(torch.get_default_device())
    found = [train(own), train("meta")]
    assert torch.equal(*found)
    return found


def diloco_over_gloo() -> Tensor:
    group = dist.new_group(backend="gloo")
    theta = _train(group)
    *_, wanted = run_diloco(Workers(4), ROUNDS, STEPS, Nesterov(0.7, 0.9), WARMUP)
    assert_close(theta, wanted)
    with pytest.raises(ValueError, match="codec='int8': only over pccl"):
        _train(group, codec="int8")
    with pytest.raises(ValueError, match="gossip"):
        _train(group, method="gossip")
    dist.destroy_process_group(group)
    return theta


def diloco_in_codecs_over_a_group_of_pccl() -> list[Tensor]:
    exact = _train(dist.group.WORLD)
    coded = [_train(dist.group.WORLD, codec=codec) for codec in ("int8", "int4")]
    for theta in coded:
        assert not torch.equal(theta, exact)
        assert (theta - exact).norm() < 0.05 * exact.norm()
    return coded


def shards_of_fsdp2_are_the_unit_of_synchronisation() -> list[Tensor]:
    """2 members of 2 processes: each holds half of the parameters, and syncs that half."""
    mesh = init_device_mesh(
        torch.get_default_device().type, (2, 2), mesh_dim_names=("member", "shard")
    )
    model = make_model()
    for layer in (model[0], model[3], model[5]):
        fully_shard(layer, mesh=mesh["shard"])
    fully_shard(model, mesh=mesh["shard"])
    inner = make_inner(model)
    rank = dist.get_rank()
    with diloco.DiLoCo(
        mesh.get_group("member"), model, inner, sync_every=STEPS, warmup_sync_steps=0
    ) as run:
        for step in range(ROUNDS * STEPS):
            train_step(model, inner, rank, step)
        held = sum(parameter.numel() for parameter in model.parameters())
        assert run.state.elements < 0.7 * held
        assert run.info is not None
        # Of both processes of both members.
        assert run.info.samples == 2 * 2 * STEPS * 4
    parameters = []
    for parameter in model.parameters():
        assert isinstance(parameter, DTensor)
        parameters.append(parameter.full_tensor().detach())
    workers = Workers(2)
    theta, outer = values(workers.models[0]), Nesterov(0.7, 0.9)
    for step in range(ROUNDS * STEPS):
        for member, copy in enumerate(workers.models):
            compute_gradients(copy, 2 * member, step)
            compute_gradients(copy, 2 * member + 1, step)
            for parameter in copy.parameters():
                assert parameter.grad is not None
                parameter.grad /= 2
            workers.inner[member].step()
            workers.inner[member].zero_grad()
        if step % STEPS == STEPS - 1:
            theta = outer.step(theta, weighted_mean(workers.deltas(theta), [1, 1]))
            workers.install(theta)
    assert_close(flat(parameters), theta)
    return parameters
