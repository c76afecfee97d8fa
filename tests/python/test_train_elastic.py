"""examples/train_elastic.py: a member is killed, another comes, and all end with the same bytes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from coordinator_processes import CoordinatorProcess, environment

pytest.importorskip("torch")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "train_elastic.py"
PATIENCE_SECONDS = 120.0
# Enough for a newcomer to come while the others train.
STEPS = 400


class Trainer:
    def __init__(self, address: object, members: int, steps: int) -> None:
        command = [sys.executable, str(EXAMPLE), str(address), "--batch", "1"]
        self.process = subprocess.Popen(
            [*command, "--members", str(members), "--steps", str(steps)],
            env=environment(PCCL_HOST="127.0.0.1", PCCL_BIND="127.0.0.1", OMP_NUM_THREADS="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.text = ""
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.text += line
                self._changed.notify_all()

    def wait_for(self, pattern: str) -> None:
        with self._changed:
            found = self._changed.wait_for(lambda: re.search(pattern, self.text), PATIENCE_SECONDS)
            assert found, self.text

    def digest(self) -> str:
        assert self.process.wait(PATIENCE_SECONDS) == 0, self.text
        self._thread.join(PATIENCE_SECONDS)
        found = re.search(rf"done: {STEPS} steps, model ([0-9a-f]{{16}})", self.text)
        assert found, self.text
        return found[1]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE_SECONDS)
        self._thread.join(PATIENCE_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()


def test_training_goes_on_through_a_death_and_a_newcomer(tmp_path: Path) -> None:
    with CoordinatorProcess(tmp_path, status=False) as coordinator:
        trainers = [Trainer(coordinator.address, 3, STEPS) for _ in range(3)]
        try:
            trainers[0].wait_for(r"step +10 .* members 3")
            trainers[2].process.send_signal(signal.SIGKILL)
            trainers.append(Trainer(coordinator.address, 1, STEPS))
            trainers[3].wait_for("joined")
            digests = {trainers[i].digest() for i in (0, 1, 3)}
            assert len(digests) == 1
            assert "members 2" in trainers[0].text or "members 3" in trainers[3].text
        finally:
            for trainer in trainers:
                trainer.close()
