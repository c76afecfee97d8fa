"""DiLoCo: hooks in the user's own optimizer, and an outer step every so many inner ones."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diloco import agreement, arrival, saved_state, warmup
from diloco.compressor import make_compressor
from diloco.info import SyncInfo, make_info
from diloco.inheritance import inherit
from diloco.members import Travel, adapt
from diloco.merge import Contribution, Outcome, make_report, merge
from diloco.methods import make_method
from diloco.outer import OuterFactory, OuterOptimizer, describe, make_factory, warn_if_unstable
from diloco.outer_state import OuterState, digest_of, drop_bad_state
from diloco.progress import Progress
from diloco.sampler import RoundSampler, shared_data
from diloco.settings import Settings

__all__ = ["DiLoCo"]

_logger = logging.getLogger("diloco")

_COUNTERS = ("round", "step", "tokens", "samples")


class DiLoCo:
    """Trains one model with many members that talk once in `sync_every` steps.

        with diloco.DiLoCo(comm, model, optimizer, sync_every=100) as run:
            for batch in data:  # the loop as it was
                loss(model, batch).backward()
                optimizer.step()
                optimizer.zero_grad()

    Each member trains on its own; after H optimizer steps the members average how far they came
    (theta - local, the pseudo-gradient), and an outer optimizer moves theta by the average. theta
    and the outer optimizer's state are the same bytes at all members after each round. A step is
    one call of optimizer.step(): gradient accumulation needs nothing, and the optimizer may have
    several groups of parameters.

    Cost of a round: 2 (P - 1) / P * 4 N bytes sent a member for N parameters and P members, less
    with a codec. Host memory: theta, the pseudo-gradient and the momentum, 12 N bytes.

    Args:
        comm: of pccl.join() (members come and die), of pccl.init(), a torch.distributed group
            (gloo or pccl), or None for a run of one member. After the block leave the elastic run.
        model: all trainable parameters are merged, and persistent floating point buffers averaged.
            With FSDP2: the members' processes with the same shards are one group, or one run.
        optimizer: the inner one. Its state stays with the member.
        settings: None: those of synchronous DiLoCo. See `diloco.variants`.
        outer_optimizer: takes a list of tensors, and makes any torch optimizer of them. None: SGD
            of `settings.outer_lr` and `outer_momentum`, Nesterov.
        on_sync: called with a SyncInfo after each merge.
        sampler: hands out the run's data; its place is a part of the shared state.
        changes: fields of Settings that replace those of `settings`.

    Raises:
        TypeError: an unknown setting, or no communicator.
        ValueError: a setting out of range, or what the communicator can't do.
        SettingsMismatch: on entry: settings or model are not those of the run; the fields and both
            values are named. This member has left an elastic run, and the others go on.
        PcclError: as of the communicator, on entry and from optimizer.step(). theta is that of the
            last finished round, and the model's parameters are as the inner steps left them.

    Source: Douillard et al., DiLoCo: Distributed Low-Communication Training of Language Models,
    arXiv 2311.08105.
    """

    def __init__(
        self,
        comm: Any,
        model: nn.Module,
        optimizer: Optimizer,
        settings: Settings | None = None,
        *,
        outer_optimizer: OuterFactory | None = None,
        on_sync: Callable[[SyncInfo], None] | None = None,
        sampler: RoundSampler | None = None,
        **changes: Any,
    ) -> None:
        if outer_optimizer is not None:
            changes["outer"] = describe(outer_optimizer)
        self.settings = replace(settings, **changes) if settings else Settings(**changes)
        warn_if_unstable(self.settings)
        self.members = adapt(comm)
        agreement.check_members(self.members, self.settings, model)
        warmup.check_optimizer(optimizer, self.settings.warmup_sync_steps)
        self.model = model
        self.optimizer = optimizer
        self.on_sync: list[Callable[[SyncInfo], None]] = [on_sync] if on_sync else []
        self.on_round: list[Callable[[DiLoCo], None]] = []  # called when a round is over
        self.info: SyncInfo | None = None  # of the last merge
        self.state = OuterState(model, self.settings.fragments, self.settings.fragment_pattern)
        self._factory = outer_optimizer or make_factory(self.settings)
        self.outer = self.make_outer(self.state.theta)
        self.counters = torch.zeros(len(_COUNTERS), dtype=torch.int64, device="cpu")
        self.compressor = make_compressor(self.members, self.settings, self.state.fragments)
        self.progress = Progress(model, self.settings.fragments)
        self.method = make_method(self)
        self.roster: tuple[str, ...] = (self.members.name,)
        self.newcomers: tuple[str, ...] = ()  # of the roster, that begin with this round
        self._is_new, self._is_restored = True, False
        self._rates: dict[str, float] = {}  # steps a second, of those in the roster
        self.sampler, self.data = sampler, shared_data(sampler, self.settings)
        self.shapes = self.state.shapes() | (sampler.shape() if sampler is not None else {})
        self._mark = agreement.mark_of(self.settings, self.shapes)
        self._hooks: list[Any] = []
        self._bytes_before, self._hash = 0, ""

    # --- where the run is -------------------------------------------------------------------------

    @property
    def round(self) -> int:
        """Rounds that are over, of the run."""
        return int(self.counters[0])

    @property
    def step(self) -> int:
        """Inner steps of the run so far: what a schedule of learning rates is a function of."""
        return self.base_step + self.round_step

    @property
    def base_step(self) -> int:
        """Those of the rounds that are over."""
        return int(self.counters[1])

    @property
    def round_step(self) -> int:
        """Steps of this member in this round."""
        return self.progress.round_steps

    @property
    def total_tokens(self) -> int:
        """Of the run, all members, until the last round ended."""
        return int(self.counters[2])

    @property
    def rank(self) -> int:
        """This member's place among those that began this round together, `world_size` of them."""
        return self.roster.index(self.members.name)

    @property
    def world_size(self) -> int:
        return len(self.roster)

    @property
    def is_warming_up(self) -> bool:
        """Whether this round averages gradients in every step; see Settings.warmup_sync_steps."""
        return self.base_step < self.settings.warmup_sync_steps

    @property
    def round_length(self) -> int:
        """Inner steps of this round."""
        left = self.settings.warmup_sync_steps - self.base_step
        return min(self.settings.sync_every, left) if left > 0 else self.settings.sync_every

    @property
    def own_round_length(self) -> int:
        """Those of this member, which are fewer where it is slow and `dynamic_steps` is set.

        Source: dynamic local updates, arXiv 2401.09135: floor(rate / highest rate * H).
        """
        if not self.settings.dynamic_steps or self.members.name not in self._rates:
            return self.round_length
        share = self._rates[self.members.name] / max(self._rates.values())
        return max(1, int(share * self.round_length))

    # --- what the loop may tell -------------------------------------------------------------------

    def count(self, *, tokens: int = 0, samples: int = 0) -> None:
        """Say what the next step trains on, in place of what the model's inputs look like.

        Without it the first tensor that the model gets is taken: whole numbers are tokens, one
        each, and its first dimension are samples.
        """
        self.progress.count(tokens, samples)

    def log(self, *, loss: float | Tensor) -> None:
        """Have the mean of these in SyncInfo, of every member."""
        self.progress.log(float(loss))

    # --- the block --------------------------------------------------------------------------------

    def __enter__(self) -> DiLoCo:
        if not self._is_restored:
            self.state.read(self.state.theta)
        self._bytes_before = self.members.bytes_sent()
        before = self.round if self._is_restored else -1
        self.admit()
        arrival.wait_for_member(self)
        if self.round != before:  # what was restored is older than the run
            for fragment in range(len(self.state.fragments)):
                self.state.install(fragment, self.state.theta)
        self.method.begin_round()
        self.progress.attach()
        self._hooks = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.progress.detach()
        self.method.close(waits=error is None)
        if error is None and self.world_size > 1 and self.round == 0 and self.round_step > 0:
            raise RuntimeError(
                f"sync_every={self.settings.sync_every} is larger than the run: "
                f"{self.round_step} steps were done and never merged; the model is this member's "
                "alone. Set a smaller sync_every, or call sync() before the end of the block"
            )

    def sync(self) -> None:
        """End the round now; every member calls it. The model's parameters are theta then."""
        if self.round_step > 0:
            with self.progress.standing_still():
                if self.is_warming_up or self.method.finish_early():
                    self.end_round(self.round_step)

    def _before_step(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # The processes of a sharded member don't see others come and go in the same step.
        if self.is_warming_up and (self.world_size > 1 or self.state.is_sharded):
            return warmup.averaging(self._average_gradients, args, kwargs)
        return None

    def _after_step(self, *_: Any) -> None:
        self.progress.end_step()
        with self.progress.standing_still():
            if self.is_warming_up:
                is_over = self.round_step >= self.round_length
            else:
                is_over = self.method.after_step(self.round_step)
            if is_over:
                self.end_round(self.round_length)

    # --- a round ----------------------------------------------------------------------------------

    def _average_gradients(self) -> None:
        with self.progress.standing_still():
            self.state.read_gradients(self.state.delta)
            contribution = self.progress.step_so_far()
            self.state.weigh(self.state.delta, contribution)
            outcome = self.prepare_merge(None, self.state.delta, contribution)()
            if outcome.verdict.total > 0:
                self.state.write_gradients(self.state.delta)
            else:  # nobody has a gradient that is one
                self.optimizer.zero_grad()

    def merge_and_apply(self, fragment: int) -> None:
        """Merge a fragment now, and move theta and the model."""
        contribution = self.measure(fragment, self.state.delta)
        outcome = self.merge(fragment, self.state.delta, contribution)
        self.apply(fragment, self.state.delta, outcome)

    def make_outer(self, flat: Tensor) -> OuterOptimizer:
        """The outer optimizer over a flat buffer."""
        trained = [slice(f.start, min(f.stop, self.state.trained)) for f in self.state.fragments]
        return OuterOptimizer(flat, trained, self._factory)

    def measure(self, fragment: int, delta: Tensor) -> Contribution:
        """Write this member's pseudo-gradient of a fragment, and say what is behind it."""
        self.state.measure(fragment, delta)
        contribution = self.progress.since_mark(fragment)
        self.progress.mark(fragment)
        self.state.weigh(delta[self.state.fragments[fragment]], contribution)
        return contribution

    def merge(self, fragment: int, delta: Tensor, contribution: Contribution) -> Outcome:
        """Average a fragment of `delta` over the members, in place."""
        return self.prepare_merge(fragment, delta, contribution)()

    def prepare_merge(
        self, fragment: int | None, delta: Tensor, contribution: Contribution
    ) -> Callable[[], Outcome]:
        """merge() as a function for another thread; None: all fragments as one, in no codec."""
        everything = slice(0, self.state.elements)
        where = everything if fragment is None else self.state.fragments[fragment]
        report = make_report(self.members.name, contribution, self.round, self._hash)

        def average(outcome: Outcome) -> None:
            if fragment is None:
                plain = Travel(outcome.weight, outcome.verdict.total)
                self.members.average(delta[where], plain)
            else:
                self.compressor.average(delta, where, outcome)

        def run() -> Outcome:
            outcome = merge(self.members, self.settings, report, delta[where], average)
            outcome.contribution = contribution
            if not self.members.is_elastic and self.settings.method != "gossip":
                agreement.check_digests(outcome)
            return outcome

        return run

    def apply(self, fragment: int, delta: Tensor, outcome: Outcome) -> None:
        """Move a fragment of theta by a merged pseudo-gradient, then the model."""
        self._move(fragment, delta, outcome, is_plain=False)
        self.finish_merge(fragment, outcome)

    def _move(self, fragment: int, delta: Tensor, outcome: Outcome, *, is_plain: bool) -> None:
        """`is_plain`: theta becomes the average; the outer optimizer takes no part."""
        where = self.state.fragments[fragment]
        if outcome.verdict.total > 0:
            averaged = (
                where if is_plain else slice(max(where.start, self.state.trained), where.stop)
            )
            if not is_plain:
                self.outer.step(fragment, delta)
            if averaged.start < averaged.stop:
                self.state.theta[averaged] -= delta[averaged]
        keep_local = 0.0 if is_plain else self.settings.keep_local
        self.state.install(fragment, self.state.start, keep_local)

    def finish_merge(self, fragment: int, outcome: Outcome, **values: Any) -> None:
        """Count what came together, make the SyncInfo, and call back."""
        if self.members.name in outcome.verdict.excluded:
            drop_bad_state(self.optimizer)
        rates = dict(zip(outcome.members, outcome.reports["rate"].tolist(), strict=True))
        known = {**self._rates, **{name: rate for name, rate in rates.items() if rate > 0}}
        self._rates = {name: known[name] for name in outcome.members if name in known}
        if fragment == 0:
            self.counters[2] += outcome.sum_of("tokens")
            self.counters[3] += outcome.sum_of("samples")
        self._tell(fragment, outcome, values)

    def _average_parameters(self) -> None:
        """The end of a round in which gradients were averaged: theta becomes the average."""
        delta, parts = self.state.delta, range(len(self.state.fragments))
        contribution = self.progress.since_mark(0)
        for fragment in parts:
            self.state.measure(fragment, delta)
            self.progress.mark(fragment)
        self.state.weigh(delta, contribution)
        outcome = self.prepare_merge(None, delta, contribution)()
        for fragment in parts:
            self._move(fragment, delta, outcome, is_plain=True)
        self.finish_merge(0, outcome)

    def end_round(self, steps: int) -> None:
        """Count a round that was merged, let newcomers in, and begin the next one."""
        if self.is_warming_up:
            self._average_parameters()
        if self.sampler is not None:
            self.sampler.end_round(self, steps)
        self.counters[0] += 1
        self.counters[1] += steps
        self.progress.round_steps = 0
        self.admit()
        for callback in self.on_round:
            callback(self)
        self.method.begin_round()

    def admit(self) -> None:
        """Where newcomers come in: everybody gets the same state, and a roll is called."""
        before = self.round
        agreement.agree(self.members, self.settings, self.shapes, self.round, self._share)
        if self.round != before:
            self.progress.round_steps = 0
        own = f"{'new' if self._is_new else 'old'}{self.members.name}".encode().ljust(32)
        rows = self.members.gather(np.frombuffer(own, np.uint8))
        roll = [row.tobytes().decode().strip() for row in rows]
        self.roster = tuple(entry[3:] for entry in roll)
        self.newcomers = tuple(entry[3:] for entry in roll if entry.startswith("new"))
        givers = len(self.roster) - len(self.newcomers)
        if self.settings.inherit_inner_state and self.newcomers and givers:
            inherit(self.members, self.optimizer, is_new=self._is_new, givers=givers)
        self._is_new = False
        if self.sampler is not None:
            self.sampler.begin(self.rank, self.world_size, self.round_length, self.round_step)

    def _share(self) -> None:
        self.members.share(self.shared_state(), self.round)

    def shared_state(self) -> dict[str, Tensor]:
        """What is the same at all members, and a newcomer gets: by name, on the host."""
        state = {"counters": self.counters, **self.data, **self.method.shared()}
        return {f"{self._mark}.{name}": tensor for name, tensor in state.items()}

    def _tell(self, fragment: int, outcome: Outcome, values: dict[str, Any]) -> None:
        where = self.state.fragments[fragment]
        kept = [self.outer.state[name] for name in sorted(self.outer.state)]
        same = [flat[where] if len(flat) == self.state.elements else flat for flat in kept]
        self._hash = digest_of([self.state.theta[where], *same])
        sent = self.members.bytes_sent()
        self.info = make_info(
            outcome,
            round=self.round,
            step=self.step,
            fragment=fragment,
            hash=self._hash,
            total_tokens=self.total_tokens,
            own_bytes_sent=sent - self._bytes_before,
            **values,
        )
        self._bytes_before = sent
        for name, reason in outcome.verdict.excluded.items():
            _logger.warning("round %d: member %s is left out: %s", self.round, name, reason)
        for callback in self.on_sync:
            callback(self.info)

    # --- checkpoints ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that this object knows, for torch.save: tensors, numbers and text.

        theta is not the model's parameters except where a round is just over: save both, and the
        inner optimizer's state.

        Raises:
            RuntimeError: a merge is under way; there is none in `on_round`.
        """
        return saved_state.collect(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from state_dict(), before the block is entered; a changed world size is fine.

        On entry members of an elastic run compare rounds, and those behind get the newest; a fixed
        group takes rank 0's.

        Raises:
            SettingsMismatch: of other settings or another model; nothing has been changed.
            RuntimeError: the block has been entered.
        """
        if self._hooks:
            raise RuntimeError("load_state_dict: call it before the `with` block is entered")
        saved_state.install(self, state)
        self._is_restored, self._is_new = True, False
