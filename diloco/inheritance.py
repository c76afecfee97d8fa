"""A newcomer's inner optimizer begins with the mean of the others' state."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from diloco.members import Members, Travel
from pccl.process_group.training import OptimizerState

__all__ = ["inherit"]


def inherit(members: Members, optimizer: Optimizer, *, is_new: bool, givers: int) -> None:
    """Give newcomers the mean of the inner optimizers' state; the others keep theirs.

    The mean and not one member's: whoever dies meanwhile takes nothing away. One all_reduce of all
    that the optimizer keeps, 8 bytes a parameter for AdamW, and as much memory while it lasts.
    """
    state = OptimizerState(optimizer)
    # The numbers of the groups, learning rates among them, are functions of the run's step.
    names = [name for name in sorted(state.tensors) if name != "optimizer.numbers"]
    parts = [state.tensors[name] for name in names]
    if not parts:
        return
    flat = torch.cat([part.detach().float().reshape(-1).cpu() for part in parts])
    if is_new:
        flat.zero_()
    members.average(flat, Travel(0.0 if is_new else 1.0, float(givers)))
    if not is_new:
        return
    means = flat.split([part.numel() for part in parts])  # type: ignore[no-untyped-call]
    for part, mean in zip(parts, means, strict=True):
        part.copy_(mean.view(part.shape))
    state.install()
