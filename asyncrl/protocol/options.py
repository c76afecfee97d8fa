"""What everybody in a run has to know."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from asyncrl.protocol.keys import is_address

__all__ = ["RunOptions"]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What everybody in a run has to know; served to all, signed by the coordinator."""

    run: str
    trainers: tuple[str, ...]
    """Addresses. They advance the step, and sign weights."""

    validators: tuple[str, ...]
    quorum: int = 0
    """Verdicts that decide; 0: more than half of the validators."""

    stake: int = 1000
    """Coins that a worker puts down."""

    penalty: int = 1000
    """Coins that it loses with its first refused file, beside all that is pending."""

    coins_per_unit: int = 1
    pending_steps: int = 4
    async_level: int = 2
    """Files are taken for the trainer's step and so many steps after it."""

    files_per_step: int = 8
    """Accepted or pending; then workers are sent to the next step."""

    file_bytes_max: int = 16 << 20
    pending_max: int = 16
    """Undecided files of one worker."""

    workers_max: int = 1024
    validator_silence_seconds: float = 30.0
    """A validator that asked for nothing for so long counts as absent: the others decide."""

    sources: tuple[str, ...] = ()
    """URLs of relays and origin."""

    task: dict[str, Any] = field(default_factory=dict)
    """What the coordinator does not read: model, environment, thresholds."""

    @classmethod
    def from_json(cls, text: str) -> RunOptions:
        """Read an object whose names are those of the fields.

        Raises:
            ValueError: it is none, or a field is wrong; it is named.
        """
        fields: Any = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError("run: expected a JSON object")
        try:
            values: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"run: {error}") from None

    def __post_init__(self) -> None:
        if not self.trainers or not self.validators:
            raise ValueError("run: no trainer or no validator is named")
        for address in (*self.trainers, *self.validators):
            if not is_address(address):
                raise ValueError(f"run: {address!r} is no address")
        if self.quorum == 0:
            object.__setattr__(self, "quorum", len(self.validators) // 2 + 1)
        if not len(self.validators) / 2 < self.quorum <= len(self.validators):
            raise ValueError(f"run: a quorum of {self.quorum} of {len(self.validators)} validators")
        for name in ("stake", "penalty", "files_per_step", "file_bytes_max", "pending_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"run: {name}: expected 1 or more, got {getattr(self, name)}")
