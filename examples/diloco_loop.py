"""DiLoCo in a loop of one's own; members come and die as they like.

diloco launch --members 4 examples/diloco_loop.py
"""
# mypy: disable-error-code="no-untyped-call"

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import diloco
import pccl
from diloco.sampler import RoundSampler, rounds
from diloco.schedule import RunSchedule, cosine

STEPS = 60


def main() -> diloco.SyncInfo | None:
    """Fit a line; the last merge."""
    torch.manual_seed(0)
    inputs = torch.randn(500, 4)
    targets = inputs @ torch.tensor([1.0, -2.0, 3.0, 0.5])[:, None]
    model = nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    sampler = RoundSampler(len(inputs), batch=8)
    data: DataLoader[tuple[Tensor, ...]] = DataLoader(
        torch.utils.data.TensorDataset(inputs, targets), batch_sampler=sampler
    )
    with (
        pccl.join() as comm,  # whom PCCL_RUN names
        diloco.DiLoCo(
            comm, model, optimizer, sync_every=10, warmup_sync_steps=10, sampler=sampler
        ) as run,
    ):
        RunSchedule(optimizer, cosine(STEPS), lambda: run.step)
        for x, y in rounds(data):
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            run.log(loss=loss.detach())
            optimizer.step()
            optimizer.zero_grad()
            if run.step >= STEPS:
                break
    return run.info


if __name__ == "__main__":
    print(main())
