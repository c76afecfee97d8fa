"""What this member has done: steps, tokens, seconds. Counted by itself, or told by the loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diloco.merge import Contribution

__all__ = ["Progress"]


@dataclass
class _Sums:
    tokens: float = 0
    samples: float = 0
    steps: float = 0
    compute_seconds: float = 0.0
    sync_seconds: float = 0.0
    losses: float = 0
    loss: float = 0.0


class Progress:
    """Sums since the beginning; a fragment's contribution is what came since its last mark."""

    def __init__(self, model: nn.Module, fragments: int) -> None:
        self._model = model
        self._sums = _Sums()
        self._marks = [_Sums() for _ in range(fragments)]
        self._step = [0, 0]  # tokens and samples of the step that is being made
        self._is_told = False
        self._hook: Any = None
        self._resumed_at = time.monotonic()
        self.round_steps = 0

    # --- counting ---------------------------------------------------------------------------------

    def attach(self) -> None:
        self._hook = self._model.register_forward_pre_hook(self._see_inputs, with_kwargs=True)
        self._resumed_at = time.monotonic()

    def detach(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def count(self, tokens: int, samples: int) -> None:
        if not self._is_told:
            self._is_told, self._step = True, [0, 0]
        self._step[0] += tokens or samples
        self._step[1] += samples or tokens

    def log(self, loss: float) -> None:
        self._sums.losses += 1
        self._sums.loss += loss

    def _see_inputs(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._is_told or not model.training or not torch.is_grad_enabled():
            return
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.dim() > 0:
                is_text = not value.is_floating_point()
                self._step[0] += value.numel() if is_text else value.shape[0]
                self._step[1] += value.shape[0]
                return

    def end_step(self) -> None:
        self._sums.tokens += self._step[0]
        self._sums.samples += self._step[1]
        self._sums.steps += 1
        self._step = [0, 0]
        self.round_steps += 1

    # --- time -------------------------------------------------------------------------------------

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """What is spent inside is no computing."""
        begin = time.monotonic()
        self._sums.compute_seconds += begin - self._resumed_at
        try:
            yield
        finally:
            self._resumed_at = time.monotonic()
            self._sums.sync_seconds += self._resumed_at - begin

    # --- contributions ----------------------------------------------------------------------------

    def step_so_far(self) -> Contribution:
        """Of the step that is being made."""
        return Contribution(tokens=self._step[0], samples=self._step[1], steps=1)

    def since_mark(self, fragment: int) -> Contribution:
        now, then = astuple(self._sums), astuple(self._marks[fragment])
        tokens, samples, steps, compute, sync, losses, loss = (
            a - b for a, b in zip(now, then, strict=True)
        )
        return Contribution(
            tokens=int(tokens),
            samples=int(samples),
            steps=int(steps),
            compute_seconds=compute,
            sync_seconds=sync,
            loss=loss / losses if losses else math.nan,
        )

    def mark(self, fragment: int) -> None:
        self._marks[fragment] = _Sums(*astuple(self._sums))

    def state_dict(self) -> dict[str, Any]:
        return {
            "sums": list(astuple(self._sums)),
            "marks": [list(astuple(mark)) for mark in self._marks],
            "round_steps": self.round_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums = _Sums(*state["sums"])
        self._marks = [_Sums(*mark) for mark in state["marks"]]
        self.round_steps = int(state["round_steps"])
