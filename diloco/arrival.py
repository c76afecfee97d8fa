"""How a member whose model is sharded comes into elastic runs: its processes enter one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diloco.merge import Contribution

if TYPE_CHECKING:
    from diloco.optimizer import DiLoCo

__all__ = ["wait_for_member"]


def wait_for_member(run: DiLoCo) -> None:
    """Sit out rounds until all processes of this member are in the same one.

    With FSDP2 each enters a run of its own, some a round earlier than others.

    Raises:
        RuntimeError: gradients are averaged in every step: the others would wait in each for a
            process that waits for another one.
    """
    is_late = len(run.newcomers) < len(run.roster) and run.members.name in run.newcomers
    if run.state.is_sharded and is_late and run.is_warming_up:
        raise RuntimeError(
            f"step {run.step}: the run averages gradients until step "
            f"{run.settings.warmup_sync_steps}; a member with a sharded model may come after that"
        )
    latest = run.state.largest_of_member(run.round)
    while run.round < latest:
        _sit_out(run)


def _sit_out(run: DiLoCo) -> None:
    """Take part in a round of the others, and contribute nothing."""
    for fragment in range(len(run.state.fragments)):
        outcome = run.merge(fragment, run.state.delta.zero_(), Contribution())
        run.apply(fragment, run.state.delta, outcome)
    run.end_round(run.round_length)
