"""A run on this machine: its coordinator and members, and how members elsewhere come in."""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.text import Text

from pccl.demo.processes import CoordinatorProcess, DemoProcess

__all__ = ["LaunchOptions", "LocalRun", "MemberProcess", "launch"]

_LOOK_SECONDS = 0.1
# Members that were asked to end get so long; they finish no step meanwhile.
_END_SECONDS = 5.0
# A newcomer comes in where a round ends, and a round may take minutes.
_JOIN_SECONDS = 3600
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """What `diloco launch` is asked for."""

    command: Sequence[str]
    """The program and its arguments, the same for every member; it calls pccl.join()."""

    members: int = 4
    name: str = "diloco"
    """Of the run."""

    host: str = ""
    """Under which other machines reach this one. Empty: found by itself. 127.0.0.1: from here
    only."""

    restarts: int = 0
    """So often, in all, a member that failed is started again."""

    def __post_init__(self) -> None:
        if self.members < 1 or self.restarts < 0:
            raise ValueError(f"expected 1 or more members, 0 or more restarts, got {self}")
        if not self.command:
            raise ValueError("expected a program to launch")


class MemberProcess(DemoProcess):
    """One member; the first one has the terminal, of the others the last lines are kept."""

    def __init__(
        self, number: int, command: Sequence[str], environment: dict[str, str], *, shown: bool
    ) -> None:
        self.number = number
        self.was_killed = False
        super().__init__(command, environment, shown=shown)

    @property
    def is_done(self) -> bool:
        """Whether it has ended without an error."""
        return self.process.poll() == 0

    def last_words(self) -> str:
        """How it ended, and the last that it wrote."""
        self.close()  # what is on the way still comes
        code = self.process.returncode
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        return "\n".join([f"member {self.number} ended: {how}", *self.errors])


class LocalRun:
    """The processes of one run; all of them end with this object."""

    def __init__(self, name: str, host: str = "") -> None:
        self.members: list[MemberProcess] = []  # all that ever were, in the order of their start
        self._folder = tempfile.TemporaryDirectory(prefix="diloco-")
        self._local = {"PCCL_HOST": host, "PCCL_BIND": host} if host == _LOOPBACK else {}
        place = ["--name", name]
        place += ["--bind", host] if host == _LOOPBACK else ["--host", host] if host else []
        self.coordinator = CoordinatorProcess(Path(self._folder.name), place=place)
        try:
            self.coordinator.wait_until_ready()
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """What members join with; it holds the token."""
        return self.coordinator.address

    def start(
        self, command: Sequence[str], *, wait_for: int = 1, shown: bool = False
    ) -> MemberProcess:
        """Start a member.

        Args:
            wait_for: it begins when so many members are in.
        """
        environment = {
            "PCCL_RUN": self.address,
            "PCCL_WORLD_SIZE_MIN": str(wait_for),
            "PCCL_CONNECT_TIMEOUT": str(_JOIN_SECONDS),
            "OMP_NUM_THREADS": "1",  # the members share the cores of this machine
            **self._local,
        }
        member = MemberProcess(len(self.members) + 1, command, environment, shown=shown)
        self.members.append(member)
        return member

    @property
    def alive(self) -> list[MemberProcess]:
        """Those that have not ended."""
        return [member for member in self.members if member.is_running]

    def close(self) -> None:
        """End all processes: the members first, politely; idempotent."""
        for member in self.members:
            member.terminate()
        for member in self.members:
            member.close()
        self.coordinator.close()
        self._folder.cleanup()

    def __enter__(self) -> LocalRun:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def launch(options: LaunchOptions, console: Console) -> int:
    """Start a coordinator and members, and wait for them; the exit code.

    A member that fails is shown, and the others go on without it. Ctrl+C ends all.

    Returns:
        0; the exit code of the first member that failed, if nobody came in its place; 130 after
        Ctrl+C.
    """
    command = python_command(options.command)
    with LocalRun(options.name, options.host) as run:
        try:
            console.print(f"status page: http://127.0.0.1:{run.coordinator.status_port}/")
            console.print("another machine joins with:")
            console.print(Text(f"  {join_command(run.address, options.command)}"), soft_wrap=True)
            for number in range(options.members):
                run.start(command, wait_for=options.members, shown=number == 0)
            return _wait(run, options, command, console)
        except KeyboardInterrupt:
            deadline = time.monotonic() + _END_SECONDS  # the terminal told the members, too
            while run.alive and time.monotonic() < deadline:
                time.sleep(_LOOK_SECONDS)
            console.print("diloco launch: interrupted; all processes were ended.")
            return 130


def python_command(command: Sequence[str]) -> list[str]:
    """A program of Python is run by this Python; anything else as it is."""
    return [sys.executable, *command] if command[0].endswith(".py") else list(command)


def join_command(address: str, command: Sequence[str]) -> str:
    """What is to be typed on another machine."""
    words = ["python", *command] if command[0].endswith(".py") else command
    return f"PCCL_RUN={shlex.quote(address)} {shlex.join(words)}"


def _wait(run: LocalRun, options: LaunchOptions, command: Sequence[str], console: Console) -> int:
    waiting = list(run.members)
    restarts, failed = options.restarts, 0
    while waiting:
        time.sleep(_LOOK_SECONDS)
        if not run.coordinator.is_running:
            raise OSError("\n".join(["the coordinator ended:", *run.coordinator.errors]))
        for member in [member for member in waiting if not member.is_running]:
            waiting.remove(member)
            if member.is_done:
                continue
            console.print(Text(member.last_words(), style="red"), soft_wrap=True)
            if restarts > 0:
                restarts -= 1
                waiting.append(run.start(command, shown=member.number == 1))
                console.print(f"it is started again as member {waiting[-1].number}")
            else:
                code = member.process.returncode
                failed = failed or (code if code > 0 else 128 - code)
    return failed
