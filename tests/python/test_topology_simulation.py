"""The cost model of measured links against a simulation that knows queues, fairness and latency.

Every edge of every chunk is a flow that may send what its sender has. Flows share links and caps
max-min fairly, as TCP connections roughly do; what was sent arrives a latency later. Nothing is
shared with the model but the network's figures.
"""

from collections import deque
from pathlib import Path

import numpy as np
import pytest

from pccl.network_files import read_network
from pccl.topology import Network, Plan

NETWORKS = Path(__file__).resolve().parents[1] / "data" / "networks"


def fair_rates(uses: np.ndarray, capacities: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Max-min fair shares: all rates rise alike until a resource is full, and so on. [flow]

    `uses`: shape [flow, 3], the resources of each flow.
    """
    rates = np.zeros(len(uses))
    left = capacities.copy()
    rising = active.copy()
    while rising.any():
        counts = np.bincount(uses[rising].ravel(), minlength=len(left))
        step = (left[counts > 0] / counts[counts > 0]).min()
        rates[rising] += step
        left -= step * counts
        full = (left <= 1e-9 * capacities) & (counts > 0)
        rising &= ~full[uses].any(axis=1)
    return rates


def simulate(network: Network, plan: Plan, steps: int = 250) -> float:
    """Seconds until every flow has arrived, to a step's length."""
    size = network.world_size
    capacities = np.concatenate([network.rates.ravel(), network.out_caps, network.in_caps])
    capacities = np.minimum(capacities, 1e15)
    flows: list[tuple[int, int, float, float]] = []  # sender, receiver, bytes, latency
    sources: list[list[int]] = []  # of each flow, those that must arrive at its sender before
    for chunk in plan.chunks:
        size_bytes = 4.0 * chunk["count"]
        into: dict[int, list[int]] = {}
        for sender, receiver in chunk["up"]:
            sources.append(into.get(sender, []))
            into.setdefault(receiver, []).append(len(flows))
            flows.append((sender, receiver, size_bytes, network.latencies[sender, receiver]))
        finals = {root: into.get(root, []) for root in chunk["core"]}
        for sender, receiver in chunk["down"]:
            sources.append(finals[sender])
            finals[receiver] = [len(flows)]
            flows.append((sender, receiver, size_bytes, network.latencies[sender, receiver]))
    uses = np.array([(s * size + r, size**2 + s, size**2 + size + r) for s, r, *_ in flows])
    total = np.array([flow[2] for flow in flows])
    step = plan.seconds / steps
    delay = np.array([round(flow[3] / step) for flow in flows])
    # What each flow has sent, now and in the past: what is `delay` steps old has arrived.
    history = deque([np.zeros(len(flows))], maxlen=int(delay.max()) + 1)
    for elapsed in range(4 * steps):
        sent = history[-1]
        arrived = np.array(
            [history[-1 - d][f] if d < len(history) else 0.0 for f, d in enumerate(delay)]
        )
        if (arrived >= total * (1 - 1e-9)).all():
            return elapsed * step
        ready = np.array(
            [
                arrived[before].min() if before else total[flow]
                for flow, before in enumerate(sources)
            ]
        )
        rates = fair_rates(uses, capacities, ready > sent + 1e-6)
        history.append(np.minimum(np.minimum(sent + rates * step, ready), total))
    return float("inf")


@pytest.mark.parametrize(("name", "caps"), [("a", ""), ("a", "a1"), ("b", "b"), ("c", "c")])
def test_the_model_is_near_the_simulation_and_chooses_as_it_does(name: str, caps: str) -> None:
    network = read_network(
        NETWORKS / f"{name}_bandwidth.csv",
        latency=None if name == "b" else NETWORKS / "a_latency.csv",
        caps=NETWORKS / f"{caps}_caps.csv" if caps else None,
    )
    plans = {
        algorithm: network.plan(1 << 28, algorithm)
        for algorithm in ("packed_trees", "direct", "ring", "double_binary_tree")
    }
    seconds = {algorithm: simulate(network, plan) for algorithm, plan in plans.items()}
    for algorithm, plan in plans.items():
        # Stars on B are the worst: flows of unequal bytes share a cap evenly there.
        assert 0.9 * plan.seconds < seconds[algorithm] < 1.3 * plan.seconds, algorithm
    chosen = min(plans, key=lambda algorithm: plans[algorithm].seconds)
    assert seconds[chosen] <= 1.1 * min(seconds.values())
