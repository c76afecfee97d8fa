"""Members of an elastic run as processes that a test starts, listens to and kills."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from coordinator_processes import environment

WORKER = Path(__file__).with_name("elastic_worker.py")
# Longer than anything takes that is not broken.
PATIENCE_SECONDS = 60.0


class MemberProcess:
    def __init__(
        self,
        address: object,
        members: int,
        *program: object,
        host: str = "127.0.0.1",
        launch: Callable[..., Any] = subprocess.Popen,
        worker: Path = WORKER,
        **more: str,
    ) -> None:
        self.process = launch(
            [sys.executable, str(worker), str(address), str(members), *map(str, program)],
            env=environment(PCCL_HOST=host, PCCL_BIND=host, **more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[dict[str, Any]] = []
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(json.loads(line))
        self._lines.put(None)

    def next(self) -> dict[str, Any] | None:
        """What it says next; None at its end."""
        said = self._lines.get(timeout=PATIENCE_SECONDS)
        if said is not None:
            self.said.append(said)
        return said

    def has_more(self) -> bool:
        return not self._lines.empty()

    def wait_for(self, key: str, least: int = 0) -> dict[str, Any]:
        while (said := self.next()) is not None:
            if key in said and (not isinstance(said[key], int) or said[key] >= least):
                return said
        raise AssertionError(f"it ended without {key!r}: {self.said[-3:]} {self.errors()}")

    def finish(self) -> list[dict[str, Any]]:
        """Wait for its end; all that it said."""
        while self.next() is not None:
            pass
        assert self.process.wait(PATIENCE_SECONDS) == 0, self.errors()
        return self.said

    def errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read() if self.process.poll() is not None else ""

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE_SECONDS)

    def __enter__(self) -> MemberProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        self._thread.join(PATIENCE_SECONDS)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


@contextmanager
def members(
    count: int, address: object, *program: object, world_size: int = 0, **more: str
) -> Iterator[list[MemberProcess]]:
    """`count` members of a run that begins with `world_size`, or with them alone."""
    wanted = world_size or count
    started = [MemberProcess(address, wanted, *program, **more) for _ in range(count)]
    with ExitStack() as stack:
        for member in started:
            stack.callback(member.close)
        yield started


def by_step(member: MemberProcess) -> dict[int, dict[str, Any]]:
    return {said["step"]: said for said in member.said if "step" in said}


def agree(survivors: list[MemberProcess], steps: int) -> None:
    """The same bytes from the same contributors, step by step."""
    first = by_step(survivors[0])
    assert sorted(first) == list(range(steps))
    for other in survivors[1:]:
        found = by_step(other)
        for step in range(steps):
            assert found[step]["digest"] == first[step]["digest"], step
            assert found[step]["counts"] == first[step]["counts"], step
