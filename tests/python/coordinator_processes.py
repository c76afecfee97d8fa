"""`pccl coordinator` as a process that a test starts, kills and starts again."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pccl
from pccl.address import RunAddress

# Longer than anything takes that is not broken.
PATIENCE_SECONDS = 20.0


def environment(**more: str) -> dict[str, str]:
    """That of the test, without settings of pccl."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PCCL_")}
    kept["PYTHONPATH"] = str(Path(pccl.__file__).resolve().parents[1])
    return {**kept, **more}


class CoordinatorProcess:
    """One process; restart() starts another one with the same database and port."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        port: int = 0,
        status: bool = True,
        host: str = "127.0.0.1",
        launch: Callable[..., Any] = subprocess.Popen,
    ) -> None:
        self._launch = launch
        self._command = [
            *(sys.executable, "-m", "pccl", "coordinator", "--bind", host),
            *("--database", str(folder / "coordinator.db")),
            *("--listen", "0"),
            *(("--status-port", "0") if status else ("--no-status",)),
            *options,
        ]
        self.port = port
        self.start()

    def start(self) -> None:
        """Start it and wait until it has printed its address."""
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.log: list[str] = []
        self.process = self._launch(
            [*self._command, "--port", str(self.port)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._threads = [
            threading.Thread(target=read, daemon=True) for read in (self._read, self._read_log)
        ]
        for thread in self._threads:
            thread.start()
        line = self._next_line()
        if line is None:
            raise AssertionError(f"no address from the coordinator:\n{self.text()}")
        self.address = RunAddress.parse(line)
        self.port = self.address.port

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)

    def _next_line(self) -> str | None:
        try:
            return self._lines.get(timeout=PATIENCE_SECONDS)
        except queue.Empty:
            return None

    def text(self) -> str:
        return "".join(self.log)

    def wait_for_log(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            found = re.search(pattern, self.text())
            if found:
                return found
            time.sleep(0.01)
        raise AssertionError(f"{pattern!r} is not in the log:\n{self.text()}")

    @property
    def page(self) -> str:
        return self.wait_for_log(r"status page: (http://\S+/)")[1]

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.page + "status.json", timeout=5) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found

    def run_status(self, run: str) -> dict[str, Any] | None:
        return next((found for found in self.status()["runs"] if found["name"] == run), None)

    def end(self, number: signal.Signals) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_SECONDS)
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
        self._close_pipes()
        return code

    def restart(self) -> None:
        """kill -9, then the same command with the same port."""
        self.end(signal.SIGKILL)
        self.start()

    def _close_pipes(self) -> None:
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> CoordinatorProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.end(signal.SIGKILL)
        self._close_pipes()


def refused(folder: Path, *options: str, seconds: float = PATIENCE_SECONDS) -> str:
    """What a coordinator says that does not start; its exit code must be 1."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pccl", "coordinator", "--bind", "127.0.0.1", "--no-status"),
            *("--port", "0", "--database", str(folder / "coordinator.db")),
            *options,
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr
