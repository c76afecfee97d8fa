"""A rollout worker: fetches signed weights, samples what it is told to, proves it, uploads it.

    python -m asyncrl.worker --run RUN.json --key FILE --folder FOLDER

Nobody has to trust it. `--cheat KIND` makes one that nobody should.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from asyncrl.broadcast.client import WeightsClient
from asyncrl.broadcast.download import Trust
from asyncrl.broadcast.source import BroadcastError
from asyncrl.cheats import CHEATS, CheatInputs
from asyncrl.generator import CachedGenerator
from asyncrl.model import Decoder, load_policy
from asyncrl.protocol.client import CoordinatorClient, CoordinatorError
from asyncrl.protocol.keys import Key
from asyncrl.run_task import Run, RunAddress, say
from asyncrl.submission import Assignment, generate_rollouts
from asyncrl.tokenizer import EOS, encode
from asyncrl.validation.policies import COMPUTE

__all__ = ["RolloutWorker"]

_logger = logging.getLogger("asyncrl.worker")

_POLL_SECONDS = 0.2
# Of one question for work.
_WAIT_SECONDS = 2.0
# Weights that are announced and don't come, questions that nobody answers: after so many in a row
# the worker gives up, with the last reason.
_FAILURES_MAX = 60
# Decoders kept: the window, and what a cheat with old weights needs.
_VERSIONS_MAX = 8


@dataclass
class RolloutWorker:
    """What one worker holds while it runs."""

    key: Key
    client: CoordinatorClient
    weights: WeightsClient
    run: Run
    cheat: str = ""
    """A name of asyncrl.cheats; "": honest."""

    honest_files: int = 2
    """Of a cheat: files before it begins."""

    device: str = "cpu"
    """Where an honest worker's model computes."""

    file_count: int = field(default=0, init=False)
    _decoders: dict[int, Decoder] = field(default_factory=dict, init=False)
    _last_file: bytes = field(default=b"", init=False)

    def __post_init__(self) -> None:
        self._environment = self.run.task.environment()
        self._text_task = self.run.task.text_task(self._environment)
        self._rules = self.run.rules
        self._dtype = COMPUTE[self.run.task.dtype]

    async def work(self) -> None:
        """Until the run ends or this worker is banned.

        Raises:
            CoordinatorUnreachable: see its client.
            CoordinatorError, BroadcastError, OSError: 60 failures in a row; the last one.
        """
        self.client.register(self.run.options.stake)
        say(address=self.key.address, cheat=self.cheat)
        failures = 0
        while True:
            try:
                if not await self._work_once():
                    return
                failures = 0
            except (CoordinatorError, BroadcastError, OSError) as error:
                if isinstance(error, CoordinatorError) and error.code == "banned":
                    say(banned=str(error))
                    return
                failures += 1
                _logger.info("%s", error)
                if failures >= _FAILURES_MAX:
                    raise
                # Workers that failed together do not come back together.
                await asyncio.sleep(_POLL_SECONDS * random.uniform(1, 3))

    async def _work_once(self) -> bool:
        """One file, or a short wait where none is wanted; False at the run's end."""
        asked = self.client.assignment(wait=_WAIT_SECONDS)
        step, step_count = asked["step"], self.run.task.step_count
        if asked["trainer_step"] >= step_count:
            return False
        usable = [
            version
            for version in map(int, asked["weights"])
            if step is not None and 0 <= step - version <= self._rules.async_level_max
        ]
        # Rollouts for steps after the last one would be for nobody.
        if step is None or step >= step_count or not usable:
            await asyncio.sleep(_POLL_SECONDS)
            return True
        version = max(usable)
        await self._fetch(version)
        assignment = Assignment(
            key=self.key,
            task=self._text_task,
            rules=self._rules,
            step=step,
            submission_index=asked["submission_index"],
            weights_version=version,
            weights_sha256=asked["weights"][str(version)],
        )
        begun = time.monotonic()
        data = self._make(assignment)
        seconds = time.monotonic() - begun
        self.client.upload(data, step, assignment.submission_index)
        self._last_file = data
        self.file_count += 1
        say(step=step, version=version, seconds=round(seconds, 3), file_bytes=len(data))
        return True

    async def _fetch(self, version: int) -> None:
        if version in self._decoders:
            return
        fetched = await self.weights.fetch(version)
        if fetched.manifest.model != self.run.task.model.hash:
            raise BroadcastError(f"broadcast: version {version} is of another model")
        self._decoders[version] = load_policy(fetched.path, self._dtype)
        for old in sorted(self._decoders)[:-_VERSIONS_MAX]:
            del self._decoders[old]
        self.client.report_broadcast(version, fetched.seconds)
        sources = {one["url"]: one["bytes"] for one in fetched.sources}
        say(fetched=version, seconds=round(fetched.seconds, 3), sources=sources)

    def _make(self, assignment: Assignment) -> bytes:
        decoder = self._decoders[assignment.weights_version]
        if self.cheat and self.file_count >= self.honest_files:
            inputs = CheatInputs(
                assignment=assignment,
                decoders=self._decoders,
                answer=self._answer(),
                earlier=self._last_file,
            )
            try:
                return CHEATS[self.cheat].make(inputs)
            except KeyError as error:
                _logger.info("no chance to cheat yet: version %s is not here", error)
        generator = CachedGenerator(decoder.to(self.device))
        rollouts = generate_rollouts(generator, assignment)
        return assignment.file(rollouts).sign(self.key)

    def _answer(self) -> Callable[[int], Sequence[int]]:
        return lambda index: [*encode(self._environment.answer(index) or ""), EOS]


async def _work(address: RunAddress, key: Key, folder: Path, **settings: Any) -> None:
    with address.client(key) as client:
        run = Run.ask(client)
        trust = Trust(frozenset(run.options.trainers), run.options.run)
        async with WeightsClient(folder, list(run.options.sources), trust, keep=8) as weights:
            await RolloutWorker(key, client, weights, run, **settings).work()


def main(
    run: Annotated[Path, typer.Option(help="file that says what the run is")],
    key: Annotated[Path, typer.Option(help="this worker's key, made if it is not there")],
    folder: Annotated[Path, typer.Option(help="where weights are kept")],
    cheat: Annotated[str, typer.Option(help=f"one of {', '.join(sorted(CHEATS))}")] = "",
    honest_files: Annotated[int, typer.Option(help="files before it cheats")] = 2,
    device: Annotated[str, typer.Option(help="of the honest: cpu or cuda")] = "cpu",
) -> None:
    """Make rollouts until the run ends."""
    if cheat and cheat not in CHEATS:
        raise typer.BadParameter(f"--cheat: expected one of {sorted(CHEATS)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    address = RunAddress.load(run)
    settings = {"cheat": cheat, "honest_files": honest_files, "device": device}
    asyncio.run(_work(address, Key.load_or_create(key), folder, **settings))
    say(done=True)


if __name__ == "__main__":
    typer.run(main)
