"""One rank of a benchmark: joins the groups, then times and checks each size and placement.

Per size and placement, with groups A and B (B only with --compare):

    warm up A, B                      and learn from it how many calls make a repetition
    repetition 1: A, B    repetition 2: B, A    repetition 3: A, B    ...
        each: barrier, `iterations` calls back to back, clock
    check A, B                        with fresh data, against the formula

The time of a repetition is the slowest rank's. What ranks tell each other about a benchmark travels
through the store, never through the backend that is measured.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from pccl._autoload import register
from pccl.bench.collectives import (
    Buffers,
    Call,
    Case,
    bus_factor,
    count_wrong,
    fill,
    make_call,
    make_case,
)
from pccl.bench.exchange import StoreExchange
from pccl.bench.loss import measure_loss
from pccl.bench.options import BenchOptions, sizes
from pccl.bench.result import PLACEMENTS, Measurement, Row, spread
from pccl.config import Config

__all__ = ["Rank", "join", "measure"]

ITERATIONS_MAX = 10_000
REPETITIONS_MIN = 5  # below, p10 and p90 mean nothing
REPETITIONS_MAX = 21

Group = dist.ProcessGroup | None


@dataclass(frozen=True)
class Rank:
    """This process's place in the benchmark."""

    rank: int
    world_size: int
    groups: dict[str, Group]  # backend -> group of all ranks
    exchange: StoreExchange


def measure(options: BenchOptions, rank: Rank, on_row: Callable[[Row], None]) -> list[Row]:
    """Measure one collective; `on_row` hears of each row as it is ready, on every rank.

    Raises:
        RuntimeError: a backend cannot do the collective, or a rank is lost; nothing is cleaned up
        then.
    """
    largest = max(
        make_case(options, size, rank.rank, rank.world_size).bytes for size in sizes(options)
    )
    dtype: torch.dtype = getattr(torch, options.dtype)
    buffers = Buffers(largest // dtype.itemsize, dtype)
    rows: list[Row] = []
    for size in sizes(options):
        case = make_case(options, size, rank.rank, rank.world_size)
        if rows and rows[-1].count == case.count:
            continue  # rounded up to the same one element per part
        rows.append(measure_row(options, case, rank, buffers))
        on_row(rows[-1])
    return rows


def join(options: BenchOptions) -> Rank:
    """Join the other ranks, by the environment that torchrun and `pccl.launch` set."""
    register()  # torch does it by itself where pccl is installed; a checkout need not be
    torch.set_num_threads(1)
    store, rank, world_size = next(iter(rendezvous("env://")))
    if not 0 <= options.root < world_size:
        raise ValueError(f"bench: root {options.root} is no rank of {world_size}")
    dist.init_process_group(
        options.backend,
        store=PrefixStore("groups", store),
        rank=rank,
        world_size=world_size,
    )
    groups: dict[str, Group] = {options.backend: dist.group.WORLD}
    if options.compare:
        again = " #2" if options.compare == options.backend else ""
        groups[options.compare + again] = dist.new_group(backend=options.compare)
    for codec in options.codecs:
        config = dataclasses.replace(Config.from_environment(), codec=codec)
        groups[codec] = dist.new_group(pg_options=config)
    exchange = StoreExchange(PrefixStore("bench", store), rank, world_size)
    return Rank(rank, world_size, groups, exchange)


def measure_row(options: BenchOptions, case: Case, rank: Rank, buffers: Buffers) -> Row:
    """Measure one size: each placement, each backend."""
    measured: dict[str, dict[str, Measurement]] = {backend: {} for backend in rank.groups}
    for placement in PLACEMENTS:
        in_place = placement == "in_place"
        if in_place and not case.has_in_place:
            continue
        if case.has_in_place and placement not in options.placements:
            continue
        source, target = buffers.of(case, in_place=in_place)
        call = make_call(case, source, target)
        # Zeros stay zeros under every operation, however often a result is reduced again in place.
        source.zero_()
        target.zero_()
        seconds, iterations = time_in_turn(options, call, rank)
        for backend, group in rank.groups.items():
            is_coded, wrong, loss = backend in options.codecs, None, None
            if is_coded or options.error:
                loss = measure_loss(case, call, group, rank.exchange, target)
            if options.check and loss is not None and is_coded:
                wrong = loss.differing
            elif options.check:
                wrong = check(case, call, group, rank.exchange, source, target)
            median = spread(seconds[backend]).p50
            bandwidth = case.bytes / median / 1e9
            measured[backend][placement] = Measurement(
                seconds=seconds[backend],
                iterations=iterations[backend],
                algorithm_bandwidth=bandwidth,
                bus_bandwidth=bandwidth * bus_factor(case.collective, case.world_size),
                wrong=wrong,
                wire_bytes=None if loss is None else loss.wire_bytes,
                error=None if loss is None else loss.error,
            )
    dtype = "none" if case.collective == "barrier" else options.dtype
    return Row(
        case.collective, case.bytes, case.count, dtype, case.shown_op, case.shown_root, measured
    )


def check(
    case: Case, call: Call, group: Group, exchange: StoreExchange, source: Tensor, target: Tensor
) -> int:
    """Return how many values are wrong on all ranks; of a barrier, how many ranks left early."""
    if case.collective == "barrier":
        own = exchange.left_early(lambda: call(group))
    else:
        fill(case, source, target)
        call(group)
        own = count_wrong(case, target)
    return sum(int(count) for (count,) in exchange.all_gather([own]))


def time_in_turn(
    options: BenchOptions, call: Call, rank: Rank
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Return backend -> seconds per call [repetitions], and backend -> calls per repetition."""
    one_call: dict[str, float] = {}
    for backend, group in rank.groups.items():
        warm = [time_calls(call, group, 1) for _ in range(max(1, options.warmup))]
        (one_call[backend],) = rank.exchange.slowest([min(warm)])
    repetitions = options.repetitions or round(options.seconds / max(one_call.values()))
    if not options.repetitions:
        repetitions = max(REPETITIONS_MIN, min(REPETITIONS_MAX, repetitions))
    iterations = {
        backend: options.iterations
        or max(1, min(ITERATIONS_MAX, int(options.seconds / repetitions / seconds)))
        for backend, seconds in one_call.items()
    }
    local: dict[str, list[float]] = {backend: [] for backend in rank.groups}
    for repetition in range(repetitions):
        # A, B, then B, A: neither is always the one that follows the other.
        order = list(rank.groups.items())[:: -1 if repetition % 2 else 1]
        for backend, group in order:
            local[backend].append(time_calls(call, group, iterations[backend]))
    return {
        backend: rank.exchange.slowest(seconds) for backend, seconds in local.items()
    }, iterations


def time_calls(call: Call, group: Group, iterations: int) -> float:
    """Return this rank's seconds per call, over `iterations` calls that begin together."""
    dist.barrier(group)
    began = time.perf_counter()
    for _ in range(iterations):
        call(group)
    return (time.perf_counter() - began) / iterations
