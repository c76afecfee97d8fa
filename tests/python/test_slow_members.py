"""Contract line 14: a slow member is not a dead one. It is reported with its rate, and stays in."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from coordinator_processes import CoordinatorProcess
from member_processes import MemberProcess, members
from prometheus_client.parser import text_string_to_metric_families
from wide_area import REASON, WANLAB

needs_hosts = pytest.mark.skipif(bool(REASON), reason=REASON)


@contextmanager
def on_hosts(
    folder: Path, rates: list[str]
) -> Iterator[tuple[CoordinatorProcess, list[MemberProcess], Any]]:
    """A member on a host with each of these up- and downlinks; the coordinator has its own."""
    assert WANLAB is not None
    with WANLAB.Lab(seed=3) as lab, ExitStack() as stack:
        hosts = [
            lab.add_host(f"h{index}", up=rate, down=rate)
            for index, rate in enumerate([*rates, "100mbit"])
        ]
        for first, host in enumerate(hosts):
            for other in hosts[:first]:
                lab.link(host, other, rtt="20ms")
        last = hosts[-1]
        coordinator = stack.enter_context(
            CoordinatorProcess(
                folder, "--status-host", last.addr, host=last.addr, launch=last.popen
            )
        )
        program = (coordinator.address, len(rates), "sum", 100_000, 200_000)
        started = []
        for host in hosts[:-1]:
            started.append(MemberProcess(*program, host=host.addr, launch=host.popen))
            stack.callback(started[-1].close)
        yield coordinator, started, last


def read_so_far(member: MemberProcess) -> list[dict[str, Any]]:
    """At least three steps."""
    member.wait_for("step", 3)
    while member.has_more():
        member.next()
    return member.said


def fetch(host: Any, url: str) -> str:
    """From that host's own network."""
    code = (
        f"import urllib.request; print(urllib.request.urlopen({url!r}, timeout=5).read().decode())"
    )
    process = host.popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    text, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    return str(text)


@needs_hosts
def test_line_14_a_member_on_a_narrow_link_is_reported_with_its_rate_and_stays_in(
    tmp_path: Path,
) -> None:
    rates = ["100mbit", "100mbit", "10mbit", "100mbit"]
    with on_hosts(tmp_path, rates) as (coordinator, started, host):
        ids = [member.wait_for("member")["member"] for member in started]
        told = coordinator.wait_for_log(
            r"rank \d \((\w+)\) is slow: its links carry ([\d.]+) MB/s at most while they are "
            r"busy, those of the others ([\d.]+) MB/s; it stays in"
        )
        assert told[1] == ids[2]
        assert 2 * float(told[2]) < float(told[3])
        status = json.loads(fetch(host, coordinator.page + "status.json"))["runs"][0]
        slow = [member for member in status["members"] if member["is_slow"]]
        assert [member["member_id"] for member in slow] == [ids[2]]
        assert 0 < slow[0]["link_bytes_per_second"] < 10e6 / 8
        assert "MB/s" in slow[0]["slow_reason"]
        # Every link has its rates and its round trip, which the lab made 20 ms.
        assert {link["from"] for link in status["links"]} == set(ids)
        for link in status["links"]:
            assert link["bytes_per_second"] > 0
            assert link["round_trip_seconds"] > 0.015
        text = fetch(host, coordinator.page + "metrics")
        families = {family.name: family for family in text_string_to_metric_families(text)}
        flags = {s.labels["member"]: s.value for s in families["pccl_member_slow"].samples}
        assert flags == {member_id: float(member_id == ids[2]) for member_id in ids}
        # All go on, with it.
        step = max(said["step"] for said in read_so_far(started[0]) if "step" in said)
        for member in started:
            assert member.wait_for("step", step + 2)["counts"] == [4]
        assert coordinator.text().count(") is slow") == 1


@needs_hosts
def test_nobody_is_slow_on_even_links(tmp_path: Path) -> None:
    with on_hosts(tmp_path, ["100mbit"] * 4) as (coordinator, started, host):
        started[0].wait_for("step", 80)
        status = json.loads(fetch(host, coordinator.page + "status.json"))["runs"][0]
        rates = [member["link_bytes_per_second"] for member in status["members"]]
        assert all(rates), "nothing was measured"
        assert ") is slow" not in coordinator.text()


def test_line_14_a_member_that_the_others_wait_for_is_reported_and_stays_in(
    tmp_path: Path,
) -> None:
    with (
        CoordinatorProcess(tmp_path) as coordinator,
        members(3, coordinator.address, "slow", 1000, 1000) as started,
    ):
        by_rank = {}
        for member in started:
            said = member.wait_for("member")
            by_rank[said["rank"]] = said["member"]
        told = coordinator.wait_for_log(
            r"rank 0 \((\w+)\) is slow: the others wait for its calls, [01]\.\d\d s of each second"
        )
        run = coordinator.run_status("main")
        assert run is not None
        found = {member["member_id"]: member for member in run["members"]}
        assert found[told[1]]["waited_for"] > 0.25
        assert [member["is_slow"] for member in run["members"]].count(True) == 1
        # All go on, with it.
        step = max(said["step"] for said in read_so_far(started[0]) if "step" in said)
        for member in started:
            assert member.wait_for("step", step + 2)["counts"] == [3]
        assert coordinator.text().count(") is slow") == 1
