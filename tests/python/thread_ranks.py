"""Ranks as threads of one process: each its own context, real sockets or memory between them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pccl

Result = TypeVar("Result")

# Far more than anything here takes on a busy machine.
PATIENCE_SECONDS = 30.0


class ThreadStore:
    """The least that pccl.init() asks of a store: set, and a get that raises until it is there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, bytes] = {}

    def set(self, key: str, value: bytes) -> None:
        with self._lock:
            self._values[key] = value

    def get(self, key: str) -> bytes:
        with self._lock:
            return self._values[key]


def run_threads(count: int, function: Callable[[int], Result]) -> list[Result]:
    """`function(rank)` on a thread each; what they return, or the first error."""
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(function, rank) for rank in range(count)]
        deadline = time.monotonic() + PATIENCE_SECONDS
        errors = [future.exception(deadline - time.monotonic()) for future in futures]
    for error in errors:
        if error is not None:
            raise error
    return [future.result() for future in futures]


def run_ranks(
    world_size: int,
    function: Callable[[pccl.Communicator], Result],
    config: pccl.Config | None = None,
    **options: Any,
) -> list[Result]:
    """`function(comm)` on each rank of a world of its own; what they return."""
    store = ThreadStore()
    config = config or pccl.Config(bind="127.0.0.1", connect_timeout_seconds=PATIENCE_SECONDS)
    options = {"timeout_seconds": PATIENCE_SECONDS, **options}

    def run(rank: int) -> Result:
        with pccl.init(
            rank=rank, world_size=world_size, store=store, config=config, **options
        ) as comm:
            return function(comm)

    return run_threads(world_size, run)
