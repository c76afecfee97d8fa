"""Rounds in which parameters go to a few neighbours only: NoLoCo and its kin."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diloco.members import Travel
from diloco.merge import Outcome, exchange, judge, make_report
from diloco.rounds import Method
from pccl.topology import report_gossip

if TYPE_CHECKING:
    from diloco.optimizer import DiLoCo

__all__ = ["GossipRounds"]


class GossipRounds(Method):
    """Each member has a theta of its own, and averages it with those of this round's neighbours.

        m <- mu m + eta mean(delta) + gamma (theta - mean(theta));  theta <- theta - m

    with means over the neighbours by the graph's weights. The mean over all members moves as with
    SGD of (eta, mu), and the members stay near it: the contract is approximate consensus, not the
    same bytes. `SyncInfo.own_disagreement` and `spectral_gap` say how near. eta = gamma = 1 and
    mu = 0 average the models themselves.

    2 * 4 N bytes to each neighbour a round, and a few bytes to all. A newcomer, and each member at
    the beginning of a run, gets the exact mean of all: one all_reduce of 2 * 4 N bytes.

    Source: NoLoCo, arXiv 2506.10911 (random pairs, H = 50, mu 0.5, eta 0.7).
    """

    def __init__(self, run: DiLoCo) -> None:
        super().__init__(run)
        if run.settings.outer != "sgd":
            raise ValueError("method='gossip': has an outer step of its own; no outer_optimizer")
        elements = run.state.elements
        kept = run.outer.state.get("momentum_buffer")
        self._momentum = torch.zeros(elements, device="cpu") if kept is None else kept
        # theta and delta of this member on the way out, their means on the way in.
        self._both = torch.zeros(2 * elements, device="cpu")
        self._gaps: dict[int, float] = {}

    def shared(self) -> dict[str, Tensor]:
        return {}

    def begin_round(self) -> None:
        """Newcomers get the mean of those that were there; of the first members, rank 0's."""
        run = self.run
        if not run.newcomers:
            return
        everybody_new = len(run.newcomers) == run.world_size
        gives = run.rank == 0 if everybody_new else run.members.name not in run.newcomers
        theta, momentum = self._halves()
        theta.copy_(run.state.theta.detach())
        momentum.copy_(self._momentum)
        if not gives:
            self._both.zero_()
        givers = 1 if everybody_new else run.world_size - len(run.newcomers)
        run.members.average(self._both, Travel(float(gives), float(givers)))
        with torch.no_grad():
            run.state.theta.copy_(theta)
        self._momentum.copy_(momentum)
        run.state.install(0, run.state.theta)

    def after_step(self, step: int) -> bool:
        if step < self.run.own_round_length:
            return False
        self._mix()
        return True

    def finish_early(self) -> bool:
        self._mix()
        return True

    @torch.no_grad()
    def _mix(self) -> None:
        run, settings, state = self.run, self.run.settings, self.run.state
        theta, delta = self._halves()
        theta.copy_(state.theta)
        contribution = run.measure(0, state.delta)
        report = make_report(run.members.name, contribution, run.round, "")
        begin = time.monotonic()
        reports, own = exchange(run.members, report)
        outcome = Outcome(reports, judge(reports, settings), own, time.monotonic() - begin)
        outcome.contribution = contribution
        delta.copy_(state.delta if outcome.weight > 0 else torch.zeros((), device="cpu"))
        begin = time.monotonic()
        missing = run.members.neighbor_average(self._both, settings.graph, run.round, settings.seed)
        outcome.reduce_seconds = time.monotonic() - begin
        apart = theta.neg_().add_(state.theta)  # theta - mean(theta)
        norm = float(state.theta.norm())
        disagreement = float(apart.norm()) / norm if norm else 0.0
        lr, momentum = settings.outer_lr, settings.outer_momentum
        assert lr is not None
        assert momentum is not None
        self._momentum.mul_(momentum).add_(delta, alpha=lr)
        self._momentum.add_(apart, alpha=settings.consensus_rate)
        state.theta.sub_(self._momentum)
        state.install(0, state.theta)
        run.finish_merge(
            0,
            outcome,
            own_disagreement=disagreement,
            spectral_gap=self._gap(len(reports)),
            own_missing=tuple(outcome.members[rank] for rank in missing),
        )

    def _halves(self) -> tuple[Tensor, Tensor]:
        elements = self.run.state.elements
        return self._both[:elements], self._both[elements:]

    def _gap(self, world_size: int) -> float:
        if world_size not in self._gaps:
            settings = self.run.settings
            report = report_gossip(settings.graph, world_size, seed=settings.seed)
            self._gaps[world_size] = report.spectral_gap
        return self._gaps[world_size]
