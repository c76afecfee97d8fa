"""Graphs of members: what they are, who refuses which, and that no byte goes beside their edges."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from coordinator_processes import CoordinatorProcess
from member_processes import MemberProcess, agree, members
from wide_area import REASON, WANLAB
from wire_format import Address

import pccl
from pccl import _core

WORKER = Path(__file__).with_name("overlay_worker.py")
NAMES = (
    "ring",
    "star",
    "exponential",
    "grid",
    "torus",
    "small_world:4",
    "regular:3",
    "regular:4:7",
)
# For all that a worker does; it makes its errors itself, with deadlines of its own.
PATIENCE_SECONDS = 120.0

Edges = set[tuple[int, int]]


def overlay(graph: str, accepts: Sequence[bool]) -> Edges | None:
    canonical = _core.canonical_graph(graph)
    addresses = [Address(port=int(accept)).encode_with(canonical) for accept in accepts]
    edges = _core.overlay(addresses, canonical)
    return None if edges is None else set(edges)


def reached(edges: Edges, ranks: Sequence[int]) -> set[int]:
    """From the first of `ranks`, through them alone."""
    found = {ranks[0]}
    while True:
        more = {b for a, b in edges | {(b, a) for a, b in edges} if a in found and b in ranks}
        if more <= found:
            return found
        found |= more


@pytest.mark.parametrize("graph", NAMES)
def test_every_number_of_members_has_a_connected_graph_without_deaf_pairs(graph: str) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for world_size in range(1, 34):
        accepts = [True] * world_size
        for deaf in range(min(world_size, 4)):
            edges = overlay(graph, accepts)
            assert edges is not None
            assert all(0 <= a < b < world_size for a, b in edges)
            assert reached(edges, range(world_size)) == set(range(world_size)), accepts
            assert all(accepts[a] or accepts[b] for a, b in edges), accepts
            if deaf == 0:  # those who come in last may have no part in an operation
                for first in range(1, world_size):
                    assert reached(edges, range(first)) == set(range(first)), (world_size, first)
            accepts[draw.randrange(world_size)] = False
            if not any(accepts):
                break


def test_degrees_and_shapes_are_as_named() -> None:
    def degrees(edges: Edges | None, world_size: int) -> set[int]:
        assert edges is not None
        return {sum(rank in edge for edge in edges) for rank in range(world_size)}

    assert overlay("", [True] * 5) is None
    assert overlay("", [True, False, True, False]) == {(0, 1), (0, 2), (0, 3), (1, 2), (2, 3)}
    assert degrees(overlay("regular:4", [True] * 9), 9) == {4}
    assert degrees(overlay("regular:3", [True] * 9), 9) == {4}, "3 times 9 is odd"
    assert degrees(overlay("regular:4", [True] * 4), 4) == {3}, "all there are"
    assert degrees(overlay("torus", [True] * 9), 9) == {4}
    assert overlay("star", [True] * 4) == {(0, 1), (0, 2), (0, 3)}
    assert overlay("2-1,0-1,1-2", [True] * 3) == {(0, 1), (1, 2)}


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ("rong", "expected ring, star"),
        ("ring:3", "too many parts"),
        ("regular:x", '"x" is no number'),
        ("regular:1", "a degree below 2"),
        ("0-1,2-2", "edge 2-2 joins a rank with itself"),
        ("0-1,1", '"1" is no edge'),
        ("0-1,1--2", "is no edge"),
    ],
)
def test_what_is_no_graph_is_refused_with_its_configuration(graph: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pccl.Config(graph=graph)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ("0-1,2-3", "does not connect rank 0 with rank 2"),
        ("0-1,1-2,2-3,3-4", "edge 3-4 names rank 4, and there are 4 ranks"),
        ("0-1,1-3,2-3", "edge 1-3 joins two members that only connect outwards"),
        ("ring", "rank 0 .* has no graph, this member has graph .ring."),
    ],
)
def test_a_graph_that_does_not_fit_the_members_is_named(graph: str, message: str) -> None:
    canonical = _core.canonical_graph(graph)
    told = "" if graph == "ring" else canonical
    deaf = (1, 3) if "1-3" in graph else ()
    addresses = [Address(port=int(rank not in deaf)).encode_with(told) for rank in range(4)]
    with pytest.raises(ValueError, match=message):
        _core.overlay(addresses, canonical)


# --- over the lab ---


def run_members(
    where: str, hosts: list[Any], steps: int, variables: dict[int, dict[str, str]]
) -> list[list[dict[str, Any]]]:
    """What each member said. `variables`: by rank; -1: of all."""
    with ExitStack() as stack:
        members = []
        for rank, host in enumerate(hosts):
            arguments = [sys.executable, str(WORKER), where, str(rank), str(len(hosts)), str(steps)]
            own = {"PCCL_BIND": host.addr, "PCCL_TIMEOUT": "60", "OPENBLAS_NUM_THREADS": "1"}
            more = {**os.environ, **own, **variables.get(-1, {}), **variables.get(rank, {})}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            members.append(host.popen(arguments, env=more, **pipes))
            stack.callback(members[-1].kill)
        said = []
        for member in members:
            out, errors = member.communicate(timeout=PATIENCE_SECONDS)
            assert member.returncode == 0, errors
            said.append([json.loads(line) for line in out.splitlines()])
        return said


def packets(lab: Any, hosts: list[Any], first: int, second: int) -> int:
    """Both directions, whatever it was."""
    pairs = lab.stats()["pairs"]
    names = (hosts[first].name, hosts[second].name)
    return sum(pairs[way]["packets"] for way in (names, names[::-1]) if way in pairs)


@pytest.mark.skipif(bool(REASON), reason=REASON)
@pytest.mark.parametrize(
    ("graph", "nat"),
    [("0-1,1-2,2-3,3-4,1-4", ()), ("regular:3", (2, 4))],
)
def test_no_byte_goes_beside_the_edges(graph: str, nat: tuple[int, ...], tmp_path: Path) -> None:
    assert WANLAB is not None
    count = 6 if nat else 5
    with WANLAB.Lab(seed=1) as lab:
        hosts = [lab.add_host(f"h{i}", up="400mbit", down="400mbit") for i in range(count)]
        for first, second in itertools.combinations(hosts, 2):
            lab.link(first, second, rtt="10ms")
        variables = {-1: {"PCCL_GRAPH": graph}}
        for rank in nat:
            hosts[rank].set(nat=True)
            variables[rank] = {"PCCL_OUTWARD": "1"}
        said = run_members(str(tmp_path), hosts, 3, variables)
        edges = overlay(graph, [rank not in nat for rank in range(count)])
        assert edges is not None
        carried = {
            pair for pair in itertools.combinations(range(count), 2) if packets(lab, hosts, *pair)
        }
    for step in range(3):
        assert len({lines[step]["digest"] for lines in said}) == 1, step
    assert carried == edges
    assert len(edges) < count * (count - 1) / 2
    for rank, lines in enumerate(said):
        refused = {int(peer) for peer in lines[-1]["refused"]}
        assert refused == {
            peer
            for peer in range(count)
            if peer != rank and tuple(sorted((rank, peer))) not in edges
        }
        assert lines[-1]["statistics"]["connections"] == count - 1 - len(refused)


@pytest.mark.skipif(bool(REASON), reason=REASON)
def test_another_graph_is_an_error_on_every_member_before_a_byte_is_sent(tmp_path: Path) -> None:
    assert WANLAB is not None
    with WANLAB.Lab(seed=1) as lab:
        hosts = [lab.add_host(f"h{i}") for i in range(3)]
        variables = {-1: {"PCCL_GRAPH": "ring"}, 1: {"PCCL_GRAPH": "star"}}
        said = run_members(str(tmp_path), hosts, 1, variables)
        sent = sum(packets(lab, hosts, *pair) for pair in itertools.combinations(range(3), 2))
    for rank, lines in enumerate(said):
        other, own = ("ring", "star") if rank == 1 else ("star", "ring")
        assert f'has graph "{other}", this member has graph "{own}"' in lines[0]["error"], lines
    assert sent == 0


# --- members that come and go ---


def test_survivors_end_alike_over_a_graph(tmp_path: Path) -> None:
    steps = 200  # enough for a newcomer to come before the end
    variables = {"PCCL_GRAPH": "small_world:2", "PCCL_SHARED_MEMORY": "0"}
    with CoordinatorProcess(tmp_path, status=False) as coordinator:
        program = ("random", steps, 60_001)
        with members(8, coordinator.address, *program, **variables) as started:
            for number, step in ((2, 5), (4, 15)):
                started[0].wait_for("step", step)
                started[number].kill()
            # With another graph it is out, and costs the others a moment.
            wrong = {**variables, "PCCL_GRAPH": "star"}
            with MemberProcess(coordinator.address, 1, *program, **wrong) as other:
                while other.next() is not None:
                    pass
                assert 'this member has "star", the run' in str(other.said) + other.errors()
            survivors = [member for number, member in enumerate(started) if number not in (2, 4)]
            for member in survivors:
                member.finish()
            agree(survivors, steps)
            ends = [member.said[-1]["statistics"] for member in survivors]
    assert any(statistics["recovered_operations"] > 0 for statistics in ends)
    # Mostly 3 or 4, the coordinator's among them.
    assert min(statistics["connections"] for statistics in ends) < 6, "with all it would be 6"


@pytest.mark.parametrize("graph", ["0-1", "hypercube"])
def test_a_graph_of_a_certain_number_of_members_is_none_of_an_elastic_run(graph: str) -> None:
    with pytest.raises(ValueError, match="those of an elastic run come and go"):
        pccl.join("pccl://127.0.0.1:1/nobody", config=pccl.Config(graph=graph))


@pytest.mark.skipif(bool(REASON), reason=REASON)
def test_members_come_and_go_over_the_edges_of_a_graph_alone(tmp_path: Path) -> None:
    assert WANLAB is not None
    steps = 40
    with WANLAB.Lab(seed=1) as lab, ExitStack() as stack:
        hosts = [lab.add_host(f"h{i}", up="400mbit", down="400mbit") for i in range(7)]
        for first, second in itertools.combinations(hosts, 2):
            lab.link(first, second, rtt="6ms")
        hosts[3].set(nat=True)
        coordinator = stack.enter_context(
            CoordinatorProcess(tmp_path, status=False, host=hosts[6].addr, launch=hosts[6].popen)
        )

        def start(number: int, world_size: int) -> MemberProcess:
            outward = {"PCCL_OUTWARD": "1"} if number == 3 else {}
            member = MemberProcess(
                coordinator.address,
                world_size,
                *("train", steps),
                host=hosts[number].addr,
                launch=hosts[number].popen,
                PCCL_GRAPH="ring",
                **outward,
            )
            stack.callback(member.close)
            return member

        started = [start(number, 5) for number in range(5)]
        started[0].wait_for("step", 4)
        started[1].wait_for("step", 2)
        started[1].kill()
        started.append(start(5, 1))
        said = [member.finish() for number, member in enumerate(started) if number != 1]
        number_of = {member.said[0]["member"]: n for n, member in enumerate(started)}
        edges = set()
        for lines in said:
            own = number_of[lines[0]["member"]]
            for beside in re.findall("; beside ([0-9a-f]{8})", lines[-1]["record"]):
                edges.add(tuple(sorted((own, number_of[beside]))))
        carried = {
            pair for pair in itertools.combinations(range(6), 2) if packets(lab, hosts, *pair)
        }
    assert len({line["digest"] for lines in said for line in lines if "digest" in line}) == 1
    assert {line["world_size"] for line in said[0] if "step" in line} == {4, 5}
    assert carried <= edges
    assert len(edges) < 15, edges
