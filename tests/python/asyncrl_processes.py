"""Origins, relays and coordinators as processes that a test starts, kills and starts again."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coordinator_processes import environment

# Longer than anything takes that is not broken.
PATIENCE_SECONDS = 60.0
# The demo itself gives up after 300 s without a step.
DEMO_SECONDS = 900.0


def run_small_demo(
    program: Sequence[str], steps: int, folder: Path
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """The demo with one honest worker and one that is greedy at once; it, and its demo.json."""
    done = subprocess.run(
        [
            *(sys.executable, *program, "--cheat", "greedy", "--steps", str(steps)),
            *("--workers", "1", "--files-per-step", "1", "--honest-files", "0"),
            *("--warm-steps", "1", "--evaluate-every", "0", "--held-out-draws", "64"),
            *("--out", str(folder / "out"), "--warm-folder", str(folder / "warm")),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done, json.loads((folder / "out" / "demo.json").read_text())


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
