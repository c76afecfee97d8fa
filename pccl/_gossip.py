"""Averages with a few neighbours instead of with everybody."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from pccl import _arrays, _core
from pccl._core import Work
from pccl._graphs import GraphLike, graph_text
from pccl._group import Array, GroupBase

# Messages of a round have tags that callers rarely take; rounds that are this far apart share one.
_TAG = 1 << 30
_TAGS = 1 << 20

# Graphs of `Config.graph` that have no weights of their own; and those of them that are drawn.
_EDGES_ALONE = ("star", "hypercube", "grid", "torus", "small_world", "regular")
_DRAWN = ("small_world", "regular")
_DRAWN_DEGREE = 4


class Gossip(GroupBase):
    """The approximate averages of a Communicator."""

    def neighbor_average(
        self,
        tensor: Array,
        graph: GraphLike = "one_peer_exponential",
        *,
        round_index: int = 0,
        seed: int = 0,
        timeout_seconds: float = 0,
    ) -> list[int]:
        """Average `tensor` with this round's neighbours, in place; return the ranks that failed to.

        Approximate: ranks hold different values afterwards, and the mean over all of them stays
        what it was. After the rounds that `pccl.topology.report_gossip(graph, world_size)` tells
        they differ by a hundredth of what they did. No barrier: a rank waits for its own neighbours
        only, until their values are here and its own is on its way. One step, S bytes to each
        neighbour; S bytes of memory for each, and S for a copy.

        The weight of a neighbour that is lost, or does not send in time, goes to this rank's own
        value; the mean over the others then moves a little.

        Args:
            tensor: float16, float32 or float64, contiguous; same shape and dtype on every rank.
            graph: who averages with whom: "ring", "exponential", "one_peer_exponential",
                "base_2" to "base_5", "random_pairs", "equi_static" or "equi_dynamic"; or over the
                edges of a connected graph, named or given as in `Config.graph`: "star",
                "hypercube", "grid", "torus", "small_world:4", "regular:4", "0-1,1-2",
                [(0, 1), (1, 2)], a networkx.Graph. A group with a `Config.graph` can use its own,
                unless members of it are outward.
            round_index: the same on every rank, and one more each time.
            seed: of the graphs that are drawn; the same on every rank.
            timeout_seconds: for a neighbour's value.

        Raises:
            ValueError: an unknown graph, ranks that it does not connect, or a tensor that is not as
                said.

        Sources: see csrc/topology/gossip.h.
        """
        buffer = _arrays.target(tensor, "tensor")
        if buffer.dtype_name not in ("float16", "float32", "float64"):
            raise ValueError(f"tensor: expected float16, float32 or float64, got {buffer}")
        rank, world_size = self.rank, self.world_size
        weights = gossip_weights(graph, world_size, round_index, seed)
        into = {s: weights[rank * world_size + s] for s in range(world_size) if s != rank}
        sources = {source: weight for source, weight in into.items() if weight > 0}
        targets = [t for t in range(world_size) if t != rank and weights[t * world_size + rank] > 0]
        tag = _TAG + round_index % _TAGS
        value = _view(buffer)
        own = value.copy()

        def start(call: Any, array: Any, peer: int) -> Work:
            where = (array.ctypes.data, buffer.count, buffer.dtype, peer, tag)
            work: Work = call(*where, timeout_seconds, False, array)
            return work

        values = {source: np.empty_like(own) for source in sources}
        comes = {s: start(self._core.recv, array, s) for s, array in values.items()}
        goes = [start(self._core.send, own, target) for target in targets]
        np.multiply(own, 1 - sum(sources.values()), out=value)
        missing = []
        for source, weight in sources.items():
            if not _ended(comes[source]):
                missing.append(source)
                values[source] = own
            value += np.multiply(values[source], weight, dtype=own.dtype)
        for work in goes:
            _ended(work)
        return missing


def graph_edges(graph: GraphLike, world_size: int, seed: int) -> list[tuple[int, int]] | None:
    """The edges of a graph of `Config.graph`; None: it is one with weights of its own."""
    text = graph_text(graph)
    if not text[:1].isdigit() and text.partition(":")[0] not in _EDGES_ALONE:
        return None
    if text in _DRAWN:
        text = f"{text}:{_DRAWN_DEGREE}:{seed}"
    return _core.overlay_edges(text, world_size)


def gossip_weights(graph: GraphLike, world_size: int, round_index: int, seed: int) -> list[float]:
    """Weights of one round, [to * world_size + from]; rows and columns sum to 1.

    Edges have Metropolis weights: 1 / (1 + the larger degree), the rest is for oneself. (Xiao and
    Boyd, Fast linear iterations for distributed averaging, Systems & Control Letters 2004.)
    """
    edges = graph_edges(graph, world_size, seed)
    if edges is None:
        return _core.gossip_round(graph_text(graph), world_size, round_index, seed)
    weights = np.zeros((world_size, world_size))
    degrees = np.bincount(np.array(edges, int).ravel(), minlength=world_size)
    for left, right in edges:
        weights[left, right] = weights[right, left] = 1 / (1 + max(degrees[left], degrees[right]))
    np.fill_diagonal(weights, 1 - weights.sum(axis=1))
    return [float(weight) for weight in weights.ravel()]


def gossip_period(graph: GraphLike, world_size: int) -> int:
    """After so many rounds the same ones come again; 0: never."""
    if graph_edges(graph, world_size, 0) is not None:
        return 1
    return _core.gossip_period(graph_text(graph), world_size)


def _ended(work: Work) -> bool:
    """Wait; whether it came to a good end."""
    try:
        work.wait()
    except _core.PcclError:
        return False
    return True


def _view(buffer: _arrays.Buffer) -> np.ndarray[Any, Any]:
    """The elements of a buffer, to be written."""
    dtype = np.dtype(buffer.dtype_name)
    memory = (ctypes.c_char * (buffer.count * dtype.itemsize)).from_address(buffer.pointer)
    elements: np.ndarray[Any, Any] = np.frombuffer(memoryview(memory), dtype)
    return elements
