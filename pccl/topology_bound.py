"""The best that any reduce-then-broadcast schedule reaches on a network, by linear programming."""

from __future__ import annotations

from typing import Any

import numpy as np

from pccl.topology import Network

__all__ = ["best_rate"]


def best_rate(network: Network, *, seconds_max: float = 60) -> float:
    """The best rate of all trees together, any number and depth; bytes of the vector a second.

    A multi-commodity flow: chunks become final at ranks in shares x; what spreads them must let a
    flow of the whole rate reach every rank, what combines them must let one leave every rank
    (Edmonds' branching theorem makes trees of that). About 2 x ranks x edges variables: a second
    for 8 ranks in a full mesh, half a minute for 16.

    Raises:
        ImportError: scipy is not installed (`pip install 'pccl-collectives[plan]'`).
        TimeoutError: not solved after `seconds_max`.
        ValueError: the links do not connect everybody.

    Source: Zhou and Sun, arXiv 2602.22482 (the rate); Zhao et al., ForestColl, arXiv 2402.06787.
    """
    from scipy.optimize import linprog  # HiGHS

    if network.bound <= 0:
        raise ValueError("the links do not connect everybody")
    if network.world_size == 1:
        return float("inf")
    program = _Program(network)
    result = linprog(
        -program.objective,
        A_ub=program.matrix(program.upper),
        b_ub=program.limits,
        A_eq=program.matrix(program.equal),
        b_eq=np.zeros(program.equal_count),
        method="highs",
        options={"time_limit": seconds_max},
    )
    if result.status == 1:
        raise TimeoutError(f"the linear program was not solved after {seconds_max:g} s")
    if result.status != 0:
        raise ValueError(f"the linear program has no solution: {result.message}")
    return float(-result.fun) * program.scale


class _Program:
    """Variables: x [rank], g and h [edge], then a flow for each rank in g and in h.

    A flow has a value for each edge and, at the super source or sink, for each rank.
    """

    def __init__(self, network: Network) -> None:
        self.ranks = network.world_size
        self.edges = network.edges
        self.scale = network.bound
        self.flow_length = len(self.edges) + self.ranks
        self.count = self.ranks + 2 * len(self.edges) + 2 * self.ranks * self.flow_length
        self.objective = np.zeros(self.count)
        self.objective[: self.ranks] = 1
        self.upper: list[tuple[int, int, float]] = []  # row, variable, factor
        self.limits: list[float] = []
        self.equal: list[tuple[int, int, float]] = []
        self.equal_count = 0
        self._add_capacities(network)
        for rank in range(self.ranks):
            for is_down in (True, False):
                self._add_flow(rank, is_down)

    def matrix(self, entries: list[tuple[int, int, float]]) -> Any:
        from scipy.sparse import coo_matrix

        rows, variables, factors = zip(*entries, strict=True)
        count = len(self.limits) if entries is self.upper else self.equal_count
        return coo_matrix((factors, (rows, variables)), shape=(count, self.count)).tocsr()

    def _carried(self, edge: int) -> list[tuple[int, float]]:
        return [(self.ranks + edge, 1.0), (self.ranks + len(self.edges) + edge, 1.0)]

    def _at_most(self, terms: list[tuple[int, float]], limit: float) -> None:
        if not np.isfinite(limit):
            return
        self.upper += [(len(self.limits), variable, factor) for variable, factor in terms]
        self.limits.append(limit)

    def _add_capacities(self, network: Network) -> None:
        for edge, (sender, receiver) in enumerate(self.edges):
            self._at_most(self._carried(edge), network.rates[sender, receiver] / self.scale)
        for end, caps in enumerate((network.out_caps, network.in_caps)):
            for rank in range(self.ranks):
                terms = [
                    term
                    for edge, pair in enumerate(self.edges)
                    if pair[end] == rank
                    for term in self._carried(edge)
                ]
                self._at_most(terms, caps[rank] / self.scale)

    def _add_flow(self, rank: int, is_down: bool) -> None:
        """Of the whole rate, from where chunks are final to `rank`; or the other way round."""
        first = self.ranks + 2 * len(self.edges) + (2 * rank + is_down) * self.flow_length
        carried = self.ranks + (0 if is_down else len(self.edges))
        for edge in range(len(self.edges)):
            self._at_most([(first + edge, 1.0), (carried + edge, -1.0)], 0)
        for root in range(self.ranks):
            self._at_most([(first + len(self.edges) + root, 1.0), (root, -1.0)], 0)
        for node in range(self.ranks):
            row = self.equal_count
            self.equal_count += 1
            for edge, pair in enumerate(self.edges):
                ends = pair if is_down else (pair[1], pair[0])
                if node in ends:
                    self.equal.append((row, first + edge, 1.0 if ends[1] == node else -1.0))
            self.equal.append((row, first + len(self.edges) + node, 1.0))
            if node == rank:  # all that is final anywhere ends, or begins, here
                self.equal += [(row, root, -1.0) for root in range(self.ranks)]
