"""Checks of groups: sub-groups, names, splits, timeouts, aborts, meshes."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch_values import assert_close, assert_same, value


def _rank() -> int:
    return dist.get_rank()


def _size() -> int:
    return dist.get_world_size()


def _sum_of(ranks: list[int], group: dist.ProcessGroup | None) -> torch.Tensor:
    tensor = value(_rank(), 1009)
    dist.all_reduce(tensor, group=group)
    assert_close(tensor, torch.stack([value(rank, 1009) for rank in ranks]).double().sum(0).float())
    return tensor


def _leave(*groups: object) -> None:
    """torch numbers groups by how many each rank knows, so none may be left over on some ranks."""
    for group in groups:
        dist.destroy_process_group(group)


def a_group_has_a_flight_record() -> None:
    group: Any = dist.group.WORLD
    dist.barrier()
    header, *events = [json.loads(line) for line in group.flight_record().splitlines()]
    assert header["flight_record"] == 1
    ended = [event for event in events if event["event"] == "ended"]
    assert ended[-1]["operation"] == "barrier"


def a_group_knows_itself() -> None:
    world = dist.group.WORLD
    assert world is not None
    assert dist.get_backend() == "pccl"
    assert (world.rank(), world.size()) == (_rank(), _size())
    assert world.name() == "pccl"
    assert world.group_name == dist.distributed_c10d._get_process_group_name(world)
    pair = dist.new_group([0, 1], group_desc="a pair")
    if _rank() < 2:
        assert pair.group_desc == "a pair"
        assert dist.get_process_group_ranks(pair) == [0, 1]
        assert dist.get_group_rank(pair, 1) == 1
        assert dist.get_rank(pair) == _rank()
    else:
        assert dist.get_rank(pair) == -1
    assert dist.get_rank() == _rank()
    _leave(pair)


def groups_of_some_ranks_work_side_by_side() -> None:
    halves = [[r for r in range(_size()) if r % 2 == half] for half in (0, 1)]
    groups = [dist.new_group(ranks) for ranks in halves]
    own = _rank() % 2
    for _ in range(3):
        _sum_of(halves[own], groups[own])
    # Both at once with the world, unfinished.
    tensors = [value(_rank(), 1009), value(_rank(), 1009, salt=1)]
    works = [
        dist.all_reduce(tensors[0], group=groups[own], async_op=True),
        dist.all_reduce(tensors[1], async_op=True),
    ]
    for work in reversed(works):
        work.wait()
    outsiders = groups[1 - own]
    assert outsiders == dist.GroupMember.NON_GROUP_MEMBER
    _leave(*groups)
    _sum_of(list(range(_size())), None)


def the_same_ranks_may_form_several_groups() -> None:
    everyone = list(range(_size()))
    groups = [dist.new_group() for _ in range(3)]
    tensors = [value(_rank(), 100, salt=salt) for salt in range(3)]
    order = [0, 1, 2] if _rank() % 2 else [2, 0, 1]  # groups do not wait for each other
    works = {i: dist.all_reduce(tensors[i], group=groups[i], async_op=True) for i in order}
    for index in everyone[:3]:
        works[index].wait()
    for salt, tensor in enumerate(tensors):
        expected = torch.stack([value(rank, 100, salt=salt) for rank in everyone])
        assert_close(tensor, expected.double().sum(0).float())
    _leave(*groups)


def a_group_may_be_made_by_its_members_alone() -> None:
    ranks = [0, _size() - 1]
    if _rank() in ranks:
        group = dist.new_group(ranks, use_local_synchronization=True)
        _sum_of(ranks, group)
        _leave(group)
    dist.barrier()


def sources_are_global_ranks_and_roots_of_groups_are_local() -> None:
    ranks = [1, _size() - 1]
    group = dist.new_group(ranks)
    if _rank() in ranks:
        tensor = value(_rank(), 10)
        dist.broadcast(tensor, src=_size() - 1, group=group)
        assert_same(tensor, value(_size() - 1, 10))
        tensor = value(_rank(), 10)
        dist.broadcast(tensor, group_src=0, group=group)
        assert_same(tensor, value(1, 10))
    dist.barrier()
    _leave(group)


def a_group_is_split_without_traffic() -> None:
    """torch's split_group() asks for a C++ backend; the group's own method does it."""
    world = dist.group.WORLD
    front = world.split_group([0, 1], group_name="front")
    back = world.split_group(list(range(2, _size())))
    assert (front is None) == (_rank() >= 2)
    assert (back is None) == (_rank() < 2)
    own = front if front is not None else back
    tensor = torch.full((5,), float(_rank()))
    own.allreduce([tensor]).wait()
    members = [0, 1] if _rank() < 2 else list(range(2, _size()))
    assert tensor.tolist() == [float(sum(members))] * 5
    assert own.size() == len(members)
    own.shutdown()


def a_mesh_of_two_dimensions_reduces_along_each() -> None:
    mesh = init_device_mesh(
        torch.get_default_device().type, (2, _size() // 2), mesh_dim_names=("rows", "columns")
    )
    row, column = divmod(_rank(), _size() // 2)
    across = [column + i * (_size() // 2) for i in range(2)]
    along = [row * (_size() // 2) + i for i in range(_size() // 2)]
    _sum_of(across, mesh.get_group("rows"))
    _sum_of(along, mesh.get_group("columns"))
    assert list(mesh.get_coordinate()) == [row, column]
    flat = mesh._flatten("all")
    _sum_of(list(range(_size())), flat.get_group())
    _leave(mesh.get_group("rows"), mesh.get_group("columns"))  # the flat one is the world


# --- time -----------------------------------------------------------------------------------------


def an_operation_without_the_others_ends_at_its_own_timeout() -> None:
    group = dist.new_group(timeout=timedelta(seconds=0.3))
    if _rank() != 0:
        started = time.monotonic()
        with pytest.raises(RuntimeError) as caught:
            dist.all_reduce(torch.ones(3), group=group)
        assert "Timed out" in str(caught.value)
        # It may be a rank that itself waits for rank 0.
        assert "waiting for rank" in str(caught.value)
        assert time.monotonic() - started < 10
    dist.barrier()
    _leave(group)
    # The world is not concerned.
    _sum_of(list(range(_size())), None)


def the_default_timeout_of_a_group_can_be_changed() -> None:
    group = dist.new_group(timeout=timedelta(seconds=20))
    assert group.options._timeout == timedelta(seconds=20)
    # torch's own _set_pg_timeout() knows gloo and nccl only.
    group._set_default_timeout(timedelta(seconds=0.3))
    assert group.options._timeout == timedelta(seconds=0.3)
    if _rank() == 1:
        with pytest.raises(RuntimeError) as caught:
            dist.barrier(group=group)
        assert "Timed out" in str(caught.value)
    dist.barrier()
    _leave(group)


def a_monitored_barrier_names_who_is_missing() -> None:
    group = dist.new_group()
    last = _size() - 1
    if _rank() == 0:
        with pytest.raises(RuntimeError) as caught:
            group.monitored_barrier(timedelta(seconds=0.5), wait_all_ranks=True)
        assert f"{last}" in str(caught.value)
    elif _rank() != last:
        with pytest.raises(RuntimeError) as caught:
            group.monitored_barrier(timedelta(seconds=0.5))
        assert "rank 0" in str(caught.value)
    dist.barrier()
    _leave(group)


# --- the end --------------------------------------------------------------------------------------


def abort_fails_what_is_in_flight_at_every_member() -> None:
    group = dist.new_group()
    if _rank() == 0:
        tensor = torch.empty(1)
        dist.barrier()
        group.abort()
        works = []
    else:
        tensor = torch.ones(3)
        works = [dist.all_reduce(tensor, group=group, async_op=True)]
        dist.barrier()
    for work in works:
        with pytest.raises(RuntimeError) as caught:
            work.wait(timedelta(seconds=10))
        assert "abort" in str(caught.value).lower()
        assert "rank 0" in str(caught.value)
        assert work.exception() is not None
        assert not work.is_success()
    with pytest.raises(RuntimeError):
        dist.all_reduce(tensor, group=group)
    dist.barrier()
    _leave(group)
    _sum_of(list(range(_size())), None)


def an_error_is_told_by_the_group() -> None:
    from torch._C._distributed_c10d import ErrorType

    group = dist.new_group(timeout=timedelta(seconds=0.3))
    assert group.get_error() == ErrorType.SUCCESS
    if _rank() == 0:
        with pytest.raises(RuntimeError):
            dist.all_reduce(torch.ones(1), group=group)
        assert group.get_error() == ErrorType.TIMEOUT
    dist.barrier()
    _leave(group)
