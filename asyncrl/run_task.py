"""What a run is about, as the coordinator's document carries it: model, environment, rules.

Every role makes the same objects from it, so all have the same prompts, bounds and scores.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asyncrl.environment import ReasoningGym
from asyncrl.model_config import ModelConfig
from asyncrl.proof.proof import ProofFormat
from asyncrl.proof.thresholds import default_thresholds
from asyncrl.protocol.client import CoordinatorClient
from asyncrl.protocol.keys import Key
from asyncrl.protocol.options import RunOptions
from asyncrl.tokenizer import EOS, decode, encode
from asyncrl.validation.checks import Rules
from asyncrl.validation.validator import TextTask

__all__ = ["Run", "RunAddress", "RunTask", "say"]


def say(**what: Any) -> None:
    """One line of JSON on standard output, for whoever started this process."""
    print(json.dumps(what), flush=True)


@dataclass(frozen=True)
class RunAddress:
    """Where a run's coordinator is, and by which key it is known: what a role has to be given."""

    url: str
    run: str
    coordinator: str
    """Address of the coordinator's key."""

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self)) + "\n")

    @classmethod
    def load(cls, path: Path) -> RunAddress:
        """Raises ValueError where the file holds no such address."""
        try:
            return cls(**json.loads(path.read_text()))
        except (TypeError, ValueError) as error:
            raise ValueError(f"run {path}: {error}") from None

    def client(self, key: Key) -> CoordinatorClient:
        return CoordinatorClient(self.url, key, run=self.run, coordinator=self.coordinator)


@dataclass(frozen=True, kw_only=True)
class RunTask:
    """The default is the task, the sizes and the sampling that the trainer's defaults learn."""

    model: ModelConfig = field(default_factory=ModelConfig)
    task: str = "spell_backward"
    task_seed: int = 1
    draw_count: int = 16384
    token_count_max: int = 10
    prompts_per_file: int = 8
    samples_per_prompt: int = 8
    temperature: float = 1.0
    dtype: str = "fp32"
    """What workers and validators compute in: "fp32", "bf16" or "fp16"."""

    step_count: int = 180
    learning_rate: float = 7e-5

    def to_fields(self) -> dict[str, Any]:
        """For RunOptions.task: numbers, texts and maps of them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> RunTask:
        """Raises ValueError where the fields are not those of to_fields()."""
        try:
            return cls(**{**fields, "model": ModelConfig(**fields["model"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"run: its task cannot be understood: {error}") from None

    def environment(self, split: str = "train") -> ReasoningGym:
        return ReasoningGym(self.task, split, seed=self.task_seed, draw_count=self.draw_count)

    def text_task(self, environment: ReasoningGym) -> TextTask:
        return TextTask(environment, encode, decode)

    def rules(self, run_id: str, async_level: int) -> Rules:
        return Rules(
            run_id=run_id,
            eos_token=EOS,
            vocabulary_count=self.model.vocabulary_count,
            token_count_max=self.token_count_max,
            prompts_per_file=self.prompts_per_file,
            samples_per_prompt=self.samples_per_prompt,
            temperature=self.temperature,
            async_level_max=async_level,
            proof_format=ProofFormat(dtype=self.dtype),
            thresholds=default_thresholds(self.dtype),
        )


@dataclass(frozen=True)
class Run:
    """What the coordinator says of the run."""

    options: RunOptions
    task: RunTask

    @classmethod
    def ask(cls, client: CoordinatorClient) -> Run:
        """Raises as CoordinatorClient.run(), and ValueError for a document that is none."""
        fields = {name: value for name, value in client.run().items() if name != "coordinator"}
        lists = {name: tuple(v) for name, v in fields.items() if isinstance(v, list)}
        try:
            options = RunOptions(**{**fields, **lists})
        except TypeError as error:
            raise ValueError(f"run: {error}") from None
        return cls(options, RunTask.from_fields(options.task))

    @property
    def rules(self) -> Rules:
        return self.task.rules(self.options.run, self.options.async_level)
