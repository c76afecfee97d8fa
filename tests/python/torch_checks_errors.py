"""Checks of wrong calls: refused before a byte is sent, or told to every rank with both sides."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch_values import assert_close, values

import pccl


def _rank() -> int:
    return dist.get_rank()


def _size() -> int:
    return dist.get_world_size()


def _world_still_works() -> Tensor:
    inputs = values(_size(), 101, torch.float32)
    tensor = inputs[_rank()].clone()
    dist.all_reduce(tensor)
    assert_close(tensor, torch.stack(inputs).double().sum(0).float())
    return tensor


def _refused(call: Callable[[], object], kind: type[Exception], words: str) -> None:
    """It raises, and not a byte was sent: no rank is in another call than the others."""
    dist.group.WORLD._core.barrier(0.0, True)
    before = _bytes_sent()
    with pytest.raises(kind, match=words):
        call()
    assert _bytes_sent() == before


def _bytes_sent() -> int:
    statistics = dist.group.WORLD._run.context.statistics()
    return statistics["bytes_sent_tcp"] + statistics["bytes_sent_memory"]


# --- refused at the call --------------------------------------------------------------------------


def dtypes_that_do_not_travel_are_refused() -> Tensor:
    world = dist.group.WORLD
    quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    _refused(lambda: world.broadcast([quantized]), RuntimeError, "invalid tensor type")
    for op in (dist.ReduceOp.BAND, dist.ReduceOp.BOR, dist.ReduceOp.BXOR):
        _refused(lambda op=op: dist.all_reduce(torch.ones(3), op), RuntimeError, "ReduceOp")
    small = torch.ones(3).to(torch.float8_e4m3fn)
    _refused(lambda: dist.all_reduce(small), RuntimeError, "invalid tensor type")
    truth = torch.tensor([True])
    _refused(lambda: dist.all_reduce(truth, dist.ReduceOp.AVG), RuntimeError, "not defined")
    complex_ones = torch.ones(3, dtype=torch.complex64)
    _refused(lambda: dist.all_reduce(complex_ones, dist.ReduceOp.MAX), ValueError, "complex")
    return _world_still_works()


def layouts_and_devices_that_do_not_travel_are_refused() -> Tensor:
    sparse = torch.eye(3).to_sparse()
    _refused(lambda: dist.broadcast(sparse, 0), RuntimeError, "dense")
    _refused(lambda: dist.all_reduce(sparse, dist.ReduceOp.MAX), RuntimeError, "only be summed")
    rows = torch.eye(3).to_sparse_csr()
    _refused(lambda: dist.all_reduce(rows), RuntimeError, "dense")
    meta = torch.ones(3, device="meta")
    _refused(lambda: dist.all_reduce(meta), RuntimeError, "device")
    return _world_still_works()


def sizes_that_do_not_fit_are_refused() -> Tensor:
    size, ones = _size(), torch.ones(6)
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: dist.all_gather([torch.ones(6)] * (size - 1), ones), "invalid output tensor list"),
        (lambda: dist.all_gather([torch.ones(5)] * size, ones), "invalid tensor size"),
        (lambda: dist.all_gather_into_tensor(torch.ones(6 * size + 1), ones), "tensor size"),
        (lambda: dist.reduce_scatter_tensor(torch.ones(5), ones), "tensor size"),
        (lambda: dist.reduce_scatter(ones, [torch.ones(6)] * (size + 1)), "list size"),
        (lambda: dist.all_to_all([ones] * (size - 1), [ones] * size), "tensor list"),
        (lambda: dist.all_to_all_single(torch.ones(7), torch.ones(7)), "divide equally"),
        (lambda: dist.all_to_all_single(ones, ones, [1] * size, [1] * size), "plit sizes"),
        (lambda: dist.all_to_all_single(ones, ones, [6], [6]), "splits"),
    ]
    for call, words in cases:
        _refused(call, RuntimeError, words)
    return _world_still_works()


def dtypes_that_differ_within_a_call_are_refused() -> Tensor:
    ones, doubles = torch.ones(4), torch.ones(4, dtype=torch.float64)
    lists = [doubles] * _size()
    _refused(lambda: dist.all_gather(lists, ones), (ValueError, RuntimeError), "dtype|type")
    flat = torch.ones(4 * _size(), dtype=torch.float64)
    kinds = (ValueError, RuntimeError)
    _refused(lambda: dist.all_gather_into_tensor(flat, ones), kinds, "dtype|type")
    _refused(lambda: dist.reduce_scatter_tensor(ones, flat), kinds, "dtype|type")
    _refused(lambda: dist.all_to_all_single(ones, doubles), kinds, "dtype|type")
    return _world_still_works()


def ranks_and_tags_that_do_not_exist_are_refused() -> Tensor:
    ones = torch.ones(3)
    world = dist.group.WORLD
    wrong = (ValueError, RuntimeError)
    _refused(lambda: dist.broadcast(ones, _size()), wrong, "rank|Rank")
    _refused(lambda: dist.reduce(ones, -1), wrong, "rank|Rank|index")
    _refused(lambda: world.send([ones], _size(), 0), RuntimeError, "rank")
    _refused(lambda: world.send([ones], 0, -1), RuntimeError, "Tag")
    _refused(lambda: dist.send(ones, _rank()), ValueError, "rank")
    return _world_still_works()


def what_is_no_tensor_is_refused() -> Tensor:
    _refused(lambda: dist.all_reduce([1.0, 2.0]), TypeError, "Tensor")
    _refused(lambda: dist.all_gather(torch.ones(3), torch.ones(3)), TypeError, "Tensor")
    _refused(lambda: dist.broadcast("text", 0), TypeError, "Tensor")
    return _world_still_works()


# --- told to everybody ----------------------------------------------------------------------------


def _mismatch(call: Callable[[dist.ProcessGroup], object], *words: str) -> None:
    """The call fails on every rank of a group of its own, and the words of both sides are there."""
    group = dist.new_group(timeout=timedelta(seconds=20))
    with pytest.raises(RuntimeError) as caught:  # noqa: PT012
        call(group)
        # A rank that needs nobody may be done; the next call tells it.
        dist.barrier(group=group)
    text = str(caught.value)
    assert isinstance(caught.value, pccl.CallMismatch), text
    for word in words:
        assert word in text, text
    dist.barrier()
    dist.destroy_process_group(group)


def sizes_that_differ_between_ranks_are_told_to_all() -> Tensor:
    count = 7 if _rank() == 1 else 5
    _mismatch(lambda group: dist.all_reduce(torch.ones(count), group=group), "5", "7", "rank 1")
    return _world_still_works()


def dtypes_that_differ_between_ranks_are_told_to_all() -> Tensor:
    dtype = torch.int32 if _rank() == 1 else torch.float32
    ones = torch.ones(5, dtype=dtype)
    _mismatch(lambda group: dist.all_reduce(ones, group=group), "int32", "float32", "rank 1")
    return _world_still_works()


def operators_that_differ_between_ranks_are_told_to_all() -> Tensor:
    op = dist.ReduceOp.MAX if _rank() == 1 else dist.ReduceOp.SUM
    _mismatch(lambda g: dist.all_reduce(torch.ones(5), op, group=g), "max", "sum", "rank 1")
    return _world_still_works()


def collectives_that_differ_between_ranks_are_told_to_all() -> Tensor:
    def call(group: dist.ProcessGroup) -> None:
        if _rank() == 1:
            dist.broadcast(torch.ones(5), 0, group=group)
        else:
            dist.all_reduce(torch.ones(5), group=group)

    _mismatch(call, "broadcast", "all_reduce", "rank 1")
    return _world_still_works()


def roots_that_differ_between_ranks_are_told_to_all() -> Tensor:
    root = 0 if _rank() == 1 else 2
    _mismatch(lambda g: dist.broadcast(torch.ones(5), root, group=g), "broadcast", "root")
    return _world_still_works()


def a_message_of_another_size_is_told_to_its_receiver() -> Tensor:
    group = dist.new_group(timeout=timedelta(seconds=20))
    if _rank() == 0:
        dist.isend(torch.ones(5), 1, group=group)
    if _rank() == 1:
        with pytest.raises(pccl.CallMismatch) as caught:
            dist.recv(torch.ones(7), 0, group=group)
        assert "5" in str(caught.value)
        assert "7" in str(caught.value)
    dist.barrier()
    dist.destroy_process_group(group)
    return _world_still_works()
