"""One member that trains by DDP over an elastic group, for test_elastic_torch.py.

Prints a JSON object a line. Arguments: the run's address ("": PCCL_RUN has it), members to begin
with, steps, the step in whose backward pass this member kills itself (-1: none). All wait before
step HOLD_STEP until there are WORLD_SIZE of them.

Each member's gradients are drawn from its id and the step, so that every member can compute again
what the parameters must be from the contributors alone. TEST_DEVICE says where the model is.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import signal
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pccl.process_group import ElasticProcessGroup, elastic_ddp, sync_state

HOLD_STEP, WORLD_SIZE = 6, 3
SIZES = (1000, 1_300_003, 7, 900_001)


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def gradients(member: str, step: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(int(member, 16) * 1000 + step)
    drawn = [torch.randn(size, generator=random, device="cpu") for size in SIZES]
    return [gradient.to(torch.get_default_device()) for gradient in drawn]


class Model(torch.nn.Module):
    """Its gradients are what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList([torch.zeros(size) for size in SIZES])

    def forward(self, given: list[Tensor]) -> Tensor:
        return torch.stack([(w * g).sum() for w, g in zip(self.weights, given, strict=True)]).sum()


class Recorder:
    """Listens to the group's all_reduces; kills this process after the first one of a step."""

    def __init__(self, group: ElasticProcessGroup) -> None:
        self._all_reduce = group.allreduce
        self.works: list[Any] = []
        self.kills = False
        group.allreduce = self  # type: ignore[method-assign]

    def __call__(self, tensors: Any, *options: Any) -> Any:
        work = self._all_reduce(tensors, *options)
        if tensors[0].dtype == torch.float32:
            self.works.append(work)
            if self.kills:
                os.kill(os.getpid(), signal.SIGKILL)
        return work


def expected_average(works: list[Any], model: Model, step: int) -> tuple[list[Tensor], list[int]]:
    """The average gradients by the contributors of each element, and how many those were."""
    average = [torch.zeros(size) for size in SIZES]
    counts = []
    left = list(model.weights)
    for work in works:
        elements = work.outputs[0].numel()
        # A bucket holds whole parameters, last ones first; the order within is the model's.
        inside: list[int] = []
        while sum(SIZES[i] for i in inside) < elements:
            left.pop()
            inside.insert(0, len(left))
        assert sum(SIZES[i] for i in inside) == elements
        bucket = torch.zeros(elements)
        for begin, end, members, weight in work.contributions:
            assert weight == len(members) == len(set(members))
            counts.append(len(members))
            for member in members:
                drawn = gradients(member, step)
                bucket[begin:end] += torch.cat([drawn[i] for i in inside])[begin:end] / len(members)
        for i, part in zip(inside, bucket.split([SIZES[i] for i in inside]), strict=True):
            average[i] = part
    assert not left
    return average, counts


def digest(tensors: list[Tensor]) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def main() -> None:
    members, steps, fatal_step = map(int, sys.argv[2:5])
    torch.set_default_device(os.environ.get("TEST_DEVICE", "cpu"))
    dist.init_process_group("pccl", init_method=sys.argv[1] or None, world_size=members)
    group = dist.group.WORLD
    assert isinstance(group, ElasticProcessGroup)
    say(member=group.communicator.member_id, rank=dist.get_rank(), world_size=dist.get_world_size())
    model = Model()
    ddp = elastic_ddp(model, bucket_cap_mb=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.125, eps=0.01)
    done = torch.zeros(1, dtype=torch.int64)
    again = Model()  # trained with what the gradients must be
    recorder = Recorder(group)
    while True:
        sync_state(ddp, optimizer, done=done)
        step = int(done)
        if step >= steps:
            break
        if step == HOLD_STEP and dist.get_world_size() < WORLD_SIZE:
            time.sleep(0.05)
            continue
        say(at=step)
        again.load_state_dict(model.state_dict())
        optimizer_again = torch.optim.AdamW(again.parameters(), lr=0.125, eps=0.01)
        optimizer_again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        recorder.works.clear()
        recorder.kills = step == fatal_step
        optimizer.zero_grad()
        ddp(gradients(group.communicator.member_id, step)).backward()
        average, counts = expected_average(recorder.works, model, step)
        for weight, own, expected in zip(model.weights, again.weights, average, strict=True):
            assert weight.grad is not None
            assert (weight.grad - expected).abs().max() < 1e-5
            own.grad = expected
        optimizer.step()
        optimizer_again.step()
        for weight, own in zip(model.weights, again.weights, strict=True):
            # eps keeps Adam from dividing last digits by next to nothing.
            assert (weight - own).detach().abs().max() < 1e-4
        done += 1
        say(
            step=step,
            counts=counts,
            world_size=dist.get_world_size(),
            ranks=dist.get_process_group_ranks(group),
            rank=dist.get_rank(),
            digest=digest(list(model.weights)),
        )
    moments = [optimizer.state[w][key] for w in model.weights for key in sorted(optimizer.state[w])]
    say(final=digest([*model.weights, *moments]), steps=int(done))
    assert '"quorum_entered"' in group.flight_record()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
