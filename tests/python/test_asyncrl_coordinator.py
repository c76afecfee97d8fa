"""The coordinator as a process, with honest and hostile callers, kills, a full disk."""

from __future__ import annotations

import hashlib
import http.client
import json
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from asyncrl_processes import PATIENCE_SECONDS, ServingProcess
from coordinator_processes import environment
from typer.testing import CliRunner

from asyncrl.protocol.__main__ import app
from asyncrl.protocol.client import CoordinatorClient, CoordinatorError
from asyncrl.protocol.coordinator import Coordinator
from asyncrl.protocol.keys import BadSignature, Key
from asyncrl.protocol.ledger import replay
from asyncrl.protocol.options import RunOptions
from asyncrl.protocol.requests import HEADER, Request, RequestRefused, audience, sign_request
from asyncrl.validation.verdict import SignedVerdict, Verdict

TRAINER, A, B, HONEST, CHEAT, OTHER, OWNER = (
    Key.from_seed(letter.encode() * 32) for letter in "tabhcow"
)
OPTIONS = RunOptions(
    run="run",
    trainers=(TRAINER.address,),
    validators=(A.address, B.address),
    stake=100,
    penalty=60,
    pending_steps=2,
    files_per_step=3,
    file_bytes_max=1 << 20,
    pending_max=4,
)


class Run:
    """A coordinator process and its callers."""

    def __init__(self, folder: Path, options: RunOptions = OPTIONS) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps(vars(options)))
        if not (folder / "coordinator.pem").exists():
            OWNER.save(folder / "coordinator.pem")
        self.clients: list[CoordinatorClient] = []
        self.start(0)
        self.port = int(self.url.rsplit(":", 1)[1])

    def start(self, port: int) -> None:
        self.process = ServingProcess(
            "asyncrl.protocol",
            *("coordinator", self.folder / "run.json", "--folder", self.folder, "--port", port),
        )
        self.url = self.process.url

    def restart(self) -> None:
        self.process.end(signal.SIGKILL)
        self.start(self.port)

    def close(self) -> None:
        self.process.end()
        for client in self.clients:
            client.close()

    def client(self, key: Key, seconds: float = PATIENCE_SECONDS) -> CoordinatorClient:
        made = CoordinatorClient(
            self.url, key, run="run", coordinator=OWNER.address, timeout_seconds=seconds
        )
        self.clients.append(made)
        return made

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.url + "/status.json", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def account(self, key: Key) -> dict[str, Any]:
        return next(it for it in self.status()["workers"] if it["address"] == key.address)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path / "run")
    yield made
    made.close()


def verdict(sha256: str, key: Key, reason: str = "", units: int = 10, run: str = "run") -> bytes:
    return (
        Verdict(
            file_sha256=sha256,
            run_id=run,
            accepted=not reason,
            reason=reason,
            detail="found by a test" if reason else "",
            token_count=0 if reason else units,
        )
        .sign(key)
        .data
    )


def refused(code: str, call: Callable[[], object]) -> CoordinatorError:
    with pytest.raises(CoordinatorError) as raised:
        call()
    assert raised.value.code == code, raised.value
    return raised.value


def test_a_run_from_stake_to_payment_and_a_cheater_slashed(run: Run) -> None:
    """Across a kill -9 of the coordinator in the middle."""
    honest, cheat, trainer = run.client(HONEST), run.client(CHEAT), run.client(TRAINER)
    validators = [run.client(A), run.client(B)]
    assert honest.run()["validators"] == [A.address, B.address]
    refused("role", lambda: honest.assignment())
    refused("stake", lambda: honest.register(99))
    refused("coins", lambda: honest.register(1001))
    for worker in (honest, cheat, honest):  # again: it is done already
        assert worker.register(100)["stake"] == 100
    trainer.announce_weights(7, "ab" * 32)
    refused("version", lambda: trainer.announce_weights(7, "cd" * 32))
    trainer.advance(1, {"reward": 0.25})
    given = honest.assignment()
    assert (given["step"], given["submission_index"], given["trainer_step"]) == (1, 0, 1)
    assert given["weights"] == {"7": "ab" * 32}
    good = honest.upload(b"good rollouts", 1, 0)["sha256"]
    assert honest.upload(b"good rollouts", 1, 0)["sha256"] == good  # its answer was lost
    bad = cheat.upload(b"bad rollouts", 1, 0)["sha256"]
    also = cheat.upload(b"more of them", 1, 1)["sha256"]
    assert good == hashlib.sha256(b"good rollouts").hexdigest()
    # Three are under way: enough for step 1.
    assert honest.assignment()["step"] == 2
    for validator in validators:
        found = validator.pending()
        assert [file["sha256"] for file in found] == [good, bad, also]
        assert found[0]["open_steps"] == [1]
        assert validator.file(good) == b"good rollouts"
    # One verdict of two decides nothing, and is not asked for again.
    assert validators[0].send_verdict(verdict(good, A))["state"] == "pending"
    assert validators[0].send_verdict(verdict(bad, A, "proof"))["state"] == "pending"
    assert [file["sha256"] for file in validators[0].pending()] == [also]
    run.restart()
    assert validators[1].send_verdict(verdict(good, B, units=12))["state"] == "accepted"
    assert validators[1].send_verdict(verdict(bad, B, "proof"))["state"] == "refused"
    refused("banned", lambda: cheat.upload(b"again", 1, 2))
    refused("banned", lambda: cheat.register(100, "second"))
    (accepted,) = trainer.accepted(wait=5)
    assert (accepted["sha256"], accepted["units"]) == (good, 10)  # the lower count
    assert trainer.file(good) == b"good rollouts"
    assert trainer.accepted(after=accepted["decided"]) == []
    refused("conflict", lambda: honest.claim(1))
    for step in (2, 3):
        trainer.advance(step, {"reward": 0.5})
        trainer.advance(step, {"reward": 0.5})
    assert honest.claim(10)["paid"] == 10
    honest.report_broadcast(7, 1.5)
    status = run.status()
    assert status["reasons"] == {"proof": 1, "banned": 1}
    assert status["step"] == 3
    assert status["versions"][0]["seconds"] == {HONEST.address: 1.5}
    assert status["ledger"]["is_balanced"]
    account = run.account(CHEAT)
    assert (account["stake"], account["is_banned"], account["files"]) == (40, True, {"refused": 2})
    balances = replay(run.folder / "ledger.db", OWNER.public_key)
    assert balances.accounts[HONEST.address].paid == 10
    assert balances.burnt == 60
    coins = sqlite3.connect(run.folder / "coins.db")
    assert coins.execute("SELECT sum(amount) FROM moves").fetchone() == (10 - 200,)
    coins.close()


def raw(run: Run, method: str, target: str, key: Key, body: bytes = b"", **more: Any) -> int:
    """A request with a signature and headers of its own; the status."""
    connection = http.client.HTTPConnection("127.0.0.1", run.port, timeout=PATIENCE_SECONDS)
    request = Request(audience("run", OWNER.address), method, target)
    header = more.get("header") or sign_request(
        key, request, body, unix_seconds=more.get("unix_seconds")
    )
    connection.putrequest(more.get("method", method), more.get("sent", target))
    connection.putheader(HEADER, header)
    for name, value in more.get("headers", {"Content-Length": str(len(body))}).items():
        connection.putheader(name, value)
    connection.endheaders()
    connection.send(body)
    with connection.getresponse() as response:
        status = response.status
    connection.close()
    return status


def first_line(connection: socket.socket) -> bytes:
    connection.settimeout(PATIENCE_SECONDS)
    return connection.recv(1000).partition(b"\r\n")[0]


def test_what_strangers_and_cheats_send_is_refused_and_the_honest_go_on(run: Run) -> None:
    honest, other = run.client(HONEST), run.client(OTHER)
    for worker in (honest, other):
        worker.register(100)
    run.client(TRAINER).advance(1, {})
    # 100 MB are refused by their length alone: nobody reads or sends them.
    target = "/rollouts?step=1&submission=0"

    def small() -> str:
        return sign_request(HONEST, Request(audience("run", OWNER.address), "PUT", target), b"x")

    length = {"Content-Length": str(100 << 20)}
    assert raw(run, "PUT", target, HONEST, headers=length, header=small()) == 413
    # 10 GB without a length, and more bytes than were signed.
    chunked = {"Transfer-Encoding": "chunked"}
    assert raw(run, "PUT", target, HONEST, headers=chunked, header=small()) == 411
    assert raw(run, "PUT", target, HONEST, b"xyz", header=small()) == 400
    assert raw(run, "PUT", target, HONEST, b"y", header=small()) == 400
    refused("size", lambda: honest.upload(bytes((1 << 20) + 1), 1, 0))
    refused("step", lambda: honest.upload(b"x", 9, 0))
    refused("order", lambda: honest.upload(b"x", 1, 1))
    honest.upload(b"mine", 1, 0)
    refused("replay", lambda: other.upload(b"mine", 1, 0))  # stolen and sent again
    for index in range(3):
        honest.upload(bytes([index]), 2, index)
    with pytest.raises(Exception, match="4 of your files wait"):
        run.client(HONEST, 1.0).upload(b"flood", 3, 0)
    # A captured request, a GET as well, is worth nothing: again, for something else, or later.
    captured = sign_request(HONEST, Request(audience("run", OWNER.address), "GET", "/assignment"))
    assert raw(run, "GET", "/assignment", HONEST, header=captured) == 200
    assert raw(run, "GET", "/assignment", HONEST, header=captured) == 401
    fresh = sign_request(HONEST, Request(audience("run", OWNER.address), "GET", "/assignment"))
    assert raw(run, "GET", "/assignment", HONEST, sent="/pending", header=fresh) == 401
    assert raw(run, "GET", "/assignment", HONEST, sent="/assignment?wait=1", header=fresh) == 401
    assert raw(run, "GET", "/assignment", HONEST, unix_seconds=1e9) == 401
    assert raw(run, "GET", "/assignment", HONEST, header="asyncrl x") == 401
    # Two files may come at a time: here the third, of which nothing has come yet.
    slow = [socket.create_connection(("127.0.0.1", run.port)) for _ in range(3)]
    for connection in slow:
        request = Request(audience("run", OWNER.address), "PUT", "/rollouts?step=3&submission=0")
        head = f"PUT {request.target} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n{HEADER}: "
        connection.sendall(f"{head}{sign_request(OTHER, request, b'abc')}\r\n\r\na".encode())
    assert b" 429 " in first_line(slow[2])
    for connection in slow:
        connection.close()
    # Roles.
    refused("role", lambda: honest.pending())
    refused("role", lambda: honest.advance(2, {}))
    refused("role", lambda: run.client(A).accepted())
    refused("role", lambda: honest.file("0" * 64))
    refused("absent", lambda: run.client(A).file("0" * 64))
    for body in (b"", b"{}", b"[" * 60_000, b'{"step": true, "metrics": {}}', b'{"step": -1}'):
        assert raw(run, "POST", "/step", TRAINER, body) == 400
    # Verdicts: of a stranger, of another validator, of another run, about nothing.
    sha256 = hashlib.sha256(b"mine").hexdigest()
    validator = run.client(A)
    refused("role", lambda: honest.send_verdict(verdict(sha256, HONEST)))
    refused("verdict", lambda: validator.send_verdict(verdict(sha256, B)))
    refused("run", lambda: validator.send_verdict(verdict(sha256, A, run="other")))
    refused("absent", lambda: validator.send_verdict(verdict("0" * 64, A)))
    refused("verdict", lambda: validator.send_verdict(b"{}"))
    with (
        CoordinatorClient(run.url, HONEST, run="run", coordinator=A.address) as elsewhere,
        pytest.raises(BadSignature, match="signed by"),
    ):
        elsewhere.run()
    assert run.status()["files"] == {"pending": 4, "accepted": 0, "refused": 0, "undecided": 0}
    # A caller that says nothing, or nothing more, keeps nobody.
    silent = [socket.create_connection(("127.0.0.1", run.port)) for _ in range(20)]
    assert honest.assignment()["step"] == 1
    for connection in silent:
        connection.close()


def made(tmp_path: Path, **options: Any) -> tuple[Coordinator, list[float]]:
    """A coordinator in this process, with a clock that stands still."""
    now = [1000.0]
    coordinator = Coordinator(
        tmp_path, OWNER, RunOptions(**{**vars(OPTIONS), **options}), clock=lambda: now[0]
    )
    for key in (HONEST, OTHER):
        coordinator.register(key.address, 100, "first")
    coordinator.advance(1, {})
    return coordinator, now


def give(coordinator: Coordinator, data: bytes, key: Key = HONEST, index: int = 0) -> str:
    part = coordinator.folder / "given"
    part.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    coordinator.expect(key.address, 1, index, len(data))
    return coordinator.add_file(part, digest, key.address, 1, index).sha256


def say(coordinator: Coordinator, sha256: str, key: Key, reason: str = "") -> str:
    return coordinator.add_verdict(SignedVerdict.from_bytes(verdict(sha256, key, reason))).state


def test_two_validators_that_disagree_pay_nobody_and_slash_nobody(tmp_path: Path) -> None:
    coordinator, _ = made(tmp_path)
    sha256 = give(coordinator, b"file")
    assert say(coordinator, sha256, A) == "pending"
    assert say(coordinator, sha256, B, "sampling") == "undecided"
    account = coordinator.ledger.account(HONEST.address)
    assert (account.stake, account.units, account.is_banned) == (100, 0, False)
    upload = coordinator.uploads.get(sha256)
    assert upload is not None
    assert f"{B.address[:8]}: sampling found by a test" in upload.detail
    # The worker goes on.
    assert say(coordinator, give(coordinator, b"next", index=1), A) == "pending"


def test_of_three_validators_two_decide_and_the_third_is_named(tmp_path: Path) -> None:
    third = Key.from_seed(b"3" * 32)
    coordinator, _ = made(tmp_path, validators=(A.address, B.address, third.address), quorum=0)
    sha256 = give(coordinator, b"file")
    assert say(coordinator, sha256, third, "proof") == "pending"
    assert say(coordinator, sha256, A) == "pending"
    assert say(coordinator, sha256, B) == "accepted"
    assert coordinator.ledger.account(HONEST.address).units == 10
    assert any(f"{third.address[:8]} was alone" in it["text"] for it in coordinator.events)
    # A verdict that comes late, or says something else now, changes nothing.
    assert say(coordinator, sha256, A, "proof") == "accepted"


def test_a_validator_that_dies_is_waited_for_and_then_the_other_decides(tmp_path: Path) -> None:
    coordinator, now = made(tmp_path)
    sha256 = give(coordinator, b"file")
    assert say(coordinator, sha256, A) == "pending"
    now[0] += 29
    coordinator.hear(A.address)
    coordinator.decide_without_the_silent()
    assert coordinator.uploads.pending()
    now[0] += 2
    coordinator.decide_without_the_silent()
    found = coordinator.uploads.get(sha256)
    assert found is not None
    assert found.state == "accepted"
    assert [it["is_present"] for it in coordinator.validator_states()] == [True, False]


def test_a_full_disk_refuses_and_keeps_what_was_kept(tmp_path: Path) -> None:
    coordinator, _ = made(tmp_path, pending_max=1000)
    kept = give(coordinator, b"kept")
    pages = coordinator.database.execute("PRAGMA page_count").fetchone()[0]
    coordinator.database.execute(f"PRAGMA max_page_count = {pages}")
    refusals = []

    def fill() -> None:
        for step in range(10_000):
            coordinator.advance(coordinator.step, {"text": "x" * 4000})
            coordinator.add_weights(step, f"{step:064x}")

    with pytest.raises(RequestRefused) as raised:
        fill()
    refusals.append(raised.value.status)

    def give_more() -> None:
        for index in range(1, 100):
            give(coordinator, b"y" * 100 + bytes([index]), index=index)

    with pytest.raises(RequestRefused) as raised:
        give_more()
    refusals.append(raised.value.status)
    assert refusals == [507, 507]
    assert coordinator.path(kept).read_bytes() == b"kept"
    files = {path.name for path in (tmp_path / "files").iterdir()}
    assert files == {upload.sha256 for upload in coordinator.uploads.pending()}
    coordinator.database.execute(f"PRAGMA max_page_count = {pages + 1000}")
    assert say(coordinator, kept, A) == "pending"
    assert say(coordinator, kept, B) == "accepted"


def test_a_file_system_that_is_full_refuses_until_there_is_room(tmp_path: Path) -> None:
    """A real one, of 3 MB; everybody else goes on meanwhile."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system here (root can)")
    try:
        with closing(Run(folder)) as run:
            honest, trainer = run.client(HONEST), run.client(TRAINER)
            honest.register(100)
            trainer.advance(1, {})
            sent = []

            def fill() -> None:
                for index in range(4):
                    sent.append(honest.upload(bytes([index]) * (1 << 20), 1, index)["sha256"])

            refused("disk", fill)
            assert 0 < len(sent) < 4
            assert run.status()["files"]["pending"] == len(sent)
            assert not list(folder.glob("files/*.part"))
            assert run.client(A).file(sent[0])
            more = ["mount", "-o", "remount,size=30m", str(folder)]
            subprocess.run(more, check=True)
            honest.upload(b"room", 1, len(sent))
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_coordinator_does_not_start_on_a_ledger_with_a_changed_row(tmp_path: Path) -> None:
    made(tmp_path)
    OWNER.save(tmp_path / "coordinator.pem")
    (tmp_path / "run.json").write_text(json.dumps(vars(OPTIONS)))
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.executescript(
            "DROP TRIGGER no_change; UPDATE entries SET amount = 900 WHERE number = 2"
        )
    database.close()
    command = ["coordinator", str(tmp_path / "run.json"), "--folder", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "asyncrl.protocol", *command],
        env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "ledger: row 2: changed since it was written" in done.stderr
    assert "Traceback" not in done.stderr
    audit = ["ledger", str(tmp_path / "ledger.db"), "--key", OWNER.public_key.hex()]
    told = CliRunner().invoke(app, audit)
    assert told.exit_code == 1
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.executescript(
            "DROP TRIGGER no_change; UPDATE entries SET amount = 100 WHERE number = 2"
        )
    database.close()
    told = CliRunner().invoke(app, audit)
    assert told.exit_code == 0
    assert HONEST.address[:8] in told.output


IMPOSSIBLE: list[dict[str, Any]] = [
    *({"trainers": ()}, {"validators": ("nobody",)}, {"quorum": 1}, {"quorum": 3}, {"stake": 0})
]


@pytest.mark.parametrize("options", IMPOSSIBLE)
def test_a_run_that_cannot_be_is_refused_before_it_begins(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="run: "):
        RunOptions(**{**vars(OPTIONS), **options})
