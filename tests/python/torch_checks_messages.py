"""Checks of works and futures, coalescing, objects, and messages between two ranks."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch_values import Op, assert_close, assert_same, reduced, value, values


def _rank() -> int:
    return dist.get_rank()


def _size() -> int:
    return dist.get_world_size()


def _sum(count: int, salt: int = 0) -> Tensor:
    return reduced(values(_size(), count, torch.float32, salt), Op.SUM)


def _next() -> int:
    return (_rank() + 1) % _size()


def _previous() -> int:
    return (_rank() - 1) % _size()


# --- works and futures ----------------------------------------------------------------------------


def many_operations_in_flight_may_be_waited_for_in_any_order() -> list[Tensor]:
    tensors = [value(_rank(), 1 + 37 * index, salt=index) for index in range(200)]
    works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    for work in reversed(works):
        assert work.wait()
        assert work.is_completed()
    for index, tensor in enumerate(tensors):
        assert_close(tensor, _sum(tensor.numel(), index))
    return tensors


def a_future_holds_the_outputs_and_runs_what_follows() -> list[Tensor]:
    tensor = value(_rank(), 1009)
    future = dist.all_reduce(tensor, async_op=True).get_future()
    halved = future.then(lambda done: done.value()[0] / 2).then(lambda done: done.value() + 1)
    result = halved.wait()
    assert_close(result, _sum(1009) / 2 + 1)
    # A future that is asked for after the work is done holds the same.
    late = value(_rank(), 1009)
    work = dist.all_reduce(late, async_op=True)
    work.wait()
    assert_same(work.get_future().wait()[0], late)
    assert_same(work.result()[0], late)
    return [result, late]


def a_callback_may_ask_for_another_future_and_wait() -> Tensor:
    first, second = value(_rank(), 100), value(_rank(), 100, salt=1)
    one = dist.all_reduce(first, async_op=True)
    two = dist.all_reduce(second, async_op=True)
    both = one.get_future().then(lambda done: done.value()[0] + two.get_future().wait()[0]).wait()
    assert_close(both, _sum(100) + _sum(100, 1))
    return both


def every_collective_returns_a_work_when_asked_to() -> list[Tensor]:
    count, size = 101, _size()
    own = value(_rank(), count)
    rows = value(_rank(), size * count, salt=1)
    lists = [[torch.empty(count) for _ in range(size)] for _ in range(3)]
    singles = [torch.empty(count) for _ in range(3)]
    flats = [torch.empty(size * count) for _ in range(2)]
    summed, rooted, copied = own.clone(), own.clone(), own.clone()
    is_root = _rank() == 0
    works = [
        dist.all_reduce(summed, async_op=True),
        dist.reduce(rooted, 0, async_op=True),
        dist.broadcast(copied, 1, async_op=True),
        dist.all_gather(lists[0], own, async_op=True),
        dist.all_gather_into_tensor(flats[0], own, async_op=True),
        dist.gather(own, lists[1] if is_root else None, 0, async_op=True),
        dist.scatter(singles[0], list(rows.chunk(size)) if is_root else None, 0, async_op=True),
        dist.reduce_scatter(singles[1], list(rows.chunk(size)), async_op=True),
        dist.reduce_scatter_tensor(singles[2], rows, async_op=True),
        dist.all_to_all(lists[2], list(rows.chunk(size)), async_op=True),
        dist.all_to_all_single(flats[1], rows, async_op=True),
        dist.barrier(async_op=True),
    ]
    for work in works:
        assert isinstance(work, dist.Work)
        work.wait()
        assert work.is_completed()
        assert work.is_success()
        assert work.exception() is None
    assert_close(summed, _sum(count))
    assert_same(copied, value(1, count))
    assert_same(torch.cat(lists[0]), flats[0])
    assert_same(singles[0], value(0, size * count, salt=1).chunk(size)[_rank()])
    assert_same(singles[1], singles[2])
    assert_same(torch.cat(lists[2]), flats[1])
    return [summed, copied, flats[0]]


def works_are_launched_and_waited_for_on_several_threads() -> list[Tensor]:
    tensors = [value(_rank(), 5000, salt=index) for index in range(8)]
    works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    threads = [threading.Thread(target=work.wait) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    for index, tensor in enumerate(tensors):
        assert_close(tensor, _sum(5000, index))
    return tensors


def a_wait_that_times_out_leaves_the_operation_running() -> None:
    tensor = torch.zeros(3)
    if _rank() == 0:
        work = dist.irecv(tensor, 1, tag=77)
        with pytest.raises(RuntimeError, match="Timed out"):
            work.wait(timedelta(milliseconds=50))
    dist.barrier()
    if _rank() == 1:
        dist.send(torch.ones(3), 0, tag=77)
    if _rank() == 0:
        assert work.wait()
        assert tensor.tolist() == [1.0] * 3


# --- several at once ------------------------------------------------------------------------------


def coalesced_tensors_of_any_dtypes_are_each_reduced_for_themselves() -> list[Tensor]:
    shapes = [(3,), (0,), (4, 5), (1,), (70_001,)]
    results = []
    for dtypes in ([torch.float32] * 5, [torch.float32, torch.int64, torch.bfloat16] * 2):
        pairs = list(zip(shapes, dtypes, strict=False))
        tensors = [torch.full(shape, _rank() + 1, dtype=dtype) for shape, dtype in pairs]
        # dist.all_reduce_coalesced() itself refuses tensors of several dtypes.
        dist.group.WORLD.allreduce_coalesced(tensors).wait()
        total = _size() * (_size() + 1) // 2
        for (shape, dtype), tensor in zip(pairs, tensors, strict=True):
            assert_same(tensor, torch.full(shape, total, dtype=dtype))
        results += tensors
    return results


def gathers_are_coalesced() -> list[Tensor]:
    inputs = [value(_rank(), 5), value(_rank(), 11, salt=1)]
    lists = [[torch.empty(5), torch.empty(11)] for _ in range(_size())]
    dist.all_gather_coalesced(lists, inputs)
    for rank, outputs in enumerate(lists):
        assert_same(outputs[0], value(rank, 5))
        assert_same(outputs[1], value(rank, 11, salt=1))
    return [tensor for outputs in lists for tensor in outputs]


def the_coalescing_manager_covers_every_call_in_it() -> list[Tensor]:
    tensors = [value(_rank(), 100, salt=salt) for salt in range(4)]
    with dist._coalescing_manager(device=torch.get_default_device(), async_ops=True) as manager:
        for tensor in tensors:
            dist.all_reduce(tensor)
    manager.wait()
    for salt, tensor in enumerate(tensors):
        assert_close(tensor, _sum(100, salt))
    outputs = [torch.empty(_size() * 10) for _ in range(3)]
    with dist._coalescing_manager(device=torch.get_default_device()):
        for salt, output in enumerate(outputs):
            dist.all_gather_into_tensor(output, value(_rank(), 10, salt=salt))
    for salt, output in enumerate(outputs):
        assert_same(output, torch.cat(values(_size(), 10, torch.float32, salt)))
    return [*tensors, *outputs]


# --- objects --------------------------------------------------------------------------------------


def objects_travel_by_every_collective_that_takes_them() -> list[object]:
    own = {"rank": _rank(), "text": "x" * (10 * _rank()), "list": [1, (2, None)]}
    everyone: list[object] = [None] * _size()
    dist.all_gather_object(everyone, own)
    assert everyone[_rank()] == own
    gathered: list[object] | None = [None] * _size() if _rank() == 1 else None
    dist.gather_object(own, gathered, 1)
    assert gathered is None or gathered == everyone
    sent = everyone if _rank() == 2 else [None] * _size()
    dist.broadcast_object_list(sent, 2)
    assert sent == everyone
    received: list[object] = [None]
    dist.scatter_object_list(received, everyone if _rank() == 0 else None, 0)
    assert received == [own]
    if _rank() == 0:
        dist.send_object_list([own, "and more"], 1)
    if _rank() == 1:
        objects: list[object] = [None, None]
        assert dist.recv_object_list(objects, 0) == 0
        assert objects == [everyone[0], "and more"]
    return everyone


# --- two ranks ------------------------------------------------------------------------------------


def messages_arrive_whole_and_in_order() -> None:
    for count in (0, 1, 1009, 300_007):
        for dtype in (torch.float32, torch.bool, torch.complex64, torch.float8_e4m3fn):
            received = torch.empty(count, dtype=dtype)
            if _rank() % 2 == 0 and _rank() + 1 < _size():
                dist.send(value(_rank(), count, dtype), _rank() + 1)
                dist.recv(received, _rank() + 1)
                assert_same(received, value(_rank() + 1, count, dtype))
            elif _rank() % 2 == 1:
                dist.recv(received, _rank() - 1)
                dist.send(value(_rank(), count, dtype), _rank() - 1)
                assert_same(received, value(_rank() - 1, count, dtype))
    if _rank() == 0:
        for number in range(100):
            dist.send(torch.tensor([number]), 1)
    if _rank() == 1:
        for number in range(100):
            tensor = torch.tensor([-1])
            assert dist.recv(tensor, 0) == 0
            assert tensor.item() == number


def tags_tell_messages_apart() -> None:
    if _rank() == 0:
        works = [dist.isend(torch.tensor([float(tag)]), 1, tag=tag) for tag in range(10)]
        for work in works:
            work.wait()
    if _rank() == 1:
        for tag in reversed(range(10)):
            tensor = torch.empty(1)
            dist.recv(tensor, 0, tag=tag)
            assert tensor.item() == tag


def a_message_from_any_source_names_its_sender() -> None:
    if _rank() == 0:
        senders = set()
        for _ in range(_size() - 1):
            tensor = torch.empty(3)
            sender = dist.recv(tensor)
            assert tensor.tolist() == [float(sender)] * 3
            senders.add(sender)
        assert senders == set(range(1, _size()))
    else:
        dist.send(torch.full((3,), float(_rank())), 0)


def batches_of_messages_go_round_a_ring() -> None:
    for count in (1, 1009, 100_003):
        sent, received = value(_rank(), count), torch.empty(count)
        operations = [
            dist.P2POp(dist.isend, sent, _next()),
            dist.P2POp(dist.irecv, received, _previous()),
        ]
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        assert_same(received, value(_previous(), count))


def messages_that_are_not_contiguous_are_packed_and_unpacked() -> None:
    sent = torch.arange(12.0).reshape(3, 4).t() + _rank()
    received = torch.zeros(8, 6)[::2, ::2]
    work = dist.isend(sent, _next())
    dist.recv(received, _previous())
    work.wait()
    assert torch.equal(received, torch.arange(12.0).reshape(3, 4).t() + _previous())


def collectives_and_messages_do_not_disturb_each_other() -> Tensor:
    received = torch.empty(1009)
    work = dist.irecv(received, _previous(), tag=5)
    tensor = value(_rank(), 1009)
    dist.all_reduce(tensor)
    dist.send(value(_rank(), 1009, salt=3), _next(), tag=5)
    work.wait()
    assert_same(received, value(_previous(), 1009, salt=3))
    assert_close(tensor, _sum(1009))
    return tensor
