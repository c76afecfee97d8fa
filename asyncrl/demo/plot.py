"""A demo as a picture: rewards, held-out words, staleness, coins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from asyncrl.demo.verdict import DemoRecord

__all__ = ["plot_demo"]

_BLUE, _RED, _GREEN, _GREY = "#0b6e99", "#c8442c", "#2a9d5c", "#8a8f98"


def plot_demo(record: DemoRecord, path: Path) -> None:
    """Draw a run over its steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(12, 7.4), layout="constrained")
    _draw_learning(axes[0, 0], record)
    _draw_policy(axes[0, 1], record)
    _draw_broadcast(axes[1, 0], record)
    _draw_accounts(axes[1, 1], record)
    for axis in axes.flat:
        axis.grid(alpha=0.25, linewidth=0.7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_learning(axis: Any, record: DemoRecord) -> None:
    versions = sorted(record.trainer_steps)
    scores = [record.trainer_steps[version]["score"] for version in versions]
    axis.plot(versions, scores, color=_GREY, linewidth=0.9, label="training rollouts")
    measured = sorted(record.accuracy)
    for name, color in (("greedy", _GREEN), ("sampled", _BLUE)):
        values = [record.accuracy[version][name] for version in measured]
        axis.plot(measured, values, "o-", color=color, label=f"held-out words, {name}")
    for at, text in (
        (record.trainer_killed_at, "kill -9 a trainer"),
        (record.relay_killed_at, "kill -9 a relay"),
    ):
        if at:
            axis.axvline(at, color=_RED, linewidth=0.8, alpha=0.6)
            axis.annotate(text, (at, 0.02), rotation=90, fontsize=8, color=_RED)
    axis.set_ylim(0, 1)
    axis.set_title("share of right answers", loc="left")
    axis.set_xlabel("step")
    axis.legend(frameon=False, fontsize=8)


def _draw_policy(axis: Any, record: DemoRecord) -> None:
    versions = sorted(record.trainer_steps)
    for name, color in (("entropy", _BLUE), ("staleness", _GREEN), ("clip_share", _RED)):
        values = [record.trainer_steps[version][name] for version in versions]
        axis.plot(versions, values, color=color, linewidth=1.2, label=name.replace("_", " "))
    axis.set_title("entropy (nats a token), staleness (versions), clipped share", loc="left")
    axis.set_xlabel("step")
    axis.legend(frameon=False, fontsize=8)


def _draw_broadcast(axis: Any, record: DemoRecord) -> None:
    for name in sorted({one["by"] for one in record.fetches}):
        own = [one for one in record.fetches if one["by"] == name]
        axis.plot(
            [one["fetched"] for one in own],
            [one["seconds"] for one in own],
            ".",
            label=name,
            color=_RED if name == "cheater" else None,
        )
    axis.set_title("seconds to fetch a version", loc="left")
    axis.set_xlabel("version")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, fontsize=8)


def _draw_accounts(axis: Any, record: DemoRecord) -> None:
    accounts = {
        record.names.get(one["address"], ""): one for one in record.status.get("workers", [])
    }
    names = sorted(accounts)
    left = [0.0] * len(names)
    for kind, color in (("stake", _GREY), ("claimable", _GREEN), ("pending", _BLUE)):
        values = [float(accounts[name][kind]) for name in names]
        axis.barh(names, values, left=left, color=color, label=kind)
        left = [a + b for a, b in zip(left, values, strict=True)]
    for name in names:
        if accounts[name]["is_banned"]:
            check = accounts[name]["ban_reason"].partition(":")[0]
            axis.annotate(f" banned: {check}", (0, name), va="center", color=_RED)
    axis.set_title("coins", loc="left")
    # Above the bars, which fill the axes.
    axis.legend(frameon=False, fontsize=8, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
