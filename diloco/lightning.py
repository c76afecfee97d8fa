"""DiLoCo in the Trainer of Lightning: a strategy, or a callback beside another strategy."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor

from diloco.session import Session

__all__ = ["DiLoCoCallback", "DiLoCoStrategy"]


class DiLoCoCallback(lightning.Callback):
    """Makes a Trainer of one device a member of a run; the module has one optimizer.

        Trainer(max_steps=..., callbacks=[DiLoCoCallback(Session(comm, sync_every=100))])

    `max_steps` counts the run's steps, so that a newcomer ends with the others.
    """

    def __init__(self, session: Session) -> None:
        self.session = session

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        if len(trainer.optimizers) != 1:
            raise ValueError(f"expected one optimizer, got {len(trainer.optimizers)}")
        self.session.begin(pl_module, trainer.optimizers[0])

    def on_before_zero_grad(self, *_: Any) -> None:
        """Lightning computes the loss inside of optimizer.step(), behind this."""

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any
    ) -> None:
        loss = trainer.callback_metrics.get("loss")
        if isinstance(loss, Tensor):
            self.session.log(loss)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any
    ) -> None:
        if 0 < trainer.max_steps <= self.session.step:
            trainer.should_stop = True

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.session.end()


class DiLoCoStrategy(SingleDeviceStrategy):
    """A Trainer of one device as a member of a run.

        Trainer(max_steps=..., strategy=DiLoCoStrategy(Session(comm, sync_every=100)))

    Lightning's own world stays one process: members come and go, and each draws its own data
    (diloco.RoundSampler). `device`: where the module is, as torch names it.
    """

    def __init__(self, session: Session, device: str = "cpu") -> None:
        super().__init__(device=device)
        self.callback = DiLoCoCallback(session)

    def setup(self, trainer: Any) -> None:
        super().setup(trainer)
        if self.callback not in trainer.callbacks:
            trainer.callbacks.append(self.callback)
