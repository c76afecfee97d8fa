"""A validator in a process of its own, with limits: whatever a file does to it, a verdict comes.

The child is `python -m asyncrl.validation.isolated`; requests and verdicts are lines of JSON. A
child that dies, takes too long, or takes too much memory is replaced and its file judged again; a
file that does it twice is refused as "crash". So what kills one process costs no honest worker.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import resource
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from asyncrl.validation.checks import Refusal
from asyncrl.validation.rollout_file import sha256_of
from asyncrl.validation.validator import JudgeRequest, Validator
from asyncrl.validation.verdict import Verdict

__all__ = ["IsolatedValidator", "ProcessLimits", "ValidatorFactory"]

_ANSWER_BYTES_MAX = 1 << 14
# The first death may be somebody else's doing.
_TRIES = 2


class TakesWeights(Protocol):
    def add(self, version: int, path: Path) -> None: ...


ValidatorFactory = Callable[[dict[str, Any]], tuple[Validator, TakesWeights]]
"""Makes a validator, and what takes the weight files of its policies, from a JSON object."""


@dataclass(frozen=True, kw_only=True)
class ProcessLimits:
    memory_bytes: int = 4 << 30
    """Of private memory (RLIMIT_DATA)."""

    start_seconds: float = 60.0
    """To import torch and make the validator."""

    file_seconds: float = 120.0
    """For one file, new weights included."""


@dataclass(kw_only=True)
class IsolatedValidator:
    """Judges one file at a time. Not for several threads."""

    factory: str
    """"module:function", a ValidatorFactory."""

    config: Mapping[str, Any]
    """Its argument."""

    run_id: str
    limits: ProcessLimits = field(default_factory=ProcessLimits)
    crash_count: int = 0
    """Processes that ended without a verdict."""

    _child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> IsolatedValidator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def process_id(self) -> int | None:
        return None if self._child is None else self._child.pid

    def judge_path(self, path: Path, request: JudgeRequest, weights: Mapping[int, Path]) -> Verdict:
        """The verdict on a file, at the latest after 2 * (start_seconds + file_seconds).

        Args:
            weights: version -> its file, of all kept versions.

        Raises:
            RuntimeError: a child could not be started; the file is not judged.
        """
        line = {
            "path": str(path),
            "submission_index": request.submission_index,
            "open_steps": list(request.open_steps),
            "weights": {str(version): str(file) for version, file in weights.items()},
        }
        why = ""
        for _ in range(_TRIES):
            child = self._child or self._start()
            try:
                answer = self._ask(child, json.dumps(line), self.limits.file_seconds)
                return Verdict(**json.loads(answer))
            except (OSError, ValueError, TypeError) as error:
                self.crash_count += 1
                self.close()
                why = f"the validator's process: {error}; exit code {child.returncode}"
        verdict = Verdict(file_sha256=sha256_of(path), run_id=self.run_id)
        return verdict.refused(Refusal("crash", why))

    def start(self) -> None:
        """Start the child now, not with the first file. Raises as judge_path()."""
        if self._child is None:
            self._start()

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()

    def _start(self) -> subprocess.Popen[bytes]:
        config = json.dumps(dict(self.config))
        child = subprocess.Popen(
            [sys.executable, "-m", __name__, self.factory, str(self.limits.memory_bytes), config],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._child = child
        try:
            if self._ask(child, "{}", self.limits.start_seconds) != b"ready":
                raise ValueError("not ready")
        except (OSError, ValueError) as error:
            self.close()
            raise RuntimeError(f"{self.factory}: the validator does not start: {error}") from None
        return child

    def _ask(self, child: subprocess.Popen[bytes], line: str, seconds: float) -> bytes:
        """Send a line, return the line that comes back, or raise OSError or ValueError."""
        assert child.stdin is not None
        assert child.stdout is not None
        deadline = time.monotonic() + seconds
        child.stdin.write(line.encode() + b"\n")
        child.stdin.flush()
        answer = b""
        while not answer.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([child.stdout], [], [], left)[0]:
                raise TimeoutError(f"no verdict within {seconds:.0f} s")
            piece = os.read(child.stdout.fileno(), _ANSWER_BYTES_MAX)
            answer += piece
            if not piece or len(answer) > _ANSWER_BYTES_MAX:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=1)
                raise ValueError("it ended without a verdict")
        return answer[:-1]


def main() -> int:
    factory_name, memory_bytes, config = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory_bytes), int(memory_bytes)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # What a library prints is not an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, _, function = factory_name.partition(":")
    factory: ValidatorFactory = getattr(importlib.import_module(module), function)
    validator, policies = factory(json.loads(config))
    for line in sys.stdin:
        asked = json.loads(line)
        if not asked:
            print("ready", file=answers, flush=True)
            continue
        for version, path in asked["weights"].items():
            policies.add(int(version), Path(path))
        request = JudgeRequest(
            submission_index=asked["submission_index"], open_steps=asked["open_steps"]
        )
        verdict = validator.judge_path(Path(asked["path"]), request)
        print(json.dumps(dataclasses.asdict(verdict)), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
