"""Elastic runs with real processes: killed, stopped, joining, leaving, around a coordinator."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coordinator_processes import CoordinatorProcess, environment

import pccl

WORKER = Path(__file__).with_name("elastic_worker.py")
# Longer than anything takes that is not broken.
PATIENCE_SECONDS = 60.0
MEBI = 1 << 20


class MemberProcess:
    def __init__(self, address: object, members: int, *program: object, **more: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), str(address), str(members), *map(str, program)],
            env=environment(PCCL_HOST="127.0.0.1", PCCL_BIND="127.0.0.1", **more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[dict[str, Any]] = []
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(json.loads(line))
        self._lines.put(None)

    def next(self) -> dict[str, Any] | None:
        """What it says next; None at its end."""
        said = self._lines.get(timeout=PATIENCE_SECONDS)
        if said is not None:
            self.said.append(said)
        return said

    def wait_for(self, key: str, least: int = 0) -> dict[str, Any]:
        while (said := self.next()) is not None:
            if key in said and (not isinstance(said[key], int) or said[key] >= least):
                return said
        raise AssertionError(f"it ended without {key!r}: {self.said[-3:]} {self.errors()}")

    def finish(self) -> list[dict[str, Any]]:
        """Wait for its end; all that it said."""
        while self.next() is not None:
            pass
        assert self.process.wait(PATIENCE_SECONDS) == 0, self.errors()
        return self.said

    def errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read() if self.process.poll() is not None else ""

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        self._thread.join(PATIENCE_SECONDS)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


@contextmanager
def members(
    count: int, address: object, *program: object, **more: str
) -> Iterator[list[MemberProcess]]:
    started = [MemberProcess(address, count, *program, **more) for _ in range(count)]
    with ExitStack() as stack:
        for member in started:
            stack.callback(member.close)
        yield started


def by_step(member: MemberProcess) -> dict[int, dict[str, Any]]:
    return {said["step"]: said for said in member.said if "step" in said}


def agree(survivors: list[MemberProcess], steps: int) -> None:
    """The same bytes from the same contributors, step by step."""
    first = by_step(survivors[0])
    assert sorted(first) == list(range(steps))
    for other in survivors[1:]:
        found = by_step(other)
        for step in range(steps):
            assert found[step]["digest"] == first[step]["digest"], step
            assert found[step]["counts"] == first[step]["counts"], step


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


def test_operations_go_on_without_a_coordinator(tmp_path: Path) -> None:
    with (
        CoordinatorProcess(tmp_path, status=False) as coordinator,
        members(3, coordinator.address, "sum", 200, 100_000) as started,
    ):
        started[0].wait_for("step", 3)
        coordinator.end(signal.SIGKILL)
        for member in started:
            member.finish()
        agree(started, 200)
        assert by_step(started[0])[199]["counts"] == [3]


def test_a_newcomer_gets_the_state_and_nobody_loses_a_step(tmp_path: Path) -> None:
    with (
        CoordinatorProcess(tmp_path, status=False) as coordinator,
        members(3, coordinator.address, "train", 60) as started,
    ):
        started[0].wait_for("step", 5)
        started[2].kill()
        newcomer = MemberProcess(coordinator.address, 1, "train", 60)
        try:
            everybody = [started[0], started[1], newcomer]
            ends = [member.finish()[-1] for member in everybody]
        finally:
            newcomer.close()
        assert len({end["digest"] for end in ends}) == 1
        assert all(end["steps"] == 60 for end in ends)
        assert min(by_step(newcomer)) > 1, "it began with the others' state"
        assert sorted(by_step(started[0])) == list(range(1, 61))


def test_a_member_that_stood_still_too_long_is_told_to_join_again(tmp_path: Path) -> None:
    with (
        CoordinatorProcess(tmp_path, "--silence", "1", status=False) as coordinator,
        members(3, coordinator.address, "sum", 400, 100_000) as started,
    ):
        started[2].wait_for("step", 3)
        started[2].process.send_signal(signal.SIGSTOP)
        for member in started[:2]:
            member.finish()
        agree(started[:2], 400)
        assert by_step(started[0])[399]["counts"] == [2]
        started[2].process.send_signal(signal.SIGCONT)
        said = started[2].wait_for("error")
        assert said["error"] == "MemberLost"
        assert "join again" in said["text"]


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
