"""One member that brings a state, or fetches it piece by piece, for test_state_sync.py.

Prints a JSON object a line. Arguments: address, members to wait for, "holder", "leaver" or
"newcomer", members that the sync is about, and after how many pieces it waits for a line of its
input (0: never).
"""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from typing import Any

import numpy as np
from elastic_worker import say

import pccl
from pccl._piece_fetch import Fetch

PIECES = 40
LOCAL_STEPS = 5
PATIENCE_SECONDS = 30.0


def hold_after(count: int) -> None:
    """Make the fetch stand still when `count` pieces have come, until it is told to go."""
    original = Fetch.take_piece
    taken: list[int] = []

    def take_piece(self: Fetch, index: int) -> bytes:
        taken.append(index)
        say(piece=index)
        if len(taken) == count:
            sys.stdin.readline()
        return original(self, index)

    Fetch.take_piece = take_piece  # type: ignore[method-assign]


def wait_until_freed(comm: pccl.ElasticCommunicator) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while comm._sync.held_bytes or threading.active_count() > 1:
        assert time.monotonic() < deadline, "the copy is kept although nobody needs it"
        time.sleep(0.01)


def main() -> None:
    address, members, role, about, hold = sys.argv[1:6]
    hold_after(int(hold))
    weights = np.zeros(PIECES * (1 << 18), np.float32)
    state: dict[str, Any] = {"weights": weights}
    if role != "newcomer":
        weights[:] = np.random.default_rng(7).standard_normal(weights.size, np.float32)
    with pccl.join(address, world_size_min=int(members)) as comm:
        say(member=comm.member_id)
        revision = comm.sync_state(state, revision=0 if role == "newcomer" else 5)
        while role != "newcomer" and comm.world_size < int(about):
            revision = comm.sync_state(state)
        say(synced=hashlib.sha256(weights).hexdigest(), revision=revision)
        if role == "leaver":
            say(leaving=True, held=comm._sync.held_bytes)
            return
        for step in range(LOCAL_STEPS):
            weights += 1  # what others still fetch is not this any more
            say(local=step)
        say(held=comm._sync.held_bytes)
        work = comm.all_reduce(np.ones(1000, np.float32), async_op=True)
        assert work is not None
        work.wait()
        say(contributors=len(work.contributors))
        wait_until_freed(comm)
        comm.sync_state(state)
        say(end=hashlib.sha256(weights).hexdigest())


if __name__ == "__main__":
    main()
