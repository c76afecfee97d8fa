"""Keys, tokens and TLS of elastic runs, on loopback, where TLS is forced; test_elastic_wan.py has
it by default. Whoever is refused changes nothing for those who are in."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from coordinator_processes import (
    PATIENCE_SECONDS,
    CoordinatorProcess,
    environment,
    refused,
)
from member_processes import MemberProcess, agree, by_step, members

import pccl
from pccl import _core
from pccl.address import RunAddress, decode_key, encode_bytes
from pccl.keys_command import parse_seconds

CONFIG = pccl.Config(
    tls="always", bind="127.0.0.1", hosts=("127.0.0.1",), connect_timeout_seconds=20
)
HASTY = replace(CONFIG, connect_timeout_seconds=1.5)
ALWAYS = {"PCCL_TLS": "always"}


def run_pccl(*arguments: object, code: int = 0) -> str:
    """What the command prints; its words on the standard error where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "pccl", *map(str, arguments)],
        env=environment(COLUMNS="200"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout.strip() if code == 0 else done.stderr


@contextmanager
def keyed(folder: Path, *options: str, tls: str = "always") -> Iterator[CoordinatorProcess]:
    def launch(command: list[str], **more: object) -> object:
        more["env"] = environment(PCCL_TLS=tls) if tls else environment()
        return subprocess.Popen(command, **more)  # type: ignore[call-overload]

    with CoordinatorProcess(folder, "--name", "demo", *options, launch=launch) as coordinator:
        yield coordinator


@contextmanager
def busy(coordinator: CoordinatorProcess) -> Iterator[None]:
    """Two members reduce meanwhile; at the end nothing has happened to them."""
    with members(2, coordinator.address, "sum", 100_000, 1000, **ALWAYS) as started:
        for member in started:
            member.wait_for("step", 3)
        before = coordinator.run_status("demo")
        assert before is not None
        yield
        wait_for_completed(coordinator, before["members"][0]["completed"])
        after = coordinator.run_status("demo")
        assert after is not None
        assert after["quorum_id"] == before["quorum_id"]
        for member in started:
            assert member.process.poll() is None


def wait_for_completed(coordinator: CoordinatorProcess, more_than: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        found = coordinator.run_status("demo")
        if found is not None and found["members"][0]["completed"] > more_than:
            return
        time.sleep(0.05)
    raise AssertionError("the run stands still")


def refusal(address: RunAddress, config: pccl.Config = HASTY, **options: bool) -> str:
    with pytest.raises(pccl.ConnectError) as caught:
        pccl.join(str(address), config=config, **options)
    text = str(caught.value)
    assert not address.token or encode_bytes(address.token) not in text
    return text


def invite(folder: Path, coordinator: CoordinatorProcess, *options: str) -> RunAddress:
    database = folder / "coordinator.db"
    return RunAddress.parse(
        run_pccl("invite", coordinator.address, "--database", database, *options)
    )


def come_in(address: RunAddress, key: str = "") -> None:
    with pccl.join(str(address), config=replace(CONFIG, key=key)):
        pass


# --- who is in ------------------------------------------------------------------------------------


def test_members_that_paste_the_address_are_in_through_tls(tmp_path: Path) -> None:
    with keyed(tmp_path) as coordinator:
        assert coordinator.address.fingerprint
        assert coordinator.address.token
        with members(3, coordinator.address, "random", 20, 50_000, **ALWAYS) as started:
            for member in started:
                member.finish()
            agree(started, 20)
            assert by_step(started[0])[19]["counts"] == [3]
        status = coordinator.status()
        assert status["refused_keys"] == status["refused_plain"] == 0
        admitted = re.findall(r"key \S{43} of 127\.0\.0\.1:\d+ is admitted", coordinator.text())
        assert len(admitted) == 3


def test_sockets_between_members_are_secure_as_well(tmp_path: Path) -> None:
    with keyed(tmp_path) as coordinator:
        counted: list[dict[str, int]] = []
        config = replace(CONFIG, shared_memory=False)

        def take_part() -> None:
            with pccl.join(str(coordinator.address), world_size_min=2, config=config) as comm:
                tensor = np.ones(300_007, np.float32)
                comm.all_reduce(tensor)
                assert (tensor == 2).all()
                counted.append(comm.statistics())

        together(take_part, take_part)
        assert [statistics["secure_sockets"] for statistics in counted] == [2, 2]


def together(*programs: Callable[[], None]) -> None:
    failures: list[BaseException] = []

    def run(program: Callable[[], None]) -> None:
        try:
            program()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(program,)) for program in programs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if failures:
        raise failures[0]


def test_the_address_stays_the_same_over_restarts_and_the_key_is_its_owners(tmp_path: Path) -> None:
    with keyed(tmp_path) as coordinator:
        address = coordinator.address
        key = tmp_path / "coordinator.key"
        assert key.stat().st_mode & 0o777 == 0o600
        for name in ("coordinator.keys.db", "coordinator.db"):
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
            assert address.token not in (tmp_path / name).read_bytes()
        coordinator.restart()
        assert coordinator.address == address
        coordinator.end(signal.SIGKILL)
        key.chmod(0o644)
        assert "others than its owner may use it" in refused(tmp_path)


def test_on_loopback_members_may_still_come_plainly(tmp_path: Path) -> None:
    with keyed(tmp_path, tls="") as coordinator:
        plain = replace(coordinator.address, fingerprint=b"", token=b"")
        with pccl.join(str(plain), config=replace(CONFIG, tls="auto")):
            pass
        assert coordinator.status()["refused_plain"] == 0


# --- who is not -----------------------------------------------------------------------------------


def test_strangers_are_refused_in_words_and_change_nothing(tmp_path: Path) -> None:
    with keyed(tmp_path) as coordinator, busy(coordinator):
        address = coordinator.address
        text = refusal(replace(address, fingerprint=bytes(31) + b"\1"))
        assert "wrong key: it has " + encode_bytes(address.fingerprint) in text
        text = refusal(replace(address, token=b""))
        assert "was never admitted to this run, and the address has no token" in text
        assert "wrong token" in refusal(replace(address, token=bytes(16)))
        assert "wrong token" in refusal(replace(address, run="other"))
        counted = coordinator.status()
        assert counted["refused_keys"] >= 3
        assert counted["refused_plain"] == 0
        coordinator.wait_for_log(r"refused 127\.0\.0\.1:\d+: unknown key")
        # Plain TCP, however right the rest is.
        text = refusal(replace(address, fingerprint=b"", token=b""), replace(HASTY, tls="auto"))
        assert "plain TCP meets a member that wants TLS" in text
        assert coordinator.status()["refused_plain"] >= 1
        coordinator.wait_for_log(r"refused 127\.0\.0\.1:\d+: plain TCP")


def test_a_keyed_member_at_a_plain_coordinator_hears_why(tmp_path: Path) -> None:
    with keyed(tmp_path, "--insecure", tls="") as coordinator:
        assert not coordinator.address.fingerprint
        assert not (tmp_path / "coordinator.key").exists()
        text = refusal(replace(coordinator.address, fingerprint=bytes(31) + b"\1"))
        assert "TLS meets a member without it: insecure=True is set here" in text
        assert coordinator.status()["refused_plain"] >= 1
        with pccl.join(str(coordinator.address), insecure=True, config=pccl.Config()):
            pass


def test_without_a_key_other_hosts_are_not_even_called() -> None:
    with pytest.raises(ValueError, match=r"names no key, and '203\.0\.113\.7' is another host.*#"):
        pccl.join("pccl://203.0.113.7:29400/demo", config=CONFIG)
    address = RunAddress("203.0.113.7", 1, "demo", bytes(31) + b"\1")
    with pytest.raises(ValueError, match="contradicts the key in the address"):
        pccl.join(str(address), insecure=True, config=pccl.Config())


@pytest.mark.parametrize("kind", ["used up", "expired", "revoked"])
def test_a_token_that_admits_nobody_says_why(tmp_path: Path, kind: str) -> None:
    key = str(tmp_path / "member.key")
    run_pccl("keygen", "--out", key)
    with keyed(tmp_path) as coordinator:
        address = invite(tmp_path, coordinator, "--uses", "0" if kind == "revoked" else "1")
        if kind == "expired":
            book = _core.KeyBook(str(tmp_path / "coordinator.db"))
            address = address.with_token(book.invite("demo", seconds=3))
        come_in(address, key)
        if kind == "expired":
            time.sleep(3.5)
        if kind == "revoked":
            run_pccl("revoke", address, "--database", tmp_path / "coordinator.db")
        with busy(coordinator):
            expected = {
                "used up": "used-up token",
                "expired": "expired token",
                "revoked": "revoked token",
            }
            assert expected[kind] in refusal(address)
            coordinator.wait_for_log(expected[kind])
        # Whom it has admitted comes again, also by an address without a token.
        come_in(address, key)
        come_in(replace(address, token=b""), key)
        assert coordinator.status()["refused_keys"] >= 1


def test_a_revoked_key_is_out_within_seconds_and_stays_out(tmp_path: Path) -> None:
    key = str(tmp_path / "member.key")
    fingerprint = run_pccl("keygen", "--out", key)
    assert len(decode_key(fingerprint)) == 32
    assert "is there already" in run_pccl("keygen", "--out", key, code=1)
    with keyed(tmp_path) as coordinator, ExitStack() as stack:
        program = (coordinator.address, 3, "sum", 100_000, 1000)
        started = [
            MemberProcess(*program, **ALWAYS, **({"PCCL_KEY": key} if number == 0 else {}))
            for number in range(3)
        ]
        for member in started:
            stack.callback(member.close)
        for member in started:
            member.wait_for("step", 3)
        found = coordinator.run_status("demo")
        assert found is not None
        assert fingerprint in {member["key"] for member in found["members"]}
        database = tmp_path / "coordinator.db"
        begin = time.monotonic()
        run_pccl("revoke", coordinator.address, "--member", fingerprint, "--database", database)
        said = started[0].wait_for("error")
        assert time.monotonic() - begin < 5
        assert said["error"] == "MemberLost"
        assert f"revoked key: the run's owner has put {fingerprint} out" in said["text"]
        coordinator.wait_for_log("is out: revoked key")
        for member in started[1:]:
            while member.wait_for("step")["counts"] != [2]:
                pass
        text = refusal(coordinator.address, replace(HASTY, key=key))
        assert "revoked key" in text
        # The others go on, also where the coordinator starts again.
        coordinator.restart()
        assert "revoked key" in refusal(coordinator.address, replace(HASTY, key=key))
        for member in started[1:]:
            assert member.wait_for("step")["counts"] == [2]


def test_who_came_by_a_revoked_token_may_be_put_out_with_it(tmp_path: Path) -> None:
    with keyed(tmp_path) as coordinator:
        address = invite(tmp_path, coordinator, "--uses", "2")
        with members(1, address, "sum", 100_000, 1000, **ALWAYS) as [guest]:
            guest.wait_for("step", 1)
            database = tmp_path / "coordinator.db"
            run_pccl("revoke", address, "--with-members", "--database", database)
            assert "revoked key" in guest.wait_for("error")["text"]
        assert "no such token" in run_pccl(
            "revoke", replace(address, token=bytes(16)), "--database", database, code=1
        )


def test_a_revoked_standing_token_gets_a_successor_at_the_next_start(tmp_path: Path) -> None:
    with keyed(tmp_path) as coordinator:
        first = coordinator.address
        run_pccl("revoke", first, "--database", tmp_path / "coordinator.db")
        assert "revoked token" in refusal(first)
        coordinator.restart()
        assert coordinator.address.token != first.token
        assert replace(coordinator.address, token=b"") == replace(first, token=b"")
        come_in(coordinator.address)


# --- in between -----------------------------------------------------------------------------------


class Relay:
    """Passes bytes on between a member and the coordinator, and keeps the member's."""

    def __init__(
        self, port: int, wrap: Callable[[socket.socket], socket.socket] | None = None
    ) -> None:
        self._target = port
        self._wrap = wrap
        self.heard: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                with caller, suppress(OSError):
                    self._serve(caller)

    def _serve(self, caller: socket.socket) -> None:
        """One caller at a time, until either side has ended."""
        self.heard.append(b"")
        far = socket.create_connection(("127.0.0.1", self._target), timeout=20)
        with self._wrap(caller) if self._wrap else caller as near, far:
            back = threading.Thread(target=self._pass_on, args=(far, near), daemon=True)
            back.start()
            self._pass_on(near, far, is_kept=True)
            back.join(20)

    def _pass_on(self, source: socket.socket, sink: socket.socket, is_kept: bool = False) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if is_kept:
                    self.heard[-1] += data
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(20)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_man_in_the_middle_hears_not_one_byte_of_the_run(tmp_path: Path) -> None:
    key, certificate = tmp_path / "middle.key", tmp_path / "middle.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-subj", "/CN=pccl"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with keyed(tmp_path) as coordinator, busy(coordinator):

        def wrap(caller: socket.socket) -> socket.socket:
            return context.wrap_socket(caller, server_side=True)

        with Relay(coordinator.port, wrap) as middle:
            text = refusal(replace(coordinator.address, port=middle.port))
            assert "wrong key" in text
            assert middle.heard
            assert not any(middle.heard)


def test_what_was_said_once_is_worth_nothing_a_second_time(tmp_path: Path) -> None:
    with keyed(tmp_path) as coordinator:
        once = invite(tmp_path, coordinator)
        with Relay(coordinator.port) as relay:
            # Who only passes bytes on is no harm, and hears nothing in the clear.
            come_in(replace(once, port=relay.port))
            [recorded] = [heard for heard in relay.heard if heard]
        assert b"demo" not in recorded
        assert once.token not in recorded
        before = coordinator.status()["refused_connections"]
        with busy(coordinator), socket.create_connection(("127.0.0.1", coordinator.port)) as again:
            again.settimeout(20)
            again.sendall(recorded)
            with suppress(ConnectionError):
                while again.recv(65536):
                    pass
            assert coordinator.status()["refused_connections"] == before + 1
            coordinator.wait_for_log(r"refused 127\.0\.0\.1:\d+: TLS: ")


# --- small things ---------------------------------------------------------------------------------


def test_invitations_want_a_time_and_the_right_coordinator(tmp_path: Path) -> None:
    assert [parse_seconds(text) for text in ("90s", "30m", "12h", "7d")] == [
        *(90, 1800, 43200),
        604800,
    ]
    for text in ("", "7", "0d", "7 days", "-1s"):
        with pytest.raises(ValueError, match="30m, 12h or 7d"):
            parse_seconds(text)
    database = tmp_path / "coordinator.db"
    plain = "pccl://127.0.0.1:29400/demo"
    first = RunAddress.parse(run_pccl("invite", plain, "--database", database))
    assert first.fingerprint == _core.read_key_file(str(tmp_path / "coordinator.key"))
    other = replace(first, fingerprint=bytes(32)[:31] + b"\1")
    text = run_pccl("invite", other, "--database", database, code=1)
    assert "another coordinator's" in text
    text = run_pccl("revoke", plain, "--database", database, code=2)
    assert "expected --member, or a token" in text
