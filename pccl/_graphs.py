"""Graphs of ranks, as callers may give them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol


class HasEdges(Protocol):
    """As networkx.Graph: pairs of ranks."""

    @property
    def edges(self) -> Any: ...


# A name as in `Config.graph`, or edges.
GraphLike = str | Iterable[tuple[int, int]] | HasEdges


def graph_text(graph: GraphLike) -> str:
    """The graph in words: names stay, edges become "0-1,1-2".

    Raises:
        ValueError: neither, or an edge that is no pair of ranks.
    """
    if isinstance(graph, str):
        return graph
    given: Any = getattr(graph, "edges", graph)
    try:
        edges = [tuple(edge) for edge in given]
    except TypeError as error:
        raise ValueError(f"graph: expected a name or edges, got {graph!r}") from error
    for edge in edges:
        if len(edge) != 2 or not all(type(rank) is int and rank >= 0 for rank in edge):
            raise ValueError(f"graph: expected edges that are pairs of ranks, got {edge!r}")
    if not edges:
        raise ValueError("graph: there is no edge in it")
    return ",".join(f"{left}-{right}" for left, right in edges)
