"""Communicator: groups, the end, arrays of other libraries, and calls that are refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from thread_ranks import ThreadStore, run_ranks, run_threads

import pccl
from pccl import Communicator

Array = np.ndarray[Any, Any]
QUICK = pccl.Config(bind="127.0.0.1", connect_timeout_seconds=30)


def open_alone() -> Communicator:
    return pccl.init(rank=0, world_size=1, store=ThreadStore(), config=QUICK)


# --- groups ---------------------------------------------------------------------------------------


def test_a_new_group_has_its_own_ranks_in_the_order_of_the_list() -> None:
    def rank(comm: Communicator) -> None:
        group = comm.new_group([2, 0])
        if comm.rank == 1:
            assert group is None
            return
        assert group is not None
        with group:
            assert group.world_size == 2
            assert group.rank == [2, 0].index(comm.rank)
            array = np.array([float(comm.rank)])
            group.broadcast(array, 0)
            assert array.tolist() == [2.0]
            inner = group.new_group([1])
            assert inner is not None or group.rank == 0
            if inner is not None:
                inner.all_reduce(array)
                inner.close()

    run_ranks(3, rank)


def test_the_same_ranks_may_form_a_group_again_and_again() -> None:
    def rank(comm: Communicator) -> None:
        for _ in range(5):
            with comm.new_group([0, 1]) as group:  # type: ignore[union-attr]
                array = np.ones(3)
                group.all_reduce(array)
                assert array.tolist() == [2.0] * 3
        first, second = comm.new_group([0, 1]), comm.new_group([0, 1])
        assert first is not None
        assert second is not None
        order = [first, second] if comm.rank else [second, first]
        arrays = [np.ones(1), np.ones(1)]
        works = [g.all_reduce(a, async_op=True) for g, a in zip(order, arrays, strict=True)]
        for work in works:
            assert work is not None
            work.wait()

    run_ranks(2, rank)


def test_split_forms_groups_by_color_in_the_order_of_the_key() -> None:
    def rank(comm: Communicator) -> tuple[int, int] | None:
        color = None if comm.rank == 3 else comm.rank % 2
        group = comm.split(color, key=-comm.rank, timeout_seconds=7)
        if group is None:
            return None
        assert group.timeout_seconds == 7
        array = np.array([comm.rank])
        group.all_reduce(array)
        result = (group.rank, int(array[0]))
        group.close()
        return result

    assert run_ranks(4, rank) == [(1, 2), (0, 1), (0, 2), None]


def test_a_group_outlives_the_world_that_made_it() -> None:
    store = ThreadStore()

    def rank(number: int) -> None:
        comm = pccl.init(rank=number, world_size=2, store=store, config=QUICK)
        group = comm.new_group([0, 1])
        assert group is not None
        comm.close()
        comm.close()  # idempotent
        array = np.ones(2)
        group.all_reduce(array)
        assert array.tolist() == [2.0, 2.0]
        group.close()

    run_threads(2, rank)


# --- time and the end -----------------------------------------------------------------------------


ROADS = {
    "memory": QUICK,
    "tcp": pccl.Config(bind="127.0.0.1", shared_memory=False),
    "tcp, 3 sockets": pccl.Config(bind="127.0.0.1", shared_memory=False, sockets=3),
}


@pytest.mark.parametrize("road", ROADS)
def test_a_rank_that_is_done_leaves_without_harm_to_the_others(road: str) -> None:
    """Each operation is the last of its world: who has its part closes at once."""

    def last(name: str, comm: Communicator) -> None:
        size, is_root = comm.world_size, comm.rank == 0
        one, every = np.ones(1009, np.float32), np.ones(1009 * size, np.float32)
        counts = [1009 * rank for rank in range(size)]  # none for rank 0
        if name == "reduce":
            comm.reduce(one, 0)
        elif name == "broadcast":
            comm.broadcast(one, 0)
        elif name == "gather":
            comm.gather(one, list(np.split(every, size)) if is_root else None, 0)
        elif name == "scatter":
            comm.scatter(one, list(np.split(every, size)) if is_root else None, 0)
        elif name == "reduce_scatter":
            comm.reduce_scatter_tensor(one, every)
        elif name == "reduce_scatter, uneven":
            inputs = [np.ones(count, np.float32) for count in counts]
            comm.reduce_scatter(np.empty(counts[comm.rank], np.float32), inputs)
        elif name == "all_gather, uneven":
            outputs = [np.ones(count, np.float32) for count in counts]
            comm.all_gather(outputs, np.ones(counts[comm.rank], np.float32))
        else:
            comm.barrier()

    names = ["reduce", "broadcast", "gather", "scatter", "reduce_scatter"]
    names += ["reduce_scatter, uneven", "all_gather, uneven", "barrier"]
    for name in names:
        for _ in range(10):
            run_ranks(4, lambda comm, name=name: last(name, comm), ROADS[road])


def test_an_operation_ends_at_its_own_timeout_and_names_who_is_missing() -> None:
    def rank(comm: Communicator) -> str:
        if comm.rank == 1:
            return ""
        started = time.monotonic()
        with pytest.raises(pccl.CollectiveTimeout) as caught:
            comm.all_reduce(np.ones(3), timeout_seconds=0.3)
        assert 0.25 < time.monotonic() - started < 10
        return str(caught.value)

    store = ThreadStore()
    done: list[str] = []

    def run(number: int) -> None:
        comm = pccl.init(rank=number, world_size=2, store=store, config=QUICK)
        text = rank(comm)
        while number == 1 and not done:  # stays, and does not call
            time.sleep(0.01)
        done.append(text)
        comm.close()

    run_threads(2, run)
    text = next(text for text in done if text)
    assert "all_reduce" in text
    assert "rank 1 (127.0.0.1:" in text


def test_the_default_timeout_can_be_read_and_set() -> None:
    with open_alone() as comm:
        assert comm.timeout_seconds == 1800
        comm.timeout_seconds = 3
        assert comm.timeout_seconds == 3
        for wrong in (0, -1, float("inf"), float("nan")):
            with pytest.raises(ValueError, match="timeout_seconds"):
                comm.timeout_seconds = wrong


def test_abort_tells_its_reason_to_every_rank() -> None:
    def rank(comm: Communicator) -> str:
        if comm.rank == 2:
            comm.recv(np.empty(1), 0)
            comm.abort("the loss is NaN")
        else:
            work = comm.all_reduce(np.ones(3), async_op=True)
            assert work is not None
            if comm.rank == 0:
                comm.send(np.ones(1), 2)
            with pytest.raises(pccl.Aborted, match="the loss is NaN"):
                work.wait()
            assert isinstance(work.exception(), pccl.Aborted)
        with pytest.raises(pccl.Aborted) as caught:
            comm.all_reduce(np.ones(3))
        return str(caught.value)

    assert all("the loss is NaN" in text for text in run_ranks(3, rank))


def test_a_rank_that_leaves_with_an_error_tells_the_others_which() -> None:
    def rank(comm: Communicator) -> None:
        if comm.rank == 1:
            raise ZeroDivisionError("planted")
        with pytest.raises(pccl.Aborted, match="ZeroDivisionError: planted"):
            comm.all_reduce(np.ones(3))

    for _ in range(50):  # it may go before anybody has called it, while they call, and after
        with pytest.raises(ZeroDivisionError, match="planted"):
            run_ranks(3, rank)


def test_a_closed_communicator_refuses_every_call() -> None:
    comm = open_alone()
    comm.close()
    with pytest.raises(pccl.Aborted):
        comm.all_reduce(np.ones(1))
    with pytest.raises(pccl.Aborted):
        comm.barrier()


def test_statistics_count_bytes_and_operations() -> None:
    def rank(comm: Communicator) -> dict[str, int]:
        comm.all_reduce(np.ones(100_000, np.float32))
        statistics = comm.statistics()
        comm.barrier()  # a rank that leaves takes its connection along
        return statistics

    for statistics in run_ranks(2, rank, pccl.Config(bind="127.0.0.1", shared_memory=False)):
        assert statistics["connections"] == 1
        assert statistics["refused_connections"] == 0
        assert statistics["bytes_sent_tcp"] >= 200_000
        assert statistics["bytes_sent_memory"] == 0


def test_plan_names_the_algorithm_of_a_call_and_refuses_what_it_does_not_know() -> None:
    def rank(comm: Communicator) -> tuple[str, str]:
        with pytest.raises(ValueError, match="dtype"):
            comm.plan("all_reduce", 1, "float31")
        with pytest.raises(ValueError, match="all_produce"):
            comm.plan("all_produce", 1)
        return comm.plan("all_reduce", 1), comm.plan("all_reduce", 10**8)

    config = pccl.Config(bind="127.0.0.1")
    for small, large in run_ranks(4, rank, config):
        assert small == "doubling"
        assert large in {"ring", "direct", "halving_doubling"}
    config = pccl.Config(bind="127.0.0.1", algorithm="ring")
    assert run_ranks(3, lambda comm: comm.plan("all_reduce", 1), config) == ["ring"] * 3


# --- arrays ---------------------------------------------------------------------------------------


def test_bfloat16_and_float8_of_ml_dtypes_travel() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")

    def rank(comm: Communicator) -> None:
        array = np.arange(1009).astype(ml_dtypes.bfloat16)
        expected = (array.astype(np.float32) * 2).astype(ml_dtypes.bfloat16)
        comm.all_reduce(array)
        assert array.tobytes() == expected.tobytes()
        small = np.full(9, comm.rank, np.uint8).view(ml_dtypes.float8_e4m3fn)
        comm.broadcast(small, 1)
        assert small.view(np.uint8).tolist() == [1] * 9
        with pytest.raises(ValueError, match="'sum' is not defined for float8"):
            comm.all_reduce(small)

    run_ranks(2, rank)


def test_tensors_of_torch_travel_by_dlpack() -> None:
    torch = pytest.importorskip("torch")

    def rank(comm: Communicator) -> None:
        tensors = [
            torch.full((1009,), comm.rank + 1.0, dtype=d) for d in (torch.float32, torch.bfloat16)
        ]
        for tensor in tensors:
            comm.all_reduce(tensor)
            assert torch.equal(tensor, torch.full_like(tensor, 3.0))
        output = torch.empty(2, 6)
        comm.all_gather_into_tensor(output, torch.arange(12.0).reshape(6, 2)[:, comm.rank])
        assert output.tolist() == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]
        with pytest.raises(ValueError, match="contiguous"):
            comm.all_reduce(torch.ones(4, 4).t()[:2])

    run_ranks(2, rank)


def test_an_input_that_is_not_contiguous_is_copied() -> None:
    def rank(comm: Communicator) -> None:
        square = np.arange(16.0).reshape(4, 4)
        output = np.empty((2, 4))
        comm.all_gather_into_tensor(output, square[:, comm.rank])
        assert output.tolist() == [[0, 4, 8, 12], [1, 5, 9, 13]]
        scalar = np.array(2.0)
        comm.all_reduce(scalar)
        assert scalar == 4.0

    run_ranks(2, rank)


def _read_only(count: int) -> Array:
    array = np.ones(count)
    array.flags.writeable = False
    return array


REFUSED: dict[str, tuple[type[Exception], str, Callable[[Communicator], object]]] = {
    "a list": (TypeError, "tensor", lambda c: c.all_reduce([1.0])),
    "a read-only array": (ValueError, "read-only", lambda c: c.all_reduce(_read_only(3))),
    "a transposed array": (ValueError, "contiguous", lambda c: c.all_reduce(np.ones((2, 3)).T)),
    "objects": (ValueError, "dtype", lambda c: c.all_reduce(np.array([None]))),
    "text": (ValueError, "dtype", lambda c: c.broadcast(np.array(["a"]), 0)),
    "another byte order": (ValueError, "byte order", lambda c: c.broadcast(np.ones(1, ">f8"), 0)),
    "an unknown op": (ValueError, "'median'", lambda c: c.all_reduce(np.ones(1), "median")),
    "an op that is no name": (TypeError, "op", lambda c: c.all_reduce(np.ones(1), 3)),  # type: ignore[arg-type]
    "bits of floats": (ValueError, "not defined", lambda c: c.all_reduce(np.ones(1), "band")),
    "a factor of a sum": (ValueError, "factor", lambda c: c.all_reduce(np.ones(1), factor=2.0)),
    "a root too large": (ValueError, "src", lambda c: c.broadcast(np.ones(1), 1)),
    "a root below 0": (ValueError, "dst", lambda c: c.reduce(np.ones(1), -1)),
    "a root that is no number": (TypeError, "src", lambda c: c.broadcast(np.ones(1), "0")),  # type: ignore[arg-type]
    "a root that is a truth": (TypeError, "src", lambda c: c.broadcast(np.ones(1), True)),
    "itself": (ValueError, "another rank", lambda c: c.send(np.ones(1), 0)),
    "itself, later": (ValueError, "another rank", lambda c: c.isend(np.ones(1), 0)),
    "a tag below 0": (ValueError, "tag", lambda c: c.recv(np.ones(1), None, -1)),
    "too few arrays": (ValueError, "one array a rank", lambda c: c.all_gather([], np.ones(1))),
    "no list": (TypeError, "list", lambda c: c.all_gather(np.ones((1, 1)), np.ones(1))),
    "a size that differs": (
        ValueError,
        "one dtype and count",
        lambda c: c.all_gather([np.ones(2)], np.ones(1)),
    ),
    "a dtype that differs": (
        ValueError,
        "one dtype and count",
        lambda c: c.reduce_scatter(np.ones(1), [np.ones(1, np.int32)]),
    ),
    "an output too large": (
        ValueError,
        "1 times",
        lambda c: c.all_gather_into_tensor(np.ones(3), np.ones(2)),
    ),
    "no gather_list": (ValueError, "gather_list", lambda c: c.gather(np.ones(1))),
    "no scatter_list": (ValueError, "scatter_list", lambda c: c.scatter(np.ones(1))),
    "splits that do not add up": (
        ValueError,
        "input_split_sizes",
        lambda c: c.all_to_all_single(np.ones(3), np.ones(3), [3], [2]),
    ),
    "an empty group": (ValueError, "ranks", lambda c: c.new_group([])),
    "a group with a rank twice": (ValueError, "ranks", lambda c: c.new_group([0, 0])),
    "a group with a stranger": (ValueError, "ranks", lambda c: c.new_group([0, 1])),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_call_is_refused_at_once(name: str) -> None:
    kind, words, call = REFUSED[name]
    with open_alone() as comm:
        with pytest.raises(kind, match=words):
            call(comm)
        comm.barrier()  # still in use


def test_a_refused_call_leaves_the_ranks_in_step() -> None:
    both_have_looked = threading.Barrier(2, timeout=20)  # nothing of the next call has come before

    def rank(comm: Communicator) -> None:
        comm.barrier()
        before = comm.statistics()
        with pytest.raises(ValueError, match="contiguous"):
            comm.all_reduce(np.ones((9, 9))[:, 1])
        assert comm.statistics() == before
        both_have_looked.wait()
        array = np.ones(3)
        comm.all_reduce(array)
        assert array.tolist() == [2.0] * 3

    run_ranks(2, rank)


def test_calls_that_differ_are_an_error_on_every_rank_that_names_both() -> None:
    def rank(comm: Communicator) -> str:
        array = np.ones(7 if comm.rank == 1 else 5, np.float32)
        with pytest.raises(pccl.CallMismatch) as caught:  # noqa: PT012
            comm.all_reduce(array)
            comm.barrier()
        return str(caught.value)

    for text in run_ranks(3, rank):
        assert "float32[5]" in text
        assert "float32[7]" in text


# --- init -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"init_method": "http://host:1"}, "init_method"),
        ({"init_method": "tcp://host"}, "init_method"),
        ({"init_method": "tcp://host:99999"}, "init_method"),
        ({"init_method": "file://host/x"}, "init_method"),
        ({"init_method": "tcp://127.0.0.1:1"}, "rank and world_size"),
        ({"init_method": "tcp://127.0.0.1:1", "rank": 2, "world_size": 2}, "rank"),
        ({"init_method": "tcp://127.0.0.1:1", "rank": -1, "world_size": 2}, "rank"),
        ({"store": ThreadStore()}, "rank and world_size"),
    ],
)
def test_init_refuses_what_it_cannot_understand(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pccl.init(config=QUICK, **arguments)
