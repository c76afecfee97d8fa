"""Merges without rounds: whoever has done its steps is merged, and nobody waits for the others."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diloco.merge import Contribution, Outcome, Reports, exchange, judge, make_report
from diloco.rounds import Method

if TYPE_CHECKING:
    from diloco.optimizer import DiLoCo

__all__ = ["Asynchronous", "DelayedNesterov"]

_logger = logging.getLogger("diloco")

# Between two looks at who is ready; a look is a gather of some 120 bytes.
_LOOK_SECONDS = 0.02
# What a member says beside its numbers.
_READY, _LEAVES, _GRACE_IS_OVER = 1, 2, 4


class DelayedNesterov:
    """Outer SGD whose momentum moves at every N-th contribution only.

    Each contribution moves theta by eta delta / N. With the N-th the momentum becomes
    mu m + (mean of the N), and theta moves by eta mu m. N = 1 is Nesterov in torch's form. A merge
    of k contributions counts as k.

    Source: Liu et al., Asynchronous Local-SGD training for language modeling, arXiv 2401.09135,
    algorithm 3 with c = 0.
    """

    def __init__(self, momentum: Tensor, lr: float, mu: float, every: int) -> None:
        """`momentum`: flat, zeros at first; written."""
        self._lr, self._mu, self._every = lr, mu, every
        self.momentum, elements = momentum, momentum.numel()
        self.buffer = torch.zeros(elements if every > 1 else 0, device="cpu")
        self.count = torch.zeros(1, dtype=torch.int64, device="cpu")  # contributions in the buffer

    def step(self, theta: Tensor, delta: Tensor, contributions: int) -> None:
        """Move theta by the mean of so many contributions; all are flat."""
        if self._every == 1:
            self.momentum.mul_(self._mu).add_(delta)
            theta.sub_(delta, alpha=self._lr).sub_(self.momentum, alpha=self._lr * self._mu)
            return
        part = min(contributions, self._every) / self._every
        theta.sub_(delta, alpha=self._lr * part)
        self.buffer.add_(delta, alpha=contributions)
        self.count += contributions
        if int(self.count) >= self._every:
            self.momentum.mul_(self._mu).add_(self.buffer, alpha=1 / int(self.count))
            theta.sub_(self.momentum, alpha=self._lr * self._mu)
            self.buffer.zero_()
            self.count.zero_()


class Asynchronous(Method):
    """Asynchronous local SGD, and the decoupled merge with a quorum and a grace window.

    A thread of each member looks again and again who is ready, by a gather of a few bytes. When
    `quorum` members are, and `grace_seconds` later at most, theirs are merged, and each member's
    thread moves its theta, the same bytes everywhere. A member that trains on meanwhile weighs 0
    and takes no notice; when it is ready, its contribution counts from the theta that it began
    with. Members stop for their own merge only. `SyncInfo.round` numbers the merges; `on_sync` is
    called on that thread, `on_round` by optimizer.step() after the member's own merge.

    A merge is an all_reduce of 4 N bytes in which all members take part, however few contribute.
    Host memory: theta, the momentum, own contribution, the merge, own beginning: 20 N bytes, and
    4 N more with `momentum_every` over 1.

    Sources: Liu et al., arXiv 2401.09135 (quorum 1, delayed Nesterov, dynamic local updates);
    Decoupled DiLoCo, arXiv 2604.21428 (quorum, grace window, weights of tokens^2 / steps).
    """

    def __init__(self, run: DiLoCo) -> None:
        super().__init__(run)
        settings = run.settings
        if settings.outer != "sgd" or not settings.nesterov:
            raise ValueError("method='asynchronous': its outer step is SGD with Nesterov momentum")
        assert settings.outer_lr is not None
        assert settings.outer_momentum is not None
        momentum = run.outer.state.get("momentum_buffer", run.state.empty())
        self._outer = DelayedNesterov(
            momentum[: run.state.trained],
            settings.outer_lr,
            settings.outer_momentum,
            settings.momentum_every,
        )
        run.state.start = run.state.theta.clone()
        self._merged = torch.zeros(run.state.elements, device="cpu")
        self._changed = threading.Condition(threading.RLock())
        # Guarded by _changed.
        self._ready: Contribution | None = None
        self._leaves = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._quorum_since = 0.0  # of the thread

    def shared(self) -> dict[str, Tensor]:
        outer = self._outer
        return {
            "theta": self.run.state.theta,
            "momentum": outer.momentum,
            "buffer": outer.buffer,
            "count": outer.count,
        }

    def begin_round(self) -> None:
        self._install()
        if not self.run.is_warming_up and self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="diloco-merge", daemon=True)
            self._thread.start()

    def after_step(self, step: int) -> bool:
        if step >= self.run.own_round_length:
            self._contribute()
        return False

    def finish_early(self) -> bool:
        self._contribute()
        return False

    @torch.no_grad()
    def _install(self) -> None:
        state = self.run.state
        state.start.copy_(state.theta)
        state.install(0, state.start)

    def _contribute(self) -> None:
        """Have own steps merged, and begin anew from the theta after that."""
        run = self.run
        contribution = run.measure(0, run.state.delta)
        with self._changed:
            self._ready = contribution
            # The thread's operations have deadlines, and it tells its error.
            self._changed.wait_for(lambda: self._ready is None or self._error is not None)
            if self._error is not None:
                raise self._error
            self._install()
        run.progress.round_steps = 0
        for callback in run.on_round:
            callback(run)

    # --- the thread -------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while self._look():
                time.sleep(_LOOK_SECONDS)
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _look(self) -> bool:
        """One look; whether there will be another."""
        run = self.run
        with self._changed:
            ready, leaves = self._ready, self._leaves
        report = make_report(run.members.name, ready or Contribution(), run.round, "")
        # Whose clock counts is agreed on: that of the first in the reports.
        is_over = time.monotonic() - self._quorum_since >= run.settings.grace_seconds
        flags = _READY * (ready is not None) | _LEAVES * leaves
        report["flags"] = flags | _GRACE_IS_OVER * (self._quorum_since > 0 and is_over)
        begin = time.monotonic()
        reports, own = exchange(run.members, report)
        outcome = Outcome(reports, judge(reports, run.settings), own, time.monotonic() - begin)
        outcome.contribution = ready or Contribution()
        if self._is_due(reports):
            self._merge(outcome, ready is not None)
        leave = (reports["flags"] & _LEAVES) > 0
        # Of an elastic run a member can go at once; a fixed group needs all until the end.
        return not (leaves and (run.members.is_elastic or bool(leave.all())))

    def _is_due(self, reports: Reports) -> bool:
        """Whether to merge now, the same at all members."""
        ready = (reports["flags"] & _READY) > 0
        stays = ready | ((reports["flags"] & _LEAVES) == 0)
        if not ready.any() or ready.sum() < min(self.run.settings.quorum, stays.sum()):
            return False
        if self._quorum_since == 0:
            self._quorum_since = time.monotonic()
        grace_is_over = bool(reports["flags"][0] & _GRACE_IS_OVER)
        return (
            bool(ready.sum() == stays.sum()) or grace_is_over or not self.run.settings.grace_seconds
        )

    @torch.no_grad()
    def _merge(self, outcome: Outcome, is_own: bool) -> None:
        run, state, verdict = self.run, self.run.state, outcome.verdict
        self._quorum_since = 0.0
        if outcome.weight > 0:
            torch.mul(state.delta, verdict.scales[outcome.own], out=self._merged)
        else:
            self._merged.zero_()
        if verdict.total > 0:
            begin = time.monotonic()
            run.compressor.average(self._merged, slice(0, state.elements), outcome)
            outcome.reduce_seconds = time.monotonic() - begin
        with self._changed:  # state_dict() is not in the middle of it
            if verdict.total > 0:
                self._move(len(outcome.contributors))
            run.counters[0] += 1
            run.counters[1] += max(1, round(outcome.sum_of("steps") / len(outcome.members)))
            run.finish_merge(0, outcome)
        run.admit()
        if is_own:
            with self._changed:
                self._ready = None
                self._changed.notify_all()

    def _move(self, contributions: int) -> None:
        state = self.run.state
        trained, rest = slice(0, state.trained), slice(state.trained, state.elements)
        self._outer.step(state.theta[trained], self._merged[trained], contributions)
        state.theta[rest] -= self._merged[rest]

    def close(self, *, waits: bool) -> None:
        with self._changed:
            self._leaves = True
        if self._thread is not None and waits:
            self._thread.join()
            if self._error is not None:
                raise self._error

    def lock(self) -> AbstractContextManager[Any]:
        return self._changed

    def state_dict(self) -> dict[str, Any]:
        return {name: tensor.detach().clone() for name, tensor in self.shared().items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, tensor in self.shared().items():
            tensor.copy_(state[name])
