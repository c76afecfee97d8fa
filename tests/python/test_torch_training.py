"""torch's own users of a backend: DDP and hooks, FSDP2, DTensor, checkpoints, functional ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch_ranks import TorchRanks, checks

MODULES = ["torch_checks_training", "torch_checks_hooks", "torch_checks_diloco"]


@pytest.fixture(scope="module")
def ranks() -> Iterator[TorchRanks]:
    ranks = TorchRanks(4)
    yield ranks
    ranks.close()


@pytest.mark.parametrize(
    ("module", "check"), [(module, check) for module in MODULES for check in checks(module)]
)
def test_on_four_ranks(ranks: TorchRanks, module: str, check: str) -> None:
    ranks.run(module, check)
