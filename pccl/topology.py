"""Plans of all_reduce over any network, offline: what each planner makes of it, and the bound.

    network = read_network(Path("matrix.csv"), latency=Path("latency.csv"))
    for plan in network.compare(bytes_count=10**9):
        print(plan.algorithm, plan.seconds, plan.bytes_per_second / network.bound)

Rates are in bytes a second, latencies in seconds and one way, unless a name says otherwise.
docs/topology.md explains what the planners do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pccl import _core
from pccl._gossip import gossip_period, gossip_weights
from pccl._graphs import GraphLike, graph_text

__all__ = [
    "ALGORITHMS",
    "GOSSIP_GRAPHS",
    "GRAPHS",
    "GossipReport",
    "Network",
    "Plan",
    "gossip_matrix",
    "report_gossip",
]

# Of `Network.plan`, and of PCCL_ALGORITHM. "auto" takes the quickest by the cost model.
ALGORITHMS = (
    "direct",
    "ring",
    "halving_doubling",
    "doubling",
    "exchange",
    "double_binary_tree",
    "packed_trees",
    "rings",
    "hierarchical",
    "quickest_tree",
)
# Of `Network.graph`; the last two take `degree` and `seed`.
GRAPHS = ("ring", "star", "exponential", "hypercube", "grid", "torus", "small_world", "regular")
GOSSIP_GRAPHS = (
    *("ring", "exponential", "one_peer_exponential", "base_2", "base_3", "base_4", "base_5"),
    *("random_pairs", "equi_static", "equi_dynamic", "small_world"),
)

_ELEMENT_BYTES = 4  # plans are made for float32

Edge = tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """One planner's schedule for one size, and what the cost model says of it."""

    algorithm: str
    bytes_count: int  # of the reduced vector
    seconds: float
    steps: int  # messages on the longest path
    # Of each: offset and count in elements of 4 bytes, core, at_once, up, down (pairs of ranks).
    chunks: list[dict[str, Any]] = field(repr=False)
    # Seconds for which each resource carries bytes: ("link", from, to), ("send", rank),
    # ("receive", rank); the fullest one is what the plan waits for.
    busy_seconds: dict[tuple[str, int] | tuple[str, int, int], float] = field(repr=False)
    bytes_sent: list[int] = field(repr=False)  # [rank]

    @property
    def bytes_per_second(self) -> float:
        """Algorithm bandwidth: bytes of the vector by seconds, latency included."""
        return self.bytes_count / self.seconds if self.seconds else math.inf

    @property
    def bottleneck(self) -> tuple[str, int] | tuple[str, int, int]:
        """The resource that is busy for the longest time."""
        return max(self.busy_seconds, key=lambda name: self.busy_seconds[name], default=("send", 0))

    @property
    def bytes_per_second_at_most(self) -> float:
        """Algorithm bandwidth without latency: what a vector without end would get."""
        busiest = max(self.busy_seconds.values(), default=0.0)
        return self.bytes_count / busiest if busiest else math.inf


class Network:
    """Links among ranks, and the plans that can be made for them.

    Args:
        bytes_per_second: shape [world_size, world_size], [from][to]: what that pair gets alone; 0
            where it may carry nothing. The diagonal is not read.
        latency_seconds: the same shape, one way.
        out_bytes_per_second, in_bytes_per_second: shape [world_size], what a rank sends and
            receives at most, all links together; inf: no cap.
        names: of the ranks.

    Raises:
        ValueError: a shape does not fit, or a figure is none (NaN, negative); it is named.
    """

    def __init__(
        self,
        bytes_per_second: Any,
        latency_seconds: Any = None,
        *,
        out_bytes_per_second: Any = None,
        in_bytes_per_second: Any = None,
        names: Sequence[str] = (),
    ) -> None:
        self.rates = np.array(bytes_per_second, dtype=np.float64)
        if self.rates.ndim != 2 or self.rates.shape[0] != self.rates.shape[1]:
            shape = "x".join(str(length) for length in self.rates.shape)
            raise ValueError(f"the matrix of rates is {shape}, not one row and column a member")
        size = self.world_size = len(self.rates)
        self.latencies = _figures(latency_seconds, (size, size), 0.0, "latencies")
        self.out_caps = _figures(out_bytes_per_second, (size,), math.inf, "caps on sending")
        self.in_caps = _figures(in_bytes_per_second, (size,), math.inf, "caps on receiving")
        self.names = list(names) or [str(rank) for rank in range(size)]
        if len(self.names) != size:
            raise ValueError(f"{len(self.names)} names for {size} members")
        np.fill_diagonal(self.rates, 0)
        self._core = _core.Network(
            size,
            self.rates.ravel().tolist(),
            self.latencies.ravel().tolist(),
            self.out_caps.tolist(),
            self.in_caps.tolist(),
        )

    @property
    def bounds(self) -> tuple[float, float]:
        """Upper bounds of algorithm bandwidth: by the narrowest cut, by the sum of what is sent.

        Source: Zhou and Sun, On the computation rate of All-Reduce, arXiv 2602.22482.
        """
        return self._core.bounds()

    @property
    def bound(self) -> float:
        """The smaller of both; on sparse graphs `pccl.topology_bound` knows a tighter one."""
        return min(self.bounds)

    @property
    def edges(self) -> list[Edge]:
        """Directed pairs that may carry something."""
        return [(int(a), int(b)) for a, b in np.argwhere(self.rates > 0)]

    @property
    def is_sparse(self) -> bool:
        return len(self.edges) < self.world_size * (self.world_size - 1)

    def plan(self, bytes_count: int, algorithm: str = "auto") -> Plan:
        """Plan an all_reduce of `bytes_count` bytes of float32.

        The first plan finds the trees: milliseconds for 8 ranks, seconds for 32. Later ones are
        quick.

        Raises:
            ValueError: unknown algorithm, one that needs links which do not exist, or links that do
                not connect everybody.
        """
        count = -(-bytes_count // _ELEMENT_BYTES)
        data = self._core.plan(count, _ELEMENT_BYTES, algorithm)
        busy, sent = self._loads(data["chunks"])
        return Plan(
            data["algorithm"],
            bytes_count,
            data["seconds"],
            data["steps"],
            data["chunks"],
            busy,
            sent,
        )

    def compare(self, bytes_count: int) -> list[Plan]:
        """A plan by each planner that can work on these links, the quickest first.

        Raises:
            ValueError: the links do not connect everybody.
        """
        plans = [self.plan(bytes_count)]
        for algorithm in ALGORITHMS:
            try:
                plan = self.plan(bytes_count, algorithm)
            except ValueError:  # needs links that do not exist, or has no sites
                continue
            # Where the vector is long "doubling" and "exchange" are other names of others.
            if plan.algorithm == algorithm and algorithm != plans[0].algorithm:
                plans.append(plan)
        return sorted(plans, key=lambda plan: plan.seconds)

    def fault(self, plan: Plan) -> str:
        """Prove a plan on sets of contributors; "" or the first fault, in words."""
        count = -(-plan.bytes_count // _ELEMENT_BYTES)
        return self._core.fault({"chunks": plan.chunks}, count)

    def sites(self) -> list[int]:
        """[rank]: the number of its site: fast links to each other, slow ones to the others."""
        return self._core.sites()

    def graph(self, name: str, *, degree: int = 4, seed: int = 0) -> list[Edge]:
        """Edges (undirected) of a named graph of this size; "regular": the best of 12 drawn ones.

        Raises:
            ValueError: unknown name, or none of this size exists.
        """
        if name == "regular":
            return self._core.best_regular_graph(degree, seed)
        return _core.graph(name, self.world_size, degree, seed)

    def restricted(self, edges: Sequence[Edge]) -> Network:
        """This network where only these pairs of ranks may talk, in both directions."""
        allowed = np.zeros(self.rates.shape, dtype=bool)
        for left, right in edges:
            if not (0 <= left < self.world_size and 0 <= right < self.world_size):
                raise ValueError(f"edge {left}-{right}: ranks are 0 to {self.world_size - 1}")
            allowed[left, right] = allowed[right, left] = True
        return self._with_rates(np.where(allowed, self.rates, 0))

    def accepting(self, accepts: Sequence[bool]) -> Network:
        """This network where a pair can talk only if one of them accepts connections: [rank].

        Who accepts none (behind a firewall or address translation) still connects outwards; then
        both directions carry traffic.
        """
        flags = np.asarray(accepts, dtype=bool)
        if flags.shape != (self.world_size,):
            raise ValueError(f"{flags.size} words on {self.world_size} members")
        return self._with_rates(np.where(flags[:, None] | flags[None, :], self.rates, 0))

    def _with_rates(self, rates: Any) -> Network:
        return Network(
            rates,
            self.latencies,
            out_bytes_per_second=self.out_caps,
            in_bytes_per_second=self.in_caps,
            names=self.names,
        )

    def _loads(
        self, chunks: list[dict[str, Any]]
    ) -> tuple[dict[tuple[str, int] | tuple[str, int, int], float], list[int]]:
        carried = np.zeros(self.rates.shape)
        for chunk in chunks:
            size = chunk["count"] * _ELEMENT_BYTES
            for sender, receiver in (*chunk["up"], *chunk["down"], *_exchanges(chunk)):
                carried[sender, receiver] += size
        busy: dict[tuple[str, int] | tuple[str, int, int], float] = {}
        for rank in range(self.world_size):
            busy["send", rank] = carried[rank].sum() / self.out_caps[rank]
            busy["receive", rank] = carried[:, rank].sum() / self.in_caps[rank]
        for sender, receiver in np.argwhere(carried > 0):
            seconds = carried[sender, receiver] / self.rates[sender, receiver]
            busy["link", int(sender), int(receiver)] = float(seconds)
        return busy, [int(sent) for sent in carried.sum(axis=1)]


def _figures(values: Any, shape: tuple[int, ...], default: float, what: str) -> Any:
    figures = np.full(shape, default) if values is None else np.array(values, dtype=np.float64)
    if figures.shape != shape:
        raise ValueError(f"the {what} have the shape {figures.shape}, not {shape}")
    return figures


def _exchanges(chunk: dict[str, Any]) -> list[Edge]:
    """Among the ranks of a core: at once, or by recursive doubling."""
    core: list[int] = chunk["core"]
    if chunk["at_once"]:
        return [(a, b) for a in core for b in core if a != b]
    return [
        (core[place], core[place ^ (1 << bit)])
        for bit in range((len(core) - 1).bit_length())
        for place in range(len(core))
    ]


# --- gossip ---


def gossip_matrix(graph: GraphLike, world_size: int, round_index: int = 0, seed: int = 0) -> Any:
    """Weights of one round, shape [to, from]; rows and columns sum to 1.

    Raises:
        ValueError: unknown graph.
    """
    weights = gossip_weights(graph, world_size, round_index, seed)
    return np.array(weights).reshape(world_size, world_size)


@dataclass(frozen=True)
class GossipReport:
    """How quickly a gossip graph averages."""

    partners_max: int  # of one rank in one round
    period: int  # rounds, after which they come again; 0: never
    # 1 minus the norm of one period without its mean, a round: 1 is exact after the period. Graphs
    # without a period: of 16 rounds.
    spectral_gap: float
    rounds: int  # until the disagreement is at most `error`, whatever the values were; -1: over 1e4


def report_gossip(
    graph: GraphLike, world_size: int, *, error: float = 1e-2, seed: int = 0
) -> GossipReport:
    """Measure a gossip graph: the gap, and the rounds until the disagreement is at most `error`.

    The disagreement is the spectral norm of (product of the rounds - exact mean): what is left of
    the worst values. World size cubed a round.

    Raises:
        ValueError: unknown graph.
    """
    graph = graph_text(graph)
    period = gossip_period(graph, world_size)
    mean = np.full((world_size, world_size), 1 / world_size)
    rounds = [gossip_matrix(graph, world_size, index, seed) for index in range(period or 16)]
    partners = max(
        int(((matrix - np.diag(np.diag(matrix))) > 0).sum(axis=1).max()) for matrix in rounds
    )
    product = np.eye(world_size)
    for matrix in rounds:
        product = matrix @ product
    left = float(np.linalg.norm(product - mean, 2))
    gap = 1 - left ** (1 / len(rounds)) if left > 1e-12 else 1.0
    product = np.eye(world_size)
    needed = -1
    for index in range(10_000):
        if np.linalg.norm(product - mean, 2) <= error:
            needed = index
            break
        if period:
            product = rounds[index % period] @ product
        else:
            product = gossip_matrix(graph, world_size, index, seed) @ product
    return GossipReport(partners, period, gap, needed)
