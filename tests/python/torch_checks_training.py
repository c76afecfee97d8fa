"""Checks of what trains models: DDP with its options and hooks, FSDP2, DTensor, checkpoints.

The reference is the same model trained in one process on everybody's data.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.distributed.checkpoint as checkpoint
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch_values import assert_close, assert_same, value, values

import pccl

STEPS = 3
ROWS = 4  # of each rank in a batch


def _rank() -> int:
    return dist.get_rank()


def _size() -> int:
    return dist.get_world_size()


def _model() -> nn.Sequential:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(8, 33), nn.Tanh(), nn.Linear(33, 5))


def _batch(step: int, rank: int | None = None) -> Tensor:
    """The rows of one rank, or of all."""
    if rank is None:
        return torch.cat([_batch(step, r) for r in range(_size())])
    return value(rank, ROWS * 8, salt=step).reshape(ROWS, 8)


def _train(
    model: nn.Module, *, everyone: bool = False, step: Callable[[int], None] | None = None
) -> list[Tensor]:
    """SGD on the batches of this rank, or of all ranks; the parameters afterwards."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for number in range(STEPS):
        optimizer.zero_grad()
        batch = _batch(number, None if everyone else _rank())
        (model(batch) ** 2).mean().backward()
        if step is not None:
            step(number)
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def _assert_trained_like_one_process(
    parameters: list[Tensor], tolerance: float = 1e-5, reference: nn.Module | None = None
) -> None:
    expected = _train(reference or _model(), everyone=True)
    for actual, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)


def ddp_trains_like_one_process_on_all_data() -> list[Tensor]:
    parameters = _train(DistributedDataParallel(_model()))
    _assert_trained_like_one_process(parameters)
    return parameters


def ddp_with_many_buckets_and_views_trains_alike() -> list[Tensor]:
    model = DistributedDataParallel(_model(), bucket_cap_mb=1e-5, gradient_as_bucket_view=True)
    parameters = _train(model)
    _assert_trained_like_one_process(parameters)
    return parameters


def ddp_with_a_static_graph_trains_alike() -> list[Tensor]:
    parameters = _train(DistributedDataParallel(_model(), static_graph=True))
    _assert_trained_like_one_process(parameters)
    return parameters


def ddp_accumulates_without_traffic_in_no_sync() -> list[Tensor]:
    model = DistributedDataParallel(_model())
    before = dist.group.WORLD._get_sequence_number_for_group()
    with model.no_sync():
        (model(_batch(0, _rank())) ** 2).mean().backward()
    assert dist.group.WORLD._get_sequence_number_for_group() == before
    (model(_batch(1, _rank())) ** 2).mean().backward()
    reference = _model()
    for step in (0, 1):
        (reference(_batch(step)) ** 2).mean().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    for actual, wanted in zip(gradients, reference.parameters(), strict=True):
        assert_close(actual, wanted.grad)
    return gradients


class _Branches(nn.Module):
    """Each rank uses one of two layers, and none the third."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 1) for _ in range(3)])

    def forward(self, batch: Tensor) -> Tensor:
        return self.layers[_rank() % 2](batch)


def ddp_finds_parameters_that_nobody_used() -> list[Tensor]:
    torch.manual_seed(3)
    model = DistributedDataParallel(_Branches(), find_unused_parameters=True)
    for step in range(2):
        model.zero_grad()
        model(_batch(step, _rank())).sum().backward()
    assert model.module.layers[2].weight.grad is None
    gradients = [model.module.layers[index].weight.grad for index in (0, 1)]
    for index, gradient in enumerate(gradients):
        users = [r for r in range(_size()) if r % 2 == index]
        assert_close(gradient[0], sum(_batch(1, r).sum(0) for r in users) / _size())
    return gradients


def ddp_hooks_compress_what_travels() -> list[Tensor]:
    results = []
    hooks = {
        "fp16": (default_hooks.fp16_compress_hook, 2e-3),
        "bf16": (pccl.hooks.bf16, 2e-2),  # torch's own, by a name that DDP takes
        "all_reduce": (default_hooks.allreduce_hook, 1e-5),
    }
    for hook, tolerance in hooks.values():
        model = DistributedDataParallel(_model())
        model.register_comm_hook(None, hook)
        parameters = _train(model)
        _assert_trained_like_one_process(parameters, tolerance)
        results += parameters
    return results


def ddp_joins_ranks_with_uneven_inputs() -> list[Tensor]:
    model = DistributedDataParallel(_model())
    with Join([model]):
        for step in range(1 + _rank()):
            (model(_batch(step, _rank())) ** 2).mean().backward()
    tensors = [parameter.detach().clone() for parameter in model.parameters()]
    dist.barrier()
    return tensors


def ddp_tells_a_rank_that_its_model_differs() -> None:
    group = dist.new_group(timeout=timedelta(seconds=20))
    if _rank() == 1:
        with pytest.raises(RuntimeError, match=r"params\[0\]"):
            DistributedDataParallel(nn.Linear(3, 4), process_group=group)
        group.abort()  # the others wait for it to take their parameters
    else:
        with suppress(RuntimeError):
            DistributedDataParallel(nn.Linear(3, 5), process_group=group)
    dist.barrier()
    dist.destroy_process_group(group)


def a_collective_that_fails_in_backward_raises_and_ddp_can_be_used_again() -> list[Tensor]:
    group = dist.new_group(timeout=timedelta(seconds=20))
    model = DistributedDataParallel(_model(), process_group=group)
    (model(_batch(0, _rank())) ** 2).mean().backward()
    dist.barrier()
    if _rank() == 1:
        group.abort()
    for _ in range(2):  # the second is not about "the prior iteration", DDP's own state is whole
        with pytest.raises(RuntimeError) as caught:
            (model(_batch(1, _rank())) ** 2).mean().backward()
        assert "prior iteration" not in str(caught.value)
        assert "group" in str(caught.value)
    dist.barrier()
    dist.destroy_process_group(group)
    again = DistributedDataParallel(_model())
    return _train(again)


def zero_redundancy_optimizer_trains_alike() -> list[Tensor]:
    model = DistributedDataParallel(_model())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1)
    for step in range(STEPS):
        optimizer.zero_grad()
        (model(_batch(step, _rank())) ** 2).mean().backward()
        optimizer.step()
    parameters = [parameter.detach() for parameter in model.parameters()]
    _assert_trained_like_one_process(parameters)
    return parameters


# --- sharded --------------------------------------------------------------------------------------


def fsdp2_trains_like_one_process_on_all_data() -> list[Tensor]:
    model = _model()
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    _train(model)
    parameters = [p.full_tensor().detach() for p in model.parameters()]
    _assert_trained_like_one_process(parameters)
    return parameters


def hybrid_sharding_over_a_mesh_trains_alike() -> list[Tensor]:
    mesh = init_device_mesh(
        torch.get_default_device().type, (2, _size() // 2), mesh_dim_names=("replicate", "shard")
    )
    model = _model()
    fully_shard(model, mesh=mesh)
    _train(model)
    parameters = [p.full_tensor().detach() for p in model.parameters()]
    _assert_trained_like_one_process(parameters)
    return parameters


def dtensors_redistribute_and_multiply() -> list[Tensor]:
    mesh = init_device_mesh(torch.get_default_device().type, (_size(),))
    left, right = value(0, 12 * 10).reshape(12, 10), value(0, 10 * 7, salt=1).reshape(10, 7)
    rows = distribute_tensor(left, mesh, [Shard(0)])
    columns = distribute_tensor(left, mesh, [Shard(1)])
    inner = distribute_tensor(right, mesh, [Shard(0)])
    whole = distribute_tensor(right, mesh, [Replicate()])
    results = [
        (rows @ whole).full_tensor(),
        (columns @ inner).full_tensor(),  # a partial sum until it is gathered
        rows.redistribute(mesh, [Shard(1)]).full_tensor(),
    ]
    assert_close(results[0], left @ right)
    assert_close(results[1], left @ right)
    assert_same(results[2], left)
    assert isinstance(rows, DTensor)
    return results


def functional_collectives_return_new_tensors() -> list[Tensor]:
    world = dist.group.WORLD
    own = value(_rank(), 8)
    every = torch.cat(values(_size(), 8, own.dtype))
    total = every.reshape(_size(), 8).sum(0)
    results = [
        functional.all_reduce(own, "sum", world) + 0,
        functional.all_reduce(own, "avg", world) * _size(),
        functional.all_gather_tensor(own, 0, world) + 0,
        functional.broadcast(own, 1, world) + 0,
        functional.all_reduce_coalesced([own, own * 2], "sum", world)[1] / 2,
        functional.all_gather_into_tensor_coalesced([own, own * 2], world)[0] + 0,
    ]
    assert_same(own, value(_rank(), 8))
    for index, expected in enumerate([total, total, every, value(1, 8), total, every]):
        assert_close(results[index], expected)
    part = functional.reduce_scatter_tensor(every, "sum", 0, world) + 0
    assert_close(part, value(_rank(), 8) * _size())
    exchanged = functional.all_to_all_single(every, None, None, world) + 0
    assert_same(exchanged, torch.cat([value(_rank(), 8)] * _size()))
    return results


def compiled_code_may_reduce() -> Tensor:
    """Without a code generator: the traced graph runs as it is."""

    @torch.compile(fullgraph=True, backend="eager")
    def double_sum(tensor: Tensor) -> Tensor:
        return functional.all_reduce(tensor * 2, "sum", dist.group.WORLD) + 1

    result = double_sum(value(_rank(), 8))
    assert_close(result, torch.stack(values(_size(), 8, result.dtype)).sum(0) * 2 + 1)
    return result


def a_sharded_checkpoint_is_saved_and_loaded() -> list[Tensor]:
    folder: list[object] = [tempfile.mkdtemp() if _rank() == 0 else None]
    dist.broadcast_object_list(folder, 0)
    path = Path(str(folder[0])) / "checkpoint"
    model = _model()
    fully_shard(model)
    _train(model)
    expected = [p.full_tensor().detach().clone() for p in model.parameters()]
    checkpoint.save({"model": model.state_dict()}, checkpoint_id=path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    state = {"model": model.state_dict()}
    checkpoint.load(state, checkpoint_id=path)
    model.load_state_dict(state["model"])
    loaded = [p.full_tensor().detach() for p in model.parameters()]
    for actual, wanted in zip(loaded, expected, strict=True):
        assert_same(actual, wanted)
    return loaded


def gradients_flow_through_collectives() -> list[Tensor]:
    import torch.distributed.nn as differentiable

    own = value(_rank(), 6).requires_grad_()
    total = differentiable.functional.all_reduce(own * own)
    total.sum().backward()
    assert_close(own.grad, 2 * own.detach() * _size())
    return [total.detach()]


def the_profiler_shows_the_operations() -> None:
    tensors = [torch.ones(5), torch.ones(5)]
    with torch.profiler.profile() as profile:
        dist.all_reduce(tensors[0])
        dist.all_reduce(tensors[1], async_op=True).wait()
        dist.broadcast(tensors[0], 0)
    cpu = torch.autograd.DeviceType.CPU
    names = [event.name for event in profile.events() if event.device_type == cpu]
    assert names.count("pccl:all_reduce") == 2, names
    assert "pccl:broadcast" in names
