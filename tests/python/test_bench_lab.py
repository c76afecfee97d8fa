"""`pccl bench --lab`: descriptions of networks, their bound, and a run of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from wide_area import BESIDE, REASON, WANLAB

from pccl.bench.lab import lab_table, network_of, read_job
from pccl.cli import app

pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "lab.json"
RUN_SECONDS = 120
MBIT = 1e6 / 8


def bench_lab(spec: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    folder = os.environ.get("WANLAB", "") or str(BESIDE)
    return subprocess.run(
        [sys.executable, "-m", "pccl", "bench", "--lab", str(spec), "--wanlab", folder, *arguments],
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )


def test_the_bound_of_the_example_is_its_narrowest_uplink() -> None:
    assert WANLAB is not None
    spec = json.loads(EXAMPLE.read_text())
    assert read_job(spec).ways == ("auto", "ring", "packed_trees", "gloo")
    network = network_of(spec, WANLAB)
    assert network.names == ["oregon", "virginia", "frankfurt", "home"]
    assert network.bounds == pytest.approx((40 * MBIT, (100 + 100 + 60 + 40) / 6 * MBIT))
    assert network.latencies.max() == pytest.approx(0.075)


def test_the_bound_of_the_clouds_is_all_their_uplinks_together() -> None:
    assert WANLAB is not None
    spec = json.loads(EXAMPLE.with_name("clouds.json").read_text())
    assert read_job(spec).ways == ("auto", "ring:fixed", "gloo")
    network = network_of(spec, WANLAB)
    assert network.bounds == pytest.approx((25 * MBIT, (3 * 25 + 3 * 35 + 2 * 80) / 14 * MBIT))
    # Of 28 pairs, 26 are faster one way.
    assert (network.rates != network.rates.T).sum() == 52


def test_links_and_regions_are_read_as_the_lab_reads_them() -> None:
    assert WANLAB is not None
    hosts = {"a": {"region": "eu"}, "b": {"region": "us"}, "c": {"region": "us"}}
    network = network_of(
        {
            "hosts": hosts,
            "regions": {"eu-us": "90ms"},
            "links": {"a -> c": {"rate": "8mbit"}, "b <-> c": {"delay": "3ms", "rate": "80mbit"}},
        },
        WANLAB,
    )
    assert network.rates[0][2] == 8 * MBIT
    assert network.rates[2][1] == network.rates[1][2] == 80 * MBIT
    assert network.latencies[0].tolist() == pytest.approx([0, 0.045, 0.045])
    assert network.latencies[1][2] == pytest.approx(0.003)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "two or more"),
        ({"hosts": {"a": {}}}, "two or more"),
        ({"hosts": {"a": {}, "b": {}}, "bench": {"size": ["4K"]}}, '"bench" has no size'),
        ({"hosts": {"a": {}, "b": {}}, "bench": {"sizes": ["4 apples"]}}, "not a size"),
        ({"hosts": {"a": {}, "b": {}}, "bench": {"sizes": ["3"]}}, "whole float32"),
        ({"hosts": {"a": {}, "b": {}}, "bench": {"ways": ["gloo"]}}, "one way beside gloo"),
        ({"hosts": {"a": {}, "b": {}}, "bench": {"ways": ["ring@many"]}}, "got 'ring@many'"),
        ({"hosts": {"a": {}, "b": {}}, "bench": {"calls": 0}}, "calls: expected 1"),
    ],
)
def test_a_description_that_is_none_is_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_job(spec)


def test_the_table_tells_the_fraction_of_the_bound() -> None:
    assert WANLAB is not None
    spec = {
        "hosts": {"a": {"up": "8mbit"}, "b": {"up": "8mbit"}, "c": {"up": "8mbit"}},
        "links": {f"{pair[0]} <-> {pair[1]}": {"rtt": "100ms"} for pair in ("ab", "ac", "bc")},
    }
    network = network_of(spec, WANLAB)
    # 1,000,000 bytes by 24 Mbit/s over 2 * 2: 1.333 s; 4 bytes: 50 ms there.
    found = {
        "seconds": {"ring": {"1000000": [9.0, 2.666, 2.666, 2.666], "4": [1.0, 0.1, 0.1, 0.1]}},
        "plans": {"ring": {"1000000": "ring", "4": "doubling"}},
    }
    rows = [line.strip("| ").split(" | ") for line in lab_table(found, network, network)[4:]]
    assert rows[0][1:] == ["ring", "ring", "9.000", "2.666", "3.0", "50 %"]
    assert rows[1][1:] == ["ring", "doubling", "1.000", "0.100", "0.0", "50 %"]


def test_it_measures_between_hosts_of_the_lab(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    ways = ["auto", "packed_trees", "auto+int8"]
    job = {"sizes": ["4", "64K"], "ways": ways, "calls": 2, "graph": "0-1,1-2"}
    hosts = {"a": {"up": "50mbit"}, "b": {"up": "50mbit"}, "c": {"up": "50mbit"}}
    links = {"a <-> b": {"rtt": "20ms"}, "b <-> c": {"rtt": "20ms"}}
    spec.write_text(json.dumps({"hosts": hosts, "links": links, "bench": job}))
    ended = bench_lab(spec, "--json", str(tmp_path / "found.json"))
    assert ended.returncode == 0, ended.stderr
    assert len([line for line in ended.stdout.splitlines() if "%" in line]) == 6, ended.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert all(
        0.02 < seconds < RUN_SECONDS
        for by_size in found["seconds"].values()
        for calls in by_size.values()
        for seconds in calls
    )
    assert found["lab"]["pairs"]["a -> b"]["packets"] > 0
    assert found["lab"]["pairs"].get("a -> c", {}).get("packets", 0) == 0


def test_a_lab_that_is_not_there_is_named(tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, ["bench", "--lab", str(EXAMPLE), "--wanlab", str(tmp_path)])
    assert ended.exit_code == 2
    assert "no wanlab in" in ended.output
