"""Ranks that call different things: CallMismatch on every one of them, with both calls in the text.

Where a collective has a root, a rank that got all it needs may end its call; it reads the same in
its next one, which is a barrier here.
"""

import random
from typing import Any

import pytest
from rank_processes import Event, Ranks

Spec = dict[str, Any]
ROADS = ["tcp", "memory"]
# A mismatch is found when the first frames meet; this is only what a busy machine may need.
TIMEOUT_SECONDS = 8.0
SOON_SECONDS = 4.0


def calls_of(common: Spec, different: Spec, world_size: int, odd: int) -> list[list[Spec]]:
    """By rank: one call, that of rank `odd` is different; then a barrier."""
    return [
        [{**common, **(different if rank == odd else {})}, {"collective": "barrier"}]
        for rank in range(world_size)
    ]


# What all call, what one rank calls instead, and a word of each call that everybody reads.
ONE_DIFFERS: dict[str, tuple[Spec, Spec, str, str]] = {
    "count": ({"collective": "all_reduce"}, {"count": 1001}, "float32[1000]", "float32[1001]"),
    "large count": (
        {"collective": "all_reduce", "count": 3_000_000},
        {"count": 3_000_001},
        "float32[3000000]",
        "float32[3000001]",
    ),
    "small and large": (
        {"collective": "all_reduce", "count": 1},
        {"count": 3_000_000},
        "float32[1]",
        "float32[3000000]",
    ),
    "dtype": ({"collective": "all_reduce"}, {"dtype": "int32"}, "float32[", "int32["),
    "op": ({"collective": "all_reduce"}, {"op": "max"}, "sum", "max"),
    "broadcast count": ({"collective": "broadcast"}, {"count": 999}, "[1000]", "[999]"),
    "broadcast dtype": ({"collective": "broadcast"}, {"dtype": "int8"}, "float32", "int8"),
    "broadcast root": ({"collective": "broadcast"}, {"root": 1}, "root 0", "root 1"),
    "reduce root": ({"collective": "reduce"}, {"root": 1}, "root 0", "root 1"),
    "reduce op": ({"collective": "reduce"}, {"op": "product"}, "sum", "product"),
    "gather root": ({"collective": "gather"}, {"root": 1}, "root 0", "root 1"),
    "scatter root": ({"collective": "scatter"}, {"root": 1}, "root 0", "root 1"),
    "gather dtype": ({"collective": "gather"}, {"dtype": "int64"}, "float32", "int64"),
    "all_gather dtype": ({"collective": "all_gather"}, {"dtype": "float64"}, "32", "float64"),
    "all_gather count": ({"collective": "all_gather"}, {"count": 7}, "gather", "gather"),
    "reduce_scatter op": ({"collective": "reduce_scatter"}, {"op": "min"}, "sum", "min"),
    "reduce_scatter count": ({"collective": "reduce_scatter"}, {"count": 7}, "scatter", "scatter"),
    "all_to_all dtype": ({"collective": "all_to_all"}, {"dtype": "int16"}, "float32", "int16"),
    "all_to_all count": ({"collective": "all_to_all"}, {"count": 7}, "28", "4000"),
    "barrier and all_reduce": (
        {"collective": "barrier"},
        {"collective": "all_reduce"},
        "barrier()",
        "all_reduce(",
    ),
    "all_gather and all_to_all": (
        {"collective": "all_gather"},
        {"collective": "all_to_all"},
        "all_gather(",
        "all_to_all(",
    ),
    "broadcast and reduce": (
        {"collective": "broadcast"},
        {"collective": "reduce"},
        "broadcast(",
        "reduce(",
    ),
    "reduce_scatter and all_reduce": (
        {"collective": "reduce_scatter"},
        {"collective": "all_reduce", "count": 2_000_000},
        "reduce_scatter(",
        "all_reduce(",
    ),
}


def several(world_size: int) -> dict[str, tuple[list[list[Spec]], str, str]]:
    """By name: calls by rank, and a word of each side."""
    uneven = [3 + rank for rank in range(world_size)]
    other = [*uneven[:-1], 50]
    swapped = [{"collective": "all_reduce"}, {"collective": "barrier"}]
    six = [{"collective": "all_reduce", "count": 10 + index} for index in range(6)]
    six_swapped = [*six[:4], six[5], six[4]]
    last = world_size - 1
    return {
        "order": (
            [swapped if rank else swapped[::-1] for rank in range(world_size)],
            "all_reduce(",
            "barrier()",
        ),
        "order of equal calls": (
            [six if rank else six_swapped for rank in range(world_size)],
            "float32[14]",
            "float32[15]",
        ),
        "sizes of all_gather": (
            [
                [{"collective": "all_gather", "counts": other if rank == last else uneven}]
                for rank in range(world_size)
            ],
            "all_gather",
            "sizes differ",
        ),
        "splits of all_to_all": (
            [
                [
                    {
                        "collective": "all_to_all",
                        "counts": [5] * world_size,
                        "receives": [5] * last + [4 if rank == 0 else 5],
                    }
                ]
                for rank in range(world_size)
            ],
            "all_to_all",
            "sizes differ",
        ),
        "nothing expected, something sent": (
            [
                [
                    {
                        "collective": "all_to_all",
                        "counts": [5] * world_size,
                        "receives": [0 if rank == 1 else 5] + [5] * last,
                    }
                ]
                for rank in range(world_size)
            ],
            "all_to_all",
            "sizes differ",
        ),
    }  # fmt: skip


def check(results: list[Event], index: int, name: str, first: str, second: str) -> None:
    for rank, event in enumerate(results):
        result = event["results"][index]
        where = (name, rank, result)
        assert result["errors"], where
        error = result["errors"][0]
        assert error["kind"] == "CallMismatch", where
        assert first in error["text"], where
        assert second in error["text"], where
        assert result["seconds"] < SOON_SECONDS, where


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_different_calls_are_an_error_on_every_rank_that_names_both(
    world_size: int, road: str
) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    generator = random.Random(seed)
    cases: dict[str, tuple[list[list[Spec]], str, str]] = {}
    for name, (common, different, first, second) in ONE_DIFFERS.items():
        # Where the root differs, that rank is the other root: each waits for somebody.
        odd = 1 if "root" in different else generator.randrange(world_size)
        cases[name] = (calls_of(common, different, world_size, odd), first, second)
    for name, (calls, first, second) in several(world_size).items():
        cases[name] = ([[*of_rank, {"collective": "barrier"}] for of_rank in calls], first, second)
    with Ranks(world_size) as ranks:
        ranks.open(shared_memory=road == "memory")
        ranks.join()
        for rank in ranks:
            rank.tell(
                "call_each",
                specs=[calls[rank.number] for calls, _, _ in cases.values()],
                addresses=ranks.addresses,
                timeout_seconds=TIMEOUT_SECONDS,
            )
        results = ranks.hear("done", seconds=120)
        for index, (name, (_, first, second)) in enumerate(cases.items()):
            check(results, index, name, first, second)


POOL: list[Spec] = [
    {"collective": name, **more}
    for name in ("all_reduce", "broadcast", "reduce", "all_gather", "reduce_scatter", "gather",
                 "scatter", "all_to_all", "barrier")
    for more in ({}, {"count": 1}, {"count": 400_000}, {"root": 1}, {"dtype": "int32"})
]  # fmt: skip


def signature(spec: Spec) -> tuple[object, ...]:
    """What two calls must have in common to be one."""
    name = spec["collective"]
    if name == "barrier":
        return (name,)
    root = spec.get("root", 0) if name in ("broadcast", "reduce", "gather", "scatter") else 0
    return name, spec.get("count", 1000), spec.get("dtype", "float32"), root


@pytest.mark.parametrize("road", ROADS)
def test_random_pairs_of_calls_never_hang_and_never_succeed(road: str) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    generator = random.Random(seed)
    world_size = 3
    cases: list[list[list[Spec]]] = []
    while len(cases) < 40:
        common, different = generator.sample(POOL, 2)
        if signature(common) != signature(different):
            odd = generator.randrange(world_size)
            barrier = {"collective": "barrier"}
            cases.append(
                [[different if rank == odd else common, barrier] for rank in range(world_size)]
            )
    with Ranks(world_size) as ranks:
        ranks.open(shared_memory=road == "memory")
        ranks.join()
        for rank in ranks:
            rank.tell(
                "call_each",
                specs=[calls[rank.number] for calls in cases],
                addresses=ranks.addresses,
                timeout_seconds=TIMEOUT_SECONDS,
            )
        results = ranks.hear("done", seconds=120)
        for index, calls in enumerate(cases):
            for rank, event in enumerate(results):
                errors = event["results"][index]["errors"]
                assert {error["kind"] for error in errors} == {"CallMismatch"}, (
                    calls,
                    rank,
                    errors,
                )


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("sent", [{"count": 11}, {"dtype": "int32"}, {"count": 2_000_000}])
def test_a_message_that_does_not_fit_is_an_error_of_its_receiver(sent: Spec, road: str) -> None:
    with Ranks(2) as ranks:
        ranks.open(shared_memory=road == "memory")
        ranks.join(timeout_seconds=3)
        message = {"collective": "send", "peer": 1, "count": 10, **sent}
        ranks[0].tell("call", spec=message)
        ranks[1].tell("call", spec={"collective": "recv", "peer": 0, "count": 10})
        event = ranks[1].hear("error")
        assert event["kind"] == "CallMismatch", event
        assert ranks.name(0) in event["text"], event
        assert f"[{message['count']}]" in event["text"], event
        ranks[0].hear("done", "error")
        # Messages do not break their group.
        ranks.ask("call", spec={"collective": "all_reduce"})


def test_mismatches_through_the_api_read_the_same() -> None:
    port = 29_000 + random.randrange(1000)
    print(f"port {port}")
    cases = {name: ONE_DIFFERS[name] for name in ("count", "dtype", "op", "broadcast root")}
    with Ranks(3) as ranks:
        for rank in ranks:
            rank.tell("init", method=f"tcp://127.0.0.1:{port}", rank=rank.number, world_size=3)
        ranks.hear("done")
        for rank in ranks:
            specs = [{**c, **(d if rank.number == 1 else {})} for c, d, _, _ in cases.values()]
            rank.tell("call_each_api", specs=specs, timeout_seconds=TIMEOUT_SECONDS)
        results = ranks.hear("done", seconds=60)
        for index, (name, (_, _, first, second)) in enumerate(cases.items()):
            check(results, index, name, first, second)


@pytest.mark.parametrize("road", ROADS)
def test_who_calls_after_the_others_have_ended_still_hears_both_calls(road: str) -> None:
    with Ranks(3) as ranks:
        ranks.open(shared_memory=road == "memory")
        ranks.join()
        ranks[0].tell("call", spec={"collective": "all_reduce"})
        ranks[1].tell("call", spec={"collective": "all_reduce", "dtype": "int32"})
        for rank in ranks.but(2):
            assert rank.hear("error")["kind"] == "CallMismatch"
            rank.tell("close")
            rank.hear("done")
        for rank in ranks.but(2):
            rank.finish()
        ranks[2].tell("call", spec={"collective": "all_reduce"})
        error = ranks[2].hear("error")
        assert error["kind"] == "CallMismatch", error
        assert "float32[1000]" in error["text"], error
        assert "int32[1000]" in error["text"], error
