"""The torch.distributed backend: what each check's name claims holds on real processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch_ranks import TorchRanks, checks

pytest.importorskip("torch")

COLLECTIVES = "torch_checks_collectives"
MESSAGES = "torch_checks_messages"
GROUPS = "torch_checks_groups"
# Each check with the module it is in.
ALL = [(module, check) for module in (COLLECTIVES, MESSAGES, GROUPS) for check in checks(module)]


@pytest.fixture(scope="module")
def four_ranks() -> Iterator[TorchRanks]:
    ranks = TorchRanks(4)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def three_ranks_over_tcp() -> Iterator[TorchRanks]:
    ranks = TorchRanks(3, PCCL_SHARED_MEMORY="0", PCCL_SOCKETS="2")
    yield ranks
    ranks.close()


@pytest.mark.parametrize(("module", "check"), ALL, ids=[check for _, check in ALL])
def test_on_four_ranks(four_ranks: TorchRanks, module: str, check: str) -> None:
    four_ranks.run(module, check)


@pytest.mark.parametrize("check", checks(COLLECTIVES))
def test_on_three_ranks_over_tcp(three_ranks_over_tcp: TorchRanks, check: str) -> None:
    three_ranks_over_tcp.run(COLLECTIVES, check)
