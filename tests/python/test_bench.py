"""The benchmark's own arithmetic, and small runs of it in real processes."""

import hashlib
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from pccl.bench.collectives import (  # noqa: E402
    PATTERN_COUNT,
    Buffers,
    bus_factor,
    count_wrong,
    expected_pattern,
    fill,
    make_case,
)
from pccl.bench.exchange import StoreExchange  # noqa: E402
from pccl.bench.loss import measure_loss  # noqa: E402
from pccl.bench.options import (  # noqa: E402
    COLLECTIVES,
    BenchOptions,
    format_bytes,
    parse_bytes,
    sizes,
)
from pccl.bench.result import Measurement, Row, spread  # noqa: E402

RUN_SECONDS = 120
SIZES = [1, 2, 7, PATTERN_COUNT - 1, PATTERN_COUNT, PATTERN_COUNT + 1, 200_003]


def run_bench(
    *arguments: str, launcher: Sequence[str] = ("-m", "pccl"), **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *launcher, "bench", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )


# --- sizes ---


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("4", 4), ("4K", 4096), ("4k", 4096), ("256M", 2**28), ("1G", 2**30)],
)
def test_sizes_are_read_in_powers_of_1024(text: str, count: int) -> None:
    assert parse_bytes(text) == count
    assert format_bytes(count) == text.upper()


@pytest.mark.parametrize("text", ["", "K", "-4", "4.5M", "4T", "four"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_bytes(text)


def test_sizes_grow_by_the_factor_up_to_the_last() -> None:
    assert sizes(BenchOptions(bytes_min=4, bytes_max=300, factor=4)) == [4, 16, 64, 256]
    assert sizes(BenchOptions(bytes_list=(300, 4))) == [4, 300]
    assert sizes(BenchOptions(collective="barrier")) == [0]


def test_collectives_are_one_or_several_or_all() -> None:
    assert [one.collective for one in BenchOptions(collective="reduce,barrier").each()] == [
        "reduce",
        "barrier",
    ]
    assert [one.collective for one in BenchOptions(collective="all").each()] == list(COLLECTIVES)


@pytest.mark.parametrize(
    "wrong",
    [
        {"collective": "all_of_them"},
        {"collective": "reduce,"},
        {"collective": "barrier", "plot_path": "a.png"},
        {"collective": "all", "plot_path": "a.png"},
        {"bytes_list": (4, 0)},
        {"placement": "above"},
        {"dtype": "complex64"},
        {"op": "mean"},
        {"op": "bxor"},  # of float32
        {"op": "avg", "dtype": "int32"},
        {"transport": "pigeon"},
        {"codec": "int9"},
        {"codec": "topk:64"},
        {"codec": "int8,int8"},
        {"codec": "int8", "compare": "gloo"},
        {"codec": "int8", "op": "max"},
        {"error": True, "dtype": "int32"},
        {"error": True, "collective": "broadcast"},
        {"error": True, "placement": "out_of_place"},
        {"processes": 0},
        {"bytes_min": 8, "bytes_max": 4},
        {"factor": 1},
    ],
)
def test_options_that_cannot_run_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="bench: "):
        BenchOptions(**wrong)


# --- arithmetic ---


def test_bus_factors_are_those_of_nccl_tests() -> None:
    assert bus_factor("all_reduce", 4) == 1.5
    assert bus_factor("all_gather", 4) == bus_factor("reduce_scatter", 4) == 0.75
    assert bus_factor("all_to_all", 2) == 0.5
    assert bus_factor("broadcast", 4) == bus_factor("reduce", 4) == 1


def test_spread_is_median_and_the_middle_80_percent() -> None:
    whole = spread([float(value) for value in range(101)])
    assert (whole.p10, whole.p50, whole.p90) == (10, 50, 90)
    assert spread([3.0]).p90 == 3


def test_ratios_are_paired_by_repetition() -> None:
    def measured(*seconds: float) -> dict[str, Measurement]:
        return {"in_place": Measurement(list(seconds), 1, 0, 0, 0)}

    # Both became slower together: the ratio did not change.
    row = Row("all_reduce", 4, 1, "float32", "sum", -1)
    row.backends.update({"a": measured(1, 2, 8), "b": measured(3, 6, 24)})
    ratio = row.ratios("in_place")
    assert ratio is not None
    assert (ratio.p10, ratio.p50, ratio.p90) == (3, 3, 3)
    assert row.ratios("out_of_place") is None
    assert row.speed_up("b", "in_place") == 1 / 3


# --- the check bites ---


def expected_result(case: Any, count: int) -> Any:
    parts = case.parts if case.collective in ("all_gather", "gather", "all_to_all") else 1
    repeats = count // PATTERN_COUNT + 1
    return torch.cat(
        [expected_pattern(case, part).repeat(repeats)[:count] for part in range(parts)]
    )


@pytest.mark.parametrize("collective", [name for name in COLLECTIVES if name != "barrier"])
@pytest.mark.parametrize("count", SIZES)
def test_one_wrong_element_is_counted_as_one(collective: str, count: int) -> None:
    options = BenchOptions(collective=collective, root=1)
    world_size = 3
    case = make_case(options, count * 4, rank=1, world_size=world_size)
    right = expected_result(case, case.count)
    assert count_wrong(case, right) == 0
    for index in {0, right.numel() // 2, right.numel() - 1}:
        wrong = right.clone()
        wrong[index] += 1
        assert count_wrong(case, wrong) == 1


def test_two_chunks_in_each_others_place_are_found() -> None:
    case = make_case(BenchOptions(), 4 << 20, rank=0, world_size=2)
    right = expected_result(case, case.count)
    swapped = torch.cat(right.chunk(2)[::-1])
    assert count_wrong(case, swapped) > case.count // 2


@pytest.mark.parametrize("collective", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all"])
def test_a_collective_that_did_nothing_is_found(collective: str) -> None:
    case = make_case(BenchOptions(collective=collective), 4096, rank=0, world_size=2)
    source, target = Buffers(4096 // 4, torch.float32).of(case, in_place=False)
    fill(case, source, target)
    assert count_wrong(case, target) == target.numel()


@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float16"])
def test_sums_of_twenty_ranks_are_exact_in_small_types(dtype: str) -> None:
    case = make_case(BenchOptions(dtype=dtype), 1000, rank=0, world_size=20)
    wide = make_case(BenchOptions(dtype="float64"), 1000, rank=0, world_size=20)
    assert torch.equal(expected_pattern(case, 0).double(), expected_pattern(wide, 0))


def test_in_place_one_side_is_a_part_of_the_other() -> None:
    buffers = Buffers(12, torch.float32)
    for collective, rank in itertools.product(["all_gather", "reduce_scatter"], range(3)):
        case = make_case(BenchOptions(collective=collective), 48, rank, world_size=3)
        source, target = buffers.of(case, in_place=True)
        small, large = sorted((source, target), key=len)
        assert (len(small), len(large)) == (4, 12)
        assert small.data_ptr() == large[rank * 4 :].data_ptr()


def test_a_barrier_that_lets_a_rank_go_early_is_found() -> None:
    store = torch.distributed.HashStore()
    rank_1 = StoreExchange(store, rank=1, world_size=2)
    assert rank_1.left_early(lambda: None) == 1  # rank 0 has not come
    rank_0 = StoreExchange(store, rank=0, world_size=2)
    assert rank_0.left_early(lambda: None) == 0
    assert rank_1.left_early(lambda: store.set("2/0", "")) == 0  # rank 0 came while it waited


# --- real runs ---


def test_every_collective_is_measured_and_right_on_three_ranks() -> None:
    done = run_bench(
        *("--processes", "3", "--collective", "all", "--root", "1", "--transport", "tcp"),
        *("--sizes", "4,260,400K", "--iterations", "2", "--repetitions", "2"),
    )
    assert done.returncode == 0, done.stderr
    heads = [line for line in done.stdout.splitlines() if line.endswith(", transport tcp")]
    assert heads == [f"{name}: pccl, 3 ranks, transport tcp" for name in COLLECTIVES]
    rows = [line.split() for line in done.stdout.splitlines() if "float32" in line]
    assert len(rows) == 3 * (len(COLLECTIVES) - 1)
    assert all(row[8] == "0" for row in rows)  # wrong, out of place
    assert "0 wrong values" in done.stdout
    assert re.search(r"pccl sent from rank 0: [0-9.]+M by TCP\.", done.stdout)
    assert max(len(line) for line in done.stdout.splitlines()) <= 120


def test_codecs_are_measured_with_what_they_send_and_lose(tmp_path: Path) -> None:
    done = run_bench(
        *("--codec", "int8,int4:hadamard", "--error", "--processes", "3", "--transport", "tcp"),
        *("--sizes", "260,400K", "--iterations", "2", "--repetitions", "2"),
        *("--json", str(tmp_path / "a.json")),
    )
    assert done.returncode == 0, done.stderr
    assert "0 wrong values" in done.stdout
    assert re.search(r"faster +sent +error", done.stdout)
    assert re.search(r"int8 .* 0 +[0-9.]+x +[0-9.]+K +[0-9.]+e-03$", done.stdout, re.MULTILINE)
    assert max(len(line) for line in done.stdout.splitlines()) <= 120
    large = json.loads((tmp_path / "a.json").read_text())["rows"][1]
    found = {name: placements["in_place"] for name, placements in large["backends"].items()}
    assert list(found) == ["pccl", "int8", "int4:hadamard"]
    # Of 3 ranks each sends 4/3 of its tensor.
    sent = {name: one["wire_bytes"] / (4 / 3 * 4 * large["count"]) for name, one in found.items()}
    assert sent == pytest.approx({"pccl": 1, "int8": 0.252, "int4:hadamard": 0.1406}, rel=0.02)
    errors = [one["error"] for one in found.values()]
    assert 0 < errors[0] < 1e-6
    assert 0.005 < errors[1] < 0.011
    assert 0.05 < errors[2] < 0.15


def test_ranks_with_other_bytes_are_counted_in_a_codec() -> None:
    case = make_case(BenchOptions(), 4000, rank=0, world_size=2)
    store = torch.distributed.HashStore()
    target = torch.zeros(1000)
    found: list[int] = []

    def other_rank(digest: list[float]) -> None:
        exchange = StoreExchange(store, 1, 2)
        for value in ([], [], [-1.0, *digest]):
            exchange.all_gather(value)

    for digest in ([1.0], None):
        store = torch.distributed.HashStore()
        own = int.from_bytes(hashlib.sha256(bytes(4000)).digest()[:6], "big")
        thread = threading.Thread(target=other_rank, args=(digest or [float(own)],))
        thread.start()
        loss = measure_loss(
            case, lambda _: target.zero_(), None, StoreExchange(store, 0, 2), target
        )
        thread.join()
        found.append(loss.differing)
        assert loss.error == 1  # all of it is lost
    assert found == [1, 0]


def test_one_rank_alone_can_do_all_collectives() -> None:
    arguments = ("--sizes", "400", "--iterations", "1", "--repetitions", "2", "--op", "bxor")
    done = run_bench("--processes", "1", "--collective", "all", "--dtype", "int8", *arguments)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.endswith(": pccl, 1 rank")] == [
        f"{name}: pccl, 1 rank" for name in COLLECTIVES
    ]
    assert "0 wrong values" in done.stdout


def test_the_same_command_is_a_rank_under_torchrun() -> None:
    launcher = (
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "pccl",
    )
    arguments = ("--min-bytes", "4K", "--max-bytes", "64K", "-f", "16", "--iterations", "1")
    done = run_bench(*arguments, launcher=launcher, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("all_reduce: pccl, 2 ranks") == 1
    assert [line.split()[0] for line in done.stdout.splitlines() if "float32" in line] == [
        "4K",
        "64K",
    ]
    assert re.search(r"pccl sent from rank 0: [0-9.]+[KM] by memory\.", done.stdout)


def test_wrong_values_are_counted_and_are_exit_code_1() -> None:
    planted = "measure.count_wrong = lambda case, target: 3"
    code = f"from pccl.bench import measure; from pccl.cli import main; {planted}; main()"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    done = run_bench("--sizes", "4,8", "--iterations", "1", launcher=("-c", code), **place)
    assert done.returncode == 1, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if "float32" in line]
    assert [(row[8], row[12]) for row in rows] == [("3", "3"), ("3", "3")]
    assert "12 wrong values" in done.stdout


def test_a_comparison_writes_all_times_and_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = run_bench(
        *("--compare", "gloo", "--processes", "2"),
        *("-b", "4K", "-e", "1M", "-f", "16", "--seconds", "0.02"),
        *("--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png")),
    )
    assert done.returncode == 0, done.stderr
    assert "faster" in done.stdout
    text = (tmp_path / "a.json").read_text()
    assert str(tmp_path) not in text  # a result is to be shown to others
    document = json.loads(text)
    assert document["machine"]["cores"] >= 1
    assert [row["bytes"] for row in document["rows"]] == [4096, 65536, 2**20]
    for row in document["rows"]:
        assert len(row["backends"]) == 2
        times = [placements["in_place"]["seconds"] for placements in row["backends"].values()]
        assert len(times[0]) == len(times[1]) >= 5
        assert row["ratios"]["in_place"]["p50"] > 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
