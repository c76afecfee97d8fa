"""Train together with whoever comes; members may be killed and may join at any time.

    pccl coordinator                                                       # prints an address
    python examples/train_elastic.py pccl://203.0.113.7:29400/my-run#K7Q... # on each machine

Kill one of them: the others lose no step. Start it again: it gets the model and the optimizer's
state, and goes on with the others. All members end with the same bytes, and print their digest.
"""
# mypy: disable-error-code="no-untyped-call"
# ruff: noqa: N806, N812 (tensor names end with their shape)

import argparse
import hashlib
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from corpus import load_corpus, sample_windows
from model import ByteLlama, ModelOptions

from pccl.process_group import elastic_ddp, sync_state


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("address", help="as `pccl coordinator` prints it")
    parser.add_argument("--members", type=int, default=1, help="begin when so many are in")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--text", default="devil")
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)
    corpus = load_corpus(options.text)
    # No rank and no world size need be known: whoever has the address comes in.
    dist.init_process_group("pccl", init_method=options.address, world_size=options.members)
    model = ByteLlama(ModelOptions())
    ddp = elastic_ddp(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    step = torch.zeros(1, dtype=torch.int64)
    random = torch.Generator()
    random.seed()  # everybody's own data
    print(f"joined as rank {dist.get_rank()} of {dist.get_world_size()}", flush=True)
    while True:
        # Newcomers come in here, and get what the others have.
        sync_state(ddp, optimizer, step=step)
        if step >= options.steps:
            break
        window = sample_windows(corpus.train, options.batch, model.options.context, random)
        logits_BTV = ddp(window[:, :-1])
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 10 == 0:
            members = dist.get_world_size()
            print(f"step {int(step):5d}  loss {loss:.3f}  members {members}", flush=True)
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    print(f"done: {int(step)} steps, model {digest.hexdigest()[:16]}", flush=True)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
