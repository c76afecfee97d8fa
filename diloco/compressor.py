"""How contributions travel: as they are, or in a codec, with what was lost kept for later."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diloco.members import Members
from diloco.merge import Outcome
from diloco.settings import Settings
from pccl.codecs import decode, encode, encoded_bytes

__all__ = ["Compressor", "make_compressor"]

_NAME_BYTES = 24  # of a member, before what it sends


class Compressor:
    """The average of a flat tensor, in the settings' codec.

    With error feedback a contribution is encoded here first, together with the residual of earlier
    rounds, and what the codec loses is the new residual: 4 bytes a parameter more. The residual is
    this member's own: it belongs to its checkpoint, not to the shared state, and a newcomer's is 0.

    Source: Karimireddy et al., Error feedback fixes SignSGD, ICML 2019, arXiv 1901.09847.
    """

    def __init__(self, members: Members, settings: Settings, elements: int) -> None:
        self._members = members
        self._codec = settings.codec
        self._decay = settings.residual_decay
        self.residual: Tensor | None = torch.zeros(elements) if settings.error_feedback else None

    def average(self, flat: Tensor, where: slice, outcome: Outcome) -> None:
        """flat[where] = the weighted average over the members."""
        part = flat[where]
        if self.residual is not None and outcome.weight > 0:
            self._keep_the_loss(part, self.residual[where])
        self._members.average(part, outcome.weight, outcome.verdict.total, self._codec)

    def _keep_the_loss(self, part: Tensor, residual: Tensor) -> None:
        """part = decode(encode(part + beta residual)); residual = what that lost."""
        residual.mul_(self._decay).add_(part)
        decode(encode(residual.numpy(), self._codec), part.numpy())
        residual.sub_(part)

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.residual is None else {"residual": self.residual.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if self.residual is not None:
            self.residual.copy_(state["residual"])


class SparseCompressor(Compressor):
    """Each member sends its largest elements, everybody decodes all: no sum ever travels.

    One gather: (P - 1) * encoded bytes received a member. The mean is over all that contribute,
    not over those that sent an element, and added up in the order of ranks.

    Source: SparseLoCo, arXiv 2508.15706 (residual_decay 0.95, 2 bits, 64 of 4096, outer SGD of 1).
    """

    def average(self, flat: Tensor, where: slice, outcome: Outcome) -> None:
        part = flat[where]
        row = np.zeros(_NAME_BYTES + encoded_bytes(self._codec, len(part)), np.uint8)
        name = self._members.name.encode()
        row[: len(name)] = np.frombuffer(name, np.uint8)
        if outcome.weight > 0:
            assert self.residual is not None
            residual = self.residual[where]
            residual.mul_(self._decay).add_(part)
            wire = encode(residual.numpy(), self._codec)
            decode(wire, part.numpy())
            residual.sub_(part)
            row[_NAME_BYTES:] = np.frombuffer(wire, np.uint8)
        weights = dict(zip(outcome.members, outcome.verdict.weights, strict=True))
        total = 0.0
        sparse = torch.empty_like(part)
        part.zero_()
        # Of those that have not died meanwhile, the same at all members.
        for other in self._members.gather(row):
            weight = weights[other[:_NAME_BYTES].tobytes().rstrip(b"\0").decode()]
            if weight > 0:
                decode(other[_NAME_BYTES:].tobytes(), sparse.numpy(), self._codec)
                part.add_(sparse, alpha=weight)
                total += weight
        if total > 0:
            part.div_(total)


def make_compressor(members: Members, settings: Settings, elements: int) -> Compressor:
    kind = SparseCompressor if settings.codec.startswith("topk") else Compressor
    return kind(members, settings, elements)
