"""Train together with whoever comes; members may be killed and may join at any time.

    pccl coordinator                                                       # prints an address
    python examples/train_elastic.py pccl://203.0.113.7:29400/my-run       # on each machine

Kill one of them: the others lose no step. Start it again: it gets the model and the optimizer's
state, and goes on with the others. All members end with the same bytes, and print their digest.
"""
# mypy: disable-error-code="no-untyped-call"
# ruff: noqa: N806, N812 (tensor names end with their shape)

import argparse
import hashlib
import sys

import torch
import torch.nn.functional as F
from corpus import load_corpus, sample_windows
from model import ByteLlama, ModelOptions
from torch import Tensor

import pccl


def shared_state(model: ByteLlama, optimizer: torch.optim.AdamW, step: Tensor) -> dict[str, Tensor]:
    """Everything that a newcomer needs, by name. AdamW makes its part at its first step; here."""
    state = {"step": step}
    for name, parameter in model.named_parameters():
        own = optimizer.state[parameter]
        if not own:
            own["step"] = torch.zeros(())
            own["exp_avg"] = torch.zeros_like(parameter)
            own["exp_avg_sq"] = torch.zeros_like(parameter)
        state[name] = parameter.detach()
        state |= {f"{name}.{part}": own[part] for part in ("step", "exp_avg", "exp_avg_sq")}
    return state


def average_gradients(comm: pccl.ElasticCommunicator, model: ByteLlama) -> None:
    """Replace each gradient by the average over the members that contributed; one all_reduce."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    bucket = torch.cat([gradient.flatten() for gradient in gradients])
    comm.all_reduce(bucket, "avg")
    for gradient, part in zip(gradients, bucket.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


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
    model = ByteLlama(ModelOptions())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    step = torch.zeros(1, dtype=torch.int64)
    state = shared_state(model, optimizer, step)

    with pccl.join(options.address, world_size_min=options.members) as comm:
        random = torch.Generator().manual_seed(int(comm.member_id, 16))  # everybody's own data
        print(f"joined as rank {comm.rank} of {comm.world_size}", flush=True)
        while step < options.steps:
            # Newcomers come in here, and get what the others have.
            comm.sync_state(state)
            if step >= options.steps:
                break
            window = sample_windows(corpus.train, options.batch, model.options.context, random)
            logits_BTV = model(window[:, :-1])
            loss = F.cross_entropy(logits_BTV.flatten(0, 1), window[:, 1:].flatten())
            optimizer.zero_grad(set_to_none=False)
            loss.backward()
            average_gradients(comm, model)
            optimizer.step()
            step += 1
            if step % 10 == 0:
                print(
                    f"step {int(step):5d}  loss {loss:.3f}  members {comm.world_size}  "
                    f"quorum {comm.quorum_id}",
                    flush=True,
                )
        digest = hashlib.sha256()
        for name in sorted(state):
            digest.update(state[name].contiguous().numpy().tobytes())
        print(f"done: {int(step)} steps, state {digest.hexdigest()[:16]}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
