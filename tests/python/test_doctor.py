"""`pccl doctor` against what can be wrong with a run's address: each failure comes with its fix."""

from __future__ import annotations

import http.server
import json
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wire_format
from coordinator_processes import CoordinatorProcess, environment

import pccl
from pccl import doctor
from pccl.config import Config

Checks = dict[str, dict[str, Any]]


def examine(address: object, *options: str, code: int = 0, **more: str) -> Checks:
    """The checks by name; the exit code must be `code`."""
    done = subprocess.run(
        [sys.executable, "-m", "pccl", "doctor", str(address), "--json", *options],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    checks: list[dict[str, Any]] = json.loads(done.stdout)
    assert all(check["fix"] for check in checks if check["state"] != "ok"), checks
    failed = any(check["state"] == "FAILED" for check in checks)
    assert failed == (code == 1)
    return {check["name"]: check for check in checks}


@contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Something that listens; `answer` gets each of its callers."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                answer(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def test_a_run_with_a_member_is_ok(tmp_path: Path) -> None:
    config = Config(bind="127.0.0.1", hosts=("127.0.0.1",))
    with (
        CoordinatorProcess(tmp_path) as coordinator,
        pccl.join(str(coordinator.address), config=config) as comm,
    ):
        port = coordinator.page.rstrip("/").rpartition(":")[2]
        checks = examine(coordinator.address, "--status-port", port)
        [member] = comm.members
        assert checks["connect"]["state"] == checks["handshake"]["state"] == "ok"
        assert checks[f"member {member.address}"]["state"] == "ok"
        assert checks["run"]["value"].startswith("1 members in quorum 1")
        assert checks["clock"]["value"].endswith("against the coordinator's")
        # It changes nothing there.
        assert comm.quorum_id == 1
        # Without the run's name; of another run.
        assert "run" not in examine(f"127.0.0.1:{coordinator.port}")
        other = examine(f"pccl://127.0.0.1:{coordinator.port}/other", "--status-port", port)
        assert other["run"]["state"] == "warning"
        assert "has no member of run 'other'; runs it has: 'run'" in other["run"]["value"].replace(
            repr(coordinator.address.run), "'run'"
        )


def test_a_member_of_another_run_is_no_coordinator() -> None:
    with pccl.init(f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1) as comm:
        port = comm._run.context.describe_address().partition(",")[0].rpartition(":")[2]
        found = examine(f"pccl://127.0.0.1:{port}/mine", code=1)["handshake"]
    assert "wrong run" in found["value"]
    assert "'mine'" in found["value"]
    assert "a member and no coordinator" in found["fix"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_a_closed_port_names_the_command_that_opens_it() -> None:
    port = free_port()
    found = examine(f"127.0.0.1:{port}", code=1)["connect"]
    assert "refused" in found["value"]
    assert f"pccl coordinator --port {port}" in found["fix"]


def test_a_name_that_does_not_exist() -> None:
    assert examine("no-such-host.invalid:1", code=1)["name"]["state"] == "FAILED"


def test_an_http_server_is_no_coordinator() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        found = examine(f"127.0.0.1:{web.server_port}", code=1)["handshake"]
        web.shutdown()
    assert "something else listens" in found["fix"]


def test_another_version_is_named_on_both_sides() -> None:
    def answer(connection: socket.socket) -> None:
        wire_format.read_exactly(connection, 8)
        body = struct.pack("<BH", 1, 3) + b"old"
        connection.sendall(wire_format.REPLY + struct.pack("<HH", 1, len(body)) + body)

    with server(answer) as port:
        found = examine(f"127.0.0.1:{port}", code=1)["handshake"]
    assert found["value"] == f"protocol 1 there, {pccl._core.PROTOCOL_VERSION} here"
    assert "install the same pccl" in found["fix"]


def test_who_closes_at_once_is_no_coordinator() -> None:
    with server(lambda connection: None) as port:
        examine(f"127.0.0.1:{port}", code=1)


def test_wrong_and_unknown_variables_are_shown() -> None:
    place = f"127.0.0.1:{free_port()}"
    wrong = examine(place, code=1, PCCL_SOCKETS="many")["variables"]
    assert wrong["state"] == "FAILED"
    assert "PCCL_SOCKETS" in wrong["value"]
    unknown = examine(place, code=1, PCCL_SOCKET="4")["variables"]
    assert unknown["state"] == "warning"
    assert "PCCL_SOCKET" in unknown["value"]


def test_a_private_address_and_a_public_coordinator_mean_nat() -> None:
    def nat(own: str, hosts: tuple[str, ...] = ()) -> str:
        return doctor.judge_own_address(own, "8.8.8.8", hosts).state

    assert nat("192.168.1.7") == nat("10.0.0.7") == "warning"
    assert nat("8.8.4.4") == nat("192.168.1.7", ("203.0.113.7",)) == "ok"
