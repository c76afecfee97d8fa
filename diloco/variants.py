"""Settings of known methods, each with its source. `changes` are fields of Settings."""

from __future__ import annotations

from typing import Any

from diloco.settings import Settings

__all__ = [
    "async_local_sgd",
    "decoupled",
    "delayed",
    "eager",
    "gossip",
    "local_sgd",
    "noloco",
    "post_local_sgd",
    "sparse_loco",
    "streaming",
    "synchronous",
]


def synchronous(sync_every: int = 100, **changes: Any) -> Settings:
    """DiLoCo: H inner steps, then one outer step of SGD with Nesterov momentum, 0.7 and 0.9.

    Source: Douillard et al., DiLoCo: Distributed Low-Communication Training of Language Models,
    arXiv 2311.08105 (H = 500, from trained parameters).
    """
    return Settings(sync_every=sync_every, **changes)


def delayed(sync_every: int = 100, **changes: Any) -> Settings:
    """The average travels while the next round is trained, and is applied a round late.

    The outer momentum is 0: with 0.9 a delay diverges where a round removes more than a third of
    the error in some direction.

    Source: Kale, Douillard and Donchev, Eager updates for overlapped communication and computation
    in DiLoCo, arXiv 2502.12996.
    """
    return Settings(sync_every=sync_every, method="delayed", **changes)


def eager(sync_every: int = 100, **changes: Any) -> Settings:
    """As delayed(), but each member's own part of the average is that of this round.

    Members train from copies that differ while a round is under way; theta is the same everywhere.

    Source: Kale, Douillard and Donchev, arXiv 2502.12996.
    """
    return Settings(sync_every=sync_every, method="eager", **changes)


def streaming(
    sync_every: int = 100,
    fragments: int = 4,
    delay_steps: int = 5,
    keep_local: float = 0.5,
    **changes: Any,
) -> Settings:
    """Streaming DiLoCo: one fragment of layers after the other, in the background of the training.

    Source: Douillard et al., Streaming DiLoCo with overlapping communication, arXiv 2501.18512
    (H = 100, strided fragments of 3 layers, tau = 5, alpha = 0.5).
    """
    return Settings(
        sync_every=sync_every,
        method="streaming",
        fragments=fragments,
        delay_steps=delay_steps,
        keep_local=keep_local,
        **changes,
    )


def local_sgd(sync_every: int = 10, **changes: Any) -> Settings:
    """Local SGD: the models are averaged; federated averaging.

    Source: Stich, Local SGD converges fast and communicates little, ICLR 2019, arXiv 1805.09767.
    """
    return Settings(sync_every=sync_every, outer_lr=1.0, outer_momentum=0.0, **changes)


def post_local_sgd(sync_every: int = 10, warmup_sync_steps: int = 1000, **changes: Any) -> Settings:
    """Averaged gradients first, then local SGD.

    Source: Lin et al., Don't use large mini-batches, use local SGD, ICLR 2020, arXiv 1808.07217.
    """
    return local_sgd(sync_every, warmup_sync_steps=warmup_sync_steps, **changes)


def sparse_loco(sync_every: int = 30, codec: str = "topk_2bit:64", **changes: Any) -> Settings:
    """SparseLoCo: the largest 64 of 4096 elements in 2 bits, the rest is kept for later.

    Source: Sarfi et al., Communication efficient LLM pre-training with SparseLoCo,
    arXiv 2508.15706.
    """
    return Settings(
        sync_every=sync_every,
        codec=codec,
        error_feedback=True,
        residual_decay=0.95,
        outer_lr=1.0,
        outer_momentum=0.0,
        **changes,
    )


def async_local_sgd(sync_every: int = 50, momentum_every: int = 4, **changes: Any) -> Settings:
    """Each member is merged when it is ready; delayed Nesterov and dynamic local updates.

    `momentum_every` is best the number of members.

    Source: Liu et al., Asynchronous Local-SGD training for language modeling, arXiv 2401.09135.
    """
    return Settings(
        sync_every=sync_every,
        method="asynchronous",
        momentum_every=momentum_every,
        dynamic_steps=True,
        **changes,
    )


def decoupled(
    sync_every: int = 24, quorum: int = 2, grace_seconds: float = 1.0, **changes: Any
) -> Settings:
    """A merge begins when a quorum is ready, and takes who comes within a grace window.

    Contributions weigh tokens^2 / steps.

    Source: Decoupled DiLoCo, arXiv 2604.21428 (H = 24). Here the members themselves hold theta and
    do what the paper's syncer does; the model is merged as one fragment.
    """
    return Settings(
        sync_every=sync_every,
        method="asynchronous",
        quorum=quorum,
        grace_seconds=grace_seconds,
        weights="tokens_by_rate",
        **changes,
    )


def noloco(sync_every: int = 50, graph: str = "random_pairs", **changes: Any) -> Settings:
    """NoLoCo: pairs of members, drawn anew each round, average; the others are not waited for.

    Source: NoLoCo: No-all-reduce low communication training, arXiv 2506.10911.
    """
    return Settings(sync_every=sync_every, method="gossip", graph=graph, **changes)


def gossip(sync_every: int = 10, graph: str = "one_peer_exponential", **changes: Any) -> Settings:
    """The models of neighbours are averaged, without an outer optimizer.

    `graph`: "ring", "exponential", "one_peer_exponential", "equi_static" (an expander),
    "small_world" and more, see `pccl.topology.GOSSIP_GRAPHS`.

    Source: Lian et al., Can decentralized algorithms outperform centralized algorithms?, NeurIPS
    2017, arXiv 1705.09056; graphs: Ying et al., NeurIPS 2021; Song et al., NeurIPS 2022.
    """
    return Settings(
        sync_every=sync_every,
        method="gossip",
        graph=graph,
        outer_lr=1.0,
        outer_momentum=0.0,
        consensus_rate=1.0,
        **changes,
    )
