"""What `pccl doctor` hears from the coordinator: how the network sees this machine."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from coordinator_processes import CoordinatorProcess, environment
from wide_area import REASON, WANLAB

import pccl
from pccl import _core
from pccl.address import RunAddress
from pccl.doctor_reach import Way, judge_sighting, look_from_there

ALIVE, REFUSED = 3, 1


def launch_keyed(command: list[str], **more: object) -> object:
    more["env"] = environment(PCCL_TLS="always")
    return subprocess.Popen(command, **more)  # type: ignore[call-overload]


def way_to(address: RunAddress, **config: Any) -> Way:
    place = (address.host, address.port)
    return Way(socket.AF_INET, place, address, pccl.Config(bind="127.0.0.1", **config))


def test_the_coordinator_dials_back_and_measures_for_those_who_may_come(tmp_path: Path) -> None:
    with CoordinatorProcess(
        tmp_path, "--name", "demo", status=False, launch=launch_keyed
    ) as coordinator:
        address = coordinator.address
        keys = {"fingerprint": address.fingerprint}
        for token, words in ((b"", "never admitted"), (bytes(16), "wrong token")):
            found = _core.examine(
                "127.0.0.1", address.port, "demo", 1, fingerprint=address.fingerprint, token=token
            )
            assert found["reply"][1] == REFUSED
            assert words in found["reply"][2]
            assert not found["seen_as"]
        checks = {check.name: check for check in look_from_there(way_to(address))}
        assert {check.state for check in checks.values()} == {"ok"}, checks
        assert "the coordinator reached 127.0.0.1:" in checks["dial-back"].value
        # Nobody listens there; it is not asked to dial at all; asking has admitted no key.
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        for own_port, error in ((port, "Connection refused"), (0, "no port to dial")):
            found = _core.examine(
                "127.0.0.1", address.port, "demo", own_port, token=address.token, **keys
            )
            assert found["reply"][1] == ALIVE
            assert not found["is_reached"]
            assert found["error"] == error
            assert min(found["sent_bytes_per_second"], found["received_bytes_per_second"]) > 1e5
        assert _core.KeyBook(str(tmp_path / "coordinator.db")).keys("demo") == []
        # A port that somebody else has is no reason not to ask.
        with socket.create_server(("127.0.0.1", 0)) as other:
            way = way_to(address, ports=(other.getsockname()[1],))
            checks = {check.name: check for check in look_from_there(way)}
        assert checks["listen"].state == "warning"
        assert checks["dial-back"].state == "ok"


def judged(seen: str, reached: bool, is_here: bool = True, **config: Any) -> tuple[str, str, str]:
    found = {"seen_as": f"{seen}:9", "is_reached": reached, "dial_seconds": 0.1, "error": "no word"}
    way = way_to(RunAddress("127.0.0.1", 1, "demo"), **config)
    _, check = judge_sighting(found, way, 7, is_here)
    return check.state, check.value, check.fix


def test_each_way_to_be_seen_has_its_fix() -> None:
    assert judged("127.0.0.1", True)[0] == "ok"
    state, value, fix = judged("203.0.113.7", True)
    assert (state, "PCCL_HOST=203.0.113.7 and PCCL_PORT=7" in fix) == ("warning", True)
    assert judged("203.0.113.7", True, hosts=("203.0.113.7",))[0] == "ok"
    state, value, fix = judged("203.0.113.7", False)
    assert "can't reach 203.0.113.7:7: no word" in value
    assert "forward a TCP port of the router at 203.0.113.7" in fix
    state, value, fix = judged("203.0.113.7", True, is_here=False)
    assert (state, "somebody else answers there" in value) == ("warning", True)
    state, value, fix = judged("127.0.0.1", False)
    assert (state, "firewall" in fix) == ("warning", True)


@pytest.mark.skipif(bool(REASON), reason=REASON)
def test_behind_a_router_that_lets_nobody_in_it_says_so_and_how_fast_the_line_is(
    tmp_path: Path,
) -> None:
    assert WANLAB is not None
    with WANLAB.Lab() as lab:
        there = lab.add_host("there", up="100mbit", down="100mbit")
        here = lab.add_host("here", up="8mbit", down="40mbit", nat=True)
        lab.link(there, here, rtt="20ms")
        with CoordinatorProcess(
            tmp_path, status=False, host=there.addr, launch=there.popen
        ) as coordinator:
            done = here.run(
                [sys.executable, "-m", "pccl", "doctor", str(coordinator.address), "--json"],
                env=environment(),
                capture_output=True,
                text=True,
                timeout=90,
            )
            assert done.returncode == 0, done.stderr
            found = {check["name"]: check for check in json.loads(done.stdout)}
            assert found["own address"]["value"] == f"{here.addr}, here and there"
            assert found["dial-back"]["state"] == "warning"
            assert f"can't reach {here.addr}:" in found["dial-back"]["value"]
            assert "firewall" in found["dial-back"]["fix"]
            assert found["bandwidth"]["state"] == "warning"
            words = found["bandwidth"]["value"].split()
            up, down = float(words[0]), float(words[5])
            assert 3 < up < 10, words
            assert up < down < 44, words
            assert "DiLoCo" in found["bandwidth"]["fix"]
