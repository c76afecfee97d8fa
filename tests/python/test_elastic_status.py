"""What people see of a run with members in it: `pccl status`, the page's data, metrics."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coordinator_processes import PATIENCE_SECONDS, CoordinatorProcess, environment, refused
from member_processes import members
from prometheus_client.parser import text_string_to_metric_families
from rank_processes import free_ports

import pccl

CONFIG = pccl.Config(bind="127.0.0.1", hosts=("127.0.0.1",))


def await_run(
    coordinator: CoordinatorProcess, is_wanted: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """The first status of run "main" that is as wanted."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    run = None
    while time.monotonic() < deadline:
        run = coordinator.run_status("main")
        if run is not None and is_wanted(run):
            return run
        time.sleep(0.02)
    raise AssertionError(f"not as wanted: {run}\n{coordinator.text()}")


def count_in(run: dict[str, Any]) -> int:
    return sum(member["rank"] is not None and member["is_connected"] for member in run["members"])


def ask(coordinator: CoordinatorProcess, *options: str) -> str:
    port = coordinator.page.rstrip("/").rpartition(":")[2]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pccl", "status", str(coordinator.address)),
            *("--status-port", port, *options),
        ],
        env=environment(COLUMNS="200"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def join_two(address: str) -> tuple[pccl.ElasticCommunicator, pccl.ElasticCommunicator]:
    first = pccl.join(address, config=CONFIG)
    second = pccl.join(address, world_size_min=2, config=CONFIG)
    first.wait_for_members(2)
    return first, second


def reduce_together(*members: pccl.ElasticCommunicator, times: int) -> None:
    def reduce(comm: pccl.ElasticCommunicator) -> None:
        for _ in range(times):
            tensor = np.ones(3, np.float32)
            comm.all_reduce(tensor)
            assert (tensor == len(members)).all()

    threads = [threading.Thread(target=reduce, args=(comm,)) for comm in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


def check_metrics(text: str, comm: pccl.ElasticCommunicator, *, quorum_id: int) -> None:
    """Read by Prometheus's own parser: each family has its type, each sample its labels."""
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert all(family.type in ("counter", "gauge") for family in families.values())
    assert all(family.documentation for family in families.values())
    (sample,) = families["pccl_run_quorum_id"].samples
    assert (sample.labels, sample.value) == ({"run": "main"}, quorum_id)
    (sample,) = families["pccl_run_world_size_min"].samples
    assert sample.value == 1
    for name, least in (("started_operations", 20), ("completed_operations", 20), ("revision", 0)):
        found = {s.labels["member"]: s.value for s in families[f"pccl_member_{name}"].samples}
        assert len(found) == 2
        assert found[comm.member_id] >= least
    assert families["pccl_coordinator_messages"].samples[0].value > 0
    sent = families["pccl_link_bytes_sent"].samples
    assert {sample.labels["source"] for sample in sent} == set(found)
    assert all(sample.labels["target"] != sample.labels["source"] for sample in sent)
    assert all(sample.value > 0 for sample in sent)
    slow = families["pccl_member_slow"].samples
    assert [sample.value for sample in slow] == [0, 0]
    assert len(families["pccl_member_recovered_operations"].samples) == 2


def test_status_shows_members_operations_and_who_left(tmp_path: Path) -> None:
    with CoordinatorProcess(tmp_path) as coordinator:
        first, second = join_two(str(coordinator.address))
        with first, second:
            reduce_together(first, second, times=20)
            counted = first.statistics()
            assert counted["recovered_operations"] == counted["recovery_microseconds"] == 0
            assert counted["replaced_sockets"] == counted["resent_bytes"] == 0
            run = await_run(
                coordinator,
                lambda run: (
                    count_in(run) == 2
                    and all(m["completed"] >= 20 for m in run["members"])
                    and len(run["links"]) == 2
                ),
            )
            found = {member["member_id"]: member for member in run["members"]}
            for comm in (first, second):
                member = found[comm.member_id]
                assert member["rank"] == comm.rank
                assert member["address"].startswith("127.0.0.1:")
                assert member["seconds_since_heard"] < PATIENCE_SECONDS
            assert run["quorum_id"] == first.quorum_id
            text = ask(coordinator)
            assert f"2 in quorum {run['quorum_id']}" in text
            assert first.member_id in text
            assert second.member_id in text
            assert f"0 ({first.member_id})" in text  # of the links
            assert json.loads(ask(coordinator, "--json"))["runs"][0]["name"] == "main"
            with urllib.request.urlopen(coordinator.page + "metrics", timeout=5) as answer:
                metrics = answer.read().decode()
            assert 'pccl_run_world_size{run="main"} 2.0' in metrics
            assert f'member="{first.member_id}",run="main"' in metrics
            check_metrics(metrics, first, quorum_id=run["quorum_id"])
            second.leave()
            run = await_run(coordinator, lambda run: len(run["members"]) == 1)
            texts = [event["text"] for event in run["events"]]
            pattern = rf"\({second.member_id}\) is out: it (left|said goodbye)"
            assert any(re.search(pattern, text) for text in texts), texts
            reduce_together(first, times=3)


def test_a_coordinator_that_is_killed_finds_its_run_again_and_lets_others_in(
    tmp_path: Path,
) -> None:
    with CoordinatorProcess(tmp_path) as coordinator:
        address = str(coordinator.address)
        first, second = join_two(address)
        with first, second:
            before = await_run(coordinator, lambda run: count_in(run) == 2)
            for _ in range(3):
                coordinator.end(signal.SIGKILL)
                reduce_together(first, second, times=10)  # nobody decides, nobody has to
                coordinator._close_pipes()
                coordinator.start()
            after = await_run(coordinator, lambda run: count_in(run) == 2)
            assert after["quorum_id"] == before["quorum_id"]
            assert int(after["term"]) > int(before["term"])
            with pccl.join(address, world_size_min=3, config=CONFIG) as third:
                for comm in (first, second):
                    comm.wait_for_members(3)
                reduce_together(first, second, third, times=10)


def test_the_first_member_can_be_the_coordinator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (port,) = free_ports(1, random.Random(11))
    address = f"pccl://127.0.0.1:{port}/main"
    with (
        pccl.join(address, host_coordinator=True, config=CONFIG) as first,
        pccl.join(address, host_coordinator=True, world_size_min=2, config=CONFIG) as second,
    ):
        first.wait_for_members(2)
        reduce_together(first, second, times=3)
        text = refused(tmp_path / "pccl")
        assert "another process uses it" in text
    # What it held is free again.
    other = f"pccl://127.0.0.1:{port}/other"
    with pccl.join(other, host_coordinator=True, config=CONFIG) as alone:
        reduce_together(alone, times=1)


def test_a_first_member_tells_why_its_coordinators_database_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "pccl").mkdir()
    (tmp_path / "pccl" / "coordinator.db").write_bytes(b"no database at all" * 100)
    (port,) = free_ports(1, random.Random(13))
    with pytest.raises(pccl.DatabaseError, match=r"no database, and is left as it is.*--database"):
        pccl.join(f"pccl://127.0.0.1:{port}/main", host_coordinator=True, config=CONFIG)


def test_recoveries_are_counted_by_members_and_by_the_coordinator(tmp_path: Path) -> None:
    with (
        CoordinatorProcess(tmp_path) as coordinator,
        members(3, coordinator.address, "sum", 100_000, 1_000_000) as started,
    ):
        for member in started:
            member.wait_for("step", 3)
        started[1].kill()
        run = await_run(
            coordinator,
            lambda run: (
                len(run["members"]) == 2
                and all(member["recovered_operations"] > 0 for member in run["members"])
            ),
        )
        for member in run["members"]:
            assert 0 < member["recovery_seconds"] < PATIENCE_SECONDS
            assert member["resumed_connections"] == member["resent_bytes"] == 0


def test_events_go_to_logging_with_their_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = pccl.CoordinatorOptions(
        port=0, bind="127.0.0.1", database=tmp_path / "events.db", listen_seconds=0
    )
    with caplog.at_level("INFO", "pccl.coordinator"), pccl.Coordinator(options) as coordinator:
        with pccl.join(f"pccl://127.0.0.1:{coordinator.port}/main", config=CONFIG) as alone:
            member_id = alone.member_id
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            told = [vars(record) for record in caplog.records if vars(record).get("run") == "main"]
            if any(f"({member_id}) is out" in fields["event"] for fields in told):
                break
            time.sleep(0.02)
        else:
            raise AssertionError(caplog.text)
    assert any(f"({member_id}) is in" in fields["event"] for fields in told)


def abandon(coordinator: CoordinatorProcess, folder: Path, run: str) -> tuple[int, str]:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pccl", "coordinator", "--bind", "127.0.0.1", "--silence", "1"),
            *("--port", str(coordinator.port), "--database", str(folder / "coordinator.db")),
            *("--abandon", run),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_run_whose_members_died_while_nobody_looked_can_be_abandoned(tmp_path: Path) -> None:
    with CoordinatorProcess(tmp_path, "--silence", "1") as coordinator:
        with members(2, coordinator.address, "sum", 1_000_000, 1000) as started:
            started[0].wait_for("step", 3)
            coordinator.end(signal.SIGKILL)
            code, text = abandon(coordinator, tmp_path, "main")
            assert code == 1
            assert re.search(r"run 'main' can't be abandoned: rank . \(\w+\) is here", text), text
            code, text = abandon(coordinator, tmp_path, "other")
            assert code == 1
            assert "no such run" in text
        coordinator.restart()  # both were killed, and it was away
        with pytest.raises(pccl.ConnectError, match="not in the run after 2 s"):
            pccl.join(str(coordinator.address), config=replace(CONFIG, connect_timeout_seconds=2))
        coordinator.end(signal.SIGKILL)
        code, text = abandon(coordinator, tmp_path, "main")
        assert code == 0, text
        assert "run 'main' is abandoned" in text
        coordinator.restart()
        with pccl.join(str(coordinator.address), config=CONFIG) as comm:
            assert comm.world_size == 1
            tensor = np.ones(3)
            comm.all_reduce(tensor)
            assert (tensor == 1).all()
