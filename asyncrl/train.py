"""A trainer's process: takes accepted rollouts, learns with the other trainers, publishes weights.

    python -m asyncrl.train --run RUN.json --pccl ADDRESS --key FILE --weights FILE --origin FOLDER

It may be killed at any moment; the others go on, and the same command brings it back with the state
of the run. The trainer of rank 0 publishes and advances the step.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy
import torch
import typer

import pccl
from asyncrl.broadcast.manifest import Manifest
from asyncrl.broadcast.store import Publisher, Store
from asyncrl.model import load_policy, weights_bytes
from asyncrl.protocol.client import CoordinatorClient
from asyncrl.protocol.keys import Key
from asyncrl.rollouts import Group, Rollout
from asyncrl.run_task import Run, RunAddress, say
from asyncrl.trainer import Trainer, TrainerOptions
from asyncrl.trainer_options import OuterOptions
from asyncrl.validation.checks import Rules, Task
from asyncrl.validation.rollout_file import RolloutFile, Signed

__all__ = ["TrainerProcess", "groups_of"]

# Of one question for accepted files; between two of them a trainer may find that it has to publish.
_WAIT_SECONDS = 2.0
# Rollouts of a step that do not come: workers, validators or the broadcast are broken.
_ROLLOUTS_SECONDS = 600.0
# Between two looks for a trainer that comes back.
_PAUSE_SECONDS = 0.5
# More than any async level needs: a worker that is slow finds what it was told to take.
_VERSIONS_KEPT = 12


@dataclass
class TrainerProcess:
    """What one trainer holds while it runs."""

    trainer: Trainer
    client: CoordinatorClient
    run: Run
    key: Key
    origin: Path
    """Where the origin serves from; of all trainers of this machine."""

    checkpoint: Path | None = None
    members_end: int = 1
    """Before the last step it waits for so many members: one that was killed comes back in time."""

    _metrics: dict[str, Any] = field(default_factory=dict, init=False)  # of the last step
    _waited_seconds: float = field(default=0.0, init=False)
    _published: int = field(default=-1, init=False)
    _seen: int = field(default=0, init=False)  # number of the last decision that was told
    _accepted: dict[int, list[str]] = field(default_factory=dict, init=False)  # step -> files

    def __post_init__(self) -> None:
        options = self.run.options
        self._text_task = self.run.task.text_task(self.run.task.environment())
        self._rules = self.run.rules
        self._publisher = Publisher(self.origin, self.key, options.run, keep=_VERSIONS_KEPT)
        self._begun = time.monotonic()

    def train(self) -> None:
        """Until the run's last step.

        Raises:
            PcclError: see ElasticCommunicator; the process ends, and may be started again.
            CoordinatorError, CoordinatorUnreachable: the coordinator says no, or nothing.
            TimeoutError: no rollouts for 600 s; the message says how many are missing.
        """
        trainer = self.trainer
        while True:
            self._sync()
            self._publish()
            if trainer.version >= self.run.task.step_count:
                return
            begun = time.monotonic()
            groups = self._rollouts()
            waited = time.monotonic() - begun
            self._waited_seconds += waited
            report = trainer.step(groups)
            share = self._waited_seconds / (time.monotonic() - self._begun)
            self._metrics = {**asdict(report), "waited_seconds": waited, "wait_share": share}
            say(**self._metrics)
            if self.checkpoint is not None and report.version % 10 == 0:
                trainer.save(self.checkpoint)

    def _sync(self) -> None:
        """Meet the others; before the last step until so many are here as have to be."""
        trainer, deadline = self.trainer, time.monotonic() + _ROLLOUTS_SECONDS
        trainer.sync()
        while trainer.comm is not None and trainer.version == self.run.task.step_count - 1:
            # Counted by an operation, so that all members count the same.
            here = numpy.ones(1, numpy.int64)
            trainer.comm.all_reduce(here)
            if here[0] >= self.members_end:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"train: {here[0]} of {self.members_end} trainers are here before the last "
                    f"step, after {_ROLLOUTS_SECONDS:g} s"
                )
            time.sleep(_PAUSE_SECONDS)
            trainer.sync()  # newcomers come in here

    def _publish(self) -> None:
        """The trainer of rank 0: weights of this version, then the step; each only once."""
        version, comm = self.trainer.version, self.trainer.comm
        if self._published == version or (comm is not None and comm.rank != 0):
            return
        self.client.announce_weights(version, self._write(version).sha256)
        self.client.advance(version, self._metrics)
        self._published = version

    def _write(self, version: int) -> Manifest:
        options = self.run.options
        held = Store(self.origin).load(version, options.trainers, options.run)
        if held is not None and held.is_final:  # by a trainer that is gone
            return held
        shutil.rmtree(self.origin / "v" / str(version), ignore_errors=True)
        model = self.trainer.model
        return self._publisher.publish(weights_bytes(model), version, model.config.hash)

    def _rollouts(self) -> list[Group]:
        """Those of the first accepted files of this step, in the order of their acceptance."""
        step, wanted = self.trainer.version, self.run.options.files_per_step
        deadline = time.monotonic() + _ROLLOUTS_SECONDS
        while len(self._accepted.get(step, [])) < wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"train: step {step}: {len(self._accepted.get(step, []))} of {wanted} files of "
                    f"rollouts were accepted within {_ROLLOUTS_SECONDS:g} s"
                )
            self._publish()  # the trainer of rank 0 may have died before it did
            for one in self.client.accepted(self._seen, wait=_WAIT_SECONDS):
                self._seen = one["decided"]
                self._accepted.setdefault(one["step"], []).append(one["sha256"])
        groups = []
        for sha256 in self._accepted[step][:wanted]:
            limits = self._rules.limits
            file = Signed.from_bytes(self.client.file(sha256), limits).parse(limits)
            groups += groups_of(file, self._text_task, self._rules)
        for old in [known for known in self._accepted if known < step]:
            del self._accepted[old]
        return groups


def groups_of(file: RolloutFile, task: Task, rules: Rules) -> list[Group]:
    """The groups of an accepted file, with scores of our own: no number of its worker is used."""
    groups = []
    for first in range(0, len(file.rollouts), rules.samples_per_prompt):
        claimed = file.rollouts[first : first + rules.samples_per_prompt]
        rollouts = [
            Rollout(
                task.prompt_tokens(one.prompt_index),
                list(one.tokens),
                task.score(one.prompt_index, one.tokens),
            )
            for one in claimed
        ]
        groups.append(Group(file.weights_version, rollouts))
    return groups


def main(
    run: Annotated[Path, typer.Option(help="file that says what the run is")],
    pccl_address: Annotated[str, typer.Option("--pccl", help="pccl://host:port/run of trainers")],
    key: Annotated[Path, typer.Option(help="this trainer's key")],
    weights: Annotated[Path, typer.Option(help="version 0")],
    origin: Annotated[Path, typer.Option(help="folder that the origin serves")],
    members: Annotated[int, typer.Option(help="begin when so many are in")] = 1,
    members_end: Annotated[int, typer.Option(help="wait for so many before the last step")] = 1,
    diloco: Annotated[bool, typer.Option(help="merge once a step")] = False,
    local: Annotated[bool, typer.Option(help="listen on loopback only")] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="written every 10 steps")] = None,
    device: Annotated[str, typer.Option(help="where the model computes: cpu or cuda")] = "cpu",
) -> None:
    """Train until the run's last step."""
    torch.set_num_threads(1)
    own = Key.load_or_create(key)
    with RunAddress.load(run).client(own) as client:
        found = Run.ask(client)
        options = TrainerOptions(
            step_count=found.task.step_count,
            learning_rate=found.task.learning_rate,
            async_level=found.options.async_level,
            temperature=found.task.temperature,
            outer=OuterOptions() if diloco else None,
        )
        config = pccl.Config(bind="127.0.0.1", hosts=("127.0.0.1",)) if local else None
        with pccl.join(pccl_address, world_size_min=members, config=config) as comm:
            say(joined=comm.member_id)
            trainer = Trainer(load_policy(weights), options, comm, device=device)
            process = TrainerProcess(trainer, client, found, own, origin, checkpoint, members_end)
            process.train()
        say(done=trainer.version, digest=trainer.digest)


if __name__ == "__main__":
    typer.run(main)
