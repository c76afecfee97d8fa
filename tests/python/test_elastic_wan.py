"""The contract's lines that need hosts of their own; needs wanlab: see wide_area.py."""

from __future__ import annotations

import itertools
import random
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from coordinator_processes import CoordinatorProcess
from member_processes import PATIENCE_SECONDS, MemberProcess, agree, by_step
from wide_area import REASON, WANLAB

pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)


@contextmanager
def far_apart(
    folder: Path, count: int, steps: int, elements: int
) -> Iterator[tuple[Any, list[Any], CoordinatorProcess, list[MemberProcess]]]:
    """Lab, hosts, coordinator on a host of its own (the last one), members on the others."""
    assert WANLAB is not None
    seed = random.randrange(1 << 30)
    print(f"lab seed {seed}")
    with WANLAB.Lab(seed=seed) as lab, ExitStack() as stack:
        hosts = [lab.add_host(f"h{i}", up="100mbit", down="100mbit") for i in range(count + 1)]
        for first in range(count + 1):
            for second in range(first):
                lab.link(hosts[first], hosts[second], rtt="20ms")
        last = hosts[-1]
        coordinator = stack.enter_context(
            CoordinatorProcess(
                folder, "--silence", "2", status=False, host=last.addr, launch=last.popen
            )
        )
        started = []
        for host in hosts[:-1]:
            program = (coordinator.address, count, "sum", steps, elements)
            member = MemberProcess(*program, host=host.addr, launch=host.popen)
            stack.callback(member.close)
            started.append(member)
        yield lab, hosts, coordinator, started


def test_line_08_a_broken_connection_is_repaired_underneath(tmp_path: Path) -> None:
    with far_apart(tmp_path, 3, 60, 200_000) as (_, hosts, coordinator, started):
        resets = 0
        for step in (3, 10, 20):
            started[0].wait_for("step", step)
            try:
                resets += hosts[1].reset_connections()
            except OSError as error:
                pytest.skip(f"this kernel resets no connections: {error}")
        assert resets > 0
        started[0].wait_for("step", 30)
        hosts[2].blackhole()
        time.sleep(1)  # of silence, which is no reason to give anybody up
        hosts[2].heal()
        for member in started:
            member.finish()
        agree(started, 60)
        counted = [member.said[-1]["statistics"] for member in started]
        assert sum(statistics["replaced_sockets"] for statistics in counted) >= resets
        assert all(statistics["recovered_operations"] == 0 for statistics in counted)
        assert by_step(started[0])[59]["counts"] == [3]
        assert not re.search("gone|silent|reach", coordinator.text()), coordinator.text()


def test_two_hosts_train_together_by_pasting_one_address(tmp_path: Path) -> None:
    assert WANLAB is not None
    with WANLAB.Lab(seed=1) as lab, ExitStack() as stack:
        one, two, other = (lab.add_host(f"h{i}", up="100mbit", down="100mbit") for i in range(3))
        for first, second in ((one, two), (one, other), (two, other)):
            lab.link(first, second, rtt="20ms")
        coordinator = stack.enter_context(
            CoordinatorProcess(tmp_path, status=False, host=one.addr, launch=one.popen)
        )
        address = coordinator.address
        assert address.fingerprint
        assert address.token
        # Without what follows '#' it is not even called; with another token it is refused.
        for pasted, reason in (
            (address.shown, "it names no key"),
            (address.with_token(bytes(16)), "wrong token"),
        ):
            program = (pasted, 1, "train", 1)
            stranger = MemberProcess(
                *program, host=other.addr, launch=other.popen, PCCL_CONNECT_TIMEOUT="3"
            )
            stack.callback(stranger.close)
            while stranger.next() is not None:
                pass
            stranger.process.wait(PATIENCE_SECONDS)
            text = stranger.errors() + str(stranger.said)
            assert reason in text, text
        started = []
        for host in (one, two):
            started.append(
                MemberProcess(address, 2, "train", 12, host=host.addr, launch=host.popen)
            )
            stack.callback(started[-1].close)
        digests = set()
        for member in started:
            said = member.finish()
            digests |= {line["digest"] for line in said if "digest" in line}
            assert [line["world_size"] for line in said if "step" in line] == [2] * 12
        assert len(digests) == 1
        assert coordinator.text().count("is admitted by token") == 2


def rates(said: dict[str, Any]) -> dict[tuple[int, int], float]:
    """Megabits a second, by the ranks of sender and receiver."""
    return {(a, b): 8e-6 * rate for a, b, rate, _ in said["links"]}


def test_unknown_links_are_probed_before_the_first_large_all_reduce(tmp_path: Path) -> None:
    assert WANLAB is not None
    up = [40.0, 40.0, 40.0, 16.0]  # Mbit/s
    elements = 1_100_003
    with WANLAB.Lab(seed=1) as lab, ExitStack() as stack:
        hosts = [lab.add_host(f"h{i}", up=f"{up[i]:.0f}mbit", down="40mbit") for i in range(4)]
        for first in range(4):
            for second in range(first):
                lab.link(hosts[first], hosts[second], rtt="20ms")
        lab.link(hosts[0], hosts[1], rtt="20ms", rate="4mbit")
        coordinator = stack.enter_context(
            CoordinatorProcess(tmp_path, status=False, host=hosts[2].addr, launch=hosts[2].popen)
        )
        members = []
        for host in hosts:
            program = (coordinator.address, 4, "links", 2, elements, 4)
            more = {"host": host.addr, "launch": host.popen, "PCCL_PROBES": "1"}
            members.append(MemberProcess(*program, **more))
            stack.callback(members[-1].close)
        for member in members:
            member.finish()
        steps = [[said for said in member.said if "step" in said] for member in members]
        ranks = [member.said[0]["rank"] for member in members]
        assert steps[0][0]["links"] == []
        known = rates(steps[0][1])
        assert all(rates(said[1]) == known for said in steps)
        # Into the narrow host as well: nobody bursts and acknowledges at once.
        right = 0
        for sender, receiver in itertools.permutations(range(4), 2):
            truth = 4.0 if {sender, receiver} == {0, 1} else up[sender]
            figure = known[ranks[sender], ranks[receiver]] / truth
            assert 0.5 < figure < 1.25, known  # a busy machine sees less
            right += figure > 0.75
        assert right >= 10, known
        for said in steps:
            assert [step["digest"] for step in said] == [step["digest"] for step in steps[0]]
        probed = [member.said[-1]["statistics"]["probe_bytes"] for member in members]
        assert all(3 * 65536 < count <= 4 * 4 << 20 for count in probed), probed
        # The narrow host would send half as much again by a ring or in equal shares.
        assert (steps[3][0]["sent"] - probed[3]) / (4 * elements) < 1.42, steps[3][0]


def test_a_newcomer_plans_by_what_the_others_have_measured(tmp_path: Path) -> None:
    assert WANLAB is not None
    with WANLAB.Lab(seed=1) as lab, ExitStack() as stack:
        hosts = [
            lab.add_host(f"h{i}", up="20mbit" if i == 0 else "200mbit", down="200mbit")
            for i in range(5)
        ]
        for first in range(5):
            for second in range(first):
                lab.link(hosts[first], hosts[second], rtt="20ms")
        coordinator = stack.enter_context(
            CoordinatorProcess(tmp_path, status=False, host=hosts[4].addr, launch=hosts[4].popen)
        )

        def start(number: int) -> MemberProcess:
            program = (coordinator.address, 3, "links", 3, 1_100_003, 4)
            host = hosts[number]
            member = MemberProcess(*program, host=host.addr, launch=host.popen)
            stack.callback(member.close)
            return member

        members = [start(0), start(1), start(2)]
        members[0].wait_for("step", 6)
        members.append(start(3))
        for member in members:
            member.finish()
        steps = [[said for said in member.said if "step" in said] for member in members]
        newcomer = steps[3][0]
        assert newcomer["contributors"] == 4
        known = rates(newcomer)
        assert len(known) == 12
        narrow = members[0].said[0]["rank"]
        others = [rank for rank in range(3) if rank != narrow]
        # What no plan has filled is thought to be as fast as the fastest.
        first, second = others
        out_of_it = min(known[narrow, rank] for rank in others)
        assert 5 < out_of_it < 30, str(known)
        assert min(known[first, second], known[second, first]) > 1.5 * out_of_it, str(known)
        for said in steps[1:]:
            assert [step["digest"] for step in said[-3:]] == [
                step["digest"] for step in steps[0][-3:]
            ]
        # All plan alike, by what the newcomer was told.
        entered = next(said for said in steps[0] if said["contributors"] == 4)
        assert entered["algorithm"] == newcomer["algorithm"]
