"""The method that settings name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diloco.asynchronous import Asynchronous
from diloco.gossip import GossipRounds
from diloco.rounds import EagerRounds, Method, Rounds

if TYPE_CHECKING:
    from diloco.optimizer import DiLoCo

__all__ = ["make_method"]


def make_method(run: DiLoCo) -> Method:
    kinds = {"eager": EagerRounds, "gossip": GossipRounds, "asynchronous": Asynchronous}
    return kinds.get(run.settings.method, Rounds)(run)
