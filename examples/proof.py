"""Proof that ranks hold the same bytes: a sha256 of all that training changes, compared."""

import hashlib

import torch
import torch.distributed as dist
from torch import Tensor, nn

DIGEST_BYTES = hashlib.sha256().digest_size


def digest_of_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> bytes:
    """Return the sha256 of all parameters, buffers and optimizer state, names included."""
    sha = hashlib.sha256()

    def add(name: str, value: object) -> None:
        sha.update(name.encode())
        if isinstance(value, Tensor):
            sha.update(
                value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            )
        else:
            sha.update(repr(value).encode())

    for name, tensor in model.state_dict().items():
        add(name, tensor)
    for index, state in sorted(optimizer.state_dict()["state"].items()):
        for key, value in sorted(state.items()):
            add(f"{index}.{key}", value)
    return sha.digest()


def all_gather_digests(digest: bytes, group: dist.ProcessGroup | None) -> list[str]:
    """Return every rank's digest in hex, in rank order."""
    gathered = [
        torch.empty(DIGEST_BYTES, dtype=torch.uint8) for _ in range(dist.get_world_size(group))
    ]
    dist.all_gather(gathered, torch.tensor(list(digest), dtype=torch.uint8), group=group)
    return [bytes(tensor.tolist()).hex() for tensor in gathered]


def flip_one_bit(model: nn.Module) -> None:
    """Change the lowest bit of one weight: the smallest difference that the proof must find."""
    weight = next(model.parameters())
    with torch.no_grad():
        weight.view(-1).view(torch.int32)[0] ^= 1
