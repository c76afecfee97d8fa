"""One member of a run whose network is cut: trains on, and joins again when it was left behind.

Prints a JSON object a line until it is killed. Arguments: address, members to wait for.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from typing import Any

import numpy as np

import pccl


def say(**values: Any) -> None:
    # One write a line: two threads speak.
    print(json.dumps(values) + "\n", end="", flush=True)


def tell_trouble(comm: pccl.ElasticCommunicator, is_over: threading.Event) -> None:
    told = ""
    while not is_over.wait(0.02):
        trouble = comm.trouble
        if trouble != told:
            say(trouble=trouble)
        told = trouble


def train(comm: pccl.ElasticCommunicator, state: dict[str, np.ndarray[Any, Any]]) -> None:
    """Steps over a state in which each one leaves how many members it had."""
    while True:
        comm.sync_state(state)
        gradient = np.ones(1000, np.float32)
        comm.all_reduce(gradient)
        state["weights"] = np.float32(1.01) * state["weights"] + gradient
        state["steps"] = state["steps"] + 1
        say(
            step=int(state["steps"][0]),
            members=int(gradient[0]),
            quorum=comm.quorum_id,
            digest=hashlib.sha256(state["weights"]).hexdigest(),
        )


def main() -> None:
    address, members = sys.argv[1:3]
    world_size_min = int(members)
    state = {"weights": np.zeros(1000, np.float32), "steps": np.zeros(1, np.int64)}
    while True:
        is_over = threading.Event()
        try:
            with pccl.join(address, world_size_min=world_size_min) as comm:
                say(member=comm.member_id, rank=comm.rank)
                watcher = threading.Thread(target=tell_trouble, args=(comm, is_over), daemon=True)
                watcher.start()
                train(comm, state)
        except pccl.MemberLost as error:
            digest = hashlib.sha256(state["weights"]).hexdigest()
            say(lost=str(error), steps=int(state["steps"][0]), digest=digest)
        finally:
            is_over.set()
        world_size_min = 1


if __name__ == "__main__":
    main()
