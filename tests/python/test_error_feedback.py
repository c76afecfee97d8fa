"""all_reduce with error feedback: what a codec loses comes later, and nothing comes twice.

The reference is arithmetic: what was contributed is what the results and the residuals hold.
"""

import hashlib
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coordinator_processes import CoordinatorProcess
from thread_ranks import run_ranks, run_threads

import pccl
from pccl.codecs import Difference, ErrorFeedback

STEPS = 6
COUNT = 70_003
Floats = "np.ndarray[Any, Any]"


def values(rank: int, step: int, count: int = COUNT, dtype: str = "float32") -> Floats:
    return np.random.default_rng((rank, step)).normal(1, 1, count).astype(dtype)


def digest(array: Floats) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def relative(error: Floats, exact: Floats) -> float:
    return float(np.linalg.norm(error) / np.linalg.norm(exact))


def run_steps(comm: pccl.Communicator, spec: dict[str, Any]) -> tuple[list[str], Floats, Floats]:
    """Digests of the results, their sum, and what is left."""
    feedback = ErrorFeedback(COUNT)
    digests, total = [], np.zeros(COUNT)
    for step in range(STEPS):
        tensor = values(comm.rank, step, dtype=spec.get("dtype", "float32"))
        factor = comm.rank + 1.0 if spec["op"] == "weighted_avg" else 1.0
        comm.all_reduce(
            tensor, spec["op"], factor=factor, codec=spec["codec"], error_feedback=feedback
        )
        digests.append(digest(tensor))
        total += tensor
    return digests, total, feedback.residual.astype(np.float64)


def check_nothing_is_lost(world_size: int, spec: dict[str, Any], algorithm: str = "auto") -> None:
    config = pccl.Config(bind="127.0.0.1", algorithm=algorithm)
    ranks = run_ranks(world_size, lambda comm: run_steps(comm, spec), config)
    assert len({tuple(digests) for digests, _, _ in ranks}) == 1, spec
    weights = [rank + 1.0 if spec["op"] == "weighted_avg" else 1.0 for rank in range(world_size)]
    contributed = sum(
        weight * values(rank, step, dtype=spec.get("dtype", "float32")).astype(np.float64)
        for rank, weight in enumerate(weights)
        for step in range(STEPS)
    )
    divisor = 1.0 if spec["op"] == "sum" else sum(weights)
    left = sum(residual for _, _, residual in ranks)
    # Rounding of float32, and of a float16 result, is not noted.
    tolerance = 1e-3 if spec.get("dtype") == "float16" else 1e-5
    assert relative(divisor * ranks[0][1] + left - contributed, contributed) < tolerance, spec
    assert relative(left, contributed) > 0.001, "a codec that loses nothing proves nothing"


@pytest.mark.parametrize("algorithm", ["direct", "halving_doubling", "double_binary_tree", "ring"])
def test_nothing_is_lost_on_any_way(algorithm: str) -> None:
    check_nothing_is_lost(5, {"codec": "int4", "op": "avg"}, algorithm)


@pytest.mark.parametrize("codec", ["int6", "int4:hadamard", "int4:mse_clip", "int4:stochastic"])
def test_nothing_is_lost_in_any_codec(codec: str) -> None:
    check_nothing_is_lost(3, {"codec": codec, "op": "avg"})


@pytest.mark.parametrize("op", ["sum", "weighted_avg"])
@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_nothing_is_lost_in_any_dtype_and_operator(op: str, dtype: str) -> None:
    check_nothing_is_lost(3, {"codec": "int4", "op": op, "dtype": dtype})


def mean_of_results(comm: pccl.Communicator, feedback: "ErrorFeedback | None") -> float:
    """How far the mean of many results is from what it should be, of the same contributions."""
    total, steps = np.zeros(4096), 20
    for _ in range(steps):
        tensor = values(comm.rank, 0, 4096)
        comm.all_reduce(tensor, "avg", codec="int4", error_feedback=feedback)
        total += tensor
    exact = np.mean([values(rank, 0, 4096) for rank in range(comm.world_size)], axis=0)
    return relative(total / steps - exact, exact)


def test_errors_of_one_step_are_made_good_in_the_next() -> None:
    without = run_ranks(3, lambda comm: mean_of_results(comm, None))[0]
    with_feedback = run_ranks(3, lambda comm: mean_of_results(comm, ErrorFeedback(4096)))[0]
    assert with_feedback < without / 8, (with_feedback, without)


def test_a_state_that_is_saved_and_restored_goes_on_with_the_same_bytes() -> None:
    def run(comm: pccl.Communicator, stops: bool) -> list[str]:
        feedback, digests = ErrorFeedback(1000), []
        for step in range(4):
            if stops and step == 2:
                saved = pickle.dumps(feedback.residual)
                feedback = ErrorFeedback(1000)
                assert not feedback.residual.any(), "a newcomer begins with zeros"
                feedback.residual = pickle.loads(saved)
            tensor = values(comm.rank, step, 1000)
            comm.all_reduce(tensor, "avg", codec="int4", error_feedback=feedback)
            digests.append(digest(tensor))
        return digests

    assert run_ranks(2, lambda c: run(c, False)) == run_ranks(2, lambda c: run(c, True))


def test_a_residual_of_an_operation_under_way_is_not_told() -> None:
    def run(comm: pccl.Communicator) -> None:
        feedback, tensor = ErrorFeedback(5000), values(comm.rank, 0, 5000)
        if comm.rank == 0:
            work = comm.all_reduce(tensor, codec="int4", error_feedback=feedback, async_op=True)
            assert work is not None
            with pytest.raises(RuntimeError, match="under way"):
                feedback.residual  # noqa: B018
            with pytest.raises(RuntimeError, match="under way"):
                comm.all_reduce(tensor.copy(), codec="int4", error_feedback=feedback)
            comm.send(tensor[:1].copy(), 1)
            work.wait()
        else:
            comm.recv(np.zeros(1, np.float32), 0)
            comm.all_reduce(tensor, codec="int4", error_feedback=feedback)
        assert feedback.residual.any()

    run_ranks(2, run)


def test_wrong_feedback_is_refused_and_a_failed_operation_changes_none() -> None:
    def run(comm: pccl.Communicator) -> None:
        tensor = values(comm.rank, 0, 100)
        for codec, feedback, message in (
            ("int4", ErrorFeedback(99), "99 elements"),
            ("", ErrorFeedback(100), "only with a codec"),
            ("none", ErrorFeedback(100), "only with a codec"),
            ("int4", Difference(99), "99 elements"),
            ("", Difference(100), "in a codec"),
        ):
            with pytest.raises(ValueError, match=message):
                comm.all_reduce(tensor, "avg", codec=codec, error_feedback=feedback)
        with pytest.raises(ValueError, match="op='avg'"):
            comm.all_reduce(tensor, "sum", codec="int4", error_feedback=Difference(100))
        with pytest.raises(TypeError, match=r"a pccl\.codecs\.ErrorFeedback"):
            comm.all_reduce(tensor, codec="int4", error_feedback=tensor)  # type: ignore[arg-type]
        feedback = ErrorFeedback(100)
        comm.all_reduce(tensor, "avg", codec="int4", error_feedback=feedback)
        before = feedback.residual.copy()
        if comm.rank == 1:
            tensor[3] = np.nan
        with pytest.raises(pccl.NonFiniteContribution, match="rank 1"):
            comm.all_reduce(tensor, "avg", codec="int4", error_feedback=feedback)
        assert np.array_equal(feedback.residual, before)

    run_ranks(2, run)


def test_a_member_whose_weight_is_0_keeps_what_it_owes() -> None:
    def run(comm: pccl.Communicator) -> bool:
        feedback = ErrorFeedback(1000)
        feedback.residual = values(comm.rank, 9, 1000)
        before = feedback.residual.copy()
        tensor = np.zeros(1000, np.float32)
        factor = float(comm.rank == 0)
        comm.all_reduce(tensor, "weighted_avg", factor=factor, codec="int4",
                        error_feedback=feedback)  # fmt: skip
        return np.array_equal(feedback.residual, before)

    assert run_ranks(2, run) == [False, True]


def test_nothing_is_lost_in_an_elastic_run(tmp_path: Path) -> None:
    steps, count = 4, 300_007

    def take_part(address: str, number: int) -> tuple[list[str], Floats, Floats]:
        feedback, digests, total = ErrorFeedback(count), [], np.zeros(count)
        with pccl.join(address, world_size_min=3) as comm:
            for step in range(steps):
                tensor = values(number, step, count)
                comm.all_reduce(tensor, "avg", codec="int4", error_feedback=feedback)
                digests.append(digest(tensor))
                total += tensor
            with pytest.raises(TypeError, match="don't change"):
                comm.all_reduce(tensor, "avg", codec="int4", error_feedback=Difference(count))
        return digests, total, feedback.residual.astype(np.float64)

    with CoordinatorProcess(tmp_path, status=False) as coordinator:
        address = str(coordinator.address)
        ranks = run_threads(3, lambda number: take_part(address, number))
    assert len({tuple(digests) for digests, _, _ in ranks}) == 1
    left = sum(residual for _, _, residual in ranks)
    contributed = sum(values(number, step, count).astype(np.float64)
                      for number in range(3) for step in range(steps))  # fmt: skip
    assert relative(3 * ranks[0][1] + left - contributed, contributed) < 1e-5


def test_the_mean_of_a_difference_comes_ever_closer_to_values_that_stay() -> None:
    def run(comm: pccl.Communicator) -> tuple[list[str], list[float], Floats, Floats]:
        difference, digests, errors = Difference(COUNT), [], []
        exact = np.mean([values(r, 0).astype(np.float64) for r in range(comm.world_size)], axis=0)
        for _ in range(STEPS):
            tensor = values(comm.rank, 0)
            comm.all_reduce(tensor, "avg", codec="int4", error_feedback=difference)
            assert np.array_equal(tensor, difference.mean)
            digests.append(digest(tensor))
            errors.append(relative(tensor - exact, exact))
        return digests, errors, difference.estimate, difference.mean

    ranks = run_ranks(3, run)
    assert len({tuple(digests) for digests, _, _, _ in ranks}) == 1
    errors = ranks[0][1]
    assert all(after < before / 3 for before, after in pairwise(errors[:5]))
    estimates = np.mean([estimate.astype(np.float64) for _, _, estimate, _ in ranks], axis=0)
    assert relative(estimates - ranks[0][3], estimates) < 1e-6
