"""Meeting at rank 0, which listens on a port: two lines of JSON each way.

Whoever does not speak the protocol is dropped, without harm to the run.
"""

from __future__ import annotations

import base64
import json
import logging
import secrets
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from pccl._core import ConnectError
from pccl.rendezvous.messages import (
    LINE_BYTES_MAX,
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

_logger = logging.getLogger("pccl")

_MAGIC = "pccl-rendezvous-1"
# A stranger who connects and says nothing is dropped after this time.
_GREETING_SECONDS = 10.0
# Connections beyond the members that rank 0 holds at once, for strangers and reconnects.
_STRANGERS_MAX = 64


def exchange_over_tcp(
    host: str,
    ports: Sequence[int],
    opener: Opener,
    rank: int,
    world_size: int,
    deadline: float,
    *,
    key: str = "",
) -> list[bytes]:
    """Rank 0 listens on the first free port of `ports`, the others connect to `host` and try each.

    Two lines of JSON each way. Rank 0 listens on all interfaces, unless `host` is one of loopback.
    key: what tells this run from another one on a neighbouring port; the same on all ranks.

    Raises:
        ConnectError: not all ranks came before the deadline, and who is missing; no port was free;
            or rank 0 refused this rank, and why.
    """
    if rank == 0:
        with _Desk(_listen(host, ports), opener, world_size, key) as desk:
            return desk.serve(deadline)
    return _visit_desk(host, ports, opener, rank, world_size, deadline, key)


def _listen(host: str, ports: Sequence[int]) -> socket.socket:
    loopback = host == "localhost" or host.startswith("127.") or host == "::1"
    failure: OSError | None = None
    for port in ports:
        try:
            if loopback:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                address = "127.0.0.1" if host == "localhost" else host
                return socket.create_server((address, port), family=family)
            if socket.has_dualstack_ipv6():
                return socket.create_server(
                    ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512
                )
            return socket.create_server(("", port), backlog=512)
        except OSError as error:
            failure = error
    raise ConnectError(
        f"rendezvous: rank 0 cannot listen on port {', '.join(map(str, ports))}: {failure}"
    ) from failure


@dataclass
class _Visitor:
    """One connection at rank 0's desk."""

    connection: socket.socket
    peer: str
    greeting_deadline: float
    rank: int = -1  # -1: has not said who it is
    address: bytes = b""  # empty: has not told it
    received: bytearray = field(default_factory=bytearray)


class _Desk:
    """Rank 0's side: hears every rank out, one line at a time, and answers when all are there."""

    def __init__(self, listener: socket.socket, opener: Opener, world_size: int, key: str) -> None:
        self._listener = listener
        self._world_size = world_size
        self._key = key
        self._run = secrets.token_hex(16)
        self._own_address = opener(self._run)
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        listener.setblocking(False)
        self._visitors: dict[socket.socket, _Visitor] = {}
        self._last_refusal = ""

    def __enter__(self) -> _Desk:
        return self

    def __exit__(self, *_: object) -> None:
        for visitor in list(self._visitors.values()):
            self._drop(visitor)
        self._selector.close()
        self._listener.close()

    def serve(self, deadline: float) -> list[bytes]:
        started = time.monotonic()
        while True:
            by_rank = {v.rank: v for v in self._visitors.values() if v.address}
            missing = [r for r in range(1, self._world_size) if r not in by_rank]
            if not missing:
                break
            if remaining(deadline) == 0:
                message = (
                    f"rendezvous: rank 0 waited {time.monotonic() - started:.1f} s for "
                    f"{describe_missing(missing, self._world_size)}{self._last_refusal}"
                )
                self._answer_all({"error": message})
                raise ConnectError(message)
            self._serve_once(min(remaining(deadline), 1.0))
        addresses = [self._own_address, *(by_rank[r].address for r in range(1, self._world_size))]
        self._answer_all({"addresses": encode_list(addresses)})
        return addresses

    def _serve_once(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._listener:
                self._accept()
            else:
                self._hear(self._visitors[cast(socket.socket, key.fileobj)])
        now = time.monotonic()
        for visitor in list(self._visitors.values()):
            if visitor.rank < 0 and now > visitor.greeting_deadline:
                self._drop(visitor)

    def _accept(self) -> None:
        try:
            connection, peer = self._listener.accept()
        except OSError:
            return  # gone again, or out of descriptors: the others are not concerned
        if len(self._visitors) >= self._world_size + _STRANGERS_MAX:
            connection.close()
            return
        connection.setblocking(False)
        visitor = _Visitor(connection, f"{peer[0]}:{peer[1]}", time.monotonic() + _GREETING_SECONDS)
        self._visitors[connection] = visitor
        self._selector.register(connection, selectors.EVENT_READ)

    def _hear(self, visitor: _Visitor) -> None:
        try:
            data = visitor.connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        visitor.received += data
        if not data or len(visitor.received) > LINE_BYTES_MAX:
            self._drop(visitor)
            return
        while b"\n" in visitor.received and visitor.connection in self._visitors:
            line, _, rest = visitor.received.partition(b"\n")
            visitor.received = bytearray(rest)
            self._read(visitor, parse_line(line))

    def _read(self, visitor: _Visitor, message: dict[str, Any]) -> None:
        if visitor.rank < 0:
            self._greet(visitor, message)
            return
        address = decode_address(message.get("address"))
        if address is None or visitor.address:
            self._drop(visitor)
            return
        visitor.address = address

    def _greet(self, visitor: _Visitor, message: dict[str, Any]) -> None:
        rank, world_size = message.get("rank"), message.get("world_size")
        if message.get("protocol") != _MAGIC or type(rank) is not int:
            self._drop(visitor)  # a stranger gets no answer
            return
        taken = next((v for v in self._visitors.values() if v.rank == rank), None)
        if message.get("key") != self._key:
            self._refuse(visitor, "this is another run", another_run=True)
        elif world_size != self._world_size:
            self._refuse(
                visitor,
                f"rank {rank} at {visitor.peer} counts a world size of {world_size!r}, rank 0 one "
                f"of {self._world_size}",
            )
        elif not 0 < rank < self._world_size:
            self._refuse(
                visitor,
                f"rank {rank} at {visitor.peer} is out of range 1 to {self._world_size - 1}",
            )
        elif taken is not None:
            self._refuse(
                visitor, f"rank {rank} came twice, from {taken.peer} and from {visitor.peer}"
            )
        else:
            visitor.rank = rank
            self._send(visitor, {"run": self._run})

    def _refuse(self, visitor: _Visitor, reason: str, *, another_run: bool = False) -> None:
        if not another_run:
            _logger.warning("rendezvous: refused a rank: %s", reason)
            self._last_refusal = f"; refused was: {reason}"
        self._send(visitor, {"error": f"rendezvous: {reason}", "another_run": another_run})
        self._drop(visitor)

    def _answer_all(self, message: dict[str, Any]) -> None:
        for visitor in list(self._visitors.values()):
            if visitor.rank > 0:
                visitor.connection.setblocking(True)
                self._send(visitor, message)

    def _send(self, visitor: _Visitor, message: dict[str, Any]) -> None:
        try:
            visitor.connection.settimeout(_GREETING_SECONDS)
            visitor.connection.sendall(json.dumps(message).encode() + b"\n")
            visitor.connection.settimeout(0)
        except OSError:
            self._drop(visitor)

    def _drop(self, visitor: _Visitor) -> None:
        if self._visitors.pop(visitor.connection, None) is not None:
            self._selector.unregister(visitor.connection)
            visitor.connection.close()


class _Refused(ConnectError):
    """Rank 0 of this very run said no: trying again cannot help."""


def _visit_desk(
    host: str,
    ports: Sequence[int],
    opener: Opener,
    rank: int,
    world_size: int,
    deadline: float,
    key: str,
) -> list[bytes]:
    """A rank's side: try until rank 0 answers. Rank 0 may start later, or start again."""
    started = time.monotonic()
    pause = POLL_SECONDS_MIN
    answer_deadline = deadline + WORD_OF_RANK_0_SECONDS
    greeting = {"protocol": _MAGIC, "key": key, "world_size": world_size, "rank": rank}
    failure = "nothing tried"
    while True:
        for port in ports:
            try:
                with socket.create_connection(
                    (host, port), timeout=max(0.05, min(remaining(deadline), _GREETING_SECONDS))
                ) as connection:
                    return _talk(connection, greeting, opener, world_size, answer_deadline)
            except _Refused as error:
                raise ConnectError(str(error)) from None
            except (OSError, ValueError) as error:
                failure = f"{host}:{port}: {error}"
        if remaining(deadline) == 0:
            break
        time.sleep(min(pause, remaining(deadline)))
        pause = min(2 * pause, POLL_SECONDS_MAX)
    raise ConnectError(
        f"rendezvous: rank {rank} waited {time.monotonic() - started:.1f} s for rank 0 of "
        f"{world_size} at {host}; last try: {failure}"
    )


def _talk(
    connection: socket.socket,
    greeting: dict[str, Any],
    opener: Opener,
    world_size: int,
    deadline: float,
) -> list[bytes]:
    """Greet, tell the address, get everybody's. OSError or ValueError: try again."""
    connection.sendall(json.dumps(greeting).encode() + b"\n")
    reader = _LineReader(connection)
    # A service that accepts and stays silent is not rank 0.
    hello = reader.read(min(deadline, time.monotonic() + _GREETING_SECONDS), LINE_BYTES_MAX)
    if hello.get("another_run"):
        raise ValueError("another run listens there")
    if "error" in hello:
        raise _Refused(str(hello["error"])[:1000])
    run = hello.get("run")
    if not isinstance(run, str) or not 0 < len(run) <= 64:
        raise ValueError("not a rendezvous of pccl")
    address = base64.b64encode(opener(run)).decode()
    connection.settimeout(_GREETING_SECONDS)
    connection.sendall(json.dumps({"address": address}).encode() + b"\n")
    answer = reader.read(deadline, world_size * LINE_BYTES_MAX)
    if "error" in answer:
        raise _Refused(str(answer["error"])[:4000])
    return parse_list(answer.get("addresses"), world_size)


class _LineReader:
    """Lines of JSON from a socket, each bounded in bytes and in time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = bytearray()

    def read(self, deadline: float, bytes_max: int) -> dict[str, Any]:
        while b"\n" not in self._received:
            if len(self._received) > bytes_max:
                raise ValueError(f"a line of more than {bytes_max} bytes")
            self._connection.settimeout(max(0.001, remaining(deadline)))
            data = self._connection.recv(65536)
            if not data:
                raise ConnectionError("closed by the other side")
            self._received += data
        line, _, rest = self._received.partition(b"\n")
        self._received = bytearray(rest)
        return parse_line(line)
