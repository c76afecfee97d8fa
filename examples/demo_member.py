"""One member of `pccl demo`: trains over pccl.join, and says of each step what it did.

Each line on its standard output is one JSON object: what it holds before a step and after it (as a
digest of the whole state), whose gradients are in it, its loss, and when it was done.
"""
# mypy: disable-error-code="no-untyped-call"
# ruff: noqa: N806, N812 (tensor names end with their shape)

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from corpus import load_corpus, sample_windows
from model import ByteLlama, ModelOptions
from torch import Tensor

import pccl


def say(**what: object) -> None:
    """One line for the demo; its clock is that of the whole machine."""
    print(json.dumps({"at": time.monotonic(), **what}), flush=True)


def shared_state(model: ByteLlama, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """What a newcomer needs, by name. AdamW makes its part at its first step; here."""
    state = {}
    for name, parameter in model.named_parameters():
        own = optimizer.state[parameter]
        own["step"] = torch.zeros(())
        own["exp_avg"] = torch.zeros_like(parameter)
        own["exp_avg_sq"] = torch.zeros_like(parameter)
        state[name] = parameter.detach()
        state |= {f"{name}.{part}": own[part] for part in ("step", "exp_avg", "exp_avg_sq")}
    return state


def digest_of(state: dict[str, Tensor]) -> str:
    """Of every byte that the members share."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(state[name].contiguous().numpy().data)
    return digest.hexdigest()


def average(
    comm: pccl.ElasticCommunicator, model: ByteLlama, loss: float, wants_end: bool
) -> tuple[float, bool, list[list[str]]]:
    """Average the gradients, and with them the loss and the wish to end, in one all_reduce.

    Returns the loss, whether anybody wants to end (the same on every member), and whose gradients
    the elements hold: one list of member ids for each range that differs from its neighbour.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    bucket = torch.cat(
        [*(gradient.flatten() for gradient in gradients), torch.tensor([loss, float(wants_end)])]
    )
    work = comm.all_reduce(bucket, "avg", async_op=True)
    assert work is not None
    work.wait()
    parts = bucket.split([*(gradient.numel() for gradient in gradients), 1, 1])
    for gradient, part in zip(gradients, parts, strict=False):
        gradient.copy_(part.view_as(gradient))
    contributors = [sorted(members) for _, _, members, _ in work.contributions]
    return float(parts[-2]), bool(parts[-1] > 0), contributors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--members", type=int, default=1, help="begin when so many are in")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0, help="of the model")
    parser.add_argument("--end", type=Path, required=True, help="all end once this file is there")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    corpus = load_corpus("devil")
    model = ByteLlama(ModelOptions(channels=options.channels, hidden=options.channels * 11 // 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    counters = {"step": torch.zeros(1, dtype=torch.int64), "ended": torch.zeros(1)}
    state = counters | shared_state(model, optimizer)

    with pccl.join(options.address, world_size_min=options.members) as comm:
        say(joined=comm.member_id, rank=comm.rank, quorum=comm.quorum_id)
        random = torch.Generator().manual_seed(int(comm.member_id, 16))  # everybody's own data
        while True:
            comm.sync_state(state)
            if counters["ended"]:
                break
            before = digest_of(state)
            window = sample_windows(corpus.train, options.batch, model.options.context, random)
            logits_BTV = model(window[:, :-1])
            loss = F.cross_entropy(logits_BTV.flatten(0, 1), window[:, 1:].flatten())
            optimizer.zero_grad(set_to_none=False)
            loss.backward()
            mean, ends, contributors = average(comm, model, loss.item(), options.end.exists())
            optimizer.step()
            counters["step"] += 1
            counters["ended"].fill_(float(ends))
            say(
                step=int(counters["step"]),
                loss=mean,
                tokens=options.batch * model.options.context,
                contributors=contributors,
                quorum=comm.quorum_id,
                members=comm.world_size,
                before=before,
                after=digest_of(state),
            )
        say(done=int(counters["step"]), digest=digest_of(state))
    return 0


if __name__ == "__main__":
    sys.exit(main())
