"""DiLoCo in the Trainer of Lightning: a strategy.

diloco launch --members 4 examples/diloco_lightning.py
"""
# mypy: disable-error-code="no-untyped-call"

from typing import Any

import lightning
import torch
from torch import Tensor, nn

import diloco
import pccl
from diloco.lightning import DiLoCoStrategy
from diloco.session import Session

STEPS = 40


class Line(lightning.LightningModule):
    """Fits a line."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)  # type: ignore[no-any-return]

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        loss = nn.functional.mse_loss(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def main() -> diloco.SyncInfo | None:
    """The last merge."""
    torch.manual_seed(0)
    x = torch.randn(800, 4)
    data = torch.utils.data.TensorDataset(x, x @ torch.tensor([[1.0], [-2.0], [3.0], [0.5]]))
    with pccl.join() as comm:
        session = Session(comm, sync_every=10, warmup_sync_steps=10)
        lightning.Trainer(
            max_steps=STEPS, strategy=DiLoCoStrategy(session), logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        ).fit(Line(), torch.utils.data.DataLoader(data, batch_size=8, shuffle=True))  # fmt: skip
        assert session.run is not None
        return session.run.info


if __name__ == "__main__":
    print(main())
