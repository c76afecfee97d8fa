"""pccl.init and Communicator over numpy: every method against numpy, then byte by byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from thread_ranks import run_ranks

import pccl
from pccl import Communicator

Array = np.ndarray[Any, Any]

WORLD_SIZES = [1, 2, 3, 4]
# 0, 1, a prime, and more than a segment of the wire.
COUNTS = [0, 1, 1009, 300_007]
CONFIGS = {
    "memory": pccl.Config(bind="127.0.0.1"),
    "tcp": pccl.Config(bind="127.0.0.1", shared_memory=False),
    "tcp, 3 sockets": pccl.Config(bind="127.0.0.1", shared_memory=False, sockets=3),
}
INTEGERS = [
    *("int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
]
FLOATS = ["float64", "float32", "float16"]
DTYPES = [*FLOATS, *INTEGERS, "bool", "complex64", "complex128"]
TOLERANCES = {"float16": 4e-3, "float32": 1e-5, "complex64": 1e-5}


def value(rank: int, count: int, dtype: str = "float32", salt: int = 0) -> Array:
    """The input of `rank`: the same wherever it is computed."""
    generator = np.random.default_rng([rank, salt])
    if dtype == "bool" or dtype in INTEGERS:
        return generator.integers(0, 2 if dtype == "bool" else 4, count).astype(dtype)
    numbers = generator.uniform(-1, 1, count)
    if dtype.startswith("complex"):
        return (numbers + 1j * numbers[::-1]).astype(dtype)
    return numbers.astype(dtype)


def values(world_size: int, count: int, dtype: str = "float32", salt: int = 0) -> list[Array]:
    return [value(rank, count, dtype, salt) for rank in range(world_size)]


def reduced(inputs: list[Array], op: str) -> Array:
    """The reference, in wider numbers."""
    dtype = inputs[0].dtype
    stack = np.stack(inputs)
    if dtype.kind == "f":
        stack = stack.astype(np.float64)
    if dtype.kind == "b":
        logical = {"sum": np.any, "product": np.all, "min": np.all, "max": np.any}
        if op in logical:
            return np.asarray(logical[op](stack, 0))
    if op == "avg":
        total = stack.sum(0, dtype=np.int64) if dtype.kind in "iu" else stack.sum(0)
        result = total // len(inputs) if dtype.kind in "iu" else total / len(inputs)
    else:
        ufunc = {
            "sum": np.add,
            "product": np.multiply,
            "min": np.minimum,
            "max": np.maximum,
            "band": np.bitwise_and,
            "bor": np.bitwise_or,
            "bxor": np.bitwise_xor,
        }[op]
        result = ufunc.reduce(stack, 0)
    return np.asarray(result).astype(dtype)


def assert_close(actual: Array, expected: Array) -> None:
    tolerance = TOLERANCES.get(str(actual.dtype), 0.0)
    if tolerance == 0.0 and actual.dtype.kind in "fc":
        tolerance = 1e-12
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def assert_same_everywhere(results: list[Array]) -> None:
    assert len({result.tobytes() for result in results}) == 1


# --- what is reduced ------------------------------------------------------------------------------


def ops_of(dtype: str) -> list[str]:
    ops = ["sum", "product"]
    ops += ["avg"] if dtype != "bool" else []
    ops += ["min", "max"] if not dtype.startswith("complex") else []
    ops += ["band", "bor", "bxor"] if dtype in (*INTEGERS, "bool") else []
    return ops


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_all_reduce_is_right_for_every_dtype_and_op(world_size: int) -> None:
    cases = [(dtype, op) for dtype in DTYPES for op in ops_of(dtype)]

    def rank(comm: Communicator) -> list[Array]:
        arrays = []
        for dtype, op in cases:
            array = value(comm.rank, 1009, dtype)
            assert comm.all_reduce(array, op) is None
            arrays.append(array)
        return arrays

    results = run_ranks(world_size, rank)
    for index, (dtype, op) in enumerate(cases):
        assert_close(results[0][index], reduced(values(world_size, 1009, dtype), op))
        assert_same_everywhere([arrays[index] for arrays in results])


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_all_reduce_is_right_for_every_size_on_every_road(world_size: int, config: str) -> None:
    counts = [*COUNTS, 2_000_003]

    def rank(comm: Communicator) -> list[Array]:
        arrays = [value(comm.rank, count) for count in counts]
        for array in arrays:
            comm.all_reduce(array)
        return arrays

    results = run_ranks(world_size, rank, CONFIGS[config])
    for index, count in enumerate(counts):
        assert_close(results[0][index], reduced(values(world_size, count), "sum"))
        assert_same_everywhere([arrays[index] for arrays in results])


@pytest.mark.parametrize(
    "algorithm",
    ["ring", "direct", "doubling", "exchange", "halving_doubling", "double_binary_tree"],
)
def test_every_algorithm_by_name_gives_the_same_bytes_twice(algorithm: str) -> None:
    config = pccl.Config(bind="127.0.0.1", algorithm=algorithm)

    def rank(comm: Communicator) -> list[Array]:
        arrays = [value(comm.rank, count) for count in COUNTS for _ in range(2)]
        for array in arrays:
            comm.all_reduce(array)
        return arrays

    for world_size in (3, 4):
        results = run_ranks(world_size, rank, config)
        for index in range(0, 2 * len(COUNTS), 2):
            assert_close(results[0][index], reduced(values(world_size, COUNTS[index // 2]), "sum"))
            assert_same_everywhere([a[i] for a in results for i in (index, index + 1)])


def test_premul_sum_multiplies_each_contribution_by_its_own_factor() -> None:
    def rank(comm: Communicator) -> Array:
        array = value(comm.rank, 1009)
        comm.all_reduce(array, "premul_sum", factor=comm.rank + 0.5)
        return array

    results = run_ranks(3, rank)
    scaled = [value(r, 1009) * np.float32(r + 0.5) for r in range(3)]
    assert_close(results[0], reduced(scaled, "sum"))
    assert_same_everywhere(results)


def test_names_of_operators_have_the_usual_aliases() -> None:
    def rank(comm: Communicator) -> list[Array]:
        arrays = [np.full(2, comm.rank + 1.0) for _ in range(3)]
        comm.all_reduce(arrays[0], "mean")
        comm.all_reduce(arrays[1], "prod")
        comm.all_reduce(arrays[2], "SUM")
        return arrays

    assert [a.tolist() for a in run_ranks(2, rank)[0]] == [[1.5] * 2, [2.0] * 2, [3.0] * 2]


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_reduce_changes_the_array_of_its_root_only(world_size: int) -> None:
    def rank(comm: Communicator) -> None:
        for root in range(world_size):
            for count in COUNTS:
                array = value(comm.rank, count, salt=root)
                array.flags.writeable = comm.rank == root
                comm.reduce(array, root, "avg")
                if comm.rank == root:
                    assert_close(array, reduced(values(world_size, count, salt=root), "avg"))
                else:
                    assert array.tobytes() == value(comm.rank, count, salt=root).tobytes()

    run_ranks(world_size, rank)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_reduce_scatter_leaves_each_rank_its_part(world_size: int) -> None:
    def rank(comm: Communicator) -> None:
        for count in COUNTS:
            inputs = [value(comm.rank, count, salt=to) for to in range(world_size)]
            expected = reduced(values(world_size, count, salt=comm.rank), "sum")
            listed, single = np.empty_like(expected), np.empty_like(expected)
            comm.reduce_scatter(listed, inputs)
            comm.reduce_scatter_tensor(single, np.concatenate(inputs))
            assert_close(listed, expected)
            assert listed.tobytes() == single.tobytes()
        counts = [5 * to for to in range(world_size)]
        uneven = [value(comm.rank, n, salt=to) for to, n in enumerate(counts)]
        own = np.empty(counts[comm.rank], np.float32)
        comm.reduce_scatter(own, uneven, "max")
        assert_close(own, reduced(values(world_size, len(own), salt=comm.rank), "max"))

    run_ranks(world_size, rank)


# --- what is moved --------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_broadcast_and_all_gather_move_every_dtype(world_size: int) -> None:
    def rank(comm: Communicator) -> None:
        for dtype in DTYPES:
            for count in COUNTS if dtype == "float32" else [1009]:
                root = count % world_size
                array = value(comm.rank, count, dtype)
                array.flags.writeable = comm.rank != root
                comm.broadcast(array, root)
                assert array.tobytes() == value(root, count, dtype).tobytes()
                every = values(world_size, count, dtype)
                listed = [np.empty_like(array) for _ in every]
                single = np.empty(world_size * count, dtype)
                comm.all_gather(listed, every[comm.rank])
                comm.all_gather_into_tensor(single, every[comm.rank])
                assert single.tobytes() == np.concatenate(every).tobytes()
                assert np.concatenate(listed).tobytes() == single.tobytes()

    run_ranks(world_size, rank)


def test_all_gather_takes_arrays_of_different_sizes() -> None:
    def rank(comm: Communicator) -> None:
        counts = [0, 1009, 3]
        outputs = [np.empty(count, np.float32) for count in counts]
        comm.all_gather(outputs, value(comm.rank, counts[comm.rank]))
        for other, count in enumerate(counts):
            assert outputs[other].tobytes() == value(other, count).tobytes()

    run_ranks(3, rank)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_gather_and_scatter_work_from_every_root(world_size: int) -> None:
    def rank(comm: Communicator) -> None:
        for root in range(world_size):
            for count in COUNTS:
                every = values(world_size, count, salt=root)
                is_root = comm.rank == root
                outputs = [np.empty(count, np.float32) for _ in every] if is_root else None
                comm.gather(every[comm.rank], outputs, root)
                if outputs is not None:
                    assert np.stack(outputs).tobytes() == np.stack(every).tobytes()
                own = np.empty(count, np.float32)
                comm.scatter(own, every if is_root else None, root)
                assert own.tobytes() == every[comm.rank].tobytes()

    run_ranks(world_size, rank)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_all_to_all_exchanges_arrays_of_any_sizes(world_size: int) -> None:
    def count(source: int, target: int) -> int:
        return (source * 7 + target * 3) % 5 * 101  # 0 among them

    def rank(comm: Communicator) -> None:
        own, every = comm.rank, range(world_size)
        inputs = [value(own, count(own, to), salt=to) for to in every]
        outputs = [np.empty(count(source, own), np.float32) for source in every]
        comm.all_to_all(outputs, inputs)
        expected = [value(source, count(source, own), salt=own) for source in every]
        assert [o.tobytes() for o in outputs] == [e.tobytes() for e in expected]
        flat = np.empty(sum(map(len, expected)), np.float32)
        comm.all_to_all_single(
            flat, np.concatenate(inputs), [len(e) for e in expected], [len(i) for i in inputs]
        )
        assert flat.tobytes() == np.concatenate(expected).tobytes()
        rows = np.full((2 * world_size, 3), own, np.int32)
        received = np.empty_like(rows)
        comm.all_to_all_single(received, rows)
        assert received[:, 0].tolist() == [source for source in every for _ in range(2)]

    run_ranks(world_size, rank)


# --- works, messages, barriers --------------------------------------------------------------------


def test_operations_in_flight_may_be_waited_for_in_any_order() -> None:
    def rank(comm: Communicator) -> list[Array]:
        arrays = [value(comm.rank, 1 + 37 * index, salt=index) for index in range(100)]
        works = [comm.all_reduce(array, async_op=True) for array in arrays]
        for work in reversed(works):
            assert isinstance(work, pccl.Work)
            work.wait()
            assert work.is_completed()
            assert work.exception() is None
            assert work.operation == "all_reduce"
        return arrays

    results = run_ranks(3, rank)
    for index, array in enumerate(results[0]):
        assert_close(array, reduced(values(3, len(array), salt=index), "sum"))
        assert_same_everywhere([arrays[index] for arrays in results])


def test_messages_arrive_in_order_by_tag_and_from_anybody() -> None:
    def rank(comm: Communicator) -> None:
        if comm.rank == 0:
            senders = set()
            for _ in range(2):
                array = np.empty(3, np.float32)
                sender = comm.recv(array)
                assert array.tobytes() == value(sender, 3).tobytes()
                senders.add(sender)
            assert senders == {1, 2}
            for count in COUNTS:
                array = np.empty(count, np.float32)
                assert comm.recv(array, 1, tag=5) == 1
                assert array.tobytes() == value(1, count).tobytes()
            work = comm.irecv(array, 2, tag=6)
            comm.send(array, 2, tag=7)
            work.wait()
            assert work.source_rank == 2
        else:
            comm.send(value(comm.rank, 3), 0)
            if comm.rank == 1:
                works = [comm.isend(value(1, count), 0, tag=5) for count in COUNTS]
                for work in works:
                    work.wait()
            else:
                array = np.empty(COUNTS[-1], np.float32)
                comm.recv(array, 0, tag=7)
                comm.send(array, 0, tag=6)

    run_ranks(3, rank)


def test_barriers_return_everywhere() -> None:
    def rank(comm: Communicator) -> None:
        comm.barrier()
        work = comm.barrier(async_op=True)
        assert work is not None
        work.wait()
        comm.monitored_barrier()
        comm.monitored_barrier(wait_all_ranks=True)

    run_ranks(4, rank)
