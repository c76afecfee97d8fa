"""`pccl doctor`'s questions to the coordinator: how does the network see this machine?

The coordinator dials it back, at the address that its call came from, and exchanges a burst with
it; see csrc/transport/examiner.h for the limits.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pccl import _core
from pccl.address import RunAddress, bracketed
from pccl.config import Config
from pccl.doctor_check import Check

__all__ = ["Way", "look_from_there"]

_ALIVE = 3  # an answer of docs/wire_format.md
_TRIES = 4
_PAUSE_SECONDS = 1.5
# The coordinator's dial may wait in the listener's queue.
_ACCEPT_SECONDS = 1.0
# Below it codecs and DiLoCo matter more than anything else.
_SLOW_BITS_PER_SECOND = 10e6


@dataclass(frozen=True)
class Way:
    """How this machine calls the coordinator."""

    family: socket.AddressFamily
    place: tuple[str, int]
    address: RunAddress | None  # None: only a place is known
    config: Config

    def own_host(self) -> str:
        """This machine's address on the route there; nothing is sent."""
        with socket.socket(self.family, socket.SOCK_DGRAM) as probe:
            probe.connect(self.place)
            return str(probe.getsockname()[0]).partition("%")[0]


def look_from_there(way: Way) -> Iterator[Check]:
    """Yield what the coordinator sees: address and NAT, whether it gets through, how fast.

    Takes some 3 s, and at most 32 MiB each way.
    """
    port = way.config.ports[0]
    try:
        listener = _listen(way)
    except OSError as error:
        yield _no_listener(error, way)
        if error.errno != errno.EADDRINUSE:
            return
        listener = None
    try:
        if listener is not None:
            port = int(listener.getsockname()[1])
        found = _ask(way, port)
        if isinstance(found, Check):
            yield found
            return
        is_here = listener is None or _was_called(listener)
    finally:
        if listener is not None:
            listener.close()
    yield from judge_sighting(found, way, port, is_here)
    yield _bandwidth(found["sent_bytes_per_second"], found["received_bytes_per_second"])


def _listen(way: Way) -> socket.socket:
    host = way.config.bind or ("::" if way.family == socket.AF_INET6 else "")
    for port in way.config.ports:
        with suppress(OSError):
            return socket.create_server((host, port), family=way.family)
    return socket.create_server((host, way.config.ports[0]), family=way.family)


def _no_listener(error: OSError, way: Way) -> Check:
    ports = way.config.ports
    span = f"{ports[0]}" + (f"-{ports[-1]}" if len(ports) > 1 else "")
    place = f"{bracketed(way.config.bind or '*')}:{span}"
    if error.errno == errno.EADDRINUSE:
        fix = "unless that is a member of yours, set PCCL_PORT to another port"
        return Check("listen", "warning", f"{place} is in use on this machine", fix)
    fix = "set PCCL_BIND to an address of this machine, and PCCL_PORT to a port above 1023"
    return Check("listen", "FAILED", f"{place}: {error}", fix)


def _ask(way: Way, port: int) -> dict[str, Any] | Check:
    address = way.address
    for tries_left in reversed(range(_TRIES)):
        try:
            found = _core.examine(
                *way.place,
                address.run if address else "doctor",
                port,
                fingerprint=address.fingerprint if address else b"",
                token=address.token if address else b"",
                key_file=way.config.key,
            )
        except (_core.ConnectError, ValueError) as error:
            fix = "try again; if it stays so, something on the way cuts connections or is very slow"
            return Check("dial-back", "warning", f"not looked at: {error}", fix)
        _, answer, words = found["reply"]
        if answer == _ALIVE:
            return found
        if "another caller" not in words or tries_left == 0:
            break
        time.sleep(_PAUSE_SECONDS)
    fix = "try again in some seconds" if "busy" in words else "install the same pccl there"
    return Check("dial-back", "warning", f"not looked at: {words}", fix)


def _was_called(listener: socket.socket) -> bool:
    listener.settimeout(_ACCEPT_SECONDS)
    try:
        listener.accept()[0].close()
    except OSError:
        return False
    return True


def judge_sighting(found: dict[str, Any], way: Way, port: int, is_here: bool) -> Iterator[Check]:
    """Yield what the coordinator's words mean.

    Args:
        found: of `_core.examine()`.
        port: of this machine, which it dialed.
        is_here: its dial has arrived here, and not at a router that answers in our place.
    """
    own, seen = way.own_host(), found["seen_as"].rpartition(":")[0].strip("[]")
    translated = ipaddress.ip_address(own) != ipaddress.ip_address(seen)
    value = f"{own} here, {seen} there: behind NAT" if translated else f"{own}, here and there"
    yield Check("own address", "ok", value)
    place = f"{bracketed(seen)}:{port}"
    if found["is_reached"] and is_here:
        value = f"the coordinator reached {place} in {1000 * found['dial_seconds']:.2f} ms"
        told = not translated or seen in way.config.hosts
        fix = "" if told else f"set PCCL_HOST={seen} and PCCL_PORT={port}: others are told {own}"
        yield Check("dial-back", "ok" if told else "warning", value, fix)
        return
    why = "somebody else answers there" if found["is_reached"] else found["error"]
    value = f"the coordinator can't reach {place}: {why}"
    if translated:
        fix = (
            f"it works where the others can be called. Else forward a TCP port of the router at "
            f"{seen} to {own}, and set PCCL_HOST={seen} and PCCL_PORT to that port"
        )
    else:
        fix = (
            "it works where the others can be called. Else open a TCP port in this machine's "
            "firewall, and set PCCL_PORT to it"
        )
    yield Check("dial-back", "warning", value, fix)


def _bandwidth(up: float, down: float) -> Check:
    up, down = 8 * up, 8 * down
    slow = min(up, down) < _SLOW_BITS_PER_SECOND
    return Check(
        "bandwidth",
        "warning" if slow else "ok",
        f"{up / 1e6:.1f} Mbit/s to the coordinator, {down / 1e6:.1f} from it, in a second each",
        "codec='int8' sends a quarter of the bytes, DiLoCo (docs/diloco.md) far fewer"
        if slow
        else "",
    )
