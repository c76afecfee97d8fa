"""`pccl status`: what a coordinator knows of a run, as a table or as JSON."""

from __future__ import annotations

import datetime
import json
import urllib.error
import urllib.request
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pccl.address import RunAddress, bracketed

__all__ = ["StatusUnknown", "fetch_status", "show_status"]

_TIMEOUT_SECONDS = 5.0
# Bounds what a wrong host could make us hold; 1024 members and their events are less.
_BYTES_MAX = 16 << 20
_EVENTS_SHOWN = 10


class StatusUnknown(Exception):
    """The coordinator could not be asked; the message says why, and what helps."""


def fetch_status(address: RunAddress, status_port: int) -> dict[str, Any]:
    """Ask the coordinator at `address` for what it knows of that run.

    Raises:
        StatusUnknown: it does not answer, or nobody of the run has come to it yet.
    """
    url = f"http://{bracketed(address.host)}:{status_port}/status.json"
    # A proxy has no business between two machines of a run.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_TIMEOUT_SECONDS) as answer:
            status = json.loads(answer.read(_BYTES_MAX))
            runs = {run["name"]: run for run in status["runs"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise StatusUnknown(
            f"{url}: {reason}. The coordinator serves its status on its own machine only, unless "
            f"it was started with --status-host, and maybe on another --status-port. From "
            f"elsewhere: ssh -L {status_port}:127.0.0.1:{status_port} {address.host}, then "
            f"pccl status pccl://127.0.0.1:{address.port}/{address.run}"
        ) from None
    if address.run not in runs:
        names = ", ".join(repr(name) for name in runs) or "none"
        raise StatusUnknown(
            f"{address}: the coordinator has no member of run {address.run!r}; runs it has: {names}"
        )
    return {**status, "runs": [runs[address.run]]}


def show_status(status: dict[str, Any], console: Console) -> None:
    """Print members, quorum and the last events of the one run in `status`."""
    (run,) = status["runs"]
    size = sum(member["rank"] is not None for member in run["members"])
    table = Table(
        title=Text(
            f"{run['name']}: {size} in quorum {run['quorum_id']}, since operation "
            f"{run['first_operation']}; term {run['term']}; revision {run['revision']}"
        ),
        title_justify="left",
    )
    for column in ("rank", "member", "address", "state"):
        table.add_column(column)
    for column in ("operations", "per second", "heard", "round trip", "joined at"):
        table.add_column(column, justify="right")
    for member in run["members"]:
        table.add_row(*_member_cells(member))
    console.print(table)
    for event in run["events"][-_EVENTS_SHOWN:]:
        when = datetime.datetime.fromtimestamp(event["unix_seconds"]).strftime("%H:%M:%S")
        console.print(Text(f"{when}  {event['text']}"), soft_wrap=True)
    if status["failure"]:
        console.print(Text(status["failure"], style="red"), soft_wrap=True)


def _member_cells(member: dict[str, Any]) -> list[Text | str]:
    if not member["is_connected"]:
        state = Text("not connected", style="red")
    elif member["rank"] is None:
        state = Text("waits to get in", style="yellow")
    else:
        state = Text("in", style="green")
    heard, round_trip = member["seconds_since_heard"], member["round_trip_seconds"]
    return [
        "" if member["rank"] is None else str(member["rank"]),
        Text(member["member_id"]),
        Text(member["address"]),
        state,
        str(member["completed"]),
        f"{member['operations_per_second']:.1f}",
        "never" if heard is None else f"{heard:.1f} s ago",
        "" if round_trip is None else f"{1000 * round_trip:.1f} ms",
        str(member["joined_at"]),
    ]
