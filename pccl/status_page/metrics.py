"""A coordinator's status as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["format_metrics"]


def format_metrics(status: dict[str, Any]) -> tuple[str, bytes]:
    """The content type and the text of all metrics."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

    registry = CollectorRegistry()
    registry.register(_Snapshot(status))
    return CONTENT_TYPE_LATEST, generate_latest(registry)


class _Snapshot:
    def __init__(self, status: dict[str, Any]) -> None:
        self._status = status

    def collect(self) -> Iterator[Any]:
        yield from _server_metrics(self._status)
        yield from _run_metrics(self._status)
        yield from _member_metrics(self._status)
        yield from _link_metrics(self._status)


def _server_metrics(status: dict[str, Any]) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    for name, text in (
        ("messages", "Messages of members."),
        ("malformed_messages", "Messages that could not be understood; each ended its connection."),
        ("refused_members", "Members of another run, or too many."),
        ("refused_connections", "Connections that the handshake refused."),
        ("refused_keys", "Of these, for a wrong, unknown or revoked key or token."),
        ("refused_plain", "Of these, plain ones where TLS is wanted, and the reverse."),
        ("refused_rate", "Calls that came too often from one source."),
        ("refused_late", "Callers that said nothing in time, or were too many."),
        ("writes", "Writes to the database."),
    ):
        yield CounterMetricFamily(f"pccl_coordinator_{name}", text, status[name])
    yield GaugeMetricFamily(
        "pccl_coordinator_write_seconds_max",
        "The slowest write to the database.",
        status["write_seconds_max"],
    )
    yield GaugeMetricFamily(
        "pccl_coordinator_failed", "1: it does nothing any more.", float(bool(status["failure"]))
    )


def _run_metrics(status: dict[str, Any]) -> Iterator[Any]:
    from prometheus_client.core import GaugeMetricFamily

    for name, text in (
        ("term", "Reigns of coordinators so far."),
        ("quorum_id", "Changes of the quorum so far."),
        ("revision", "Of the shared state, committed."),
        ("world_size_min", "Members that it begins and goes on with."),
    ):
        family = GaugeMetricFamily(f"pccl_run_{name}", text, labels=["run"])
        for run in status["runs"]:
            number = run[name] if name != "term" else int(run["term"].partition("/")[0])
            family.add_metric([run["name"]], number)
        yield family
    family = GaugeMetricFamily("pccl_run_world_size", "Members in the quorum.", labels=["run"])
    for run in status["runs"]:
        count = sum(member["rank"] is not None for member in run["members"])
        family.add_metric([run["name"]], count)
    yield family


def _member_metrics(status: dict[str, Any]) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    labels = ["run", "member", "address"]
    for kind, name, key, text in (
        (CounterMetricFamily, "completed_operations", "completed", "Operations of the run so far."),
        (CounterMetricFamily, "started_operations", "started", "Operations that it has begun."),
        (GaugeMetricFamily, "revision", "revision", "Of the shared state that it holds; 0: none."),
        (GaugeMetricFamily, "rank", "rank", "In the quorum; absent where it is in none."),
        (GaugeMetricFamily, "connected", "is_connected", "1: it is connected."),
        (
            GaugeMetricFamily,
            "seconds_since_heard",
            "seconds_since_heard",
            "Since its last report; absent before its first one.",
        ),
        (
            GaugeMetricFamily,
            "round_trip_seconds",
            "round_trip_seconds",
            "To the coordinator, as the member measures it.",
        ),
        (GaugeMetricFamily, "slow", "is_slow", "1: its links, or its calls, hold the others up."),
        (
            GaugeMetricFamily,
            "link_bytes_per_second",
            "link_bytes_per_second",
            "Median of its links while they are busy; absent where none was busy enough to tell.",
        ),
        (
            GaugeMetricFamily,
            "waited_for_ratio",
            "waited_for",
            "Share of the time for which the others wait for it to call.",
        ),
        (
            CounterMetricFamily,
            "resumed_connections",
            "resumed_connections",
            "Times that one of its connections had no socket any more, and got one again.",
        ),
        (CounterMetricFamily, "replaced_sockets", "replaced_sockets", "Sockets that broke."),
        (CounterMetricFamily, "resent_bytes", "resent_bytes", "What broken sockets carried."),
        (
            CounterMetricFamily,
            "recovered_operations",
            "recovered_operations",
            "Operations that it finished after members were lost.",
        ),
        (
            CounterMetricFamily,
            "recovery_seconds",
            "recovery_seconds",
            "How long that took, from standing still to the result, summed up.",
        ),
    ):
        family = kind(f"pccl_member_{name}", text, labels=labels)
        for run in status["runs"]:
            for member in run["members"]:
                if member[key] is not None:
                    family.add_metric(
                        [run["name"], member["member_id"], member["address"]], float(member[key])
                    )
        yield family


def _link_metrics(status: dict[str, Any]) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    for kind, name, text in (
        (CounterMetricFamily, "bytes_sent", "Since the connection began."),
        (GaugeMetricFamily, "bytes_per_second", "Over the last seconds."),
        (
            GaugeMetricFamily,
            "busy_bytes_per_second",
            "While something was under way; absent where too little was to tell.",
        ),
        (GaugeMetricFamily, "round_trip_seconds", "As TCP measures it; absent for memory."),
        (CounterMetricFamily, "replaced_sockets", "Sockets that broke."),
    ):
        family = kind(f"pccl_link_{name}", text, labels=["run", "source", "target"])
        for run in status["runs"]:
            for link in run["links"]:
                if link[name] is not None:
                    family.add_metric([run["name"], link["from"], link["to"]], float(link[name]))
        yield family
