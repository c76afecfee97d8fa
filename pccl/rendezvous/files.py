"""Meeting in a directory that all ranks see."""

from __future__ import annotations

import base64
import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pccl._core import ConnectError
from pccl.rendezvous.messages import (
    POLL_SECONDS_MAX,
    POLL_SECONDS_MIN,
    WORD_OF_RANK_0_SECONDS,
    Opener,
    decode_address,
    describe_missing,
    encode_list,
    parse_line,
    parse_list,
    remaining,
)


def exchange_through_files(
    directory: Path, opener: Opener, rank: int, world_size: int, deadline: float
) -> list[bytes]:
    """Exchange addresses through small files in a directory that all ranks see.

    Left-overs of earlier runs do no harm. Each rank writes a random ticket. Rank 0 writes a list of
    the tickets it saw, under its own as the name of the run, and corrects the list while tickets
    change; a rank believes a list only if its own ticket is on it, and an address counts only under
    the run's name. Two runs at once need two directories.

    Raises:
        ConnectError: not all ranks came before the deadline, and who is missing; or the directory
            cannot be written.
    """
    board = _FileBoard(directory)
    started = time.monotonic()
    ticket = secrets.token_hex(16)
    board.write(f"ticket-{rank}", {"ticket": ticket, "world_size": world_size})

    def give_up(missing: list[int]) -> ConnectError:
        return ConnectError(
            f"rendezvous: rank {rank} waited {time.monotonic() - started:.1f} s in {directory} for "
            f"{describe_missing(missing, world_size)}"
        )

    if rank == 0:
        return _collect_files(board, opener, ticket, world_size, deadline, give_up)
    run = ""
    pause = POLL_SECONDS_MIN
    while remaining(deadline + WORD_OF_RANK_0_SECONDS) > 0:
        tickets = board.read("tickets")
        listed = tickets.get("tickets")
        if isinstance(listed, list) and rank < len(listed) and listed[rank] == ticket:
            if tickets.get("run") != run:
                run = str(tickets.get("run"))
                address = base64.b64encode(opener(run)).decode()
                board.write(f"address-{rank}", {"run": run, "address": address})
            addresses = board.read("addresses")
            if addresses.get("run") == run:
                if "error" in addresses:
                    raise ConnectError(str(addresses["error"])[:4000])
                return parse_list(addresses.get("addresses"), world_size)
        time.sleep(pause)
        pause = min(1.5 * pause, POLL_SECONDS_MAX)
    raise give_up([0])


def _collect_files(
    board: _FileBoard,
    opener: Opener,
    run: str,
    world_size: int,
    deadline: float,
    give_up: Callable[[list[int]], ConnectError],
) -> list[bytes]:
    """Rank 0's side of exchange_through_files()."""
    addresses: list[bytes | None] = [opener(run)] + [None] * (world_size - 1)
    listed: list[object] = []
    pause = POLL_SECONDS_MIN
    while True:
        tickets = [board.read(f"ticket-{r}").get("ticket") for r in range(world_size)]
        if tickets != listed:
            board.write("tickets", {"run": run, "tickets": tickets})
            listed = tickets
        for other in range(1, world_size):
            if addresses[other] is None:
                message = board.read(f"address-{other}")
                if message.get("run") == run:
                    addresses[other] = decode_address(message.get("address"))
        missing = [r for r in range(world_size) if addresses[r] is None]
        if not missing:
            break
        if remaining(deadline) == 0:
            error = give_up(missing)
            board.write("addresses", {"run": run, "error": str(error)})
            raise error
        time.sleep(pause)
        pause = min(1.5 * pause, POLL_SECONDS_MAX)
    known = [address for address in addresses if address is not None]
    board.write("addresses", {"run": run, "addresses": encode_list(known)})
    return known


class _FileBoard:
    """Small JSON files, each replaced as a whole."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConnectError(f"rendezvous: {directory} is not a directory: {error}") from error

    def write(self, name: str, message: dict[str, Any]) -> None:
        try:
            descriptor, temporary = tempfile.mkstemp(prefix=".", dir=self._directory)
            with os.fdopen(descriptor, "w") as file:
                json.dump(message, file)
            os.replace(temporary, self._directory / name)
        except OSError as error:
            raise ConnectError(f"rendezvous: cannot write {self._directory}: {error}") from error

    def read(self, name: str) -> dict[str, Any]:
        """The file's content, {} where there is none, or not (yet) a whole one."""
        try:
            return parse_line((self._directory / name).read_bytes())
        except OSError:
            return {}
