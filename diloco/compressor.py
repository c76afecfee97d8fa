"""How contributions travel: as they are, or in a codec, with what was lost kept for later."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diloco.members import Members, Travel
from diloco.merge import Outcome
from diloco.settings import Settings
from pccl.codecs import ErrorFeedback, decode, encoded_bytes

__all__ = ["Compressor", "make_compressor"]

_NAME_BYTES = 24  # of a member, before what it sends


class Compressor:
    """The average of a fragment, in the settings' codec.

    With error feedback what a codec loses here is kept, and sent with the next round: 8 bytes a
    parameter more. The residual is this member's own: it belongs to its checkpoint and not to the
    shared state, and a newcomer's is 0.

    Source: see pccl.codecs.ErrorFeedback.
    """

    def __init__(self, members: Members, settings: Settings, fragments: list[slice]) -> None:
        self._members = members
        self._codec = settings.codec
        self._decay = settings.residual_decay
        kept = fragments if settings.error_feedback and settings.codec != "none" else []
        self._feedback = {f.start: ErrorFeedback(f.stop - f.start) for f in kept}

    def average(self, flat: Tensor, where: slice, outcome: Outcome) -> None:
        """flat[where] = the weighted average over the members; `where` is a fragment."""
        feedback = self._feedback.get(where.start)
        if feedback is not None:
            feedback.residual *= self._decay
        travel = Travel(outcome.weight, outcome.verdict.total, self._codec, feedback)
        self._members.average(flat[where], travel)

    def state_dict(self) -> dict[str, Tensor]:
        return {
            str(start): torch.from_numpy(feedback.residual.copy())
            for start, feedback in self._feedback.items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for start, feedback in self._feedback.items():
            feedback.residual = state[str(start)].numpy()


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
            feedback = self._feedback[where.start]
            feedback.residual *= self._decay
            wire = feedback.encode(part.numpy(), self._codec)
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


def make_compressor(members: Members, settings: Settings, fragments: list[slice]) -> Compressor:
    kind = SparseCompressor if settings.codec.startswith("topk") else Compressor
    return kind(members, settings, fragments)
