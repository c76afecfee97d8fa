"""How torch's programs begin and end, what they do wrong, and torchrun."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rank_processes import free_ports
from torch_ranks import TorchRanks, checks, environment

START, ERRORS = "torch_checks_start", "torch_checks_errors"


@pytest.fixture(scope="module")
def ranks() -> Iterator[TorchRanks]:
    ranks = TorchRanks(3)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def bare_ranks() -> Iterator[TorchRanks]:
    ranks = TorchRanks(3, joined=False)
    yield ranks
    ranks.close()


def _free_port() -> int:
    return free_ports(1, random.Random())[0]


def _arguments(check: str, folder: Path) -> dict[str, object]:
    if check in ("env_init", "tcp_init", "store_init"):
        return {"port": _free_port()}
    return {} if check.startswith("the_backend") else {"path": str(folder / "store")}


@pytest.mark.parametrize("check", checks(START))
def test_a_group_begins_and_ends(bare_ranks: TorchRanks, check: str, tmp_path: Path) -> None:
    bare_ranks.run(START, check, **_arguments(check, tmp_path))


@pytest.mark.parametrize("check", checks(ERRORS))
def test_a_wrong_call_is_told(ranks: TorchRanks, check: str) -> None:
    ranks.run(ERRORS, check)


SCRIPT = """
import torch, torch.distributed as dist
dist.init_process_group("pccl")
rank, size = dist.get_rank(), dist.get_world_size()
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 2))
model(torch.full((3, 4), float(rank))).sum().backward()
gradients = [torch.empty(2, 4) for _ in range(size)]
dist.all_gather(gradients, model.module.weight.grad)
assert all(torch.equal(gradients[0], other) for other in gradients)
assert torch.equal(gradients[0], torch.full((2, 4), 3 * (size - 1) / 2)), gradients
dist.destroy_process_group()
open(f"done{rank}", "w").close()  # what several ranks print may share a line
"""


def test_torchrun_starts_a_program_that_names_the_backend_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "program.py"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "done0").exists()
    assert (tmp_path / "done1").exists()


def test_debug_level_detail_wraps_the_group_and_works(tmp_path: Path) -> None:
    """TORCH_DISTRIBUTED_DEBUG=DETAIL makes torch check each call over a gloo group of its own."""
    (tmp_path / "program.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "program.py"],
        cwd=tmp_path,
        env=environment(TORCH_DISTRIBUTED_DEBUG="DETAIL"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "done1").exists()
