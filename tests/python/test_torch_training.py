"""torch's own users of a backend: DDP, FSDP2, DTensor, checkpoints, functional collectives."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch_ranks import TorchRanks, checks

MODULE = "torch_checks_training"


@pytest.fixture(scope="module")
def ranks() -> Iterator[TorchRanks]:
    ranks = TorchRanks(4)
    yield ranks
    ranks.close()


@pytest.mark.parametrize("check", checks(MODULE))
def test_on_four_ranks(ranks: TorchRanks, check: str) -> None:
    ranks.run(MODULE, check)
