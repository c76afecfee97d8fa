"""What a coordinator has heard of a run's links, as a network, and the plan for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pccl.topology import Network, Plan

__all__ = ["MeasuredNetwork", "describe_plan", "measured_network"]

# Of the trees that a page draws: more would be a blot.
_TREES_MAX = 6
# The planners' time grows with the fourth power of the ranks; 32 take 0.6 s.
_PLANNED_RANKS_MAX = 32


@dataclass(frozen=True)
class MeasuredNetwork:
    """The links of a quorum; one that carried no full load yet counts as the middling one."""

    network: Network
    unmeasured: frozenset[tuple[int, int]]  # (from, to), ranks


def measured_network(run: dict[str, Any]) -> MeasuredNetwork:
    """Of one run of a coordinator's status (`status.json`).

    A pair's rate is what its link carried while it was busy; its latency half of the round trip.

    Raises:
        ValueError: fewer than two members are in, or no link has been busy yet.
    """
    members = [member for member in run["members"] if member["rank"] is not None]
    members.sort(key=lambda member: member["rank"])
    if len(members) < 2:
        raise ValueError(f"run {run['name']!r}: {len(members)} members are in; a map needs two")
    ranks = {member["member_id"]: rank for rank, member in enumerate(members)}
    rates = np.full((len(members), len(members)), np.nan)
    latencies = np.full(rates.shape, np.nan)
    for link in run["links"]:
        if link["from"] in ranks and link["to"] in ranks:
            pair = ranks[link["from"]], ranks[link["to"]]
            rates[pair] = link["busy_bytes_per_second"] or np.nan
            if link["round_trip_seconds"] is not None:
                latencies[pair] = link["round_trip_seconds"] / 2
    # What members plan by has been compared at both ends; counters have not.
    for sender, receiver, rate, round_trip in run.get("known_links", ()):
        rates[sender, receiver] = rate
        if round_trip > 0:
            latencies[sender, receiver] = round_trip / 2
    np.fill_diagonal(rates, np.nan)
    if np.isnan(rates).all():
        raise ValueError(
            f"run {run['name']!r}: no link between its {len(members)} members has been busy yet; "
            f"links are measured by large all_reduces"
        )
    is_unknown = np.isnan(rates) & ~np.eye(len(members), dtype=bool)
    rates = np.where(np.isnan(rates), np.nanmedian(rates), rates)
    known = latencies[~np.isnan(latencies)]
    latencies = np.where(np.isnan(latencies), np.median(known) if known.size else 0, latencies)
    names = [f"{rank} ({member['member_id']})" for rank, member in enumerate(members)]
    unmeasured = frozenset((int(a), int(b)) for a, b in np.argwhere(is_unknown))
    return MeasuredNetwork(Network(rates, latencies, names=names), unmeasured)


def describe_plan(run: dict[str, Any], bytes_count: int) -> dict[str, Any]:
    """The quickest plan of an all_reduce over a run's measured links, for a page.

    Returns:
        "algorithm", "seconds", "fraction_of_bound", "bottleneck" (member ids: sender and receiver,
        or one whose own limit it is), "trees": the largest, each with "share", "root" and "edges"
        (pairs of member ids, results down).

    Raises:
        ValueError: nothing is measured yet, or the run is too large to plan on demand.
    """
    members = sorted(
        (member["rank"], member["member_id"])
        for member in run["members"]
        if member["rank"] is not None
    )
    if len(members) > _PLANNED_RANKS_MAX:
        raise ValueError(f"{len(members)} members; plans are drawn for {_PLANNED_RANKS_MAX}")
    ids = [member_id for _, member_id in members]
    network = measured_network(run).network
    plan = network.plan(bytes_count)
    _, *ranks = plan.bottleneck
    return {
        "algorithm": plan.algorithm,
        "bytes": bytes_count,
        "seconds": plan.seconds,
        "fraction_of_bound": plan.bytes_per_second / network.bound,
        "bottleneck": [ids[rank] for rank in ranks],
        "trees": _largest_trees(plan, ids),
        "tree_count": len(plan.chunks),
    }


def _largest_trees(plan: Plan, ids: list[str]) -> list[dict[str, Any]]:
    total = sum(chunk["count"] for chunk in plan.chunks) or 1
    largest = sorted(plan.chunks, key=lambda chunk: -chunk["count"])[:_TREES_MAX]
    return [
        {
            "share": chunk["count"] / total,
            "root": ids[chunk["core"][0]],
            "edges": [[ids[sender], ids[receiver]] for sender, receiver in chunk["down"]],
        }
        for chunk in largest
    ]
