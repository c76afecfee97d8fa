"""Group relative policy optimization by the members of an elastic run.

A step: rollouts are split among the members; each recomputes what the policy that sampled them said
of every token; then a few minibatches: gradients are summed over the members, clipped, and applied
by all alike, so that all end with the same bytes. A member that dies costs its share of what was
under way; one that comes gets the whole state at the next step.
"""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

import pccl
from asyncrl.flat_model import FlatModel
from asyncrl.guard import Guard, StepSigns
from asyncrl.loss import policy_loss, token_log_probabilities
from asyncrl.model import Decoder
from asyncrl.rewards import group_advantages, is_instructive
from asyncrl.rollouts import Group, PackedRows, pack
from asyncrl.trainer_options import OuterOptions, StepReport, TrainerOptions
from diloco.outer import OuterOptimizer, make_factory
from diloco.settings import Settings

__all__ = ["StepReport", "Trainer", "TrainerOptions"]

# Summed over the members: LossSums.statistics (tokens, loss, entropy, KL, clipped), and the tokens
# times the gradient's norm.
_STATISTICS = 6
# Until members agree who is in; each try costs two round trips.
_AGREE_TRIES = 20


@dataclass
class _Part:
    """Rollouts of one version in one shard, ready for the model."""

    rows: PackedRows
    advantages: Tensor
    behaviour: Tensor
    reference: Tensor | None


@dataclass
class _Sums:
    """Over the minibatches of a step."""

    statistics: Tensor = field(default_factory=lambda: torch.zeros(_STATISTICS))


# Places in Trainer.progress.
_VERSION, _ADAM_STEPS, _RETURNS, _WARM_FROM, _BAD_FROM, _BAD_TO, _GOOD_OLD, _GOOD_NEW = range(8)


class Trainer:
    """One member's trainer: call sync(), get the same groups as the others, call step()."""

    def __init__(
        self,
        model: Decoder,
        options: TrainerOptions | None = None,
        comm: pccl.ElasticCommunicator | None = None,
        *,
        device: str = "cpu",
    ) -> None:
        """The model's weights are version 0 and the reference of the KL term.

        Args:
            model: its parameters become parts of one vector.
            options: the same on every member.
            comm: None: this trainer is alone.
            device: where this member's model computes. State and sums stay on the host, so members
                of different devices end a step with the same bytes.
        """
        self.options = options or TrainerOptions()
        self.comm = comm
        self.guard = Guard(self.options.guard)
        self._flat = FlatModel(model, _STATISTICS, device)
        count = self._flat.count
        self.progress: NDArray[numpy.int64] = numpy.zeros(8, numpy.int64)
        self.progress[[_BAD_FROM, _BAD_TO]] = -1
        self._reference = self._flat.weights.clone()
        self._moments = torch.zeros(2, count)
        self._kept = self._flat.weights.repeat(self.options.async_level + 1, 1)
        self._good = self._flat.weights.repeat(2, 1)  # the older one, the newer one
        self._theta = self._flat.weights.clone()  # of the last merge
        self._outer = _make_outer(self._theta, self.options.outer)

    @property
    def model(self) -> Decoder:
        self._flat.refresh()
        return self._flat.model

    @property
    def version(self) -> int:
        """Of the weights: how many steps made them."""
        return int(self.progress[_VERSION])

    @property
    def digest(self) -> str:
        return self._flat.digest

    # --- the state that members share -------------------------------------------------------------

    def state(self) -> dict[str, NDArray[numpy.generic]]:
        """Everything that the next step depends on, as arrays that share the trainer's memory."""
        shared = {
            "weights": self._flat.weights.numpy(),
            "reference": self._reference.numpy(),
            "kept": self._kept.numpy(),
            "good": self._good.numpy(),
            "guard": self.guard.history,
            "progress": self.progress,
        }
        if self._outer is None:
            return {**shared, "moments": self._moments.numpy()}
        # Moments stay with the member that made them.
        outer = {f"outer.{name}": value.numpy() for name, value in self._outer.state.items()}
        return {**shared, **outer}

    def sync(self) -> None:
        """Let newcomers in, with the state of the others; see ElasticCommunicator.sync_state()."""
        if self.comm is not None:
            self.comm.sync_state(self.state(), revision=self.version)
        self._theta.data.copy_(self._flat.weights)

    def save(self, path: Path) -> None:
        """Write a checkpoint; it has its final name only when it is whole."""
        part = path.with_name(path.name + ".part")
        part.write_bytes(safetensors.numpy.save(self.state()))
        part.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint of save().

        Raises:
            ValueError: it is none, or of a model or options with other shapes; nothing is changed.
        """
        try:
            found = safetensors.numpy.load(path.read_bytes())
        except safetensors.SafetensorError as error:
            raise ValueError(f"checkpoint {path}: {error}") from None
        own = self.state()
        shapes = {name: (array.shape, array.dtype) for name, array in own.items()}
        if {name: (array.shape, array.dtype) for name, array in found.items()} != shapes:
            raise ValueError(f"checkpoint {path}: of another model or async_level")
        for name, array in own.items():
            array[...] = found[name]
        self._theta.data.copy_(self._flat.weights)

    # --- a step -----------------------------------------------------------------------------------

    def step(self, groups: Sequence[Group]) -> StepReport:
        """Learn from `groups`; the same ones in the same order on every member.

        Raises:
            ValueError: no group, or one of a version that is not kept; nothing has changed.
            PcclError: see ElasticCommunicator; sync() and try again.
        """
        self._check(groups)
        rank, world_size = self._agree_on_shares()
        options = self.options
        score = float(numpy.mean([one.score for group in groups for one in group.rollouts]))
        staleness = float(numpy.mean([self.version - group.weight_version for group in groups]))
        taken = [group for group in groups if self._teaches(group)]
        learning_rate = self._learning_rate()
        sums = _Sums()
        trouble = ""
        if taken:
            minibatches = [
                taken[at :: options.minibatch_count] for at in range(options.minibatch_count)
            ]
            own = [
                [
                    part
                    for shard in range(rank, options.shard_count, world_size)
                    for part in self._parts(minibatch[shard :: options.shard_count])
                ]
                for minibatch in minibatches
                if minibatch
            ]
            try:
                for parts in own:
                    self._minibatch(parts, learning_rate, sums)
                if self._outer is not None:
                    self._merge(self._outer, sums)
            except pccl.NonFiniteContribution as error:
                trouble = f"not finite: {error}"
        self.progress[_VERSION] += 1
        tokens = max(1.0, float(sums.statistics[0]))
        _, entropy, kl, clipped, norm = (float(value) / tokens for value in sums.statistics[1:])
        if taken and not trouble:
            trouble = self.guard.judge(StepSigns(entropy, norm, score))
        if trouble:
            self._return_to_good()
        elif self.version % options.good_every == 0:
            self._good[0] = self._good[1]
            self._good[1] = self._flat.weights
            self.progress[_GOOD_OLD] = self.progress[_GOOD_NEW]
            self.progress[_GOOD_NEW] = self.version
        self._kept[self.version % len(self._kept)] = self._flat.weights
        return StepReport(
            version=self.version,
            digest=self.digest,
            score=score,
            staleness=staleness,
            token_count=int(sums.statistics[0]),
            entropy=entropy,
            kl=kl,
            clip_share=clipped,
            gradient_norm=norm,
            learning_rate=learning_rate,
            members=world_size,
            returned=trouble,
        )

    def _check(self, groups: Sequence[Group]) -> None:
        if not groups:
            raise ValueError(f"step {self.version}: no group of rollouts")
        oldest = max(0, self.version - self.options.async_level)
        for group in groups:
            if not oldest <= group.weight_version <= self.version or not group.rollouts:
                raise ValueError(
                    f"step {self.version}: expected rollouts of versions {oldest} to "
                    f"{self.version}, got {len(group.rollouts)} of {group.weight_version}"
                )

    def _agree_on_shares(self) -> tuple[int, int]:
        """(rank, world size) of one quorum that all members see; deaths after that cost shares."""
        if self.comm is None:
            return 0, 1
        for _ in range(_AGREE_TRIES):
            quorum_id = self.comm.quorum_id
            place = self.comm.rank, self.comm.world_size
            seen = numpy.array([quorum_id, -quorum_id], numpy.int64)
            self.comm.all_reduce(seen, "max")
            if seen[0] == -seen[1] == self.comm.quorum_id:
                return place
        raise pccl.PcclError(
            f"step {self.version}: the members changed {_AGREE_TRIES} times while they agreed on "
            f"their shares; nothing has changed"
        )

    def _teaches(self, group: Group) -> bool:
        is_bad = self.progress[_BAD_FROM] <= group.weight_version <= self.progress[_BAD_TO]
        return not is_bad and is_instructive(
            [one.score for one in group.rollouts], self.options.rewards
        )

    def _learning_rate(self) -> float:
        options = self.options
        since = self.version - int(self.progress[_WARM_FROM])
        scale = options.guard.learning_rate_factor ** int(self.progress[_RETURNS])
        scale *= min(1.0, (since + 1) / options.warm_up_steps) if options.warm_up_steps else 1.0
        return options.learning_rate * scale * max(0.0, 1 - self.version / options.step_count)

    def _parts(self, groups: Sequence[Group]) -> list[_Part]:
        """By version, with what the policy that sampled and the reference say of each token."""
        options, parts = self.options, []
        for version in sorted({group.weight_version for group in groups}):
            sequences, advantages = [], []
            for group in groups:
                if group.weight_version != version:
                    continue
                sequences += [(one.prompt, one.tokens) for one in group.rollouts]
                rewards = [
                    options.rewards.length.apply(one.score, len(one.tokens))
                    for one in group.rollouts
                ]
                advantages.append(group_advantages(rewards, options.rewards))
            rows = pack(sequences, options.row_tokens).to(self._flat.model.device)
            by_sequence = torch.from_numpy(numpy.concatenate(advantages)).to(rows.place_N.device)
            parts.append(
                _Part(
                    rows,
                    by_sequence[rows.sequence_N],
                    self._log_probabilities(rows, self._kept[version % len(self._kept)]),
                    self._log_probabilities(rows, self._reference)
                    if options.loss.kl_coefficient
                    else None,
                )
            )
        return parts

    def _log_probabilities(self, rows: PackedRows, weights: Tensor) -> Tensor:
        logits, _ = self._flat.call(
            weights, rows.tokens_BT, positions_BT=rows.positions_BT, mask_BTS=rows.mask_BTS
        )
        chosen = logits.flatten(0, 1)[rows.place_N] / self.options.temperature
        return token_log_probabilities(chosen, rows.targets_N)

    def _minibatch(self, parts: Sequence[_Part], learning_rate: float, sums: _Sums) -> None:
        """One optimizer step on the sum of all members' gradients."""
        flat = self._flat
        flat.begin()
        for part in parts:
            rows = part.rows
            logits, _ = flat.model(
                rows.tokens_BT, positions_BT=rows.positions_BT, mask_BTS=rows.mask_BTS
            )
            found = policy_loss(
                logits.flatten(0, 1)[rows.place_N] / self.options.temperature,
                rows.targets_N,
                part.behaviour,
                part.advantages,
                self.options.loss,
                reference_N=part.reference,
            )
            found.loss.backward()
            flat.extra[:-1] += found.statistics.cpu()
        flat.end()
        if self.comm is not None and self._outer is None:
            self.comm.all_reduce(flat.sums.numpy(), uniform=True, finite=True)
        tokens = flat.extra[0].clamp(min=1)
        flat.gradient /= tokens
        norm = float(flat.gradient.norm())
        flat.gradient *= min(1.0, self.options.gradient_norm_max / (norm + 1e-6))
        flat.extra[-1] = norm * tokens
        sums.statistics += flat.extra
        self._adam(learning_rate)

    def _merge(self, outer: OuterOptimizer, sums: _Sums) -> None:
        """Average what the members moved by, weighted by their tokens, and move theta by it."""
        flat = self._flat
        torch.sub(self._theta.detach(), flat.weights, out=flat.gradient)
        flat.gradient *= sums.statistics[0]
        flat.extra.copy_(sums.statistics)
        if self.comm is not None:
            self.comm.all_reduce(flat.sums.numpy(), uniform=True, finite=True)
        sums.statistics.copy_(flat.extra)
        outer.step(0, flat.gradient / sums.statistics[0].clamp(min=1))
        flat.weights.copy_(self._theta.detach())

    def _adam(self, learning_rate: float) -> None:
        """Adam with decoupled weight decay (Loshchilov and Hutter 2019), on the whole vector."""
        first, second = self._moments
        self.progress[_ADAM_STEPS] += 1
        count, beta2 = int(self.progress[_ADAM_STEPS]), self.options.beta2
        gradient, weights = self._flat.gradient, self._flat.weights
        first.lerp_(gradient, 1 - 0.9)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        deviation = (second / (1 - beta2**count)).sqrt_().add_(1e-8)
        weights.mul_(1 - learning_rate * self.options.weight_decay)
        weights.addcdiv_(first, deviation, value=-learning_rate / (1 - 0.9**count))

    def _return_to_good(self) -> None:
        """Go on from weights before the trouble; what policies since then sampled is left out."""
        self._flat.weights.copy_(self._good[0])
        self._theta.data.copy_(self._good[0])
        self._good[1] = self._good[0]
        self._moments.zero_()
        for value in self._outer.state.values() if self._outer else ():
            value.zero_()
        self.progress[_ADAM_STEPS] = 0
        self.progress[_RETURNS] += 1
        self.progress[_WARM_FROM] = self.version
        self.progress[_BAD_FROM] = self.progress[_GOOD_OLD] + 1
        self.progress[_BAD_TO] = self.version - 1
        self.progress[_GOOD_NEW] = self.progress[_GOOD_OLD]


def _make_outer(theta: Tensor, options: OuterOptions | None) -> OuterOptimizer | None:
    if options is None:
        return None
    settings = Settings(outer_lr=options.learning_rate, outer_momentum=options.momentum)
    return OuterOptimizer(theta, [slice(0, theta.numel())], make_factory(settings))
