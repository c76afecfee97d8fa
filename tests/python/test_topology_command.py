"""`pccl topology` and the page's plan: the map of measured links, from a coordinator's status."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from pccl.cli import app
from pccl.measured_topology import describe_plan, measured_network
from pccl.status_page import StatusServer
from pccl.topology import Network

# Megabytes a second, from the row to the column; 0: carried no full load yet.
RATES = np.array(
    [
        [0, 90, 10, 12, 11],
        [90, 0, 12, 0, 10],
        [10, 12, 0, 80, 9],
        [12, 11, 80, 0, 11],
        [11, 10, 9, 11, 0],
    ]
)
ROUND_TRIP_SECONDS = 0.04


def status_of(rates: Any, waiting: int = 0) -> dict[str, Any]:
    """As a coordinator tells it; `waiting` members are not in the quorum."""
    size = len(rates)
    ids = [f"{number:08x}" for number in range(size + waiting)]
    members = [
        {"member_id": ids[rank], "rank": rank if rank < size else None} for rank in range(len(ids))
    ]
    links = [
        {
            "from": ids[sender],
            "to": ids[receiver],
            "busy_bytes_per_second": float(rates[sender][receiver]) * 1e6 or None,
            "round_trip_seconds": ROUND_TRIP_SECONDS,
        }
        for sender in range(size)
        for receiver in range(size)
        if sender != receiver
    ]
    # The order in which members are told is not that of ranks.
    run = {"name": "main", "members": members[::-1], "links": links}
    return {"runs": [run], "failure": "", "address": "127.0.0.1:1"}


@pytest.fixture
def server() -> Iterator[StatusServer]:
    status = status_of(RATES, waiting=1)
    served = StatusServer(lambda: status, "127.0.0.1", 0, ())
    yield served
    served.close()


def topology(server: StatusServer, *options: object, run: str = "main") -> Result:
    arguments = ["topology", f"pccl://127.0.0.1/{run}", "--status-port", str(server.port)]
    runner = CliRunner(env={"COLUMNS": "200"})
    return runner.invoke(app, arguments + [str(option) for option in options])


def test_the_network_is_what_members_measured() -> None:
    (run,) = status_of(RATES, waiting=2)["runs"]
    measured = measured_network(run)
    assert measured.unmeasured == {(1, 3)}
    known = RATES[(RATES > 0)]
    expected = np.where(RATES > 0, RATES, np.median(known)) * 1e6
    np.fill_diagonal(expected, 0)
    assert np.array_equal(measured.network.rates, expected)
    assert (measured.network.latencies == ROUND_TRIP_SECONDS / 2).all()
    assert measured.network.names[3] == "3 (00000003)"


def test_rates_plans_and_what_is_not_known_are_shown(server: StatusServer) -> None:
    done = topology(server, "--bytes", "16M")
    assert done.exit_code == 0, done.output
    assert "1 of 20 links are not measured yet" in done.stdout
    assert "88*" in done.stdout  # the median, 11 MB/s
    rows = [line.split("│")[1:-1] for line in done.stdout.splitlines() if line.startswith("│")]
    matrix = rows[: len(RATES)]
    assert [row[0].strip() for row in matrix] == [f"{rank} (0000000{rank})" for rank in range(5)]
    assert [cell.strip() for cell in matrix[0][1:]] == ["", "720", "80", "96", "88"]
    seconds = [float(row[1]) for row in rows[len(RATES) :]]
    assert len(seconds) > 3
    assert seconds == sorted(seconds)


def test_data_holds_the_matrix_and_plans_that_can_be_proven(server: StatusServer) -> None:
    data = json.loads(topology(server, "--json", "--bytes", "16M").stdout)
    assert data["unmeasured"] == [[1, 3]]
    network = Network(data["bytes_per_second"], data["latency_seconds"])
    plan = network.plan(16 << 20)
    best = data["plans"][0]
    assert best["seconds"] == plan.seconds
    assert best["chunks"] == json.loads(json.dumps(plan.chunks))


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_map_is_drawn(server: StatusServer, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"map.{suffix}"
    done = topology(server, "--out", path)
    assert done.exit_code == 0, done.output
    start = path.read_bytes()[:5]
    assert start == (b"<?xml" if suffix == "svg" else b"\x89PNG\r")
    if suffix == "svg":
        assert "dotted: not measured yet (1 of 20)" in path.read_text(encoding="utf-8")


def test_what_can_not_be_shown_is_said_in_one_sentence(server: StatusServer) -> None:
    done = topology(server, run="other")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "no member of run 'other'; runs it has: 'main'" in done.stderr
    for status, reason in (
        (status_of(np.zeros((3, 3))), "no link between its 3 members has been busy yet"),
        (status_of(np.zeros((1, 1)), waiting=2), "1 members are in; a map needs two"),
    ):
        quiet = StatusServer(lambda status=status: status, "127.0.0.1", 0, ())
        try:
            done = topology(quiet)
            plan = ask_plan(quiet, "main")
        finally:
            quiet.close()
        assert (done.exit_code, done.stdout) == (1, "")
        assert reason in done.stderr
        assert reason in plan["reason"]


def ask_plan(server: StatusServer, run: str) -> dict[str, Any]:
    url = f"http://127.0.0.1:{server.port}/plan.json?run={run}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def test_the_page_gets_the_largest_trees(server: StatusServer) -> None:
    (run,) = status_of(RATES)["runs"]
    plan = ask_plan(server, "main")
    assert plan == describe_plan(run, 64 << 20)
    ids = {f"{rank:08x}" for rank in range(5)}
    assert 0 < len(plan["trees"]) <= 6
    for tree in plan["trees"]:
        # Everybody but the root is reached once.
        assert sorted(receiver for _, receiver in tree["edges"]) == sorted(ids - {tree["root"]})
    assert set(plan["bottleneck"]) <= ids
    assert 0 < plan["fraction_of_bound"] <= 1
    assert ask_plan(server, "other") == {"reason": "there is no such run"}


def test_a_run_too_large_to_plan_on_demand_says_so() -> None:
    (run,) = status_of(np.ones((33, 33)))["runs"]
    with pytest.raises(ValueError, match="33 members; plans are drawn for 32"):
        describe_plan(run, 1 << 20)
