"""DiLoCo in the Trainer of Hugging Face: one callback."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from diloco.session import Session

__all__ = ["DiLoCoCallback"]


class DiLoCoCallback(TrainerCallback):
    """Makes the Trainer a member of a run.

        session = Session(comm, sync_every=100)
        Trainer(..., optimizers=(optimizer, session.schedule(optimizer, cosine(10_000))),
                callbacks=[DiLoCoCallback(session)])

    `max_steps` counts the run's steps, so that a newcomer ends with the others. Where the Trainer
    saves, the session saves as well.
    """

    def __init__(self, session: Session) -> None:
        self.session = session

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.session.begin(kwargs["model"], kwargs["optimizer"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if 0 < args.max_steps <= self.session.step:
            control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            self.session.log(logs["loss"])

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.session.save()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.session.end()
