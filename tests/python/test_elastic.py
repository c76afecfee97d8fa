"""Elastic runs with real processes: killed, joining, leaving, around a coordinator; see also
test_contract.py."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from coordinator_processes import CoordinatorProcess
from member_processes import PATIENCE_SECONDS, agree, by_step, members

import pccl

MEBI = 1 << 20


@pytest.mark.parametrize("op", ["sum", "avg"])
@pytest.mark.parametrize("shared_memory", ["0", "1"])
def test_kill_9_during_an_all_reduce_in_place_fails_no_call_and_gives_right_bytes(
    tmp_path: Path, shared_memory: str, op: str
) -> None:
    with (
        CoordinatorProcess(tmp_path, status=False) as coordinator,
        members(
            4, coordinator.address, op, 30, 16 * MEBI, PCCL_SHARED_MEMORY=shared_memory
        ) as started,
    ):
        started[1].wait_for("step", 3)
        started[1].kill()
        survivors = [started[0], started[2], started[3]]
        for member in survivors:
            member.finish()
        agree(survivors, 30)
        assert by_step(survivors[0])[29]["counts"] == [3]


def test_two_members_that_die_at_once_and_the_coordinator_with_them_cost_no_call(
    tmp_path: Path,
) -> None:
    with (
        CoordinatorProcess(tmp_path, status=False) as coordinator,
        members(5, coordinator.address, "sum", 60, 2 * MEBI) as started,
    ):
        started[0].wait_for("step", 5)
        for process in (started[3], started[4]):
            process.process.send_signal(signal.SIGKILL)
        coordinator.restart()
        survivors = started[:3]
        for member in survivors:
            member.finish()
        agree(survivors, 60)
        assert by_step(survivors[0])[59]["counts"] == [3]


def test_who_leaves_politely_costs_the_others_nothing(tmp_path: Path) -> None:
    with (
        CoordinatorProcess(tmp_path, status=False) as coordinator,
        members(2, coordinator.address, "sum", 3000, 1000) as started,
    ):
        started[0].wait_for("step", 3)
        # It is in, and leaves while the others wait for its part.
        with pccl.join(str(coordinator.address), world_size_min=3) as comm:
            assert comm.world_size == 3
            assert [m.member_id for m in comm.members].count(comm.member_id) == 1
        for member in started:
            member.finish()
        agree(started, 3000)


def test_one_member_alone_is_a_run(tmp_path: Path) -> None:
    with (
        CoordinatorProcess(tmp_path, status=False) as coordinator,
        pccl.join(str(coordinator.address)) as comm,
    ):
        tensor = np.arange(5, dtype=np.float64)
        comm.all_reduce(tensor, "avg", weight=0.25, uniform=True)
        assert (tensor == np.arange(5)).all()
        comm.barrier()
        assert comm.sync_state({"a": tensor}) == 0
        assert comm.sync_state({"a": tensor}) == 1
        with pytest.raises(ValueError, match="weight"):
            comm.all_reduce(tensor, "sum", weight=1.0)
        frozen = np.ones(3)
        frozen.flags.writeable = False
        with pytest.raises(ValueError, match="read-only"):
            comm.all_reduce(frozen)


def test_a_state_of_other_shapes_is_an_error_on_every_member(tmp_path: Path) -> None:
    with CoordinatorProcess(tmp_path, status=False) as coordinator:
        address = str(coordinator.address)
        errors: list[str] = []

        def take_part(size: int) -> None:
            with pccl.join(address, world_size_min=2) as comm:
                try:
                    comm.sync_state({"a": np.zeros(size)})
                except pccl.CallMismatch as error:
                    errors.append(str(error))

        threads = [threading.Thread(target=take_part, args=(size,)) for size in (3, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        assert len(errors) == 2
        assert "shapes" in errors[0]


def test_a_coordinator_that_is_not_there_is_named() -> None:
    config = pccl.Config(connect_timeout_seconds=0.5)
    begin = time.monotonic()
    with pytest.raises(pccl.ConnectError, match=r"pccl://127\.0\.0\.1:9/demo.*refused"):
        pccl.join("pccl://127.0.0.1:9/demo", config=config)
    assert time.monotonic() - begin < 20


def test_an_address_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PCCL_RUN", raising=False)
    with pytest.raises(ValueError, match="PCCL_RUN"):
        pccl.join()
