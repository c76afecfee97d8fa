"""The processes of a demo: members and the coordinator, with what they say."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pccl
from pccl.address import RunAddress
from pccl.launch import die_with_parent

__all__ = ["CoordinatorProcess", "DemoProcess", "MemberProcess", "Said", "find_example"]

# Of what a process writes to its standard error, for the one that fails.
_ERROR_LINES_MAX = 30
# For a process to end after SIGTERM.
_END_SECONDS = 5.0
# For it to be gone after SIGKILL: one that waits for a busy disk takes its time.
_GONE_SECONDS = 60.0
# Until a coordinator has said where it is.
_START_SECONDS = 30.0


def find_example(name: str) -> Path:
    """examples/`name`, of a checkout or of an installed wheel."""
    package = Path(pccl.__file__).resolve().parent
    for folder in (package / "examples", package.parent / "examples"):
        program = folder / name
        if program.is_file():
            return program
    raise FileNotFoundError(f"examples/{name} is neither in nor beside {package}")


@dataclass(frozen=True)
class Said:
    """A line of a member: what it says; None: it has ended."""

    member: MemberProcess
    what: dict[str, Any] | None


class DemoProcess:
    """A process that ends with this one; the last lines that it writes are kept.

    Args:
        shown: it writes to this terminal instead.
    """

    def __init__(
        self, command: Sequence[str], environment: dict[str, str], *, shown: bool = False
    ) -> None:
        pipe = None if shown else subprocess.PIPE
        self.process = subprocess.Popen(
            ["env", *(f"{name}={value}" for name, value in environment.items()), *command],
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            text=True,
            preexec_fn=die_with_parent,
        )
        self.errors: deque[str] = deque(maxlen=_ERROR_LINES_MAX)
        readers = () if shown else (self._read, self._read_errors)
        self._threads = [threading.Thread(target=read, daemon=True) for read in readers]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.errors.append(line.rstrip())

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors.append(line.rstrip())

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """kill -9; returns when it is gone."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(_GONE_SECONDS)

    def terminate(self) -> None:
        if self.is_running:
            self.process.terminate()

    def close(self) -> None:
        """End it, politely where it listens, and its pipes."""
        self.terminate()
        if self.is_running:
            try:
                self.process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                with suppress(subprocess.TimeoutExpired):  # it goes as soon as the kernel lets it
                    self.process.wait(_END_SECONDS)
        for thread in self._threads:
            thread.join(_END_SECONDS)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


class MemberProcess(DemoProcess):
    """Trains; each of its lines goes to `said`."""

    def __init__(
        self,
        number: int,
        program: Path,
        address: str,
        options: Sequence[str],
        said: queue.SimpleQueue[Said],
    ) -> None:
        self.number = number
        self.member_id = ""  # until it is in
        self.steps: list[dict[str, Any]] = []
        self.digest = ""  # of its state at its end
        self.was_killed = False
        self._said = said
        local = {"PCCL_HOST": "127.0.0.1", "PCCL_BIND": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        super().__init__([sys.executable, str(program), address, *options], local)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            # A member that is killed may leave half a line.
            if line.endswith("\n"):
                self._said.put(Said(self, json.loads(line)))
        self._said.put(Said(self, None))


class CoordinatorProcess(DemoProcess):
    """`pccl coordinator` on any port of this machine, or where the last one was.

    Args:
        place: options that say where it listens, and of which run.
        runs: makes the command into one that runs in another place.
    """

    def __init__(
        self,
        folder: Path,
        last: CoordinatorProcess | None = None,
        place: Sequence[str] = ("--bind", "127.0.0.1", "--name", "demo"),
        runs: Callable[[Sequence[str]], list[str]] = list,
    ) -> None:
        command = [sys.executable, "-m", "pccl", "coordinator", *place]
        command += ["--port", str(last.port if last else 0)]
        command += ["--status-port", str(last.status_port if last else 0)]
        # A machine that is busy with starting members is slow, and nobody stands still here.
        command += ["--heartbeat", "0.2", "--silence", "5", "--listen", "0"]
        self.status_port: int = last.status_port if last else 0
        self.address = ""  # until it listens
        self._is_decided = threading.Event()
        self._has_page = threading.Event()
        super().__init__(runs([*command, "--database", str(folder / "coordinator.db")]), {})

    @property
    def is_ready(self) -> bool:
        return self.address != ""

    @property
    def port(self) -> int:
        return RunAddress.parse(self.address).port

    def wait_until_ready(self) -> None:
        """Return when members can come.

        Raises:
            OSError: it does not start; the message holds what it said.
        """
        self._is_decided.wait(_START_SECONDS)
        if not self.is_ready:
            self.close()
            raise OSError("\n".join(["the coordinator does not start:", *self.errors]))

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            # It has said before where its page is; that comes by the other pipe.
            self._has_page.wait(_END_SECONDS)
            self.address = line.strip()
            self._is_decided.set()
        self._is_decided.set()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors.append(line.rstrip())
            _, is_found, url = line.partition("status page: ")
            if is_found:
                self.status_port = int(url.rstrip("/\n").rpartition(":")[2])
                self._has_page.set()
