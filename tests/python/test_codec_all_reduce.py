"""all_reduce in a codec: the same bytes on every rank, as exact as the codec is, and refusals."""

import hashlib
from typing import Any

import numpy as np
import pytest
from thread_ranks import run_ranks

import pccl

# Relative L2 error of an average of a few contributions: above what each codec has for normal
# values, far below what a wrong scale or a lost contribution makes.
ERRORS = {"bf16": 0.01, "fp16": 0.002, "int8": 0.02, "int6": 0.08, "int4": 0.25, "fp8_e4m3": 0.08}
PREMUL = 0.5


def values(rank: int, count: int, dtype: str) -> "np.ndarray[Any, Any]":
    return np.random.default_rng(rank).normal(size=count).astype(dtype)


def all_reduce(comm: pccl.Communicator, spec: dict[str, Any]) -> tuple[str, float]:
    """Digest of the result, and its relative error."""
    count, dtype, op = spec["count"], spec.get("dtype", "float32"), spec.get("op", "sum")
    weights = [rank + 1.0 for rank in range(comm.world_size)]
    factor = {"premul_sum": PREMUL, "weighted_avg": weights[comm.rank]}.get(op, 1.0)
    tensor = values(comm.rank, count, dtype)
    exact = np.zeros(count)
    for rank in range(comm.world_size):
        weight = {"premul_sum": PREMUL, "weighted_avg": weights[rank]}.get(op, 1.0)
        exact += weight * values(rank, count, dtype).astype(np.float64)
    exact /= {"avg": comm.world_size, "weighted_avg": sum(weights)}.get(op, 1.0)
    comm.all_reduce(tensor, op, factor=factor, codec=spec["codec"])
    error = np.linalg.norm(tensor.astype(np.float64) - exact) / np.linalg.norm(exact)
    return hashlib.sha256(tensor.tobytes()).hexdigest(), float(error)


def check(world_size: int, spec: dict[str, Any], algorithm: str = "auto", **config: Any) -> None:
    config = {"bind": "127.0.0.1", "algorithm": algorithm, **config}
    results = run_ranks(world_size, lambda c: all_reduce(c, spec), pccl.Config(**config))
    assert len({digest for digest, _ in results}) == 1, (spec, results)
    # Inner ranks of a tree encode again, and those of a ring at every step.
    limit = ERRORS[spec["codec"].partition(":")[0]] * (3 if algorithm == "ring" else 1)
    assert results[0][1] < limit, (spec, results)


@pytest.mark.parametrize("shared_memory", [True, False])
@pytest.mark.parametrize("codec", [*ERRORS, "int8:stochastic", "int4:mse_clip", "int4:hadamard"])
def test_every_codec(codec: str, shared_memory: bool) -> None:
    check(3, {"codec": codec, "count": 300_001}, shared_memory=shared_memory)


@pytest.mark.parametrize(
    "algorithm", ["direct", "halving_doubling", "exchange", "double_binary_tree", "ring"]
)
@pytest.mark.parametrize("world_size", [2, 5])
def test_every_algorithm(algorithm: str, world_size: int) -> None:
    check(world_size, {"codec": "int8", "count": 70_003}, algorithm)


@pytest.mark.parametrize("op", ["sum", "avg", "premul_sum", "weighted_avg"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_every_dtype_and_operator(op: str, dtype: str) -> None:
    check(3, {"codec": "int8", "count": 4097, "op": op, "dtype": dtype})


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257])
def test_small_tensors(count: int) -> None:
    check(4, {"codec": "int8", "count": count})


def test_one_rank_alone_still_gets_what_the_codec_makes_of_it() -> None:
    [(_, error)] = run_ranks(1, lambda comm: all_reduce(comm, {"codec": "int4", "count": 1000}))
    assert 0 < error < ERRORS["int4"]


def test_zeros_stay_zeros_and_nothing_is_sent_for_an_empty_tensor() -> None:
    def zeros(comm: pccl.Communicator) -> bool:
        tensor = np.zeros(1000, np.float32)
        comm.all_reduce(tensor, "avg", codec="int8")
        comm.all_reduce(np.zeros(0, np.float32), codec="int8")
        return not tensor.any()

    assert all(run_ranks(3, zeros))


@pytest.mark.parametrize(
    ("dtype", "op", "codec", "message"),
    [
        ("int32", "sum", "int8", "int32"),
        ("float32", "max", "int8", "sums and averages"),
        ("float32", "sum", "int9", "int8"),
        ("float32", "sum", "topk:64", "error feedback"),
    ],
)
def test_what_no_codec_can_do_is_refused_before_anything_is_sent(
    dtype: str, op: str, codec: str, message: str
) -> None:
    def refused(comm: pccl.Communicator) -> str:
        with pytest.raises(ValueError, match=message):
            comm.all_reduce(np.ones(4, dtype), op, codec=codec)
        comm.barrier()
        return "and the group goes on"

    assert len(run_ranks(2, refused)) == 2


def test_ranks_with_different_codecs_are_told_so() -> None:
    def mismatched(comm: pccl.Communicator) -> str:
        with pytest.raises(pccl.CallMismatch) as raised:
            comm.all_reduce(np.ones(5000, np.float32), codec="int8" if comm.rank else "int4")
        return str(raised.value)

    for message in run_ranks(2, mismatched):
        assert "int8" in message, message
        assert "int4" in message, message


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_named_on_every_rank(bad: float) -> None:
    def poisoned(comm: pccl.Communicator) -> str:
        tensor = np.ones(70_000, np.float32)
        if comm.rank == 1:
            tensor[66_000] = bad
        with pytest.raises(pccl.NonFiniteContribution) as raised:
            comm.all_reduce(tensor, codec="int8")
        return str(raised.value)

    for message in run_ranks(3, poisoned):
        assert "rank 1" in message, message
        assert "element 66000" in message, message
