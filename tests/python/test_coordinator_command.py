"""`pccl coordinator` and its status page, as processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from coordinator_processes import CoordinatorProcess, environment, refused

import pccl.status_page
from pccl.address import RunAddress

# --- the process ---


def test_it_prints_the_address_and_nothing_else_and_ends_politely(tmp_path: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        with CoordinatorProcess(tmp_path, "--name", "demo") as coordinator:
            assert coordinator.address.shown == f"pccl://127.0.0.1:{coordinator.port}/demo"
            assert coordinator.end(number) == 0
            assert coordinator._next_line() is None
            assert "members go on" in coordinator.text()


def test_each_name_gets_its_address(tmp_path: Path) -> None:
    options = ("--name", "a", "--min", "2", "--name", "b", "--min", "3", "--host", "example.org")
    with CoordinatorProcess(tmp_path, *options) as coordinator:
        assert coordinator.address.shown == f"pccl://example.org:{coordinator.port}/a"
        second = coordinator._next_line()
        assert second is not None
        assert RunAddress.parse(second).shown == f"pccl://example.org:{coordinator.port}/b"


def test_after_kill_9_the_same_command_starts_at_once(tmp_path: Path) -> None:
    with CoordinatorProcess(tmp_path) as coordinator:
        port = coordinator.port
        for _ in range(3):
            coordinator.restart()
            assert coordinator.port == port


def test_a_second_one_is_told_that_the_port_or_the_database_is_taken(tmp_path: Path) -> None:
    with CoordinatorProcess(tmp_path) as coordinator:
        text = refused(tmp_path)
        assert "another process uses it" in text
        assert str(tmp_path / "coordinator.db") in text
        text = refused(tmp_path / "other", "--port", str(coordinator.port))
        assert str(coordinator.port) in text
        assert "in use" in text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--name", "a b"), "run: expected"),
        (("--name", "a", "--min", "0"), "expected 1 or more members"),
        (("--min", "2"), "behind each --name"),
        (("--name", "a", "--min", "1", "--min", "2"), "behind each --name"),
        (("--silence", "0.5"), "at least two heartbeats"),
        (("--takeover", "0.5"), "at least two heartbeats"),
        (("--port", "70000"), "expected 0 to 65535"),
    ],
)
def test_wrong_options_are_refused(options: tuple[str, ...], reason: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pccl", "coordinator", *options],
        env=environment(COLUMNS="200"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert reason in " ".join(done.stderr.split())


# --- the database ---


def test_a_database_that_is_not_ours_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.db"
    path.write_text("something else\n")
    assert "no database" in refused(tmp_path)
    assert path.read_text() == "something else\n"
    path.unlink()
    with sqlite3.connect(path) as foreign:
        foreign.execute("CREATE TABLE mail (subject TEXT)")
    foreign.close()
    before = path.read_bytes()
    text = refused(tmp_path)
    assert "another program" in text
    assert "--database" in text
    assert path.read_bytes() == before


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    with CoordinatorProcess(tmp_path) as coordinator:
        coordinator.end(signal.SIGTERM)
    with sqlite3.connect(tmp_path / "coordinator.db") as database:
        database.execute("PRAGMA user_version=7")
    database.close()
    assert "a newer pccl wrote it (schema 7" in refused(tmp_path)


def start_under(path: Path, *launcher: str) -> str:
    """What a coordinator says that may not start; `launcher` limits what it may do."""
    done = subprocess.run(
        [
            *(*launcher, sys.executable, "-m", "pccl", "coordinator", "--bind", "127.0.0.1"),
            *("--port", "0", "--no-status", "--database", str(path)),
        ],
        env=environment(PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_disk_that_reports_an_error_is_an_error_at_the_start(tmp_path: Path) -> None:
    if shutil.which("prlimit") is None:
        pytest.skip("prlimit is not installed (util-linux)")
    text = start_under(tmp_path / "coordinator.db", "prlimit", "--fsize=8192")
    assert "the disk reports" in text
    assert "start the same command again" in text


def test_a_full_disk_is_an_error_at_the_start(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(tmp_path)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no small disk to fill: {mounted.stderr.strip()}")
    try:
        text = start_under(tmp_path / "coordinator.db")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert "the disk is full. Free some space" in text


def test_a_folder_that_can_not_be_written_is_an_error_at_the_start(tmp_path: Path) -> None:
    launcher: tuple[str, ...] = ()
    if os.geteuid() == 0:  # which may write anywhere
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv is not installed (util-linux), and this is root")
        launcher = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    tmp_path.chmod(0o555)
    text = start_under(tmp_path / "coordinator.db", *launcher)
    tmp_path.chmod(0o755)
    assert "Permission denied" in text
    assert "--database" in text


# --- the status page ---


def get(url: str, **headers: str) -> tuple[int, str, str]:
    """Code, content type, text."""
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def test_the_page_and_its_parts_are_served_with_nothing_from_elsewhere(tmp_path: Path) -> None:
    with CoordinatorProcess(tmp_path) as coordinator:
        page = coordinator.page
        code, kind, text = get(page)
        assert (code, kind) == (200, "text/html; charset=utf-8")
        assert "://" not in text
        assert "<script>" not in text  # the policy forbids it, so it would not run
        for name in ("page.js", "page.css"):
            code, _, part = get(page + name)
            assert code == 200
            assert "://" not in part
            assert name in text
        status = coordinator.status()
        assert status["runs"] == []
        assert status["failure"] == ""
        assert status["database"] == str(tmp_path / "coordinator.db")
        code, kind, text = get(page + "metrics")
        assert code == 200
        assert kind.startswith("text/plain")
        assert "pccl_coordinator_messages_total 0.0" in text
        assert get(page + "nothing")[0] == 404
        assert get(page + "../cli.py")[0] == 404


def test_only_get_is_answered(tmp_path: Path) -> None:
    with CoordinatorProcess(tmp_path) as coordinator:
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"):
            request = urllib.request.Request(coordinator.page + "status.json", method=method)
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(request, timeout=10)
            caught.value.close()
            assert caught.value.code == 501


def test_a_name_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    with CoordinatorProcess(tmp_path, "--host", "coordinator.example.org") as coordinator:
        page = coordinator.page
        port = page.rstrip("/").rpartition(":")[2]
        for host in ("evil.example.com", f"evil.example.com:{port}", "", "127.0.0.1.nip.io"):
            assert get(page + "status.json", Host=host)[0] == 403
        for host in (f"localhost:{port}", "127.0.0.1", "[::1]:1", "Coordinator.Example.org"):
            assert get(page + "status.json", Host=host)[0] == 200


def test_slow_callers_do_not_stop_the_page(tmp_path: Path) -> None:
    with CoordinatorProcess(tmp_path) as coordinator:
        port = int(coordinator.page.rstrip("/").rpartition(":")[2])
        slow = []
        for _ in range(10):
            caller = socket.create_connection(("127.0.0.1", port), timeout=20)
            caller.sendall(b"GET /status.json HT")
            slow.append(caller)
        assert coordinator.status()["failure"] == ""
        for caller in slow:
            assert caller.recv(1) == b""  # hung up after its time
            caller.close()


def test_the_script_of_the_page_is_javascript(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    script = Path(pccl.status_page.__file__).with_name("page.js")
    subprocess.run([node, "--check", str(script)], check=True, timeout=60)


# --- pccl status ---


def ask_status(address: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pccl", "status", address, *options],
        env=environment(COLUMNS="200"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_status_says_why_it_knows_nothing(tmp_path: Path) -> None:
    done = ask_status("http://localhost/run")
    assert done.returncode == 2
    assert "expected pccl://host:port/run" in " ".join(done.stderr.replace("│", " ").split())
    with CoordinatorProcess(tmp_path) as coordinator:
        port = coordinator.page.rstrip("/").rpartition(":")[2]
        done = ask_status(str(coordinator.address), "--status-port", port)
        assert done.returncode == 1
        assert "has no member of run 'main'" in done.stderr
    done = ask_status(str(coordinator.address), "--status-port", port)
    assert done.returncode == 1
    assert "--status-host" in done.stderr
    assert json.dumps("Traceback") not in done.stderr
