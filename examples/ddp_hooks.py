"""DistributedDataParallel whose gradients travel in fewer bytes: one line of registration.

torchrun --nproc-per-node 4 examples/ddp_hooks.py --hook int4_error_feedback
"""
# mypy: disable-error-code="no-untyped-call"

import argparse
import os
import sys

import torch
import torch.distributed as dist
from corpus import load_corpus, sample_windows
from model import ByteLlama, ModelOptions
from proof import all_gather_digests, digest_of_state
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import pccl
from pccl.launch import launch, run_rank


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hook", default="int8", help="bf16, int4_error_feedback, powersgd, none")
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    if "RANK" not in os.environ:
        return launch([sys.executable, *sys.argv], 2, environment={"OMP_NUM_THREADS": "1"})
    run_rank(lambda: train(options.hook, options.steps))


def train(hook: str, steps: int) -> int:
    dist.init_process_group("pccl")
    torch.manual_seed(0)
    text = load_corpus("devil").train
    ddp = DistributedDataParallel(ByteLlama(ModelOptions()))
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=3e-3)
    if hook in ("bf16", "int8"):
        ddp.register_comm_hook(None, getattr(pccl.hooks, hook))
    elif hook == "int4_error_feedback":
        feedback = pccl.hooks.ErrorFeedback(ddp)  # save its state_dict() too, on every rank
        ddp.register_comm_hook(feedback, pccl.hooks.int4_error_feedback)
    elif hook == "powersgd":
        ddp.register_comm_hook(pccl.hooks.PowerSGDState(None, 4), pccl.hooks.powersgd)
    random = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(steps):
        window = sample_windows(text, 8, 128, random)
        loss = cross_entropy(ddp(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    digests = set(all_gather_digests(digest_of_state(ddp.module, optimizer), None))
    print(f"{hook}: loss {loss.item():.3f}, {len(digests)} digest(s) of the model")
    dist.destroy_process_group()
    return len(digests) - 1


if __name__ == "__main__":
    sys.exit(main())
