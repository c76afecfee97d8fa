"""What ranks tell each other when they meet: addresses in JSON, and who is missing.

Nothing received is trusted: bounded sizes, no pickle, and what does not parse is no message.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from pccl._core import ConnectError

Opener = Callable[[str], bytes]  # name of the run -> this rank's address

# One address is a few hundred bytes; this leaves room for hosts with many interfaces.
_ADDRESS_BYTES_MAX = 64 << 10
LINE_BYTES_MAX = 2 * _ADDRESS_BYTES_MAX
POLL_SECONDS_MIN = 0.005
POLL_SECONDS_MAX = 0.25
# Rank 0 gives up at its own deadline and says who is missing; its word is worth a little wait.
WORD_OF_RANK_0_SECONDS = 2.0


def describe_missing(ranks: Sequence[int], world_size: int) -> str:
    """Name ranks for people: "rank 2 of 4", "ranks 1, 2, 3 of 4"."""
    shown = ", ".join(map(str, ranks[:16])) + (", ..." if len(ranks) > 16 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown} of {world_size}"


def remaining(deadline: float) -> float:
    """Seconds until `deadline`, never negative."""
    return max(0.0, deadline - time.monotonic())


def parse_line(line: bytes | bytearray) -> dict[str, Any]:
    """The object in `line`; {} if it holds anything else, which no message of ours is."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def decode_address(text: object) -> bytes | None:
    if not isinstance(text, str) or len(text) > LINE_BYTES_MAX:
        return None
    try:
        return base64.b64decode(text, validate=True) or None
    except (binascii.Error, ValueError):
        return None


def encode_list(addresses: Sequence[bytes]) -> list[str]:
    return [base64.b64encode(address).decode() for address in addresses]


def parse_list(message: object, world_size: int) -> list[bytes]:
    """The addresses that rank 0 published; ConnectError if it published an error instead."""
    if isinstance(message, dict) and "error" in message:
        raise ConnectError(str(message["error"])[:4000])
    addresses = [decode_address(text) for text in message] if isinstance(message, list) else []
    known = [address for address in addresses if address is not None]
    if len(known) != world_size or len(addresses) != world_size:
        raise ConnectError(f"rendezvous: rank 0 published no list of {world_size} addresses")
    return known
