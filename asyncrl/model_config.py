"""The shapes of a policy. Knows no torch: coordinators and validators' parents read it too."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass

__all__ = ["ModelConfig"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shapes of a decoder; the default has 1.8 million parameters."""

    vocabulary_count: int = 64
    width: int = 192
    layer_count: int = 4
    head_count: int = 6
    feed_forward_width: int = 512
    context_max: int = 256
    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(f"{field.name}: expected more than 0, got {self}")
        if self.width % (2 * self.head_count):
            raise ValueError(
                f"width: expected a multiple of 2 * head_count = {2 * self.head_count}, "
                f"got {self.width}"
            )

    @property
    def json(self) -> str:
        """Canonical: the same text for the same shapes."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical text, hexadecimal: what a run's manifest binds."""
        return hashlib.sha256(self.json.encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Raises ValueError where the text is not the JSON of a ModelConfig."""
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise ValueError(f"model config: {error}, in {text[:200]!r}") from None
