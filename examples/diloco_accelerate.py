"""DiLoCo with Accelerate: the loop stays as it was.

diloco launch --members 4 examples/diloco_accelerate.py
"""
# mypy: disable-error-code="no-untyped-call"

import torch
from accelerate import Accelerator
from torch import nn

import diloco
import pccl
from diloco.session import inner_optimizer

STEPS = 60


def main() -> diloco.SyncInfo | None:
    """Fit a line, with accumulated gradients; the last merge."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    with (
        pccl.join() as comm,
        diloco.DiLoCo(
            comm, model, inner_optimizer(optimizer), sync_every=10, warmup_sync_steps=10
        ) as run,
    ):
        data = torch.Generator().manual_seed(run.rank)
        while run.step < STEPS:
            with accelerator.accumulate(model):
                x = torch.randn(8, 4, generator=data)
                y = x @ torch.tensor([1.0, -2.0, 3.0, 0.5])[:, None]
                loss = nn.functional.mse_loss(model(x), y)
                accelerator.backward(loss)
                run.log(loss=loss.detach())
                optimizer.step()
                optimizer.zero_grad()
    return run.info


if __name__ == "__main__":
    print(main())
