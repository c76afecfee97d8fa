"""What the coordinator shows to everybody: a JSON document, and the page that draws it."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from typing import Any

from asyncrl.protocol.coordinator import Coordinator

__all__ = ["run_status"]

_STEPS_SHOWN = 2000
_REFUSED_SHOWN = 50
_VERSIONS_SHOWN = 50
_EVENTS_SHOWN = 100


def run_status(coordinator: Coordinator) -> dict[str, Any]:
    """Return the run as it is now; all of it is public. A few milliseconds."""
    options, ledger = coordinator.options, coordinator.ledger
    database = coordinator.database
    rows, head = ledger.head
    counts = dict(database.execute("SELECT state, count(*) FROM files GROUP BY state").fetchall())
    return {
        "run": options.run,
        "step": coordinator.step,
        "open_steps": coordinator.open_steps(),
        "files": {
            state: counts.get(state, 0) for state in ("pending", "accepted", "refused", "undecided")
        },
        "reasons": _reasons(database),
        "refused": _refused(database),
        "steps": _steps(database),
        "versions": _versions(database),
        "workers": _workers(coordinator),
        "validators": coordinator.validator_states(),
        "ledger": {
            "rows": rows,
            "head": head,
            "burnt": ledger.balances.burnt,
            "is_balanced": ledger.balances.is_balanced(),
        },
        "events": coordinator.events[-_EVENTS_SHOWN:],
    }


def _reasons(database: sqlite3.Connection) -> dict[str, int]:
    rows = database.execute(
        "SELECT reason, count(*) FROM files WHERE state IN ('refused', 'undecided') GROUP BY reason"
    )
    return dict(rows.fetchall())


def _refused(database: sqlite3.Connection) -> list[dict[str, Any]]:
    rows = database.execute(
        "SELECT sha256, address, step, state, reason, detail FROM files WHERE state IN "
        "('refused', 'undecided') ORDER BY decided DESC LIMIT ?",
        (_REFUSED_SHOWN,),
    )
    names = ("sha256", "address", "step", "state", "reason", "detail")
    return [dict(zip(names, row, strict=True)) for row in rows]


def _steps(database: sqlite3.Connection) -> list[dict[str, Any]]:
    rows = database.execute(
        "SELECT step, unix_seconds, metrics FROM steps ORDER BY step DESC LIMIT ?",
        (_STEPS_SHOWN,),
    ).fetchall()
    return [
        {"step": step, "unix_seconds": at, "metrics": json.loads(metrics)}
        for step, at, metrics in reversed(rows)
    ]


def _versions(database: sqlite3.Connection) -> list[dict[str, Any]]:
    rows = database.execute(
        "SELECT version, unix_seconds FROM weights ORDER BY version DESC LIMIT ?",
        (_VERSIONS_SHOWN,),
    ).fetchall()
    found = []
    for version, at in reversed(rows):
        came = database.execute(
            "SELECT address, seconds FROM broadcasts WHERE version = ?", (version,)
        ).fetchall()
        found.append({"version": version, "unix_seconds": at, "seconds": dict(came)})
    return found


def _workers(coordinator: Coordinator) -> list[dict[str, Any]]:
    counts: dict[str, Counter[str]] = {}
    rows = coordinator.database.execute(
        "SELECT address, state, count(*) FROM files GROUP BY address, state"
    )
    for address, state, count in rows:
        counts.setdefault(address, Counter())[state] = count
    return [
        {"address": address, **account.summary(), "files": dict(counts.get(address, Counter()))}
        for address, account in sorted(coordinator.ledger.balances.accounts.items())
    ]
