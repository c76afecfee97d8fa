"""What every group of ranks has: its part in the run, its numbers, and checks of arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pccl import _core

Array = Any  # numpy.ndarray, or whatever has __dlpack__


class GroupBase:
    """The part of a communicator that its operations are built on."""

    _core: _core.Communicator | _core.Run

    @property
    def rank(self) -> int:
        """This process's rank in the group."""
        return self._core.rank

    @property
    def world_size(self) -> int:
        """Ranks in the group."""
        return self._core.world_size

    @property
    def timeout_seconds(self) -> float:
        """What an operation may take that is given no timeout of its own."""
        return self._core.timeout_seconds

    @timeout_seconds.setter
    def timeout_seconds(self, seconds: float) -> None:
        if not 0 < seconds < float("inf"):
            raise ValueError(f"timeout_seconds: expected a positive number, got {seconds}")
        self._core.timeout_seconds = seconds

    def _check_rank(self, rank: int, name: str) -> None:
        if isinstance(rank, bool) or not isinstance(rank, (int, np.integer)):
            raise TypeError(f"{name}: expected a rank, got {rank!r}")
        if not 0 <= rank < self.world_size:
            raise ValueError(f"{name}: expected 0 to {self.world_size - 1}, got {rank}")

    def _check_list(self, tensors: Sequence[Array] | None, name: str, root: int) -> None:
        if (tensors is not None) != (self.rank == root):
            raise ValueError(
                f"{name}: expected {self.world_size} arrays at rank {root} and None elsewhere, got "
                f"{'None' if tensors is None else 'a list'} at rank {self.rank}"
            )
