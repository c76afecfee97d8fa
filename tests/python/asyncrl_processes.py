"""Origins, relays and coordinators as processes that a test starts, kills and starts again."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coordinator_processes import environment

# Longer than anything takes that is not broken.
PATIENCE_SECONDS = 60.0


class ServingProcess:
    """`python -m MODULE ...`, which prints `serving URL` when it listens."""

    def __init__(self, module: str, *arguments: object) -> None:
        self.command = [sys.executable, "-m", module, *map(str, arguments)]
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            self.command,
            env=environment(PYTHONUNBUFFERED="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self.url = self.wait_for("serving ").split()[-1]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def wait_for(self, text: str) -> str:
        """The next line with `text` in it."""
        seen = []
        while (line := self.lines.get(timeout=PATIENCE_SECONDS)) is not None:
            if text in line:
                return line
            seen.append(line)
        raise AssertionError(f"it ended without {text!r}:\n{''.join(seen)}")

    def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(PATIENCE_SECONDS)
        self._thread.join(PATIENCE_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def __enter__(self) -> ServingProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def start_relay(folder: Path, origin: str, signer: str, *more: object) -> ServingProcess:
    return ServingProcess(
        "asyncrl.broadcast",
        *("relay", "--folder", folder, "--origin", origin, "--signer", signer, "--run", "run"),
        *more,
    )


@contextmanager
def two_relays(folder: Path, origin: str, signer: str) -> Iterator[list[ServingProcess]]:
    """Two relays that hold the newest version."""
    with (
        start_relay(folder / "relay 0", origin, signer) as first,
        start_relay(folder / "relay 1", origin, signer) as second,
    ):
        for relay in (first, second):
            relay.wait_for("complete")
        yield [first, second]
