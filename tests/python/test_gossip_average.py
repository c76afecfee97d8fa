"""neighbor_average: values come together, their mean stays, and who is missing is named."""

from typing import Any

import numpy as np
import pytest
from thread_ranks import run_ranks

import pccl
from pccl.topology import gossip_matrix, report_gossip

COUNT = 70_001


def rounds(comm: pccl.Communicator, graph: str, count: int) -> "np.ndarray[Any, Any]":
    tensor = np.random.default_rng(comm.rank).normal(size=COUNT)
    for round_index in range(count):
        assert comm.neighbor_average(tensor, graph, round_index=round_index, seed=3) == []
    return tensor


@pytest.mark.parametrize(
    "graph",
    ["ring", "exponential", "one_peer_exponential", "base_2", "base_3", "random_pairs",
     "equi_static", "equi_dynamic", "small_world", "star", "grid", "torus", "regular:2:7",
     "0-1,1-2,2-3,3-4,1-4"],
)  # fmt: skip
def test_each_round_is_its_matrix(graph: str) -> None:
    found = np.array(run_ranks(5, lambda comm: rounds(comm, graph, 3)))
    expected = np.array([np.random.default_rng(rank).normal(size=COUNT) for rank in range(5)])
    for round_index in range(3):
        expected = gossip_matrix(graph, 5, round_index, 3) @ expected
    assert np.abs(found - expected).max() < 1e-12
    assert np.abs(found.mean(axis=0) - expected.mean(axis=0)).max() < 1e-12


@pytest.mark.parametrize(("graph", "world_size"), [("one_peer_exponential", 4), ("base_2", 6)])
def test_some_graphs_end_in_the_exact_mean(graph: str, world_size: int) -> None:
    needed = report_gossip(graph, world_size, error=1e-9).rounds
    found = np.array(run_ranks(world_size, lambda comm: rounds(comm, graph, needed)))
    assert np.abs(found - found.mean(axis=0)).max() < 1e-12


def test_a_group_over_a_graph_averages_over_its_edges_alone() -> None:
    edges = [(0, 1), (1, 2), (2, 3), (0, 4), (1, 4)]

    class Drawn:  # as networkx.Graph
        def __init__(self) -> None:
            self.edges = edges

    def averaged(comm: pccl.Communicator) -> list["np.ndarray[Any, Any]"]:
        found = []
        for graph in (edges, Drawn(), "0-1,1-2,2-3,0-4,1-4"):
            tensor = np.random.default_rng(comm.rank).normal(size=COUNT)
            assert comm.neighbor_average(tensor, graph) == []
            found.append(tensor)
        return found

    ranks = run_ranks(5, averaged, config=pccl.Config(bind="127.0.0.1", graph=edges))
    begun = np.array([np.random.default_rng(rank).normal(size=COUNT) for rank in range(5)])
    expected = gossip_matrix(edges, 5) @ begun
    for rank, found in enumerate(ranks):
        assert len({tensor.tobytes() for tensor in found}) == 1
        assert np.abs(found[0] - expected[rank]).max() < 1e-12


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ([(0, 1), (2, 3)], "does not connect rank 0 with rank 2"),
        ("0-1,1-9", "rank 9"),
        ([(0, 0)], "itself"),
        ([(0, 1, 2)], "pairs of ranks"),
        ([(0, 1.5)], "pairs of ranks"),
        ([], "no edge"),
        (7, "a name or edges"),
        ("mesh", "there are: ring"),
        ("hypercube", "power of two"),
    ],
)
def test_a_graph_that_is_none_is_refused(graph: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gossip_matrix(graph, 5)


def test_over_a_graph_values_come_together_as_fast_as_is_told() -> None:
    assert [report_gossip("torus", size).rounds for size in (8, 12, 33, 64)] == [7, 10, 71, 37]
    drawn = [report_gossip("regular:4", size).rounds for size in (8, 12, 33, 64)]
    assert drawn == [7, 10, 39, 26]
    assert report_gossip(iter([(0, 1), (1, 2)]), 3).rounds == report_gossip("0-1,1-2", 3).rounds
    report = report_gossip("torus", 6)
    assert report.period == 1
    found = np.array(run_ranks(6, lambda comm: rounds(comm, "torus", report.rounds)))
    begun = np.array([np.random.default_rng(rank).normal(size=COUNT) for rank in range(6)])
    norm = np.linalg.norm(begun - begun.mean(axis=0))
    assert np.linalg.norm(found - begun.mean(axis=0)) <= 0.01 * norm


def test_a_neighbour_that_does_not_send_is_named_and_its_weight_stays_here() -> None:
    def one_is_late(comm: pccl.Communicator) -> tuple[list[int], float]:
        tensor = np.full(8, float(comm.rank), np.float32)
        if comm.rank == 2:
            comm.barrier()
            return [], 2.0
        missing = comm.neighbor_average(tensor, "ring", timeout_seconds=0.5)
        comm.barrier()
        return missing, float(tensor[0])

    found = run_ranks(3, one_is_late)
    assert [missing for missing, _ in found] == [[2], [2], []]
    assert found[0][1] == pytest.approx(1 / 3)
    assert found[1][1] == pytest.approx(2 / 3)


def test_what_can_not_be_averaged_is_refused() -> None:
    def refused(comm: pccl.Communicator) -> None:
        with pytest.raises(ValueError, match="int64"):
            comm.neighbor_average(np.zeros(3, np.int64))
        with pytest.raises(ValueError, match="one_peer_exponential"):
            comm.neighbor_average(np.zeros(3), "circle")

    run_ranks(2, refused)
