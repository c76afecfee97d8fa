"""The state of a run comes to a newcomer while the others compute, whoever dies meanwhile.

The newcomer stands still after some pieces until the test says go, so that what the others have
done by then is proved by the order of events and not by times.
"""

from __future__ import annotations

import functools
import hashlib
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coordinator_processes import CoordinatorProcess
from member_processes import PATIENCE_SECONDS, MemberProcess
from state_worker import LOCAL_STEPS, PIECES

PIECE_BYTES = 1 << 20
WORKER = Path(__file__).with_name("state_worker.py")


class Run:
    """Members that a test starts, and that end with it."""

    def __init__(self, coordinator: CoordinatorProcess, stack: ExitStack) -> None:
        self._address = coordinator.address
        self._stack = stack

    def start(self, members: int, role: str, about: int, hold: int = 0) -> MemberProcess:
        launch = functools.partial(subprocess.Popen, stdin=subprocess.PIPE)
        program = (self._address, members, role, about, hold)
        member = MemberProcess(*program, launch=launch, worker=WORKER)
        self._stack.callback(member.close)
        assert member.process.stdin is not None
        self._stack.callback(member.process.stdin.close)
        return member

    def start_holders(self, count: int) -> list[MemberProcess]:
        """Those that the run begins with; a newcomer is to come."""
        holders = [self.start(count, "holder", count + 1) for _ in range(count)]
        for holder in holders:
            holder.wait_for("member")
        return holders


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with CoordinatorProcess(tmp_path, status=False) as coordinator, ExitStack() as stack:
        yield Run(coordinator, stack)


def wait_for_pieces(newcomer: MemberProcess, count: int) -> None:
    for _ in range(count):
        newcomer.wait_for("piece")


def go(newcomer: MemberProcess) -> None:
    assert newcomer.process.stdin is not None
    newcomer.process.stdin.write("go\n")
    newcomer.process.stdin.flush()


def weights(local_steps: int) -> str:
    values = np.random.default_rng(7).standard_normal(PIECES * (1 << 18), np.float32)
    for _ in range(local_steps):
        values += 1
    return hashlib.sha256(values).hexdigest()


def said(member: MemberProcess, key: str) -> list[Any]:
    return [line[key] for line in member.said if key in line]


def check_end(members: list[MemberProcess], contributors: int) -> None:
    for member in members:
        member.finish()
        assert said(member, "synced") == [weights(0)]
        assert said(member, "end") == [weights(LOCAL_STEPS)]
        assert said(member, "contributors") == [contributors]


def test_line_10_the_others_go_on_computing_while_a_newcomer_downloads(run: Run) -> None:
    holders = run.start_holders(2)
    newcomer = run.start(1, "newcomer", 3, hold=7)
    wait_for_pieces(newcomer, 7)
    # It has 7 of 40 pieces and takes no further one; the others do all their steps, in place.
    for holder in holders:
        holder.wait_for("local", LOCAL_STEPS - 1)
        assert holder.wait_for("held")["held"] == PIECES * PIECE_BYTES
        assert not holder.has_more(), "the next operation waits for the newcomer"
    go(newcomer)
    check_end([*holders, newcomer], 3)
    assert sorted(said(newcomer, "piece")) == list(range(PIECES))


def test_a_source_that_dies_is_replaced_and_what_came_is_not_fetched_again(run: Run) -> None:
    holders = run.start_holders(2)
    newcomer = run.start(1, "newcomer", 3, hold=9)
    wait_for_pieces(newcomer, 9)
    holders[0].wait_for("held")
    holders[0].kill()
    go(newcomer)
    check_end([holders[1], newcomer], 2)
    assert sorted(said(newcomer, "piece")) == list(range(PIECES))


def test_who_has_fetched_it_is_a_source_when_no_other_one_is_left(run: Run) -> None:
    holder = run.start(3, "holder", 3)
    fast, late = run.start(3, "newcomer", 3), run.start(3, "newcomer", 3, hold=9)
    wait_for_pieces(late, 9)
    fast.wait_for("synced")
    holder.wait_for("held")
    holder.kill()
    go(late)
    check_end([fast, late], 2)
    assert sorted(said(late, "piece")) == list(range(PIECES))


def test_nobody_goes_on_when_the_last_one_that_had_the_state_is_lost(run: Run) -> None:
    holder = run.start(3, "holder", 3)
    newcomers = [run.start(3, "newcomer", 3, hold=count) for count in (5, 9)]
    for newcomer, count in zip(newcomers, (5, 9), strict=True):
        wait_for_pieces(newcomer, count)
    holder.wait_for("held")
    holder.kill()
    for newcomer in newcomers:
        go(newcomer)
    for newcomer in newcomers:
        while newcomer.next() is not None:
            pass
        assert newcomer.process.wait(PATIENCE_SECONDS) != 0
        assert "partly overwritten" in newcomer.errors()


def test_a_newcomer_that_dies_frees_what_was_kept_for_it(run: Run) -> None:
    holders = run.start_holders(2)
    newcomer = run.start(1, "newcomer", 3, hold=3)
    wait_for_pieces(newcomer, 3)
    for holder in holders:
        holder.wait_for("held", 1)
    newcomer.kill()
    check_end(holders, 2)


def test_who_alone_has_the_state_leaves_when_the_newcomer_has_it_too(run: Run) -> None:
    holder = run.start(1, "leaver", 2)
    holder.wait_for("member")
    newcomer = run.start(1, "newcomer", 2, hold=5)
    wait_for_pieces(newcomer, 5)
    holder.wait_for("leaving")
    go(newcomer)
    holder.finish()
    check_end([newcomer], 1)
