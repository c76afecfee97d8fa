"""What each collective needs, does, and must result in, for one size.

Data are small integers, exact in every dtype, from a formula of (rank, part, index); what the
result must be follows from the same formula, so a wrong result can't be confirmed by another wrong
result.

The pattern repeats after 65537 elements. That is a prime, so that two chunks that a library has
exchanged by mistake (its chunks begin at multiples of something) do not look alike.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pccl.bench.options import DTYPES, BenchOptions

__all__ = [
    "COMPARE_COUNT",
    "PATTERN_COUNT",
    "Buffers",
    "Call",
    "Case",
    "bus_factor",
    "count_wrong",
    "expected_pattern",
    "fill",
    "make_call",
    "make_case",
    "tile",
]

PATTERN_COUNT = 65537
# Elements compared at a time: bounds the memory of the comparison to some MB.
COMPARE_COUNT = 64 * PATTERN_COUNT
SUM_VALUES = 4  # 0..3: the sum over 42 ranks is exact in int8, over 85 in bfloat16
MOVE_VALUES = 100  # 0..99: exact in int8

# torch 2.13 renamed them and warns of the old names.
_all_gather_single = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter_single = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)

Call = Callable[[dist.ProcessGroup | None], None]

# `size` in the table is that of the larger side; these have it on one side only, in P parts of
# `count` elements.
_IN_PARTS = ("all_gather", "reduce_scatter", "gather", "scatter", "all_to_all")
_WITHOUT_IN_PLACE = ("all_to_all", "send_recv", "barrier")
_REDUCING = ("all_reduce", "reduce", "reduce_scatter")
_ROOTED = ("broadcast", "reduce", "gather", "scatter")


@dataclass(frozen=True)
class Case:
    """One collective with one count on one rank.

    `count` is what nccl-tests prints: the elements per part, where a collective has parts, else
    all.
    """

    collective: str
    count: int
    dtype: torch.dtype
    op: str
    root: int
    rank: int
    world_size: int

    @property
    def parts(self) -> int:
        return self.world_size if self.collective in _IN_PARTS else 1

    @property
    def bytes(self) -> int:
        """Bytes of the larger side."""
        return self.count * self.parts * self.dtype.itemsize

    @property
    def has_in_place(self) -> bool:
        return self.collective not in _WITHOUT_IN_PLACE

    @property
    def shown_op(self) -> str:
        return self.op if self.collective in _REDUCING else "none"

    @property
    def shown_root(self) -> int:
        return self.root if self.collective in _ROOTED else -1


def make_case(options: BenchOptions, bytes: int, rank: int, world_size: int) -> Case:
    """Round a size down to whole elements per part, but at least one."""
    parts = world_size if options.collective in _IN_PARTS else 1
    count = bytes // (DTYPES[options.dtype] * parts)
    if options.collective != "barrier":
        count = max(1, count)
    dtype: torch.dtype = getattr(torch, options.dtype)
    return Case(options.collective, count, dtype, options.op, options.root, rank, world_size)


def bus_factor(collective: str, world_size: int) -> float:
    """Return busbw / algbw as nccl-tests defines it: what a link carries at best."""
    if collective == "all_reduce":
        return 2 * (world_size - 1) / world_size
    if collective in _IN_PARTS:
        return (world_size - 1) / world_size
    return 1.0


class Buffers:
    """The two tensors that all sizes share, so that a size does not fault in its pages anew."""

    def __init__(self, elements: int, dtype: torch.dtype) -> None:
        self._source = torch.zeros(elements, dtype=dtype)
        self._target = torch.zeros(elements, dtype=dtype)

    def of(self, case: Case, *, in_place: bool) -> tuple[Tensor, Tensor]:
        """Return (source, target) of this rank; in place, one is the other or a part of it."""
        whole, part = case.count * case.parts, case.count
        source_elements = part if case.collective in ("all_gather", "gather") else whole
        target_elements = part if case.collective in ("reduce_scatter", "scatter") else whole
        source, target = self._source[:source_elements], self._target[:target_elements]
        if not in_place:
            return source, target
        own = slice(case.rank * part, (case.rank + 1) * part)
        if source_elements < target_elements:
            return target[own], target
        if target_elements < source_elements:
            return source, source[own]
        return target, target


def make_call(case: Case, source: Tensor, target: Tensor) -> Call:
    """Return the collective as a function of the group.

    torch.distributed has all_reduce, broadcast and reduce in place only. Out of place they are what
    a caller would write: copy, then in place; the copy is part of the time.
    """
    copies = source.data_ptr() != target.data_ptr()
    op = _reduce_op(case.op)
    root, rank, ranks = case.root, case.rank, case.world_size
    following, previous = (rank + 1) % ranks, (rank - 1) % ranks

    def all_reduce(group: dist.ProcessGroup | None) -> None:
        if copies:
            target.copy_(source)
        dist.all_reduce(target, op, group)

    def broadcast(group: dist.ProcessGroup | None) -> None:
        if copies and rank == root:
            target.copy_(source)
        dist.broadcast(target, root, group)

    def reduce(group: dist.ProcessGroup | None) -> None:
        if copies:
            target.copy_(source)
        dist.reduce(target, root, op, group)

    def all_gather(group: dist.ProcessGroup | None) -> None:
        _all_gather_single(target, source, group=group)

    def reduce_scatter(group: dist.ProcessGroup | None) -> None:
        _reduce_scatter_single(target, source, op, group=group)

    def gather(group: dist.ProcessGroup | None) -> None:
        dist.gather(source, list(target.chunk(ranks)) if rank == root else None, root, group)

    def scatter(group: dist.ProcessGroup | None) -> None:
        dist.scatter(target, list(source.chunk(ranks)) if rank == root else None, root, group)

    def all_to_all(group: dist.ProcessGroup | None) -> None:
        dist.all_to_all_single(target, source, group=group)

    def send_recv(group: dist.ProcessGroup | None) -> None:
        if ranks == 1:  # no backend sends to itself
            target.copy_(source)
            return
        received = dist.irecv(target, previous, group)
        sent = dist.isend(source, following, group)
        assert received is not None
        assert sent is not None
        received.wait()
        sent.wait()

    def barrier(group: dist.ProcessGroup | None) -> None:
        dist.barrier(group)

    calls: dict[str, Call] = {
        "all_reduce": all_reduce,
        "broadcast": broadcast,
        "reduce": reduce,
        "all_gather": all_gather,
        "reduce_scatter": reduce_scatter,
        "gather": gather,
        "scatter": scatter,
        "all_to_all": all_to_all,
        "send_recv": send_recv,
        "barrier": barrier,
    }
    return calls[case.collective]


def _reduce_op(op: str) -> dist.ReduceOp:
    found: dist.ReduceOp = getattr(dist.ReduceOp, op.upper())
    return found


def fill(case: Case, source: Tensor, target: Tensor) -> None:
    """Write a value that no result has into `target`, then this rank's contribution into `source`.

    In this order: in place, `source` is a part of `target` or the other way round, and has the last
    word.
    """
    target.fill_(MOVE_VALUES + 1)
    for part, piece in enumerate(source.chunk(source.numel() // case.count)):
        tile(piece, _values(case, case.rank, part).to(case.dtype))


def count_wrong(case: Case, target: Tensor) -> int:
    """Return how many elements of this rank's result differ from the expected ones."""
    if case.collective in ("reduce", "gather") and case.rank != case.root:
        return 0  # no result here
    pieces = target.chunk(target.numel() // case.count)
    return sum(
        _count_differing(piece, expected_pattern(case, part)) for part, piece in enumerate(pieces)
    )


def expected_pattern(case: Case, part: int) -> Tensor:
    """Return what part `part` of this rank's result must repeat, [PATTERN_COUNT]."""
    rank = case.rank
    if case.collective in ("all_reduce", "reduce"):
        result = _reduced(case, 0)
    elif case.collective == "reduce_scatter":
        result = _reduced(case, rank)
    elif case.collective == "broadcast":
        result = _values(case, case.root, 0)
    elif case.collective in ("all_gather", "gather"):
        result = _values(case, part, 0)
    elif case.collective == "scatter":
        result = _values(case, case.root, rank)
    elif case.collective == "all_to_all":
        result = _values(case, part, rank)
    else:
        result = _values(case, (rank - 1) % case.world_size, 0)
    return result.to(case.dtype)


def _hash(salt: int) -> Tensor:
    index = torch.arange(PATTERN_COUNT)
    # Knuth's multiplicative hash; the low bits of a product are regular, so they are dropped.
    return ((index + salt * 97003) * 2654435761 % 2**32) >> 11


def _values(case: Case, rank: int, part: int) -> Tensor:
    """Return the formula: what rank `rank` contributes to part `part`, int64 [PATTERN_COUNT]."""
    if case.collective in _REDUCING and case.op in ("sum", "avg"):
        return _hash(rank * case.world_size + part) % SUM_VALUES
    if case.collective in _REDUCING and case.op == "product":
        # At most one rank contributes a 2, all others 1: the product of any number of ranks is
        # exact.
        return (_hash(part) % (case.world_size + 1) == rank) + 1
    return _hash(rank * case.world_size + part) % MOVE_VALUES


def _reduced(case: Case, part: int) -> Tensor:
    values = [_values(case, rank, part) for rank in range(case.world_size)]
    operations: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "sum": torch.add,
        "avg": torch.add,
        "product": torch.mul,
        "min": torch.minimum,
        "max": torch.maximum,
        "band": torch.bitwise_and,
        "bor": torch.bitwise_or,
        "bxor": torch.bitwise_xor,
    }
    total = functools.reduce(operations[case.op], values)
    return total.double() / case.world_size if case.op == "avg" else total


def tile(tensor: Tensor, pattern: Tensor) -> None:
    """Fill `tensor` with `pattern`, [PATTERN_COUNT], again and again."""
    tiles = tensor.numel() // PATTERN_COUNT
    tensor[: tiles * PATTERN_COUNT].view(tiles, PATTERN_COUNT).copy_(pattern)
    tensor[tiles * PATTERN_COUNT :].copy_(pattern[: tensor.numel() - tiles * PATTERN_COUNT])


def _count_differing(tensor: Tensor, pattern: Tensor) -> int:
    # Averages over a number of ranks that is no power of two are rounded; one unit in the last
    # place is allowed.
    tolerance = 0.0
    if tensor.is_floating_point():
        tolerance = torch.finfo(tensor.dtype).eps if bool((pattern % 1 != 0).any()) else 0.0
    wrong = 0
    for piece in torch.split(tensor, COMPARE_COUNT):
        expected = pattern.repeat(-(-piece.numel() // PATTERN_COUNT))[: piece.numel()]
        if tolerance:
            close = torch.isclose(piece, expected, rtol=tolerance, atol=0)
            wrong += piece.numel() - int(close.sum())
        else:
            wrong += int((piece != expected).sum())
    return wrong
