"""One member of an elastic DiLoCo run, for tests. Prints a JSON object a line.

Arguments: address, members to wait for, rounds, and JSON: settings, and what goes wrong where.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from typing import Any

import torch
from diloco_reference import make_inner, make_model, train_step

import diloco
import pccl

_speaks = threading.Lock()  # asynchronous merges call back on a thread of their own


def say(**values: Any) -> None:
    with _speaks:
        print(json.dumps(values), flush=True)


def wait_for_a_newcomer(comm: pccl.ElasticCommunicator) -> None:
    deadline = time.monotonic() + 50
    while comm._core.pending_quorum_id == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def run_member(comm: pccl.ElasticCommunicator, rounds: int, options: dict[str, Any]) -> None:
    model = make_model(seed=int(comm.member_id, 16))
    if options.get("wide"):
        model.append(torch.nn.Linear(3, 3))
    inner = make_inner(model)
    settings = {"sync_every": 3, "warmup_sync_steps": 0, **options.get("settings", {})}

    def tell(run: diloco.DiLoCo) -> None:
        info = run.info
        say(
            round=run.round,
            step=run.step,
            hash="" if info is None else info.hash,
            weights={} if info is None else info.weights,
            excluded={} if info is None else info.excluded,
            world_size=run.world_size,
            theta=run.state.theta.double().sum().item(),
        )

    def tell_merge(info: diloco.SyncInfo) -> None:
        say(merge=[info.round, info.fragment], hash=info.hash, weights=info.weights)

    with diloco.DiLoCo(comm, model, inner, **settings) as run:
        run.on_round.append(tell)
        run.on_sync.append(tell_merge)
        say(entered=run.round, rank=run.rank, world_size=run.world_size)
        while run.round < rounds:
            here = [run.round, run.round_step]
            if here == options.get("die"):
                os.kill(os.getpid(), signal.SIGKILL)
            if run.round == options.get("leave"):
                return
            if here == options.get("await"):
                wait_for_a_newcomer(comm)
            if here == options.get("nan"):
                with torch.no_grad():
                    next(model.parameters())[0] = float("nan")
            train_step(model, inner, int(comm.member_id, 16) % 1000, run.step)


def main() -> None:
    torch.set_num_threads(1)
    address, members, rounds, options = sys.argv[1:5]
    try:
        with pccl.join(address, world_size_min=int(members)) as comm:
            say(member=comm.member_id)
            run_member(comm, int(rounds), json.loads(options))
            say(finished=True)
    except (pccl.PcclError, ValueError) as error:
        say(error=type(error).__name__, text=str(error))


if __name__ == "__main__":
    main()
