"""A run inside of a loop that somebody else wrote: begun and ended by a trainer's callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from diloco.checkpoint import Checkpoints
from diloco.metrics import Metrics
from diloco.optimizer import DiLoCo
from diloco.schedule import Curve, RunSchedule

__all__ = ["Session", "inner_optimizer"]


def inner_optimizer(optimizer: Any) -> Optimizer:
    """torch's own behind the wrappers of Accelerate, the Trainer and Lightning: hooks need it."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"expected an optimizer of torch, got {type(optimizer).__name__}")
    return optimizer


class Session:
    """Makes a DiLoCo when the model and the optimizer are there, and ends it.

    Args:
        comm: as for DiLoCo.
        folder: of metrics, for `diloco report`; None: none.
        checkpoints: folder of checkpoints; from the newest one the run goes on. None: none.
        options: of DiLoCo.
    """

    def __init__(
        self,
        comm: Any,
        *,
        folder: Path | str | None = None,
        checkpoints: Path | str | None = None,
        **options: Any,
    ) -> None:
        self._comm, self._options = comm, options
        self._folder, self._checkpoint_folder = folder, checkpoints
        self.run: DiLoCo | None = None
        self._metrics: Metrics | None = None
        self._checkpoints: Checkpoints | None = None

    @property
    def step(self) -> int:
        """Of the run; 0 before it begins."""
        return self.run.step if self.run is not None else 0

    def schedule(self, optimizer: Any, curve: Curve) -> RunSchedule:
        """A scheduler for the trainer, by the run's step."""
        return RunSchedule(inner_optimizer(optimizer), curve, lambda: self.step)

    def begin(self, model: nn.Module, optimizer: Any) -> DiLoCo:
        """Enter the run; the model's parameters are its theta then."""
        if self.run is not None:
            raise RuntimeError("Session.begin: it has begun; make one for each training")
        run = DiLoCo(self._comm, model, inner_optimizer(optimizer), **self._options)
        if self._checkpoint_folder is not None:
            self._checkpoints = Checkpoints(self._checkpoint_folder, run)
            self._checkpoints.restore()
        run.__enter__()
        self.run = run
        self._metrics = Metrics(run, self._folder)
        return run

    def log(self, loss: Any) -> None:
        """Of the step that is being made."""
        if self._metrics is not None:
            self._metrics.log(loss=loss)

    def save(self) -> None:
        """A checkpoint, where a folder is known."""
        if self._checkpoints is not None:
            self._checkpoints.save()

    def end(self) -> None:
        """Leave the run's block; idempotent."""
        metrics, self._metrics = self._metrics, None
        if metrics is not None and self.run is not None:
            metrics.close()
            self.run.__exit__(None, None, None)
        if self._checkpoints is not None:
            self._checkpoints.close()
