"""torch.distributed over an elastic run: DDP through deaths and newcomers, by real processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from coordinator_processes import CoordinatorProcess
from member_processes import MemberProcess, by_step

torch = pytest.importorskip("torch")
import torch.distributed as dist  # noqa: E402

from pccl.process_group import sync_state  # noqa: E402

WORKER = Path(__file__).with_name("torch_elastic_worker.py")
STEPS = 9


def start(address: object, members: int, *program: object, **more: str) -> MemberProcess:
    return MemberProcess(address, members, *program, worker=WORKER, OMP_NUM_THREADS="1", **more)


def test_ddp_loses_no_step_when_a_member_dies_in_backward_and_a_newcomer_gets_the_state(
    tmp_path: Path,
) -> None:
    with CoordinatorProcess(tmp_path, status=False) as coordinator, ExitStack() as stack:
        run = str(coordinator.address)
        trainers = [
            start(run, 3, STEPS, -1),
            start("", 3, STEPS, -1, PCCL_RUN=run),
            start(run, 3, STEPS, 3),
        ]
        for trainer in trainers:
            stack.callback(trainer.close)
        while trainers[2].next() is not None:
            pass
        assert trainers[2].said[-1] == {"at": 3}
        again = start(run, 1, STEPS, -1)
        stack.callback(again.close)
        for trainer in (trainers[0], trainers[1], again):
            trainer.finish()
        survivor, other, newcomer = map(by_step, (trainers[0], trainers[1], again))
        assert sorted(survivor) == list(range(STEPS)) == sorted(other)
        # Some of the bucket in which it died may have been final with it; the rest is without it.
        assert set(survivor[3]["counts"]) <= {2, 3}
        assert 2 in survivor[3]["counts"]
        assert survivor[4]["counts"] == [2, 2]
        for step, said in survivor.items():
            assert said["ranks"] == list(range(said["world_size"]))
            for found in (other, newcomer):
                if step in found:
                    assert found[step]["digest"] == said["digest"], step
                    assert found[step]["counts"] == said["counts"], step
        assert min(newcomer) > 3
        assert newcomer[STEPS - 1]["counts"] == [3, 3]
        assert newcomer[STEPS - 1]["world_size"] == 3
        assert (
            len({trainer.said[-1]["final"] for trainer in (trainers[0], trainers[1], again)}) == 1
        )


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """This process as the only member of a run."""
    for name in ("PCCL_HOST", "PCCL_BIND"):
        monkeypatch.setenv(name, "127.0.0.1")
    with CoordinatorProcess(tmp_path, status=False) as coordinator:
        dist.init_process_group("pccl", init_method=str(coordinator.address))
        yield dist.group.WORLD
        if dist.is_initialized():
            dist.destroy_process_group()


def test_every_collective_works_in_a_run_of_one(alone: Any) -> None:
    assert (dist.get_rank(), dist.get_world_size()) == (0, 1)
    assert "ElasticProcessGroup" in repr(alone)
    ones, other = torch.ones(5), torch.zeros(5)
    for op in (dist.ReduceOp.SUM, dist.ReduceOp.AVG, dist.ReduceOp.MAX):
        dist.all_reduce(ones, op)
    work = dist.all_reduce(ones, async_op=True)
    work.wait()
    assert work.contributors == [alone.communicator.member_id]
    alone.all_gather_single(other, ones).wait()
    assert (other == 1).all()
    alone.reduce_scatter_single(other, ones).wait()
    alone.all_to_all_single(other, ones, [], []).wait()
    dist.broadcast(ones, 0)
    dist.barrier()
    alone.monitored_barrier()
    objects: list[Any] = [None]
    dist.all_gather_object(objects, {"a": 1})
    assert objects == [{"a": 1}]
    assert alone.get_error().name == "SUCCESS"
    with pytest.raises(RuntimeError, match="members change"):
        dist.new_group([0])


def test_an_elastic_group_that_was_aborted_says_so(alone: Any) -> None:
    alone.communicator._core.abort("enough")
    assert alone.get_error().name == "COMM_ERROR"
    with pytest.raises(RuntimeError, match="enough"):
        dist.all_reduce(torch.ones(3))


def test_sync_state_leaves_an_optimizer_as_it_is_that_nobody_has_used(alone: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = [p.detach().clone() for p in model.parameters()]
    assert sync_state(model, optimizer, step=torch.zeros(())) == 0
    assert not any(optimizer.state.values())
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
    model(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    buffers = [optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()]
    assert sync_state(model, optimizer, step=torch.zeros(())) == 1
    for parameter, old in zip(model.parameters(), buffers, strict=True):
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], old)


def test_a_fixed_group_has_no_state_to_sync(tmp_path: Path) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(TypeError, match="elastic"):
            sync_state(torch.nn.Linear(1, 1))
    finally:
        dist.destroy_process_group()
