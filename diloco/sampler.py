"""Which samples a member trains on: a pure function of the run's place in the data.

Nobody owns a shard and nobody hands an iterator over. The run has one place in an endless order of
samples (each pass over the data is a permutation of it), all members hold it as part of the shared
state, and from it, the world size and its own rank a member computes what is its own in this round.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Sampler

from diloco.settings import Settings

if TYPE_CHECKING:
    from diloco.optimizer import DiLoCo

__all__ = ["Place", "RoundSampler", "permute", "rounds"]

Interval = tuple[int, int]  # positions [first, last)
_Batch = TypeVar("_Batch")
_Words = npt.NDArray[np.uint64]

# A member that dies leaves one gap or a few, and gaps are filled first, so that more than a handful
# means that most members died in one round.
GAPS_MAX = 64
_FEISTEL_ROUNDS = 6


@dataclass(frozen=True)
class Place:
    """How far a run has come in its data; every member holds the same.

    next: the first position that nobody was given yet.
    gaps: positions that were given to members whose work did not reach the model, in order; they
        are given out first.
    skipped: samples that were given up, since there were more than GAPS_MAX gaps.
    """

    next: int = 0
    gaps: tuple[Interval, ...] = ()
    skipped: int = 0

    def shares(self, world_size: int, count: int) -> list[list[Interval]]:
        """Give each rank `count` positions, gaps first; nothing is given twice."""
        if world_size < 1 or count < 0:
            raise ValueError(f"shares: expected a member and a count, got {world_size}, {count}")
        needed = world_size * count
        pool = [*self.gaps, (self.next, self.next + needed)]
        found = []
        for _ in range(world_size):
            share, pool = _take(pool, count)
            found.append(share)
        return found

    def after(self, count: int, done: Sequence[int]) -> Place:
        """The place after a round of `count` samples a rank.

        Args:
            done: [world_size] how many of its samples each rank brought into the model, from the
                front of its share; 0 for one that died.
        """
        if any(not 0 <= number <= count for number in done):
            raise ValueError(f"after: expected 0 to {count} samples a rank, got {list(done)}")
        needed = len(done) * count
        end = self.next + max(0, needed - sum(map(_length, self.gaps)))
        gaps = _take(self.gaps, needed)[1]
        for share, number in zip(self.shares(len(done), count), done, strict=True):
            gaps += _take(share, number)[1]
        gaps = _joined(gaps)
        kept = sorted(sorted(gaps, key=_length)[-GAPS_MAX:])
        lost = sum(map(_length, gaps)) - sum(map(_length, kept))
        return Place(end, tuple(kept), self.skipped + lost)

    def write(self, tensor: Tensor) -> None:
        """Into int64 [2 + 2 GAPS_MAX], a part of the shared state."""
        ends = [end for gap in self.gaps for end in gap]
        tensor.zero_()
        tensor[: 2 + len(ends)] = torch.tensor([self.next, self.skipped, *ends], device="cpu")

    @classmethod
    def read(cls, tensor: Tensor) -> Place:
        """What write() wrote.

        Raises:
            ValueError: no place can look so.
        """
        first, skipped, *ends = tensor.tolist()
        pairs = list(zip(ends[::2], ends[1::2], strict=True))
        gaps = tuple(pair for pair in pairs if pair[1] > 0)
        edges = [end for gap in gaps for end in gap]
        if min(first, skipped) < 0 or edges != sorted(edges) or max(edges, default=0) > first:
            raise ValueError(f"Place.read: {tensor.tolist()} is no place in the data")
        return cls(first, gaps, skipped)


def permute(positions: Sequence[int] | _Words, length: int, seed: int) -> list[int]:
    """The samples, 0 .. length - 1, at these positions of the endless order.

    Each pass over the data is a permutation of its own: a Feistel network on the least even number
    of bits that holds `length`, walked until it lands inside. It costs a few microseconds a sample
    and no memory, whatever `length` is.

    Source: Black and Rogaway, Ciphers with arbitrary finite domains, CT-RSA 2002.
    """
    if length < 1:
        raise ValueError(f"permute: expected a length of 1 or more, got {length}")
    place = np.asarray(positions, np.uint64)
    epoch, value = place // np.uint64(length), place % np.uint64(length)
    half = max(1, (int(length - 1).bit_length() + 1) // 2)
    key = _mix(epoch ^ _mix(np.full_like(epoch, seed % 2**64)))
    value = _feistel(value, key, half)
    while (outside := value >= length).any():
        value[outside] = _feistel(value[outside], key[outside], half)
    return [int(number) for number in value]


class RoundSampler(Sampler[list[int]]):
    """A DataLoader's batch_sampler: the batches of this member in one round, and then it ends.

    `for batch in loader` goes over one round; a program that trains on repeats it, or uses
    `rounds(loader)`. DiLoCo calls begin() and end() at its boundaries.

    Args:
        length: of the dataset; the same on every member, as batch and seed are.
        batch: samples a step.
        seed: of the order; another one is another order.
    """

    def __init__(self, length: int, *, batch: int, seed: int = 0) -> None:
        if length < 1 or batch < 1:
            raise ValueError(f"RoundSampler: expected samples and a batch, got {length}, {batch}")
        self.length, self.batch, self.seed = length, batch, seed
        self.state = torch.zeros(2 + 2 * GAPS_MAX, dtype=torch.int64, device="cpu")
        self.world_size, self.steps, self._taken = 0, 0, 0
        self._own: list[int] = []

    @property
    def place(self) -> Place:
        """The run's; `state` holds it."""
        return Place.read(self.state)

    @property
    def epoch(self) -> float:
        """Passes over the data, with the part of the one that runs."""
        return self.place.next / self.length

    def begin(self, rank: int, world_size: int, steps: int, taken: int = 0) -> None:
        """A round of `steps` steps begins; a pure function of `state` and these four.

        Args:
            taken: so many were done before a checkpoint in the middle of the round.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"begin: rank {rank} of {world_size}")
        self.world_size, self.steps, self._taken = world_size, steps, taken
        share = self.place.shares(world_size, steps * self.batch)[rank]
        self._own = [position for first, last in share for position in range(first, last)]

    def end_round(self, run: DiLoCo, steps: int) -> None:
        """For DiLoCo: the round is over after `steps` steps of those that contributed."""
        done = run.info.contributors if run.info is not None else ()
        self.end([steps if name in done else 0 for name in run.roster])

    def shape(self) -> dict[str, list[int]]:
        """What members must have in common, for messages and checkpoints."""
        return {"data: samples, batch, seed": [self.length, self.batch, self.seed]}

    def end(self, done_steps: Sequence[int]) -> None:
        """The round is over.

        Args:
            done_steps: [world_size] of the round's begin(): how many steps of each rank are in the
                model; 0 for a member that died or was excluded.
        """
        if len(done_steps) != self.world_size:
            raise ValueError(f"end: {len(done_steps)} ranks, but {self.world_size} began the round")
        count = self.steps * self.batch
        done = [min(steps, self.steps) * self.batch for steps in done_steps]
        self.place.after(count, done).write(self.state)

    def __iter__(self) -> Iterator[list[int]]:
        while self._taken < self.steps:
            first = self._taken * self.batch
            self._taken += 1
            yield permute(self._own[first : first + self.batch], self.length, self.seed)

    def __len__(self) -> int:
        return self.steps - self._taken


def shared_data(sampler: RoundSampler | None, settings: Settings) -> dict[str, Tensor]:
    """What a sampler adds to the shared state.

    Raises:
        ValueError: the method has no rounds that all members begin together.
    """
    if sampler is None:
        return {}
    if settings.method in ("asynchronous", "decoupled", "gossip"):
        raise ValueError(f"sampler: method={settings.method!r} has no rounds that all begin alike")
    return {"data": sampler.state}


def rounds(loader: Iterable[_Batch]) -> Iterator[_Batch]:
    """Repeat a loader of a RoundSampler for ever: round after round, pass after pass.

    Raises:
        RuntimeError: it has nothing to give: no DiLoCo(sampler=...) has begun a round.
    """
    while True:
        is_empty = True
        for batch in loader:
            is_empty = False
            yield batch
        if is_empty:
            raise RuntimeError("rounds: the sampler has no round; give it to DiLoCo(sampler=...)")


def _take(pool: Sequence[Interval], count: int) -> tuple[list[Interval], list[Interval]]:
    """The first `count` positions of a pool, and what is left of it."""
    taken: list[Interval] = []
    left: list[Interval] = []
    for first, last in pool:
        middle = min(last, first + count)
        count -= middle - first
        if middle > first:
            taken.append((first, middle))
        if last > middle:
            left.append((middle, last))
    return taken, left


def _joined(intervals: Sequence[Interval]) -> list[Interval]:
    found: list[Interval] = []
    for first, last in sorted(intervals):
        if found and found[-1][1] == first:
            found[-1] = (found[-1][0], last)
        else:
            found.append((first, last))
    return found


def _length(interval: Interval) -> int:
    return interval[1] - interval[0]


def _feistel(value: _Words, key: _Words, half: int) -> _Words:
    mask = np.uint64((1 << half) - 1)
    left, right = value >> np.uint64(half), value & mask
    for number in range(_FEISTEL_ROUNDS):
        mixed = _mix(right ^ _mix(key + np.uint64(number)))
        left, right = right, left ^ (mixed & mask)
    joined: _Words = (left << np.uint64(half)) | right
    return joined


def _mix(value: _Words) -> _Words:
    """splitmix64's finalizer: each bit depends on all."""
    value = value + np.uint64(0x9E3779B97F4A7C15)  # wraps
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: _Words = value ^ (value >> np.uint64(31))
    return mixed
