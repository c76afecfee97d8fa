"""A member that talks over a graph: makes the calls of a step, and tells what came of them.

    overlay_worker.py WHERE RANK WORLD_SIZE STEPS: WHERE is a folder, or the address of a run

The graph and all else come from PCCL_* variables.
"""

import hashlib
import json
import sys

import numpy as np

import pccl

# Nothing, one element, odd, and large enough for links to be learned.
SIZES = (0, 1, 1001, 1_100_003)


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def inputs(rank: int, step: int, count: int) -> np.ndarray:
    return np.random.default_rng([rank, step, count]).standard_normal(count).astype(np.float32)


def take_step(comm: pccl.Communicator, rank: int, world_size: int, step: int) -> str:
    """The digest of what every member must hold alike."""
    digest = hashlib.sha256()
    for count in SIZES:
        tensor = inputs(rank, step, count)
        comm.all_reduce(tensor)
        right = sum(inputs(other, step, count).astype(np.float64) for other in range(world_size))
        assert np.allclose(tensor, right, atol=1e-4), (count, np.abs(tensor - right).max())
        digest.update(tensor.tobytes())
    root = step % world_size
    told = inputs(rank, step, 3001)
    comm.broadcast(told, root)
    assert np.array_equal(told, inputs(root, step, 3001))
    coded = inputs(rank, step, 5003)
    comm.all_reduce(coded, codec="int8")
    rows = np.zeros((world_size, 7), np.float32)
    comm.all_gather_into_tensor(rows, inputs(rank, step, 7))
    assert np.array_equal(rows, [inputs(other, step, 7) for other in range(world_size)])
    comm.barrier()
    for array in (told, coded, rows):
        digest.update(array.tobytes())
    return digest.hexdigest()


def main() -> None:
    where, rank, world_size, steps = sys.argv[1], *map(int, sys.argv[2:])
    config = pccl.Config.from_environment()
    try:
        comm = pccl.init(f"file://{where}", rank=rank, world_size=world_size, config=config)
    except ValueError as error:
        say(error=str(error))
        return
    with comm:
        for step in range(steps):
            digest = take_step(comm, rank, world_size, step)
            say(step=step, digest=digest, plan=comm.plan("all_reduce", SIZES[-1]))
        refused = {}
        for peer in range(world_size):
            try:
                if peer != rank:
                    comm.isend(np.zeros(1, np.float32), peer, timeout_seconds=10)
            except ValueError as error:
                refused[peer] = str(error)
        comm.barrier()
        say(refused=refused, statistics=comm.statistics())
        comm.barrier()


if __name__ == "__main__":
    main()
