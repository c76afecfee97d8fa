"""How contributions travel: as they are, or in a codec, with what was lost kept for later."""

from __future__ import annotations

import torch
from torch import Tensor

from diloco.members import Members
from diloco.merge import Outcome
from diloco.settings import Settings
from pccl.codecs import decode, encode

__all__ = ["Compressor"]


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
