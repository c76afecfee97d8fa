"""Checks of streams: what a collective reads is written, what it wrote can be read.

A kernel that sleeps holds up the stream that the values come from, so that whoever does not wait
for it sees what was there before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch_values import Op, assert_close, assert_same, reduced, values

import pccl

COUNT = 1 << 18
CYCLES = 200_000_000  # about 0.1 s of a GPU


def _late(count: int = COUNT) -> tuple[Tensor, Tensor]:
    """A tensor whose values come late on the current stream; and what the sum of all must be."""
    inputs = values(dist.get_world_size(), count, torch.float32)
    tensor = torch.full((count,), torch.nan)
    torch.cuda.synchronize()
    _sleep(CYCLES)
    tensor.copy_(inputs[dist.get_rank()], non_blocking=True)
    return tensor, reduced(inputs, Op.SUM)


def values_that_come_late_on_a_stream_are_waited_for() -> list[Tensor]:
    results = []
    for codec in ("none", "int8"):
        with torch.cuda.stream(_stream()), pccl.quantized(codec):
            tensor, expected = _late()
            dist.all_reduce(tensor)
            results.append(tensor.clone())
        torch.cuda.synchronize()
        _assert_near(results[-1], expected, codec)
    return results


def another_stream_waits_for_the_result() -> list[Tensor]:
    """wait() on a stream orders what comes behind it there, though the launch was on another."""
    results = []
    for codec in ("none", "int8"):
        with torch.cuda.stream(_stream()), pccl.quantized(codec):
            tensor, expected = _late()
            work: Any = dist.all_reduce(tensor, async_op=True)
        with torch.cuda.stream(_stream()):
            work.wait()
            results.append(tensor.clone())
        with torch.cuda.stream(_stream()):
            work.wait()  # once more, elsewhere
            again = tensor.clone()
        torch.cuda.synchronize()
        _assert_near(results[-1], expected, codec)
        assert_same(again, results[-1])
    return results


def a_callback_of_the_future_sees_the_result() -> list[Tensor]:
    results = []
    for codec in ("none", "int8"):
        with pccl.quantized(codec):
            tensor, expected = _late()
            work: Any = dist.all_reduce(tensor, async_op=True)
        doubled = work.get_future().then(lambda done: done.value()[0] * 2).wait()
        _assert_near(doubled / 2, expected, codec)
        results.append(doubled)
    return results


def the_memory_of_a_result_may_go_at_once() -> list[Tensor]:
    """What is freed while copies are under way is not given to anybody before they are done."""
    results = []
    for number in range(8):
        inputs = values(dist.get_world_size(), COUNT, torch.float32, salt=number)
        with torch.cuda.stream(_stream()), pccl.quantized("int8" if number % 2 else "none"):
            tensor = inputs[dist.get_rank()].clone()
            works: list[Any] = [dist.all_reduce(tensor, async_op=True)]
            other = torch.full((COUNT,), torch.nan)  # may get the memory of what is gone
            works[0].wait()
            results.append(tensor + 0 * other.nan_to_num())
            del tensor, other, works
        torch.cuda.synchronize()
        _assert_near(results[-1], reduced(inputs, Op.SUM), "int8" if number % 2 else "none")
    return results


def every_collective_takes_what_comes_late() -> list[Tensor]:
    rank, size = dist.get_rank(), dist.get_world_size()
    inputs = values(size, size * 1000, torch.float32)

    def late(source: Tensor) -> Tensor:
        tensor = torch.full_like(source, torch.nan)
        torch.cuda.synchronize()
        _sleep(CYCLES // 4)
        return tensor.copy_(source, non_blocking=True)

    def gathered() -> Tensor:
        target = torch.empty(size * size * 1000)
        dist.all_gather_into_tensor(target, late(inputs[rank]))
        return target

    def scattered() -> Tensor:
        target = torch.empty(1000)
        dist.reduce_scatter_tensor(target, late(inputs[rank]))
        return target

    def exchanged() -> Tensor:
        target = torch.empty(size * 1000)
        dist.all_to_all_single(target, late(inputs[rank]))
        return target

    def sent() -> Tensor:
        target = torch.empty(size * 1000)
        works = [
            dist.isend(late(inputs[rank]), (rank + 1) % size),
            dist.irecv(target, (rank - 1) % size),
        ]
        for work in works:
            assert work is not None
            work.wait()
        return target

    def spread() -> Tensor:
        tensor = late(inputs[1]) if rank == 1 else torch.zeros(size * 1000)
        dist.broadcast(tensor, 1)
        return tensor

    mine = slice(rank * 1000, (rank + 1) * 1000)
    wanted: list[tuple[Callable[[], Tensor], Tensor]] = [
        (gathered, torch.cat(inputs)),
        (exchanged, torch.cat([tensor[mine] for tensor in inputs])),
        (sent, inputs[rank - 1]),
        (spread, inputs[1]),
    ]
    for operation, expected in wanted:
        with torch.cuda.stream(_stream()):
            found = operation()
            assert_same(found, expected)
    assert_close(scattered(), reduced(inputs, Op.SUM)[mine])
    return [gathered(), spread()]


def _sleep(cycles: int) -> None:
    torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]


def _stream() -> Any:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def _assert_near(found: Tensor, expected: Tensor, codec: str) -> None:
    if codec == "none":
        assert_close(found, expected)
    else:
        assert (found - expected).norm() < 0.015 * expected.norm()
