"""When which fragment is measured, sent and applied, as a function of the step in the round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diloco.optimizer import DiLoCo

__all__ = ["Rounds", "make"]


class Rounds:
    """Synchronous: at the end of a round."""

    def __init__(self, run: DiLoCo) -> None:
        self.run = run

    def begin_round(self) -> None:
        """Called at the same point by all members, newcomers among them."""

    def after_step(self, step: int) -> bool:
        """Do what is due; whether the round is over."""
        if step < self.run.own_round_length:
            return False
        self.run.merge_and_apply(0)
        return True

    def finish_early(self) -> None:
        """Merge what there is, before the end of the round."""
        self.run.merge_and_apply(0)

    def close(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def make(run: DiLoCo) -> Rounds:
    return Rounds(run)
