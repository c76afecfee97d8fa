"""Real processes as the ranks of a torch.distributed world, kept from check to check.

Importing torch takes seconds, a check milliseconds. So the ranks stay, and a test sends them one
check after the other by name; a check that fails or hangs costs new ranks for the next.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import pccl

HERE = Path(__file__).parent
WORKER = HERE / "torch_worker.py"
START_SECONDS = 120.0
ANSWER_SECONDS = 120.0
# How long the others have to say what they saw of a failure.
AFTER_ERROR_SECONDS = 5.0

Answer = dict[str, Any]


def checks(module: str) -> list[str]:
    """The checks of a module: its own public functions, in their order."""
    members = vars(importlib.import_module(module)).items()
    return [
        name
        for name, value in members
        if inspect.isfunction(value) and value.__module__ == module and not name.startswith("_")
    ]


def environment(**variables: str) -> dict[str, str]:
    """That of a rank: this checkout's pccl, and no variable of an outer run."""
    ours = ("PCCL_", "TORCHELASTIC_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    kept["PYTHONPATH"] = os.pathsep.join([str(Path(pccl.__file__).resolve().parents[1]), str(HERE)])
    return {**kept, "OMP_NUM_THREADS": "1", **variables}


class _Rank:
    def __init__(self, arguments: list[str], variables: dict[str, str]) -> None:
        self.stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  # kill() closes it
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), *arguments],
            env=environment(**variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            text=True,
        )
        self.answers: queue.Queue[Answer] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(json.loads(line))
        self.answers.put({"error": f"the process ended with {self.process.wait()}"})

    def tell(self, command: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def hear(self, seconds: float) -> Answer:
        try:
            return self.answers.get(timeout=seconds)
        except queue.Empty:
            return {"error": f"no answer within {seconds} s"}

    def read_stderr(self) -> str:
        self.stderr.seek(0)
        return self.stderr.read()[-6000:]

    def end(self) -> int:
        """Let it leave politely; its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            return self.process.wait(20)
        finally:
            self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(5)
        for file in (self.process.stdin, self.process.stdout, self.stderr):
            assert file is not None
            file.close()


class TorchRanks:
    """A world that is there when a check needs it.

    joined: the default group is made once, before the first check; else each check makes its own.
    """

    def __init__(self, world_size: int, *, joined: bool = True, **variables: str) -> None:
        self.world_size = world_size
        self._joined = joined
        self._variables = variables
        self._ranks: list[_Rank] = []
        self._folder = tempfile.TemporaryDirectory()
        self._starts = 0

    def run(self, module: str, check: str, *, same: bool = True, **arguments: object) -> None:
        """Run a check on all ranks; fail with the reports of those that fail.

        same: what the check returns is the same on all ranks, byte by byte.
        """
        if not self._ranks:
            self._start()
        for rank in self._ranks:
            rank.tell({"module": module, "check": check, "arguments": arguments})
        answers = self._hear_all()
        reports = [
            f"--- rank {number}\n{answer['error']}"
            for number, answer in enumerate(answers)
            if "error" in answer
        ]
        if reports:
            reports += [
                f"--- stderr of rank {number}\n{rank.read_stderr()}"
                for number, rank in enumerate(self._ranks)
            ]
            self.kill()
            pytest.fail(f"{check}\n" + "\n".join(reports), pytrace=False)
        for answer in answers:
            if "skip" in answer:
                pytest.skip(answer["skip"])
        if same:
            digests = [answer["digest"] for answer in answers]
            assert len(set(digests)) == 1, f"{check}: ranks hold different bytes: {digests}"

    def _hear_all(self) -> list[Answer]:
        """What each rank says; when one fails, the others may be waiting for it in vain."""
        deadline = time.monotonic() + ANSWER_SECONDS
        answers = []
        for rank in self._ranks:
            answers.append(rank.hear(max(0.0, deadline - time.monotonic())))
            if "error" in answers[-1]:
                deadline = min(deadline, time.monotonic() + AFTER_ERROR_SECONDS)
        return answers

    def _start(self) -> None:
        self._starts += 1
        store = [str(Path(self._folder.name) / f"store{self._starts}")] if self._joined else []
        for rank in range(self.world_size):
            self._ranks.append(_Rank([str(rank), str(self.world_size), *store], self._variables))
        for rank in self._ranks:
            answer = rank.hear(START_SECONDS)
            if "ready" not in answer:
                text = rank.read_stderr()
                self.kill()
                raise AssertionError(f"{answer}\n{text}")

    def close(self) -> None:
        """All leave politely, and each process ends without an error."""
        ranks, self._ranks = self._ranks, []
        for rank in ranks:
            assert rank.process.stdin is not None
            rank.process.stdin.close()
        codes = [rank.end() for rank in ranks]
        self._folder.cleanup()
        assert codes == [0] * len(codes)

    def kill(self) -> None:
        ranks, self._ranks = self._ranks, []
        for rank in ranks:
            rank.kill()
