"""`pccl status`: what a coordinator knows of a run, as a table or as JSON."""

from __future__ import annotations

import datetime
import json
import urllib.error
import urllib.request
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from pccl.address import RunAddress, bracketed

__all__ = ["RunUnknown", "StatusUnknown", "fetch_status", "show_status"]

_TIMEOUT_SECONDS = 5.0
# Bounds what a wrong host could make us hold; 1024 members and their events are less.
_BYTES_MAX = 16 << 20
_EVENTS_SHOWN = 10
_LINKS_SHOWN = 16


class StatusUnknown(Exception):
    """The coordinator could not be asked; the message says why, and what helps."""


class RunUnknown(StatusUnknown):
    """It was asked, and nobody of the run has come to it yet."""


def fetch_status(address: RunAddress, status_port: int) -> dict[str, Any]:
    """Ask the coordinator at `address` for what it knows of that run.

    Raises:
        StatusUnknown: it does not answer.
        RunUnknown: nobody of the run has come to it yet.
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
        raise RunUnknown(
            f"{address.shown}: the coordinator has no member of run {address.run!r}; runs it has: "
            f"{names}"
        )
    return {**status, "runs": [runs[address.run]]}


def show_status(status: dict[str, Any], console: Console) -> None:
    """Print members, quorum, the busiest links and the last events of the one run in `status`."""
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
    for column in (
        *("operations", "per second", "heard", "round trip", "its links", "waited for"),
        *("recovered", "joined at"),
    ):
        table.add_column(column, justify="right")
    for member in run["members"]:
        table.add_row(*_member_cells(member))
    console.print(table)
    for member in run["members"]:
        if member["is_slow"]:
            name = f"rank {member['rank']} ({member['member_id']})"
            text = f"{name} is slow: {member['slow_reason']}"
            console.print(Text(text, style="yellow"), soft_wrap=True)
    if run["links"]:
        console.print(_links_table(run))
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
        slow = member["is_slow"]
        state = Text("in, slow" if slow else "in", style="yellow" if slow else "green")
    heard = member["seconds_since_heard"]
    return [
        "" if member["rank"] is None else str(member["rank"]),
        Text(member["member_id"]),
        Text(member["address"]),
        state,
        str(member["completed"]),
        f"{member['operations_per_second']:.1f}",
        "never" if heard is None else f"{heard:.1f} s ago",
        _milliseconds(member["round_trip_seconds"]),
        _rate(member["link_bytes_per_second"]),
        f"{100 * member['waited_for']:.0f} %",
        str(member["recovered_operations"]),
        str(member["joined_at"]),
    ]


def _links_table(run: dict[str, Any]) -> Table:
    ranks = {member["member_id"]: member["rank"] for member in run["members"]}
    links = sorted(run["links"], key=lambda link: -link["bytes_per_second"])
    more = len(links) - _LINKS_SHOWN
    table = Table(
        title="links" + (f", the {_LINKS_SHOWN} busiest; {more} more with --json" * (more > 0)),
        title_justify="left",
    )
    for column in ("from", "to"):
        table.add_column(column)
    for column in ("now", "while busy", "round trip", "sockets replaced"):
        table.add_column(column, justify="right")
    for link in links[:_LINKS_SHOWN]:
        table.add_row(
            *(Text(f"{ranks.get(link[end], '')} ({link[end]})") for end in ("from", "to")),
            _rate(link["bytes_per_second"]),
            _rate(link["busy_bytes_per_second"]),
            _milliseconds(link["round_trip_seconds"]),
            str(link["replaced_sockets"]),
        )
    return table


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.1f} ms"


def _rate(bytes_per_second: float | None) -> str:
    return "" if bytes_per_second is None else f"{decimal(int(bytes_per_second))}/s"
