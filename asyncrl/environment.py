"""Tasks that check their own answers: prompts by number, and a score for a text.

Every process that holds the same environment (name, version, seed) has the same prompts under the
same numbers; that is what lets a validator say which prompts a rollout worker had to take.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Environment", "ReasoningGym"]

# Of 16 equal parts of all questions: one for choosing settings, two that choose nothing.
_SPLITS = {"validation": range(0, 1), "held_out": range(1, 3), "train": range(3, 16)}
# Their items depend on the order of sets of strings, which differs between processes.
_NEEDS_HASH_SEED = frozenset({"knight_swap"})
# Two reads of one item differ.
_NOT_REPRODUCIBLE = frozenset({"list_functions"})
# Questions that are a template around one word: a small model reads the word alone.
_SHORT_PROMPTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "spell_backward": lambda item: f"{item['metadata']['word']}>",
}
_DEFAULT_OPTIONS: dict[str, dict[str, Any]] = {
    "spell_backward": {"min_word_len": 3, "max_word_len": 8},
}


class Environment(Protocol):
    """What training, rollout workers and validators need of a task."""

    @property
    def name(self) -> str:
        """With version and seed: equal names are equal prompts."""

    @property
    def count(self) -> int:
        """How many prompts there are."""

    def prompt(self, index: int) -> str:
        """The prompt of this number, from 0 to count - 1."""

    def score(self, index: int, text: str) -> float:
        """How good `text` is as an answer to that prompt, 0 to 1; any text at all is an answer."""


class ReasoningGym:
    """A data set of reasoning-gym (Stojanovski et al. 2025), split by question.

    Items are drawn from `seed`; of questions that differ in capitals alone the first stays. The
    split is by a hash of the question, so no question (for `spell_backward`: no word) is in two
    splits, whatever the seed.
    """

    def __init__(
        self,
        task: str = "spell_backward",
        split: str = "train",
        *,
        seed: int = 1,
        draw_count: int = 16384,
        has_partial_credit: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        """Draws all items once: 0.3 s for `spell_backward`.

        Args:
            task: a name of reasoning-gym.
            split: "train", "validation" (6 %) or "held_out" (12 %).
            draw_count: items drawn before equal ones go and the split is taken.
            has_partial_credit: score as the data set does; else what is not right scores 0.
                Letters that happen to be right teach a policy to guess rather than to spell.
            options: of the data set; None is a small version of `spell_backward` (words of 3 to 8
                letters), and reasoning-gym's own defaults elsewhere.

        Raises:
            ValueError: no such task or split, or a task whose items are not the same in every
                process.
        """
        if split not in _SPLITS:
            raise ValueError(f"split: expected one of {sorted(_SPLITS)}, got {split!r}")
        if task in _NOT_REPRODUCIBLE:
            raise ValueError(f"task: two reads of one item of {task!r} differ")
        if task in _NEEDS_HASH_SEED and sys.flags.hash_randomization:
            raise ValueError(f"task: {task!r} needs a process started with PYTHONHASHSEED=0")
        gym = importlib.import_module("reasoning_gym")
        chosen = {**_DEFAULT_OPTIONS.get(task, {}), **(options or {})}
        try:
            self._data = gym.create_dataset(task, seed=seed, size=draw_count, **chosen)
        except (TypeError, ValueError) as error:
            raise ValueError(f"task {task!r} of reasoning-gym: {error}") from None
        version = importlib.import_module("importlib.metadata").version("reasoning-gym")
        self.name = f"reasoning-gym {version} {task} {chosen} {split} {seed}/{draw_count}"
        self.name += " partial credit" if has_partial_credit else ""
        self._has_partial_credit = has_partial_credit
        self._short = _SHORT_PROMPTS.get(task)
        found: dict[str, int] = {}
        for index in range(draw_count):
            found.setdefault(self._data[index]["question"].lower(), index)
        self._indexes = [
            index for question, index in found.items() if _part(question) in _SPLITS[split]
        ]

    @property
    def count(self) -> int:
        return len(self._indexes)

    def prompt(self, index: int) -> str:
        item = self._data[self._indexes[index]]
        return self._short(item) if self._short else str(item["question"])

    def answer(self, index: int) -> str | None:
        """The reference answer, for supervised steps; None where the data set has none."""
        found = self._data[self._indexes[index]]["answer"]
        return None if found is None else str(found)

    def score(self, index: int, text: str) -> float:
        item = self._data[self._indexes[index]]
        found = min(1.0, max(0.0, float(self._data.score_answer(text, entry=item))))
        return found if self._has_partial_credit else float(found == 1.0)


def _part(question: str) -> int:
    return hashlib.sha256(question.encode()).digest()[0] % 16
