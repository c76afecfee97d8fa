"""A process of a member with FSDP2, in an elastic run of those with its shards.

Arguments: address of that run, members to wait for, place in the member, file in which
the member's processes meet, rounds, and JSON: settings, where it dies, where it waits for a
newcomer, and whether its second process only comes when the first one is in.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diloco_reference import make_inner, make_model, train_step
from diloco_worker import wait_for_a_newcomer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import diloco
import pccl

SHARDS = 2


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def make_sharded_model() -> torch.nn.Module:
    mesh = init_device_mesh("cpu", (SHARDS,), mesh_dim_names=("shard",))
    model = make_model(seed=1)
    for layer in (model[0], model[3], model[5]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def run_process(
    comm: pccl.ElasticCommunicator,
    model: torch.nn.Module,
    shard: int,
    rounds: int,
    options: dict[str, Any],
) -> None:
    inner = make_inner(model)
    settings = {"sync_every": 3, "warmup_sync_steps": 0, **options.get("settings", {})}

    def tell(run: diloco.DiLoCo) -> None:
        assert run.info is not None
        # Values that both processes have: where they are not in the same round, they differ.
        parameters = [p.full_tensor().detach().double().sum().item() for p in model.parameters()]
        say(round=run.round, hash=run.info.hash, weights=run.info.weights, sum=sum(parameters))

    with diloco.DiLoCo(comm, model, inner, **settings) as run:
        say(entered=run.round)
        run.on_round.append(tell)
        while run.round < rounds:
            if [run.round, run.round_step] == options.get("die"):
                os.kill(os.getpid(), signal.SIGKILL)
            if [run.round, run.round_step] == options.get("await"):
                wait_for_a_newcomer(comm)
            train_step(model, inner, shard, run.step)


def main() -> None:
    torch.set_num_threads(1)
    address, members, shard, meeting, rounds = sys.argv[1:6]
    options = json.loads(sys.argv[6])
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=int(shard), world_size=SHARDS
    )
    model = make_sharded_model()
    while shard == "1" and options.get("is_split") and not Path(f"{meeting}-in").exists():
        time.sleep(0.01)
    with pccl.join(address, world_size_min=int(members)) as comm:
        Path(f"{meeting}-in").touch()
        run_process(comm, model, int(shard), int(rounds), options)
    say(finished=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
