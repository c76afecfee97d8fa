"""`pccl keygen`, `invite` and `revoke`: what the owner of a run decides about keys and tokens."""

from __future__ import annotations

import base64
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pccl import _core
from pccl.address import RunAddress, decode_key, decode_token, encode_bytes
from pccl.coordinator import database_file, key_file

__all__ = ["invite", "keygen", "parse_seconds", "revoke"]

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_ADDRESS = typer.Argument(help="of the run, as `pccl coordinator` prints it")
_DATABASE = typer.Option(help="the coordinator's; default: as `pccl coordinator` has it")
_KEY = typer.Option(help="the coordinator's key file; default: beside its database")


def keygen(
    out: Annotated[Path, typer.Option(help="the new file; one that is there stays")] = Path(
        "pccl.key"
    ),
) -> None:
    """Make a key, readable for its owner only, and print its fingerprint.

    A member that is started with PCCL_KEY=FILE is known by it when it comes again.
    """
    try:
        print(encode_bytes(_core.make_key_file(str(out))))
    except ValueError as error:
        raise _ended("keygen", error) from None


def invite(
    address: Annotated[str, _ADDRESS],
    uses: Annotated[int, typer.Option(help="keys that it admits; 0: any number")] = 1,
    expires: Annotated[
        str, typer.Option(metavar="TIME", help="30m, 12h or 7d from now; empty: never")
    ] = "7d",
    database: Annotated[Path | None, _DATABASE] = None,
    key: Annotated[Path | None, _KEY] = None,
) -> None:
    """Print the run's address with a new token: for one key and for a week, unless you say else.

    pccl invite pccl://203.0.113.7:29400/my-run --uses 3 --expires 12h

    On the coordinator's machine, before it is started or while it runs.
    """
    place = _parse(address)
    if uses < 0:
        raise typer.BadParameter(f"--uses: expected 0 or more, got {uses}")
    try:
        seconds = parse_seconds(expires) if expires else 0.0
    except ValueError as error:
        raise typer.BadParameter(f"--expires: {error}") from None
    try:
        file = database_file(database)
        identity = key_file(key, file)
        fingerprint = (
            _core.read_key_file(str(identity))
            if identity.exists()
            else _core.make_key_file(str(identity))
        )
        if place.fingerprint not in (b"", fingerprint):
            raise ValueError(
                f"the address names the key {encode_bytes(place.fingerprint)}, and {identity} is "
                f"{encode_bytes(fingerprint)}: another coordinator's, or say --database"
            )
        token = _core.KeyBook(str(file)).invite(place.run, uses=uses, seconds=seconds)
        print(replace(place, fingerprint=fingerprint, token=token))
    except (_core.PcclError, ValueError) as error:
        raise _ended("invite", error) from None


def revoke(
    address: Annotated[str, _ADDRESS],
    member: Annotated[
        str,
        typer.Option(metavar="FINGERPRINT", help="put this key out, and keep it out"),
    ] = "",
    token: Annotated[
        str,
        typer.Option(
            metavar="TOKEN",
            help="a token, or its name in the coordinator's log; default: the address's",
        ),
    ] = "",
    with_members: Annotated[
        bool, typer.Option("--with-members", help="put out as well whom the token admitted")
    ] = False,
    database: Annotated[Path | None, _DATABASE] = None,
) -> None:
    """Put a member's key out of a run, or have a token admit nobody any more.

    pccl revoke pccl://203.0.113.7:29400/my-run --member K7Q...

    On the coordinator's machine. Within a second a connected member of that key is out, with the
    reason; whom a token has admitted stays, unless you say --with-members.
    """
    place = _parse(address)
    if bool(member) == bool(token or (place.token and not member)):
        raise typer.BadParameter("expected --member, or a token, there or in the address")
    try:
        book = _core.KeyBook(str(database_file(database)))
        if member:
            book.revoke_key(place.run, decode_key(member))
            print(f"run {place.run!r}: {member} is out", file=sys.stderr)
            return
        name = _token_id(token) if token else _core.token_id(place.token)
        if not book.revoke_token(place.run, name, with_members):
            raise ValueError(f"run {place.run!r} has no such token in {book.path}")
        print(f"run {place.run!r}: token {encode_bytes(name)} admits nobody", file=sys.stderr)
    except (_core.PcclError, ValueError) as error:
        raise _ended("revoke", error) from None


def parse_seconds(text: str) -> float:
    """Read "90s", "30m", "12h" or "7d". Raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text.strip())
    if match is None or int(match[1]) == 0:
        raise ValueError(f"expected a time like 30m, 12h or 7d, got {text!r}")
    return float(int(match[1]) * _SECONDS[match[2]])


def _token_id(text: str) -> bytes:
    if re.fullmatch(r"[A-Za-z0-9_-]{11}", text):
        return base64.urlsafe_b64decode(text + "=")
    return _core.token_id(decode_token(text))


def _parse(address: str) -> RunAddress:
    try:
        return RunAddress.parse(address)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _ended(command: str, error: Exception) -> typer.Exit:
    print(f"pccl {command}: {error}", file=sys.stderr)
    return typer.Exit(1)
