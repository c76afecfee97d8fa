"""What an all_reduce sends, and how far its result is from the exact one.

Values are normally distributed, each rank's own. Like the pattern of collectives.py they repeat
after 65537 elements: no block of a codec is like another, and the exact result is quickly there.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pccl.bench.collectives import COMPARE_COUNT, PATTERN_COUNT, Call, Case, tile
from pccl.bench.exchange import StoreExchange
from pccl.bench.traffic import bytes_sent

__all__ = ["Loss", "measure_loss"]

_DIGEST_BYTES = 6  # of a hash: what a float64 holds exactly


@dataclass(frozen=True)
class Loss:
    """Of one call."""

    wire_bytes: float | None  # that a rank sends, on average; None: the backend does not count
    error: float  # relative, L2
    differing: int  # ranks whose result has not the bytes of rank 0's


def measure_loss(
    case: Case, call: Call, group: dist.ProcessGroup | None, exchange: StoreExchange, target: Tensor
) -> Loss:
    """Reduce once, in place, and compare. Collective."""
    tile(target, _normal(case, case.rank))
    before = bytes_sent(group)
    exchange.all_gather([])  # others may send when this rank has looked
    call(group)
    exchange.all_gather([])  # what has arrived everywhere has been counted
    after = bytes_sent(group)
    sent = -1.0 if before is None or after is None else float(after.total - before.total)
    result = target.view(torch.uint8).numpy().data
    digest = hashlib.sha256(result).digest()[:_DIGEST_BYTES]
    told = exchange.all_gather([sent, float(int.from_bytes(digest, "big"))])
    wire = None if sent < 0 else sum(one[0] for one in told) / case.world_size
    differing = sum(one[1] != told[0][1] for one in told)
    return Loss(wire, _relative_error(case, target), differing)


def _normal(case: Case, rank: int) -> Tensor:
    random = torch.Generator().manual_seed(rank)
    return torch.randn(PATTERN_COUNT, generator=random).to(case.dtype)


def _relative_error(case: Case, target: Tensor) -> float:
    exact = torch.stack([_normal(case, rank).double() for rank in range(case.world_size)]).sum(0)
    if case.op == "avg":
        exact /= case.world_size
    wrong = whole = 0.0
    for piece in torch.split(target, COMPARE_COUNT):
        expected = torch.empty(piece.numel(), dtype=torch.float64)
        tile(expected, exact)
        wrong += float((piece.double() - expected).square().sum())
        whole += float(expected.square().sum())
    return math.sqrt(wrong / whole)
