"""What ranks tell each other about a benchmark: never through the backend that is measured."""

import json
from collections.abc import Callable

from torch.distributed.distributed_c10d import Store

__all__ = ["StoreExchange"]


class StoreExchange:
    """All-gather of small values through the rendezvous store."""

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._round = 0

    def all_gather(self, value: list[float]) -> list[list[float]]:
        """Return every rank's value, by rank; waits for all."""
        self._round += 1
        self._store.set(f"{self._round}/{self._rank}", json.dumps(value))
        keys = [f"{self._round}/{rank}" for rank in range(self._world_size)]
        return [json.loads(self._store.get(key)) for key in keys]

    def leave(self) -> None:
        """Wait for all; rank 0, whose process may hold the store, returns last."""
        self.all_gather([])
        if self._rank != 0:
            self._store.set(f"left/{self._rank}", "")
        else:
            for rank in range(1, self._world_size):
                self._store.get(f"left/{rank}")

    def left_early(self, barrier: Callable[[], None]) -> int:
        """Return 1 if `barrier` lets this rank go before the last rank came, else 0.

        Rank 0 is the last: it enters when all others have said that they do.
        """
        self._round += 1
        others = [f"{self._round}/{rank}" for rank in range(1, self._world_size)]
        last = f"{self._round}/0"
        if self._rank == 0:
            for key in others:
                self._store.get(key)
            self._store.set(last, "")
        else:
            self._store.set(f"{self._round}/{self._rank}", "")
        barrier()
        return 0 if self._store.check([last]) else 1

    def slowest(self, seconds: list[float]) -> list[float]:
        """Return the maximum over all ranks, element by element."""
        return [max(column) for column in zip(*self.all_gather(seconds), strict=True)]
