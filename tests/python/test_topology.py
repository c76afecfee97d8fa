"""Plans for any network: proven on sets of contributors, and held against the bound.

hypothesis draws networks; a failing one is printed and shrunk.
"""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from pccl.network_files import read_network
from pccl.topology import (
    ALGORITHMS,
    GOSSIP_GRAPHS,
    GRAPHS,
    Network,
    gossip_matrix,
    report_gossip,
)
from pccl.topology_bound import best_rate

NETWORKS = Path(__file__).resolve().parents[1] / "data" / "networks"
MEGABYTE = 1e6
# More than any latency counts for.
LARGE = 10**12


def scenario(name: str, caps: str = "") -> Network:
    """A, B and C of docs/topology.md."""
    return read_network(
        NETWORKS / f"{name}_bandwidth.csv", caps=NETWORKS / f"{caps}_caps.csv" if caps else None
    )


SCENARIOS = {
    "A": scenario("a"),
    "A1": scenario("a", "a1"),
    "B": scenario("b", "b"),
    "C": scenario("c", "c"),
}


@st.composite
def networks(draw: st.DrawFn, size_max: int = 12) -> Network:
    """Any rates over three decades, asymmetric, some links missing; always connected."""
    size = draw(st.integers(1, size_max))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    rates = MEGABYTE * 10 ** random.uniform(0, 3, (size, size))
    if draw(st.booleans()):
        keep = random.random((size, size)) < draw(st.floats(0, 1))
        order = random.permutation(size)
        keep[order, np.roll(order, -1)] = True  # one closed way through all
        rates *= keep
    out_caps = MEGABYTE * 10 ** random.uniform(0, 3, size) if draw(st.booleans()) else None
    note(f"rates {rates.tolist()}, caps on sending {out_caps}")
    return Network(
        rates,
        random.uniform(0, 0.1, (size, size)),
        out_bytes_per_second=out_caps,
        in_bytes_per_second=None if out_caps is None else out_caps * random.uniform(0.5, 4, size),
    )


@settings(max_examples=60, deadline=None)
@given(network=networks(), size=st.integers(0, 100_000))
def test_every_plan_is_right_and_uses_only_links_that_exist(network: Network, size: int) -> None:
    plans = network.compare(size)
    assert plans
    for plan in plans:
        assert network.fault(plan) == "", plan.algorithm
        for chunk in plan.chunks:
            for sender, receiver in (*chunk["up"], *chunk["down"]):
                assert network.rates[sender, receiver] > 0


@settings(max_examples=40, deadline=None)
@given(network=networks())
def test_no_plan_beats_the_bound_and_auto_is_the_quickest(network: Network) -> None:
    plans = network.compare(LARGE)
    for plan in plans:
        assert plan.bytes_per_second_at_most <= network.bound * (1 + 1e-6), plan.algorithm
    assert network.plan(LARGE).seconds == min(plan.seconds for plan in plans)


@settings(max_examples=20, deadline=None)
@given(size=st.integers(2, 7), seed=st.integers(0, 2**32 - 1), has_caps=st.booleans())
def test_trees_of_depth_two_reach_95_percent_of_all_trees_on_full_meshes(
    size: int, seed: int, has_caps: bool
) -> None:
    """Links of one mesh differ by a factor of 5, as between regions; by more, depth may help.

    Where links and caps limit together, min(B1, B2) is not always reached by any trees.
    """
    random = np.random.default_rng(seed)
    rates = MEGABYTE * random.uniform(1, 5, (size, size))
    caps = MEGABYTE * random.uniform(2, 20, size) if has_caps else None
    network = Network(rates, out_bytes_per_second=caps, in_bytes_per_second=caps)
    plan = network.plan(LARGE, "packed_trees")
    assert plan.steps <= 4
    assert plan.bytes_per_second_at_most >= 0.95 * best_rate(network)


@settings(max_examples=15, deadline=None)
@given(network=networks(size_max=6))
def test_the_linear_program_agrees_with_the_trees(network: Network) -> None:
    """It is solved by another program (HiGHS), and knows of no trees."""
    if network.world_size == 1:
        return
    best = best_rate(network)
    assert best <= network.bound * (1 + 1e-6)
    reached = network.plan(LARGE, "packed_trees").bytes_per_second_at_most
    assert reached <= best * (1 + 1e-6)
    assert reached >= 0.93 * best


@pytest.mark.parametrize("size", range(1, 34))
def test_every_planner_is_right_for_every_world_size(size: int) -> None:
    random = np.random.default_rng(size)
    # Access links limit: the planner's quick case, or 33 sizes would take minutes.
    network = Network(
        np.full((size, size), 1000 * MEGABYTE),
        random.uniform(0, 0.1, (size, size)),
        out_bytes_per_second=MEGABYTE * random.uniform(1, 20, size),
        in_bytes_per_second=MEGABYTE * random.uniform(1, 20, size),
    )
    for count in (1, 1001, 1 << 22):
        for plan in network.compare(4 * count):
            assert network.fault(plan) == "", plan.algorithm
    if size > 2:
        ring = network.restricted(network.graph("ring"))
        for plan in ring.compare(1 << 20):
            assert ring.fault(plan) == "", plan.algorithm


@pytest.mark.parametrize(
    ("name", "cut", "total", "least"),
    [
        ("A", 3.420, 2.622, {"direct": 0.55, "packed_trees": 0.99}),
        ("A1", 1.250, 0.714, {"direct": 0.99, "packed_trees": 0.99, "rings": 0.95}),
        ("B", 5.000, 4.857, {"direct": 0.99, "packed_trees": 0.99, "rings": 0.59}),
        ("C", 0.300, 1.481, {"direct": 0.99, "packed_trees": 0.99, "rings": 0.57}),
    ],
)
def test_published_networks_come_to_their_bounds(
    name: str, cut: float, total: float, least: dict[str, float]
) -> None:
    network = SCENARIOS[name]
    assert [rate * 8e-9 for rate in network.bounds] == pytest.approx([cut, total], abs=1e-3)
    for algorithm, fraction in least.items():
        plan = network.plan(LARGE, algorithm)
        assert plan.bytes_per_second_at_most >= fraction * network.bound
        assert network.fault(plan) == ""


@pytest.mark.parametrize(
    ("name", "fraction"), [("A", 0.11), ("A1", 0.42), ("B", 0.52), ("C", 0.57)]
)
def test_a_ring_of_the_fastest_links_gets_what_was_published(name: str, fraction: float) -> None:
    network = SCENARIOS[name]
    rate = network.plan(LARGE, "ring").bytes_per_second_at_most
    assert rate / network.bound == pytest.approx(fraction, abs=0.006)


def test_a_ring_order_is_the_best_of_all_orders() -> None:
    from itertools import permutations

    network = SCENARIOS["B"]
    slowest = max(
        min(network.rates[order[i], order[(i + 1) % 8]] for i in range(8))
        for order in ((0, *rest) for rest in permutations(range(1, 8)))
    )
    plan = Network(network.rates).plan(LARGE, "ring")
    assert plan.bytes_per_second_at_most == pytest.approx(slowest * 8 / 14)


@pytest.mark.parametrize("graph", [name for name in GRAPHS if name != "regular"])
def test_only_edges_of_the_graph_carry_bytes(graph: str) -> None:
    network = SCENARIOS["B"]
    edges = network.graph(graph)
    assert edges == sorted(set(edges))
    sparse = network.restricted(edges)
    for plan in sparse.compare(1 << 24):
        assert sparse.fault(plan) == ""
        for chunk in plan.chunks:
            for pair in (*chunk["up"], *chunk["down"]):
                assert tuple(sorted(pair)) in edges
    packed = sparse.plan(LARGE, "packed_trees").bytes_per_second_at_most
    assert packed >= 0.95 * best_rate(sparse)


def test_a_drawn_regular_graph_is_regular_and_near_the_full_mesh() -> None:
    network = SCENARIOS["B"]
    edges = network.graph("regular", degree=4)
    assert [sum(rank in edge for edge in edges) for rank in range(8)] == [4] * 8
    rate = network.restricted(edges).plan(LARGE, "packed_trees").bytes_per_second_at_most
    assert rate >= 0.95 * network.bound
    assert edges == network.graph("regular", degree=4)  # the same every time


def test_members_that_only_connect_outwards_are_planned_around() -> None:
    network = SCENARIOS["B"].accepting([True, True, False, False, False, True, True, True])
    assert (2, 3) not in network.edges
    assert (2, 0) in network.edges
    assert (0, 2) in network.edges
    plan = network.plan(LARGE)
    assert network.fault(plan) == ""
    assert plan.bytes_per_second_at_most >= 0.95 * best_rate(network)


def test_sites_are_found_and_crossed_once() -> None:
    sites = [0, 1, 0, 1, 0, 1, 0, 1]
    same = np.equal.outer(sites, sites)
    network = Network(np.where(same, 1000, 10) * MEGABYTE, np.where(same, 0.001, 0.05))
    assert network.sites() == sites
    plan = network.plan(1 << 26, "hierarchical")
    assert network.fault(plan) == ""
    for chunk in plan.chunks:
        for stage in ("up", "down"):
            assert sum(sites[a] != sites[b] for a, b in chunk[stage]) == 1
    assert network.plan(LARGE, "hierarchical").bytes_per_second_at_most >= 0.9 * network.bound


def test_a_small_message_takes_the_paths_of_least_latency() -> None:
    latencies = np.full((8, 8), 0.05)
    plan = Network(np.full((8, 8), 12.5 * MEGABYTE), latencies).plan(4)
    assert plan.steps == 1
    assert plan.seconds <= 1.2 * 0.05
    latencies[0, 1] = latencies[1, 0] = 1.0  # a relay is quicker
    assert Network(np.full((8, 8), 12.5 * MEGABYTE), latencies).plan(4).seconds <= 1.2 * 2 * 0.05


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rates: rates.__setitem__((1, 2), np.nan), "rank 1 to rank 2 is nan"),
        (lambda rates: rates.__setitem__((1, 2), -5), "rank 1 to rank 2 is -5"),
        (lambda rates: rates.__setitem__((slice(None), 2), 0), "no way from rank 0 to rank 2"),
    ],
)
def test_wrong_figures_are_named(edit: object, message: str) -> None:
    rates = np.full((4, 4), MEGABYTE)
    edit(rates)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        Network(rates).plan(1000)


def test_wrong_shapes_and_names_are_refused() -> None:
    with pytest.raises(ValueError, match="2x3, not one row and column a member"):
        Network(np.ones((2, 3)))
    with pytest.raises(ValueError, match="3 names for 2 members"):
        Network(np.ones((2, 2)), names=["a", "b", "c"])
    with pytest.raises(ValueError, match="unknown graph"):
        Network(np.ones((2, 2))).graph("rnig")
    with pytest.raises(ValueError, match="no graph of 5 ranks with 3 neighbours"):
        Network(np.ones((5, 5))).graph("regular", degree=3)
    with pytest.raises(ValueError, match="edge 0-9"):
        Network(np.ones((2, 2))).restricted([(0, 9)])
    names = ", ".join(("auto", *ALGORITHMS))
    with pytest.raises(ValueError, match=f"there are: {names}$"):
        Network(np.ones((2, 2))).plan(4, "rnig")


# --- gossip ---


@settings(max_examples=60, deadline=None)
@given(
    graph=st.sampled_from(GOSSIP_GRAPHS),
    size=st.integers(1, 33),
    round_index=st.integers(0, 40),
    seed=st.integers(0, 1000),
)
def test_gossip_weights_are_doubly_stochastic(
    graph: str, size: int, round_index: int, seed: int
) -> None:
    weights = gossip_matrix(graph, size, round_index, seed)
    assert (weights >= -1e-12).all()
    assert weights.sum(axis=0) == pytest.approx(np.ones(size))
    assert weights.sum(axis=1) == pytest.approx(np.ones(size))


@pytest.mark.parametrize("partners", [1, 2, 3, 4])
def test_base_graphs_are_exact_for_every_size_with_few_partners(partners: int) -> None:
    periods = []
    for size in range(2, 65):
        report = report_gossip(f"base_{partners + 1}", size, error=1e-9)
        assert report.partners_max <= partners
        assert report.rounds <= report.period  # exact after one period, whatever the values were
        periods.append(report.period)
    # As measured of the authors' code: Takezawa et al., NeurIPS 2023.
    assert max(periods) == {1: 11, 2: 8, 3: 6, 4: 6}[partners]


def test_gossip_gaps_are_those_that_are_known() -> None:
    assert report_gossip("ring", 8).spectral_gap == pytest.approx(0.195, abs=1e-3)
    assert report_gossip("ring", 32).spectral_gap == pytest.approx(0.0128, abs=1e-4)
    for size in (8, 16, 32, 64):  # 2 / (1 + ceil(log2 P))
        expected = 2 / (1 + int(np.ceil(np.log2(size))))
        assert report_gossip("exponential", size).spectral_gap == pytest.approx(expected, abs=1e-2)
    assert report_gossip("one_peer_exponential", 16).rounds == 4
    assert report_gossip("one_peer_exponential", 12).rounds == 12
    assert 5 <= report_gossip("random_pairs", 32).rounds <= 30
    assert report_gossip("equi_static", 64).spectral_gap > 0.2
    assert report_gossip("equi_dynamic", 64).rounds < report_gossip("ring", 64).rounds
