"""One member of an elastic run, for tests: trains a vector, or reduces until it is told to stop.

Prints a JSON object a line. Arguments: address, members to wait for, program, a number of steps.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from typing import Any

import numpy as np

import pccl
from pccl._core import Work
from pccl.codecs import ErrorFeedback


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def check(work: Work, tensor: np.ndarray[Any, Any], average: bool) -> list[int]:
    """How many members are in each part; every one contributes 1."""
    end = 0
    counts = []
    for begin, stop, members, weight in work.contributions:
        assert begin == end
        end = stop
        assert weight == len(members) == len(set(members))
        assert (tensor[begin:stop] == (1 if average else len(members))).all()
        counts.append(len(members))
    assert end == tensor.size
    return counts


def reduce(
    comm: pccl.ElasticCommunicator, steps: int, elements: int, op: str, first: int = 0
) -> None:
    """all_reduce in place: `steps` times."""
    for step in range(first, first + steps):
        tensor = np.ones(elements, np.float32)
        begin = time.monotonic()
        say(begin=step)
        work = comm.all_reduce(tensor, op, async_op=True)
        assert work is not None
        work.wait()
        say(
            step=step,
            seconds=time.monotonic() - begin,
            counts=check(work, tensor, op == "avg"),
            contributors=len(work.contributors),
            weight=work.weight,
            digest=hashlib.sha256(tensor).hexdigest(),
            world_size=comm.world_size,
        )


def seeds(members: list[str], step: int) -> list[int]:
    return [int(member, 16) * 1000 + step for member in members]


def reduce_random(
    comm: pccl.ElasticCommunicator, steps: int, elements: int, codec: str = ""
) -> None:
    """all_reduce of numbers that everybody can compute again."""
    tolerance = 0.3 if codec else 1e-5
    feedback = ErrorFeedback(elements)
    for step in range(steps):
        [own] = seeds([comm.member_id], step)
        tensor = np.random.default_rng(own).standard_normal(elements, np.float32)
        memory = feedback if codec and step % 2 else None
        work = comm.all_reduce(tensor, codec=codec, error_feedback=memory, async_op=True)
        assert work is not None
        work.wait()
        counts = []
        for begin, end, members, _ in work.contributions:
            expected = np.zeros(elements)
            for seed in seeds(members, step):
                expected += np.random.default_rng(seed).standard_normal(elements, np.float32)
            assert np.abs(tensor - expected)[begin:end].max() < tolerance
            counts.append(len(members))
        assert np.abs(feedback.residual).max() < tolerance
        say(step=step, counts=counts, digest=hashlib.sha256(tensor).hexdigest())


def reduce_slowly(comm: pccl.ElasticCommunicator, steps: int, elements: int) -> None:
    """The first of them takes its time."""
    for step in range(steps):
        time.sleep(0.1 if comm.rank == 0 else 0)
        reduce(comm, 1, elements, "sum", step)


def reduce_and_tell_links(
    comm: pccl.ElasticCommunicator, steps: int, elements: int, members: int
) -> None:
    """all_reduces until `steps` of them had so many members; with the links that they know."""
    together = step = 0
    while together < steps:
        links = comm._core.links
        before = comm.statistics()["bytes_sent_tcp"]
        tensor = np.ones(elements, np.float32)
        begin = time.monotonic()
        work = comm.all_reduce(tensor, async_op=True)
        assert work is not None
        work.wait()
        check(work, tensor, False)
        together += len(work.contributors) == members
        say(
            step=step,
            seconds=time.monotonic() - begin,
            contributors=len(work.contributors),
            digest=hashlib.sha256(tensor).hexdigest(),
            algorithm=comm._core.plan("all_reduce", elements, pccl._core.DATA_TYPES["float32"]),
            sent=comm.statistics()["bytes_sent_tcp"] - before,
            links=links,
        )
        step += 1


def die_within(comm: pccl.ElasticCommunicator, elements: int) -> None:
    """Dies as soon as two of five parts of its tensor are final."""
    tensor = np.ones(elements, np.float32)
    comm.all_reduce(tensor, async_op=True)
    deadline = time.monotonic() + 30
    while (tensor[:: elements // 512] == comm.world_size).mean() < 0.4:
        assert time.monotonic() < deadline
    os.kill(os.getpid(), signal.SIGKILL)


def train(comm: pccl.ElasticCommunicator, steps: int) -> None:
    """Steps over a state that newcomers get; what it ends with depends on the steps alone."""
    state = {"weights": np.zeros(700_001, np.float32), "steps": np.zeros(1, np.int64)}
    while state["steps"][0] < steps:
        revision = comm.sync_state(state)
        gradient = np.full(700_001, 0.5, np.float32)
        comm.all_reduce(gradient, "avg")
        state["weights"] += gradient
        state["steps"] += 1
        say(step=int(state["steps"][0]), world_size=comm.world_size, revision=revision)
    assert (state["weights"] == 0.5 * steps).all()
    say(digest=hashlib.sha256(state["weights"]).hexdigest(), steps=int(state["steps"][0]))


def main() -> None:
    address, members, program, steps = sys.argv[1:5]
    try:
        with pccl.join(address, world_size_min=int(members)) as comm:
            say(member=comm.member_id, rank=comm.rank)
            if program == "train":
                train(comm, int(steps))
            elif program == "random":
                reduce_random(comm, int(steps), int(sys.argv[5]), *sys.argv[6:])
            elif program == "dies":
                die_within(comm, int(sys.argv[5]))
            elif program == "links":
                reduce_and_tell_links(comm, int(steps), int(sys.argv[5]), int(sys.argv[6]))
            elif program == "slow":
                reduce_slowly(comm, int(steps), int(sys.argv[5]))
            else:
                reduce(comm, int(steps), int(sys.argv[5]), program)
            statistics = comm.statistics()
        # Who leaves sees the quorums of those that left before.
        say(record=comm.flight_record(), statistics=statistics)
    except pccl.PcclError as error:
        say(error=type(error).__name__, text=str(error))


if __name__ == "__main__":
    main()
