"""The coordinator stays away: a member takes its place, and gives the run back."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from coordinator_processes import CoordinatorProcess, environment
from member_processes import MemberProcess, agree, by_step, members

import pccl


def wait_for_counts(member: MemberProcess, count: int) -> None:
    while (said := member.next()) is not None:
        if said.get("counts") == [count]:
            return
    raise AssertionError(f"it never was one of {count}: {member.said[-3:]} {member.errors()}")


@pytest.mark.parametrize("tls", ["auto", "always"])
def test_members_finish_without_any_coordinator(tmp_path: Path, tls: str) -> None:
    def launch(command: list[str], **more: Any) -> Any:
        return subprocess.Popen(command, **{**more, "env": environment(PCCL_TLS=tls)})

    steps = 40
    options = ("--takeover", "1")
    with (
        CoordinatorProcess(tmp_path, *options, status=False, launch=launch) as coordinator,
        members(4, coordinator.address, "slow", steps, 1000, PCCL_TLS=tls) as started,
    ):
        started[0].wait_for("step", 3)
        coordinator.end(signal.SIGKILL)
        started[2].kill()
        survivors = [started[0], started[1], started[3]]
        for member in survivors:
            member.finish()
        agree(survivors, steps)
        assert by_step(survivors[0])[steps - 1]["counts"] == [3]


def test_whoever_takes_over_may_die_as_well(tmp_path: Path) -> None:
    steps = 40
    with (
        CoordinatorProcess(tmp_path, "--takeover", "1", status=False) as coordinator,
        members(5, coordinator.address, "slow", steps, 1000) as started,
    ):
        by_rank = sorted(started, key=lambda member: int(member.wait_for("rank")["rank"]))
        survivors = by_rank[1:4]
        survivors[0].wait_for("step", 3)
        coordinator.end(signal.SIGKILL)
        by_rank[4].kill()
        wait_for_counts(survivors[0], 4)
        by_rank[0].kill()
        for member in survivors:
            member.finish()
        agree(survivors, steps)
        assert by_step(survivors[0])[steps - 1]["counts"] == [3]


@pytest.mark.parametrize("has_database", [True, False])
def test_the_coordinator_comes_back_and_gets_the_run(tmp_path: Path, has_database: bool) -> None:
    options = ("--takeover", "1", "--listen", "4")
    with (
        CoordinatorProcess(tmp_path, *options, status=False) as coordinator,
        members(4, coordinator.address, "slow", 10_000, 1000) as started,
    ):
        started[0].wait_for("step", 3)
        coordinator.end(signal.SIGKILL)
        # Nobody but a member can change the quorum now.
        started[1].kill()
        survivors = [started[0], started[2], started[3]]
        wait_for_counts(started[0], 3)
        if not has_database:
            for file in tmp_path.glob("coordinator.db*"):
                file.unlink()
        coordinator.start()
        # Calls at once: an empty coordinator must not make a run of its own of it.
        with pccl.join(str(coordinator.address), world_size_min=4) as comm:
            assert comm.world_size == 4, coordinator.text()
            assert comm.quorum_id > 2
        assert "the first of the run" not in coordinator.text()
        last = int(survivors[0].wait_for("step", 1 + max(by_step(survivors[0])))["step"])
        for member in survivors[1:]:
            member.wait_for("step", last)
        for step in range(last):
            found = [by_step(member)[step] for member in survivors]
            assert len({said["digest"] for said in found}) == 1, step
            assert len({str(said["counts"]) for said in found}) == 1, step
