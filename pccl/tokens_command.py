"""`pccl tokens`: what admits to a run, whom it has admitted, and who of those is connected now."""

from __future__ import annotations

import datetime
import json as json_format
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pccl import _core
from pccl.address import DEFAULT_STATUS_PORT, RunAddress, encode_bytes
from pccl.coordinator import database_file
from pccl.status_command import RunUnknown, StatusUnknown, fetch_status

__all__ = ["describe_tokens", "tokens"]

_CONNECTED_SHOWN = 4


def tokens(
    address: Annotated[str, typer.Argument(help="of the run, as `pccl coordinator` prints it")],
    json: Annotated[bool, typer.Option("--json", help="print it as data, each key too")] = False,
    database: Annotated[
        Path | None, typer.Option(help="the coordinator's; default: as `pccl coordinator` has it")
    ] = None,
    status_port: Annotated[
        int, typer.Option(help="of the coordinator's status page, which knows who is connected")
    ] = DEFAULT_STATUS_PORT,
) -> None:
    """List the tokens of a run: when issued, how often used, revoked or not, who is connected.

    pccl tokens pccl://203.0.113.7:29400/my-run

    On the coordinator's machine. A token is shown by its name, as in the coordinator's log; that
    admits nobody, and `pccl revoke --token NAME` takes it.
    """
    try:
        place = RunAddress.parse(address)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    try:
        file = database_file(database)
        if not file.with_suffix(".keys.db").exists():
            raise ValueError(f"no coordinator has kept keys beside {file}: say --database")
        book = _core.KeyBook(str(file))
        members, unknown = _members(place, status_port)
        found = describe_tokens(book.tokens(place.run), book.keys(place.run), members)
    except (_core.PcclError, ValueError) as error:
        print(f"pccl tokens: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if json:
        print(json_format.dumps({"run": place.run, "tokens": found}, indent=2))
    else:
        Console(highlight=False).print(_table(place.run, found))
    if unknown:
        print(f"pccl tokens: who is connected is not known: {unknown}", file=sys.stderr)


def _members(place: RunAddress, status_port: int) -> tuple[dict[str, str] | None, str]:
    """Key -> address of who is connected, or None and why that is not known."""
    try:
        (run,) = fetch_status(place, status_port)["runs"]
    except RunUnknown:
        return {}, ""
    except StatusUnknown as unknown:
        return None, str(unknown)
    there = [member for member in run["members"] if member["is_connected"]]
    return {member["key"]: member["address"] for member in there}, ""


def describe_tokens(
    rows: list[dict[str, Any]], keys: list[dict[str, Any]], members: dict[str, str] | None
) -> list[dict[str, Any]]:
    """One entry a token, as data that JSON can hold.

    Args:
        rows: of `KeyBook.tokens()`.
        keys: of `KeyBook.keys()`, of the same run.
        members: key -> address of those that are connected; None: not known.
    """
    found = []
    for row in rows:
        admitted = []
        for key in keys:
            if key["token"] == row["id"]:
                name = encode_bytes(key["fingerprint"])
                connected = None if members is None else members.get(name, "")
                admitted.append(
                    {"key": name, "is_revoked": key["is_revoked"], "connected": connected}
                )
        found.append({**row, "id": encode_bytes(row["id"]), "state": _state(row), "keys": admitted})
    return found


def _state(row: dict[str, Any]) -> str:
    if row["is_revoked"]:
        return "revoked"
    if row["expires"] is not None and row["expires"] <= time.time():
        return "expired"
    return "used up" if row["uses_left"] == 0 else "admits"


def _table(run: str, found: list[dict[str, Any]]) -> Table:
    table = Table(title=Text(f"tokens of run {run!r}"), title_justify="left")
    for column in ("token", "issued", "expires", "used", "state", "connected now"):
        table.add_column(column, no_wrap=column == "token")
    for token in found:
        left = token["uses_left"]
        of = "" if left is None else f" of {token['used'] + left}"
        state = token["state"] + (", in the coordinator's address" * token["is_standing"])
        table.add_row(
            Text(token["id"]),
            _when(token["issued"], "not noted"),
            _when(token["expires"], "never"),
            f"{token['used']}{of}",
            Text(state, style="green" if token["state"] == "admits" else "red"),
            Text(_connected(token["keys"])),
        )
    return table


def _connected(keys: list[dict[str, Any]]) -> str:
    if any(key["connected"] is None for key in keys):
        return "not known"
    there = [key["connected"] for key in keys if key["connected"]]
    more = len(there) - _CONNECTED_SHOWN
    shown = ", ".join(there[:_CONNECTED_SHOWN])
    return shown + (f" and {more} more" if more > 0 else "")


def _when(seconds: int | None, otherwise: str) -> str:
    if seconds is None:
        return otherwise
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
