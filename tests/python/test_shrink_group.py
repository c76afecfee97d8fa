"""dist.shrink_group() after a member's death, with real processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from coordinator_processes import environment

torch = pytest.importorskip("torch")

PATIENCE_SECONDS = 120
RANK = """
import os, signal, sys
import torch, torch.distributed as dist
rank, path = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("pccl", init_method="file://" + path, rank=rank, world_size=4)
dist.all_reduce(torch.ones(3))
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    dist.all_reduce(torch.ones(1000))
    raise SystemExit("rank 1 is not missed")
except RuntimeError as error:
    assert "rank 1" in str(error), error
assert dist.group.WORLD.get_error().name == "COMM_ERROR"
shrunk = dist.shrink_group([1], shrink_flags=dist.distributed_c10d.SHRINK_ABORT)
assert shrunk is dist.group.WORLD
assert (dist.get_rank(), dist.get_world_size()) == ([0, None, 1, 2][rank], 3)
assert shrunk.get_error().name == "SUCCESS"
tensor = torch.full((1000,), rank + 1.0)
dist.all_reduce(tensor)
assert (tensor == 8).all()
pair = dist.new_group([0, 2])
if rank != 2:
    dist.all_reduce(tensor, group=pair)
    assert (tensor == 16).all()
dist.barrier()
dist.destroy_process_group()
print("done", flush=True)
"""


@pytest.mark.skipif(
    not hasattr(torch.distributed, "shrink_group"), reason="this torch has no shrink_group"
)
def test_the_default_group_shrinks_by_a_dead_rank_and_works_on(tmp_path: Path) -> None:
    variables = environment(PCCL_HOST="127.0.0.1", PCCL_BIND="127.0.0.1", OMP_NUM_THREADS="1")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "store")],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(4)
    ]
    try:
        said = [process.communicate(timeout=PATIENCE_SECONDS)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    for rank in (0, 2, 3):
        assert ranks[rank].returncode == 0, said[rank]
        assert "done" in said[rank]
