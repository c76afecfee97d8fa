"""A network that is cut in two: one side at most goes on; needs wanlab: see wide_area.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from coordinator_processes import CoordinatorProcess
from member_processes import MemberProcess, by_step
from wide_area import REASON, WANLAB

pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)

WORKER = Path(__file__).with_name("partition_worker.py")
MEMBERS = 4


@contextmanager
def four_hosts(
    folder: Path, coordinator_at: int
) -> Iterator[tuple[Any, list[Any], CoordinatorProcess, list[MemberProcess]]]:
    """Lab, hosts, the coordinator on one of them, a member on each."""
    assert WANLAB is not None
    with WANLAB.Lab(seed=1) as lab, ExitStack() as stack:
        hosts = [lab.add_host(f"h{i}", up="100mbit", down="100mbit") for i in range(MEMBERS)]
        for first in range(MEMBERS):
            for second in range(first):
                lab.link(hosts[first], hosts[second], rtt="20ms")
        limits = ("--heartbeat", "0.2", "--silence", "2", "--link-grace", "2", "--takeover", "2")
        place = hosts[coordinator_at]
        coordinator = stack.enter_context(
            CoordinatorProcess(folder, *limits, status=False, host=place.addr, launch=place.popen)
        )
        started = []
        for host in hosts:
            started.append(
                MemberProcess(
                    coordinator.address, MEMBERS, host=host.addr, launch=host.popen, worker=WORKER
                )
            )
            stack.callback(started[-1].close)
        yield lab, hosts, coordinator, started


def wait_for_members(member: MemberProcess, count: int, steps: int = 1) -> None:
    """Until it has made so many steps one after the other among so many members."""
    done = 0
    while done < steps:
        said = member.next()
        assert said is not None, (member.said[-3:], member.errors())
        if "step" in said:
            done = done + 1 if said["members"] == count else 0


def says_it_waits(member: MemberProcess) -> bool:
    return any("waits" in said.get("trouble", "") for said in member.said)


@pytest.mark.parametrize(
    ("coordinator_at", "going_on"),
    [
        pytest.param(0, [0, 1, 2], id="three with the coordinator"),
        pytest.param(3, [0, 1, 2], id="three without it"),
        pytest.param(0, [0, 1], id="halves"),
    ],
)
def test_line_12_a_partition_never_makes_two_runs(
    tmp_path: Path, coordinator_at: int, going_on: list[int]
) -> None:
    with four_hosts(tmp_path, coordinator_at) as (lab, hosts, coordinator, started):
        for member in started:
            wait_for_members(member, MEMBERS, 3)
        waiting = [member for i, member in enumerate(started) if i not in going_on]
        lab.partition(
            [hosts[i] for i in going_on],
            [host for i, host in enumerate(hosts) if i not in going_on],
        )
        for i in going_on:
            wait_for_members(started[i], len(going_on), 10)
        for member in waiting:
            while not says_it_waits(member):
                assert member.next() is not None, member.errors()
            assert all(said["members"] == MEMBERS for said in by_step(member).values())
        lab.heal()
        for member in waiting:
            last = max(by_step(member))
            digest = by_step(member)[last]["digest"]
            left_behind = member.wait_for("lost")
            assert "join again" in left_behind["lost"]
            assert (left_behind["steps"], left_behind["digest"]) == (last, digest)
        for member in started:
            wait_for_members(member, MEMBERS, 3)
        # One history: who was left behind has, after it came back, the bytes of those who went on.
        history = by_step(started[going_on[0]])
        for member in started:
            for step, said in by_step(member).items():
                if step in history:
                    assert said["digest"] == history[step]["digest"], (step, said, history[step])
        assert coordinator.text().count("the first of the run") == 1, coordinator.text()
