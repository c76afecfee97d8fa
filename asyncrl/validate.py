"""A validator's process: takes pending files from the coordinator, judges them, signs verdicts.

    python -m asyncrl.validate --run RUN.json --key FILE --folder FOLDER

Files are judged in a child with limits; this process knows no torch and survives whatever they do.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asyncrl.broadcast.client import WeightsClient
from asyncrl.broadcast.download import Trust
from asyncrl.broadcast.source import BroadcastError
from asyncrl.protocol.client import CoordinatorClient, CoordinatorError
from asyncrl.protocol.keys import Key
from asyncrl.protocol.serving import run_until_stopped
from asyncrl.run_task import Run, RunAddress, RunTask, say
from asyncrl.validation.isolated import IsolatedValidator, ProcessLimits
from asyncrl.validation.validator import JudgeRequest, Validator

if TYPE_CHECKING:
    from asyncrl.validation.policies import KeptPolicies

__all__ = ["ValidatorProcess", "make_validator"]

_logger = logging.getLogger("asyncrl.validate")

_PAUSE_SECONDS = 0.2
# Of one question for files.
_WAIT_SECONDS = 2.0
_FAILURES_MAX = 60
# A child imports torch and draws the environment: seconds, and minutes where ten others start too.
_LIMITS = ProcessLimits(start_seconds=240.0)
# A driver maps the memory of its GPU.
_GPU_LIMITS = ProcessLimits(start_seconds=240.0, memory_bytes=1 << 40)


def make_validator(config: dict[str, Any]) -> tuple[Validator, KeptPolicies]:
    """In the child: a validator of the run's rules; see asyncrl.validation.isolated.

    Args:
        config: "run", "async_level", "task" as of RunOptions; "rollouts_checked", null for all;
            "device".
    """
    import torch

    from asyncrl.validation.policies import KeptPolicies

    torch.set_num_threads(1)
    task = RunTask.from_fields(config["task"])
    validator = Validator(
        task.rules(config["run"], config["async_level"]),
        task.text_task(task.environment()),
        policies := KeptPolicies(dtype=task.dtype, device=config["device"]),
        rollouts_checked=config["rollouts_checked"],
        secret=secrets.token_bytes(16),
    )
    return validator, policies


@dataclass
class ValidatorProcess:
    """What one validator holds while it runs."""

    key: Key
    client: CoordinatorClient
    weights: WeightsClient
    run: Run
    isolated: IsolatedValidator
    folder: Path
    _paths: dict[int, Path] = field(default_factory=dict, init=False)  # by version
    _newest: int = field(default=-1, init=False)

    async def judge(self) -> None:
        """Until it is stopped: a validator does not know which step is the last.

        Raises:
            CoordinatorUnreachable: see its client.
            CoordinatorError, BroadcastError, OSError, RuntimeError: the last of 60 in a row.
        """
        say(address=self.key.address)
        failures = 0
        while True:
            try:
                for one in self.client.pending(wait=_WAIT_SECONDS):
                    await self._judge_file(one)
                failures = 0
            except (CoordinatorError, BroadcastError, OSError, RuntimeError) as error:
                failures += 1
                _logger.info("%s", error)
                if failures >= _FAILURES_MAX:
                    raise
                await asyncio.sleep(_PAUSE_SECONDS * random.uniform(1, 3))

    async def _judge_file(self, one: dict[str, Any]) -> None:
        await self._fetch_for(one["step"])
        path = self.folder / one["sha256"]
        path.write_bytes(self.client.file(one["sha256"]))
        request = JudgeRequest(
            submission_index=one["submission_index"], open_steps=one["open_steps"]
        )
        verdict = self.isolated.judge_path(path, request, self._paths)
        path.unlink()
        self.client.send_verdict(verdict.sign(self.key).data)
        say(
            accepted=verdict.accepted,
            reason=verdict.reason,
            detail=verdict.detail,
            of=verdict.address,
            step=verdict.step,
        )

    async def _fetch_for(self, step: int) -> None:
        """All published versions that rollouts of `step` may be from."""
        newest = await self.weights.latest(self._newest) if self._newest < step else None
        self._newest = max(self._newest, newest or 0)
        oldest = max(0, step - self.run.options.async_level)
        for version in range(oldest, min(step, self._newest) + 1):
            if version not in self._paths:
                fetched = await self.weights.fetch(version)
                self._paths[version] = fetched.path
                self.client.report_broadcast(version, fetched.seconds)
        for old in [kept for kept, path in self._paths.items() if not path.is_file()]:
            del self._paths[old]


async def _validate(
    address: RunAddress, key: Key, folder: Path, rollouts_checked: int, device: str
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with address.client(key) as client:
        run = Run.ask(client)
        trust = Trust(frozenset(run.options.trainers), run.options.run)
        config = {
            "run": run.options.run,
            "async_level": run.options.async_level,
            "task": run.options.task,
            "rollouts_checked": rollouts_checked or None,
            "device": device,
        }
        factory = "asyncrl.validate:make_validator"
        async with WeightsClient(folder, list(run.options.sources), trust, keep=12) as weights:
            with IsolatedValidator(
                factory=factory,
                config=config,
                run_id=address.run,
                limits=_LIMITS if device == "cpu" else _GPU_LIMITS,
            ) as isolated:
                isolated.start()
                await ValidatorProcess(key, client, weights, run, isolated, folder).judge()


def main(
    run: Annotated[Path, typer.Option(help="file that says what the run is")],
    key: Annotated[Path, typer.Option(help="this validator's key")],
    folder: Annotated[Path, typer.Option(help="where weights and files are kept")],
    rollouts_checked: Annotated[int, typer.Option(help="of a file, with the model; 0: all")] = 0,
    device: Annotated[str, typer.Option(help="where the model computes: cpu or cuda")] = "cpu",
) -> None:
    """Judge files until it is stopped."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    own = Key.load_or_create(key)
    run_until_stopped(_validate(RunAddress.load(run), own, folder, rollouts_checked, device))


if __name__ == "__main__":
    typer.run(main)
