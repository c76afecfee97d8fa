"""Ranks as processes that a test commands, see failure_worker.py; all end with the test."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pccl

Event = dict[str, Any]
Launcher = Callable[..., "subprocess.Popen[str]"]

WORKER = Path(__file__).with_name("failure_worker.py")
# Longer than anything takes that is not broken; a test that has a claim about time makes it itself.
PATIENCE_SECONDS = 20.0


class Rank:
    """One process. tell() gives it a command, hear() waits for its next event."""

    def __init__(self, number: int, launcher: Launcher = subprocess.Popen) -> None:
        self.number = number
        # Closed by kill(), which every rank ends with.
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("PCCL_")
        }
        environment["PYTHONPATH"] = str(Path(pccl.__file__).resolve().parents[1])
        environment["OPENBLAS_NUM_THREADS"] = "1"
        self.process = launcher(
            [sys.executable, str(WORKER)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        self._events: queue.Queue[Event | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._events.put(json.loads(line))
        self._events.put(None)

    def tell(self, do: str, **arguments: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()

    def hear(self, *expected: str, seconds: float = PATIENCE_SECONDS) -> Event:
        """The next event, which must be one of `expected`."""
        try:
            event = self._events.get(timeout=seconds)
        except queue.Empty:
            raise AssertionError(
                f"rank {self.number} said nothing for {seconds} s, expected {expected}\n"
                f"{self.stderr()}"
            ) from None
        if event is None:
            raise AssertionError(f"rank {self.number} ended, expected {expected}\n{self.stderr()}")
        assert event["event"] in expected, f"rank {self.number}: {event}\n{self.stderr()}"
        return event

    def ask(self, do: str, **arguments: object) -> Event:
        self.tell(do, **arguments)
        return self.hear("done")

    def usage_at_rest(self) -> Event:
        """When everybody who called has been answered."""
        deadline = time.monotonic() + 20
        while True:
            usage = self.ask("usage")
            if usage["descriptors"] < 20 or time.monotonic() > deadline:
                return usage
            time.sleep(0.05)

    def has_spoken(self) -> bool:
        return not self._events.empty()

    def stderr(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()[-4000:]

    def signal(self, number: signal.Signals) -> float:
        """When it was sent."""
        now = time.monotonic()
        self.process.send_signal(number)
        return now

    def wait(self, seconds: float) -> int:
        """The exit code of the process, which must end within `seconds`."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"rank {self.number} had not ended after {seconds} s\n{self.stderr()}"
            ) from None

    def finish(self, seconds: float = 2.0) -> None:
        """No more commands: the process ends by itself, without an error."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.wait(seconds)
        assert code == 0, f"rank {self.number} ended with {code}\n{self.stderr()}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(5)
        for file in (self.process.stdin, self.process.stdout, self._stderr):
            if file is not None:
                with contextlib.suppress(OSError):  # what was still to be written has no reader
                    file.close()


class Ranks:
    """As many ranks as wanted, for a `with` block."""

    def __init__(self, launchers: int | Sequence[Launcher]) -> None:
        self._launchers = (
            [subprocess.Popen] * launchers if isinstance(launchers, int) else list(launchers)
        )
        self.all: list[Rank] = []
        self.addresses: list[str] = []  # of open(), for join()
        self.members: list[str] = []  # "127.0.0.1:4123"

    def __enter__(self) -> Ranks:
        try:
            for number, launcher in enumerate(self._launchers):
                self.all.append(Rank(number, launcher))
            for rank in self.all:
                rank.hear("ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for rank in self.all:
            rank.kill()

    def __iter__(self) -> Iterator[Rank]:
        return iter(self.all)

    def __getitem__(self, number: int) -> Rank:
        return self.all[number]

    def but(self, *numbers: int) -> list[Rank]:
        return [rank for rank in self.all if rank.number not in numbers]

    def tell(self, do: str, **arguments: object) -> None:
        for rank in self.all:
            rank.tell(do, **arguments)

    def hear(self, *expected: str, seconds: float = PATIENCE_SECONDS) -> list[Event]:
        return [rank.hear(*expected, seconds=seconds) for rank in self.all]

    def ask(self, do: str, **arguments: object) -> list[Event]:
        self.tell(do, **arguments)
        return self.hear("done")

    def open(self, each: Sequence[dict[str, object]] | None = None, **options: object) -> None:
        """A context for each; `each` overrides `options` by rank. Loopback over TCP by default."""
        shared = {"bind_host": "127.0.0.1", "shared_memory": False, **options}
        for rank in self.all:
            rank.tell("open", **{**shared, **(each[rank.number] if each else {})})
        events = self.hear("done")
        self.addresses = [event["address"] for event in events]
        self.members = [event["member"] for event in events]

    def join(self, **options: object) -> None:
        for rank in self.all:
            rank.tell("join", rank=rank.number, addresses=self.addresses, **options)
        self.hear("done")

    def name(self, number: int) -> str:
        """How an error names a rank."""
        return f"rank {number} ({self.members[number]})"


def free_ports(count: int, generator: random.Random) -> list[int]:
    """Ports below those that the kernel gives away by itself, so that they stay free."""
    found: list[int] = []
    while len(found) < count:
        port = generator.randrange(20_000, 32_000)
        if port in found:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    return found
