"""A member of benchmarks/chaos.py: a step is a pause, an all_reduce and an update of the state.

Every element of every result is compared with what the members that are in it must give, and the
state is hashed before and after. Speaks as examples/demo_member.py does.
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import pccl

# The tensor of member m is BASE + number_of(m): small integers, so sums are exact.
PERIOD = 97
NUMBERS = 1000


def say(**what: object) -> None:
    print(json.dumps({"at": time.monotonic(), **what}), flush=True)


def number_of(member_id: str) -> int:
    return int(member_id, 16) % NUMBERS


def count_wrong(work: Any, tensor: np.ndarray[Any, Any], base: np.ndarray[Any, Any]) -> int:
    wrong, end = 0, 0
    for first, after, members, _ in work.contributions:
        assert first == end
        end = after
        expected = base[first:after] * np.float32(len(members))
        expected += np.float32(sum(map(number_of, members)))
        wrong += int((tensor[first:after] != expected).sum())
    return wrong + tensor.size - end


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--end", type=Path, required=True)
    parser.add_argument("--elements", type=int, default=1 << 20)
    parser.add_argument("--pause", type=float, default=0.05, help="seconds, for the computation")
    options = parser.parse_args()

    base = (np.arange(options.elements) % PERIOD).astype(np.float32)
    total = np.zeros(options.elements, np.float64)
    counters = np.zeros(2, np.int64)  # steps done, has ended
    with pccl.join(options.address, world_size_min=options.members) as comm:
        say(joined=comm.member_id, rank=comm.rank, quorum=comm.quorum_id)
        before = ""
        while True:
            comm.sync_state({"counters": counters, "total": total})
            if counters[1]:
                break
            before = before or hashlib.sha256(total.data).hexdigest()
            time.sleep(options.pause)
            tensor = base + np.float32(number_of(comm.member_id))
            work = comm.all_reduce(tensor, async_op=True)
            assert work is not None
            work.wait()
            wrong = count_wrong(work, tensor, base)
            ends = np.array([options.end.exists()], np.float32)
            comm.all_reduce(ends, "max")
            total += tensor
            counters += (1, int(ends[0]))
            after = hashlib.sha256(total.data).hexdigest()
            say(
                step=int(counters[0]),
                loss=float(wrong),
                tokens=1,
                contributors=[sorted(members) for _, _, members, _ in work.contributions],
                quorum=comm.quorum_id,
                members=comm.world_size,
                before=before,
                after=after,
            )
            before = after
        say(done=int(counters[0]), digest=hashlib.sha256(total.data).hexdigest())
    return 0


if __name__ == "__main__":
    sys.exit(main())
