"""Tensors of more than 4 GiB, whose lengths and offsets do not fit into 32 bits."""

import random

import pytest
from rank_processes import Ranks

COUNT = (9 << 29) + 4099  # 4.5 GiB and a little, in bytes
RANKS = 2
# Both tensors, and what the library, numpy and the rest of the machine take.
NEEDED_BYTES = RANKS * COUNT + (3 << 30)


def available_bytes() -> int:
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0


@pytest.mark.parametrize("road", ["tcp", "memory"])
def test_more_than_four_gib_come_out_right_at_every_edge(road: str) -> None:
    available = available_bytes()
    if available < NEEDED_BYTES:
        pytest.skip(f"{available >> 20} MiB are free, {NEEDED_BYTES >> 20} MiB are needed")
    # Both collectives over both roads would take twice as long and show little more.
    collective = "all_reduce" if road == "memory" else "broadcast"
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    with Ranks(RANKS) as ranks:
        ranks.open(shared_memory=road == "memory")
        ranks.join(timeout_seconds=300)
        ranks.tell("large", collective=collective, count=COUNT, seed=seed)
        first, second = ranks.hear("done", seconds=300)
        assert first["wrong"] == second["wrong"] == 0
        assert first["digest"] == second["digest"]
