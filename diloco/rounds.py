"""When which fragment is measured, sent and applied, as a function of the step in the round.

With P fragments, a period of H / P steps and a delay of tau steps, fragment p is measured and sent
tau steps before the end of its period, and applied at its end. Synchronous DiLoCo is P = 1 and
tau = 0. With tau = H / P a fragment travels for a whole period, and the next one leaves when it
comes. One fragment is under way at a time, on a thread of its own, so that all members do the same
operations in the same order.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diloco.merge import Contribution, Outcome

if TYPE_CHECKING:
    from diloco.optimizer import DiLoCo

__all__ = ["EagerRounds", "Method", "Rounds"]


@dataclass
class _Flight:
    """A fragment that is under way."""

    fragment: int
    delta: Tensor
    outcome: Future[Outcome]


class Method:
    """What happens after each inner step; one object a run."""

    def __init__(self, run: DiLoCo) -> None:
        self.run = run

    def shared(self) -> dict[str, Tensor]:
        """What a newcomer gets, beside the counters: the same bytes at all members."""
        return {"theta": self.run.state.theta, **self.run.outer.state}

    def begin_round(self) -> None:
        """Called at the same point by all members, newcomers among them."""

    def after_step(self, step: int) -> bool:
        """Do what is due; whether the round is over."""
        raise NotImplementedError

    def finish_early(self) -> bool:
        """Merge all that there is; whether that is the end of the round."""
        raise NotImplementedError

    def close(self, *, waits: bool) -> None:
        """The block ends. `waits`: until what is under way has come to its end."""

    def lock(self) -> AbstractContextManager[Any]:
        """While it is held theta does not move."""
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Rounds(Method):
    """Synchronous DiLoCo, delayed updates and Streaming DiLoCo."""

    def __init__(self, run: DiLoCo) -> None:
        super().__init__(run)
        settings = run.settings
        self._period = settings.sync_every // settings.fragments
        self._delay = settings.delay_steps
        self._flight: _Flight | None = None
        # Measured at the end of a round, while the one before is still to be applied.
        self._measured: tuple[Tensor, Contribution] | None = None
        self._is_delayed = settings.fragments == 1 and self._delay == self._period
        self._spare = run.state.empty() if self._is_delayed else None
        self._thread = ThreadPoolExecutor(1, "diloco-merge") if self._delay else None

    def begin_round(self) -> None:
        run = self.run
        if self._delay < self._period or run.base_step <= run.settings.warmup_sync_steps:
            return
        if self._measured is not None:
            delta, contribution = self._measured
        elif self._is_delayed:  # a newcomer has nothing to send
            delta, contribution = run.state.delta.zero_(), Contribution()
        else:
            delta = run.state.delta
            contribution = run.measure(0, delta)
        self._measured = None
        self._send(0, delta, contribution)

    def after_step(self, step: int) -> bool:
        run, fragments = self.run, self.run.settings.fragments
        if self._delay == 0:
            period = run.own_round_length if fragments == 1 else self._period
            if step % period == 0:
                run.merge_and_apply(step // period - 1)
            return step >= period * fragments
        if step % self._period == 0:
            self._land(step // self._period - 1)
        due, rest = divmod(step + self._delay, self._period)
        if rest == 0 and due <= fragments:
            self._send(due - 1, run.state.delta, run.measure(due - 1, run.state.delta))
        return step == run.settings.sync_every

    def finish_early(self) -> bool:
        if self._is_delayed:
            self._land(0)
            assert self._measured is not None
            delta, contribution = self._measured
            self._measured = None
            self._spare, self.run.state.delta = self.run.state.delta, delta
            outcome = self.run.merge(0, delta, contribution)
            self.run.apply(0, delta, outcome)
            return True
        if self._flight is not None:
            self._land(self._flight.fragment)
        for fragment in range(self.run.settings.fragments):
            self.run.merge_and_apply(fragment)
        return True

    def _send(self, fragment: int, delta: Tensor, contribution: Contribution) -> None:
        assert self._thread is not None
        assert self._flight is None
        job = self.run.prepare_merge(fragment, delta, contribution)
        self._flight = _Flight(fragment, delta, self._thread.submit(job))

    def _land(self, fragment: int) -> Outcome | None:
        """Apply what is under way. None: nothing was, in the first period."""
        flight, self._flight = self._flight, None
        if self._is_delayed:
            assert self._spare is not None
            # Of this round, against the theta that it began with.
            self._measured = self._spare, self.run.measure(0, self._spare)
            self._spare, self.run.state.delta = self.run.state.delta, self._spare
        if flight is None:
            if self._is_delayed:
                self.run.state.install(0, self.run.state.start)
            return None
        assert flight.fragment == fragment
        outcome = flight.outcome.result()
        self.run.apply(fragment, flight.delta, outcome)
        return outcome

    def close(self, *, waits: bool) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=waits)

    def state_dict(self) -> dict[str, Any]:
        if self._flight is not None:
            raise RuntimeError(
                "state_dict: a merge is under way; save when a round is over, from `run.on_round`"
            )
        if self._measured is None:
            return {}
        delta, contribution = self._measured
        return {"delta": delta.clone(), "contribution": asdict(contribution)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.run.state.delta.copy_(state["delta"])
            self._measured = self.run.state.delta, Contribution(**state["contribution"])


class EagerRounds(Rounds):
    """Delayed updates, but a member sees its own contribution of this round at once.

    theta stays what it is with delayed updates, the same bytes at all members. Each trains from a
    copy of its own, which the same outer optimizer moves by the delayed average, with this member's
    part of it replaced by the one of this round: mean(old) + (own new - own old) / M. Three more
    buffers of N elements: the copy, its momentum, and what was added.

    Source: Kale, Douillard and Donchev, Eager updates for overlapped communication and computation
    in DiLoCo, arXiv 2502.12996.
    """

    def __init__(self, run: DiLoCo) -> None:
        super().__init__(run)
        state = run.state
        state.start = state.theta.clone()
        self._added = state.empty()
        self._outer = run.make_outer(state.start)

    def begin_round(self) -> None:
        if self._measured is None:  # a newcomer, or the warm start has just ended
            self._reset()
        super().begin_round()

    def _reset(self) -> None:
        state = self.run.state
        with torch.no_grad():
            state.start.copy_(state.theta)
        for name, tensor in self._outer.state.items():
            tensor.copy_(self.run.outer.state[name])
        self._added.zero_()

    def _land(self, fragment: int) -> Outcome | None:
        outcome = super()._land(fragment)
        state = self.run.state
        assert self._measured is not None
        # Where nothing was under way, what will be the next spare is free.
        average = self._spare
        assert average is not None
        if outcome is None:
            average.zero_()
        fresh = self._measured[0] / self.run.world_size
        if (outcome is not None and outcome.verdict.total == 0) or not torch.isfinite(fresh).all():
            self._reset()
        else:
            average.sub_(self._added).add_(fresh)
            self._outer.step(fragment, average)
            self._added = fresh
        with torch.no_grad():
            state.start[state.trained :] = state.theta[state.trained :]
        state.install(fragment, state.start)
        return outcome

    def finish_early(self) -> bool:
        super().finish_early()
        self._reset()
        self.run.state.install(0, self.run.state.start)
        return True

    def state_dict(self) -> dict[str, Any]:
        outer = {name: tensor.clone() for name, tensor in self._outer.state.items()}
        start = self.run.state.start.detach().clone()
        return {
            **super().state_dict(),
            "start": start,
            "outer": outer,
            "added": self._added.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = dict(state)
        with torch.no_grad():
            self.run.state.start.copy_(own.pop("start"))
        for name, tensor in own.pop("outer").items():
            self._outer.state[name].copy_(tensor)
        self._added.copy_(own.pop("added"))
        super().load_state_dict(own)
