"""The contract of an elastic run, line by line, with real processes and a real coordinator.

Lines 8 and 12 need hosts of their own: test_elastic_wan.py, test_partitions.py.
Who computes while a newcomer downloads (line 10): test_state_sync.py.
"""

from __future__ import annotations

import logging
import random
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coordinator_processes import CoordinatorProcess
from member_processes import PATIENCE_SECONDS, MemberProcess, agree, by_step, members

import pccl

MEBI = 1 << 20


@pytest.fixture
def coordinator(tmp_path: Path) -> Any:
    with CoordinatorProcess(tmp_path, "--silence", "1") as process:
        yield process


def together(
    coordinator: CoordinatorProcess,
    count: int,
    program: Callable[[pccl.ElasticCommunicator, int], Any],
) -> list[Any]:
    """What `program(comm, index)` returns or raises at each of `count` members (threads)."""
    found: list[Any] = [None] * count

    def take_part(index: int) -> None:
        try:
            with pccl.join(str(coordinator.address), world_size_min=count) as comm:
                found[index] = program(comm, index)
        except Exception as error:
            found[index] = error

    threads = [threading.Thread(target=take_part, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive(), "a member hangs"
    return found


def reduce_async(
    comm: pccl.ElasticCommunicator, tensor: Any, *arguments: Any, **more: Any
) -> pccl.Work:
    work = comm.all_reduce(tensor, *arguments, async_op=True, **more)
    assert work is not None
    return work


# --- result ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [[], ["int8"]])
def test_line_01_the_same_bytes_at_every_member_whatever_fails(
    coordinator: CoordinatorProcess, codec: list[str]
) -> None:
    with members(4, coordinator.address, "random", 40, MEBI, *codec) as started:
        started[2].wait_for("step", 3)
        started[2].kill()
        survivors = [started[0], started[1], started[3]]
        for member in survivors:
            member.finish()
        agree(survivors, 40)


def test_lines_02_to_04_survivors_complete_say_who_is_in_it_and_keep_what_was_final(
    coordinator: CoordinatorProcess,
) -> None:
    with (
        MemberProcess(coordinator.address, 4, "dies", 1, 32 * MEBI) as victim,
        members(3, coordinator.address, "sum", 3, 32 * MEBI, world_size=4) as survivors,
    ):
        for member in survivors:
            member.finish()  # each compares every element with its contributors
        agree(survivors, 3)
        assert victim.process.wait(PATIENCE_SECONDS) == -signal.SIGKILL
        first, *rest = by_step(survivors[0]).values()
    assert set(first["counts"]) == {3, 4}, "final before the death: kept"
    assert (first["contributors"], first["weight"]) == (3, 3.0)
    assert all(said["counts"] == [3] for said in rest)


@pytest.mark.parametrize("uniform", [False, True])
def test_line_05_after_an_error_each_element_is_input_or_result_and_the_error_says_which(
    coordinator: CoordinatorProcess, uniform: bool
) -> None:
    def program(comm: pccl.ElasticCommunicator, index: int) -> tuple[bool, str]:
        tensor = np.full(8 * MEBI, index + 1.0, np.float32)
        work = reduce_async(comm, tensor, uniform=uniform)
        if index == 0:
            time.sleep(0.01)
            comm.abort("the test wants it")
        text = ""
        try:
            work.wait()
        except pccl.Aborted as error:
            text = str(error)
            assert "The tensor holds" in text
        expected = np.full(tensor.size, index + 1.0, np.float32)
        for begin, end, _, weight in work.contributions:
            assert weight == 3
            expected[begin:end] = 6
        same = bool((tensor == expected).all())
        return same and (not uniform or len(set(expected)) == 1), text

    for result in together(coordinator, 3, program):
        assert isinstance(result, tuple), result
        assert result[0], result


def test_line_06_the_same_inputs_and_members_give_the_same_bytes_again(
    coordinator: CoordinatorProcess,
) -> None:
    def program(comm: pccl.ElasticCommunicator, index: int) -> list[bytes]:
        found = []
        for size in (1, 1000, 700_001):
            tensor = np.random.default_rng([comm.rank, size]).standard_normal(size)
            comm.all_reduce(tensor, "avg")
            found.append(tensor.tobytes())
        return found

    first, second = (together(coordinator, 3, program) for _ in range(2))
    assert all(found == first[0] for found in [*first, *second])


# --- membership -----------------------------------------------------------------------------------


def test_line_07_who_dies_is_out_at_once_and_who_hangs_after_the_configured_silence(
    coordinator: CoordinatorProcess,
) -> None:
    with members(4, coordinator.address, "sum", 100_000, 1000) as started:
        names = [member.wait_for("member")["member"] for member in started]
        for member in started:
            member.wait_for("step", 3)
        begin = time.monotonic()
        started[3].kill()
        coordinator.wait_for_log(rf"{names[3]}.*(gone|ended|closed)")
        assert time.monotonic() - begin < 5
        started[2].process.send_signal(signal.SIGSTOP)
        coordinator.wait_for_log(rf"{names[2]}.*silent")
        assert time.monotonic() - begin < 15


def test_line_09_a_zombie_is_refused_and_told_to_join_again(
    coordinator: CoordinatorProcess,
) -> None:
    with members(3, coordinator.address, "sum", 400, 100_000) as started:
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


def test_line_10_a_newcomer_enters_between_operations_with_the_state(
    coordinator: CoordinatorProcess,
) -> None:
    with members(3, coordinator.address, "train", 300) as started:
        started[0].wait_for("step", 5)
        started[2].kill()
        newcomer = MemberProcess(coordinator.address, 1, "train", 300)
        try:
            everybody = [started[0], started[1], newcomer]
            ends = [
                next(said for said in member.finish() if "steps" in said) for member in everybody
            ]
        finally:
            newcomer.close()
        assert len({end["digest"] for end in ends}) == 1
        assert all(end["steps"] == 300 for end in ends)
        assert min(by_step(newcomer)) > 1, "it began with the others' state"
        assert sorted(by_step(started[0])) == list(range(1, 301))


def test_line_11_ctrl_c_is_a_polite_goodbye(coordinator: CoordinatorProcess) -> None:
    with members(3, coordinator.address, "sum", 3000, 1000) as started:
        name = started[2].wait_for("member")["member"]
        started[2].wait_for("step", 3)
        started[2].process.send_signal(signal.SIGINT)
        assert started[2].process.wait(PATIENCE_SECONDS) != 0
        for member in started[:2]:
            member.finish()
        agree(started[:2], 3000)
        coordinator.wait_for_log(rf"{name}.*(left|goodbye)")


def test_line_13_operations_go_on_without_the_coordinator_and_it_comes_back(
    coordinator: CoordinatorProcess,
) -> None:
    with members(3, coordinator.address, "sum", 1500, 10_000) as started:
        started[0].wait_for("step", 3)
        coordinator.end(signal.SIGKILL)
        started[0].wait_for("step", 300)
        coordinator.restart()
        started[2].kill()
        for member in started[:2]:
            member.finish()
        agree(started[:2], 1500)
        assert by_step(started[0])[1499]["counts"] == [2]


def test_line_14_a_slow_member_stays_and_its_pace_is_told(coordinator: CoordinatorProcess) -> None:
    with members(3, coordinator.address, "slow", 40, 1000) as started:
        for member in started:
            member.finish()
        agree(started, 40)
        assert by_step(started[0])[39]["counts"] == [3]
        run = coordinator.run_status(coordinator.address.run)
        assert run is not None
        assert all("operations_per_second" in member for member in run["members"])


def test_line_15_after_kill_9_the_same_command_starts_again_and_waiting_has_an_end(
    coordinator: CoordinatorProcess,
) -> None:
    address = str(coordinator.address)
    config = pccl.Config(connect_timeout_seconds=1.0)
    begin = time.monotonic()
    coordinator.restart()  # the same port, at once
    with pytest.raises(pccl.ConnectError, match=r"1 members are in after .* 2 are wanted"):
        pccl.join(address, world_size_min=2, config=config)
    with pccl.join(address) as comm:
        assert comm.world_size == 1
    coordinator.end(signal.SIGKILL)
    with pytest.raises(pccl.ConnectError, match=rf"{coordinator.address.port}"):
        pccl.join(address, config=config)
    assert time.monotonic() - begin < 30


# --- state ----------------------------------------------------------------------------------------


def test_line_16_a_committed_revision_is_on_the_coordinators_disk(
    coordinator: CoordinatorProcess, tmp_path: Path
) -> None:
    def program(comm: pccl.ElasticCommunicator, index: int) -> int:
        state = {"weights": np.zeros(100_000)}
        for _ in range(3):
            state["weights"] += 1
            last = comm.sync_state(state)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while comm._core.committed_revision[0] < last and time.monotonic() < deadline:
            time.sleep(0.01)
        comm.barrier()
        return last

    assert together(coordinator, 2, program) == [2, 2]
    coordinator.end(signal.SIGKILL)
    with closing(sqlite3.connect(tmp_path / "coordinator.db")) as database:
        assert database.execute("SELECT revision FROM runs").fetchall() == [(2,)]


def test_line_17_members_that_differ_are_named_and_get_the_others_bytes(
    coordinator: CoordinatorProcess, caplog: pytest.LogCaptureFixture
) -> None:
    def program(comm: pccl.ElasticCommunicator, index: int) -> tuple[int, bytes]:
        state = {"weights": np.arange(600_000.0)}
        comm.sync_state(state)
        if index == 1:
            state["weights"][300_000] += 1  # as broken memory does
        rank = comm.rank  # others leave while this one still fetches
        comm.sync_state(state)
        return rank, state["weights"].tobytes()

    with caplog.at_level(logging.INFO, logger="pccl"):
        found = together(coordinator, 3, program)
    assert {data for _, data in found} == {np.arange(600_000.0).tobytes()}
    assert f"ranks [{found[1][0]}] fetch revision 1" in caplog.text


def test_line_18_a_lost_state_stops_the_run_until_somebody_brings_it(
    coordinator: CoordinatorProcess,
) -> None:
    right = {"weights": np.full(1000, 7.0)}

    def program(comm: pccl.ElasticCommunicator, index: int) -> int:
        return comm.sync_state(right, revision=41)

    assert together(coordinator, 2, program) == [41, 41]
    address = str(coordinator.address)
    with pccl.join(address) as comm:
        state = {"weights": np.zeros(1000)}
        with pytest.raises(pccl.MemberLost, match="revision 41 was committed, and no member"):
            comm.sync_state(state)
        assert (state["weights"] == 0).all(), "it must not go on from other bytes"

    # Other bytes under the same name are no better.
    with (
        pccl.join(address) as comm,
        pytest.raises(pccl.MemberLost, match="revision 41 was committed, and no member"),
    ):
        comm.sync_state({"weights": np.zeros(1000)}, revision=41)

    # Restarted from checkpoints: who has the revision gives it to who has not.
    def restart(comm: pccl.ElasticCommunicator, index: int) -> float:
        state = {"weights": np.full(1000, 7.0 if index == 0 else 0.0)}
        comm.sync_state(state, revision=41 if index == 0 else 12)
        return float(state["weights"].sum())

    assert together(coordinator, 2, restart) == [7000.0, 7000.0]


# --- network and input ----------------------------------------------------------------------------


def test_line_19_garbage_at_any_port_of_the_run_affects_nothing(
    coordinator: CoordinatorProcess,
) -> None:
    generator = random.Random(7)
    with members(2, coordinator.address, "sum", 4000, 1000) as started:
        started[0].wait_for("step", 3)
        run = coordinator.run_status(coordinator.address.run)
        assert run is not None
        ports = [int(member["address"].rpartition(":")[2]) for member in run["members"]]
        for port in [coordinator.address.port, *ports] * 20:
            # It may be thrown out before it has said everything.
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as stranger:
                stranger.sendall(generator.randbytes(generator.choice([1, 79, 80, 5000])))
        for member in started:
            member.finish()
        agree(started, 4000)
        assert by_step(started[0])[3999]["counts"] == [2]


def test_line_21_mismatched_calls_are_an_error_on_every_member_that_names_both(
    coordinator: CoordinatorProcess,
) -> None:
    def program(comm: pccl.ElasticCommunicator, index: int) -> None:
        comm.all_reduce(np.ones(1000 + (comm.rank == 1), np.float32))

    for error in together(coordinator, 3, program):
        assert isinstance(error, pccl.CallMismatch), error
        assert "float32[1000]" in str(error), error
        assert "float32[1001]" in str(error), error


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_line_22_a_contribution_that_is_no_number_is_named_and_mixed_in_nowhere(
    coordinator: CoordinatorProcess, value: float
) -> None:
    def program(comm: pccl.ElasticCommunicator, index: int) -> tuple[str, str, bool]:
        ones = np.ones(100_000, np.float32)
        if index == 2:
            ones[777] = value
        before = ones.copy()
        with pytest.raises(pccl.NonFiniteContribution) as raised:
            comm.all_reduce(ones, "avg", finite=True)
        unchanged = bool(np.array_equal(ones, before, equal_nan=True))
        comm.all_reduce(np.ones(10), "avg", finite=True)  # the run goes on
        return comm.member_id, str(raised.value), unchanged

    found = together(coordinator, 3, program)
    assert all(isinstance(result, tuple) for result in found), found
    for index, (_, text, unchanged) in enumerate(found):
        assert unchanged
        assert "element 777" in text
        assert ("this member" if index == 2 else found[2][0]) in text
