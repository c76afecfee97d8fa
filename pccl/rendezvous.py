"""Finding each other: every rank tells its address and gets everybody's, before a deadline.

A rendezvous is a function `(opener, rank, world_size, deadline) -> addresses by rank`. It first agrees
on a random name of the run, which rank 0 draws, so that left-overs of another run cannot be taken
for this one; then `opener(run)` gives this rank's address. `deadline` is in time.monotonic() seconds.
Nothing received is trusted: bounded sizes, no pickle, and whoever does not speak the protocol is
dropped without harm to the run.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import secrets
import selectors
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import unquote, urlsplit

from pccl._core import ConnectError, PcclError

_logger = logging.getLogger("pccl")

Opener = Callable[[str], bytes]  # name of the run -> this rank's address

_MAGIC = "pccl-rendezvous-1"
# One address is a few hundred bytes; this leaves room for hosts with many interfaces.
_ADDRESS_BYTES_MAX = 64 << 10
_LINE_BYTES_MAX = 2 * _ADDRESS_BYTES_MAX
# A stranger who connects and says nothing is dropped after this time.
_GREETING_SECONDS = 10.0
# Connections beyond the members that rank 0 holds at once, for strangers and reconnects.
_STRANGERS_MAX = 64
_POLL_SECONDS_MIN = 0.005
_POLL_SECONDS_MAX = 0.25
# Ports after MASTER_PORT that rank 0 tries when torchrun's own store listens on MASTER_PORT.
_PORTS_AFTER_AGENT = 8


class Store(Protocol):
    """What a key-value store must be able to do; torch.distributed's stores fit.

    `get` waits until the key is set, or raises. Keys are used once: give each run a fresh store, or
    a torch store, of which repeated use is told apart.
    """

    def set(self, key: str, value: bytes) -> object: ...
    def get(self, key: str) -> bytes: ...


def describe_missing(ranks: Sequence[int], world_size: int) -> str:
    """Name ranks for people: "rank 2 of 4", "ranks 1, 2, 3 of 4"."""
    shown = ", ".join(map(str, ranks[:16])) + (", ..." if len(ranks) > 16 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown} of {world_size}"


def remaining(deadline: float) -> float:
    """Seconds until `deadline`, never negative."""
    return max(0.0, deadline - time.monotonic())


# --- through a store ------------------------------------------------------------------------------


def exchange_through_store(
    store: Store,
    opener: Opener,
    rank: int,
    world_size: int,
    deadline: float,
    *,
    prefix: str = "pccl",
) -> list[bytes]:
    """Exchange addresses through `store`: rank 0 collects them and publishes the list.

    3 round trips to the store a rank, P at rank 0. With a torch store, or any that has
    `add(key, amount)`, the same store serves again and again: each rank counts its visits.

    Raises:
        ConnectError: not all ranks came before the deadline; they are named on every rank.
    """
    visit = store.add(f"{prefix}/visits/{rank}", 1) if hasattr(store, "add") else 1
    keys = f"{prefix}/{visit}"
    started = time.monotonic()
    if rank == 0:
        run = secrets.token_hex(16)
        store.set(f"{keys}/run", run.encode())
    else:
        run = _get(store, f"{keys}/run", deadline, lambda: [0], world_size, started).decode()
    store.set(f"{keys}/address/{rank}", opener(run))

    def missing() -> list[int]:
        return [r for r in range(world_size) if not _has(store, f"{keys}/address/{r}")]

    if rank != 0:
        # Rank 0 gives up first and says who is missing; its word is worth waiting a little longer.
        list_deadline = deadline + 2.0
        text = _get(
            store, f"{keys}/addresses", list_deadline, lambda: missing() or [0], world_size, started
        )
        return _parse_list(json.loads(text), world_size)
    addresses = []
    try:
        for other in range(world_size):
            key = f"{keys}/address/{other}"
            addresses.append(_get(store, key, deadline, missing, world_size, started))
    except ConnectError as error:
        store.set(f"{keys}/addresses", json.dumps({"error": str(error)}).encode())
        raise
    store.set(f"{keys}/addresses", json.dumps(_encode_list(addresses)).encode())
    return addresses


def _has(store: Any, key: str) -> bool:
    try:
        return bool(store.check([key]))
    except AttributeError:
        return False  # a store that cannot tell: the caller names more ranks than it must


def _get(
    store: Any,
    key: str,
    deadline: float,
    missing: Callable[[], list[int]],
    world_size: int,
    started: float,
) -> bytes:
    """store.get(key), or ConnectError after the deadline, naming `missing()`."""
    wait = getattr(store, "wait", None)
    try:
        if wait is None:
            return _get_in_thread(store, key, deadline)
        # torch takes 0 for "no limit", and whole milliseconds only.
        wait([key], timedelta(milliseconds=max(1, int(remaining(deadline) * 1000))))
        return bytes(store.get(key))
    except (LookupError, TimeoutError, RuntimeError) as error:
        if isinstance(error, PcclError):
            raise
        if remaining(deadline) > 0.05:
            raise ConnectError(f"rendezvous: the store failed on {key!r}: {error}") from error
        raise ConnectError(
            f"rendezvous: waited {time.monotonic() - started:.1f} s for "
            f"{describe_missing(missing(), world_size)} to publish an address in the store"
        ) from error


def _get_in_thread(store: Store, key: str, deadline: float) -> bytes:
    """Bound a `get` that knows no deadline. A thread that never returns is left behind (daemon)."""
    result: list[bytes] = []
    failure: list[BaseException] = []

    def get() -> None:
        pause = _POLL_SECONDS_MIN
        while True:
            try:
                result.append(store.get(key))
                return
            except (LookupError, TimeoutError) as error:  # not there yet, says the store
                if remaining(deadline) == 0:
                    failure.append(error)
                    return
                time.sleep(pause)
                pause = min(2 * pause, _POLL_SECONDS_MAX)
            except BaseException as error:
                failure.append(error)
                return

    thread = threading.Thread(target=get, name="pccl-store-get", daemon=True)
    thread.start()
    thread.join(remaining(deadline))
    if result:
        return result[0]
    if failure:
        raise failure[0]
    raise TimeoutError(key)


# --- tcp:// ---------------------------------------------------------------------------------------


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

    Two lines of JSON each way. Rank 0 listens on all interfaces, unless `host` is a loopback address.
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
        self._answer_all({"addresses": _encode_list(addresses)})
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
        if not data or len(visitor.received) > _LINE_BYTES_MAX:
            self._drop(visitor)
            return
        while b"\n" in visitor.received and visitor.connection in self._visitors:
            line, _, rest = visitor.received.partition(b"\n")
            visitor.received = bytearray(rest)
            self._read(visitor, _parse_line(line))

    def _read(self, visitor: _Visitor, message: dict[str, Any]) -> None:
        if visitor.rank < 0:
            self._greet(visitor, message)
            return
        address = _decode_address(message.get("address"))
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
                f"rank {rank} at {visitor.peer} counts a world size of {world_size!r}, rank 0 one of "
                f"{self._world_size}",
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
    pause = _POLL_SECONDS_MIN
    # Rank 0 gives up at its own deadline and says who is missing; its word is worth a little wait.
    answer_deadline = deadline + 2.0
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
        pause = min(2 * pause, _POLL_SECONDS_MAX)
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
    hello = reader.read(min(deadline, time.monotonic() + _GREETING_SECONDS), _LINE_BYTES_MAX)
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
    answer = reader.read(deadline, world_size * _LINE_BYTES_MAX)
    if "error" in answer:
        raise _Refused(str(answer["error"])[:4000])
    return _parse_list(answer.get("addresses"), world_size)


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
        return _parse_line(line)


# --- file:// --------------------------------------------------------------------------------------


def exchange_through_files(
    directory: Path, opener: Opener, rank: int, world_size: int, deadline: float
) -> list[bytes]:
    """Exchange addresses through small files in a directory that all ranks see.

    Left-overs of earlier runs do no harm. Each rank writes a random ticket. Rank 0 writes a list of the
    tickets it saw, under its own as the name of the run, and corrects the list while tickets change; a
    rank believes a list only if its own ticket is on it, and an address counts only under the run's
    name. Two runs at once need two directories.

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
    pause = _POLL_SECONDS_MIN
    # As in the other ways: rank 0 gives up first.
    while remaining(deadline + 2.0) > 0:
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
                return _parse_list(addresses.get("addresses"), world_size)
        time.sleep(pause)
        pause = min(1.5 * pause, _POLL_SECONDS_MAX)
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
    pause = _POLL_SECONDS_MIN
    while True:
        tickets = [board.read(f"ticket-{r}").get("ticket") for r in range(world_size)]
        if tickets != listed:
            board.write("tickets", {"run": run, "tickets": tickets})
            listed = tickets
        for other in range(1, world_size):
            if addresses[other] is None:
                message = board.read(f"address-{other}")
                if message.get("run") == run:
                    addresses[other] = _decode_address(message.get("address"))
        missing = [r for r in range(world_size) if addresses[r] is None]
        if not missing:
            break
        if remaining(deadline) == 0:
            error = give_up(missing)
            board.write("addresses", {"run": run, "error": str(error)})
            raise error
        time.sleep(pause)
        pause = min(1.5 * pause, _POLL_SECONDS_MAX)
    known = [address for address in addresses if address is not None]
    board.write("addresses", {"run": run, "addresses": _encode_list(known)})
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
            return _parse_line((self._directory / name).read_bytes())
        except OSError:
            return {}


# --- which way ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where ranks meet, from an init_method."""

    scheme: str  # "tcp" or "file"
    host: str = ""
    ports: tuple[int, ...] = ()
    directory: Path = Path()
    key: str = ""

    @classmethod
    def parse(cls, init_method: str) -> Place:
        """Read "tcp://host:port" or "file:///directory".

        Raises:
            ValueError: neither of the two; what was given is quoted.
        """
        try:
            parts = urlsplit(init_method)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"init_method={init_method!r}: {error}") from None
        if parts.scheme == "tcp" and parts.hostname and port:
            return cls("tcp", host=parts.hostname, ports=(port,))
        if parts.scheme == "file" and not parts.netloc and len(parts.path) > 1:
            return cls("file", directory=Path(unquote(parts.path)))
        raise ValueError(
            f"init_method={init_method!r}: expected 'env://', 'tcp://host:port' or "
            f"'file:///directory'"
        )

    @classmethod
    def of_launch(cls, host: str, port: int, *, port_is_taken: bool, run: str) -> Place:
        """Where a launcher's ranks meet: on its port, or beside it where torchrun's store has it.

        torchrun's store speaks torch's own protocol, which we cannot without torch, so rank 0 takes
        the first free of the next 8 ports, and `run` keeps neighbouring runs apart.
        """
        if port_is_taken:
            last = min(port + _PORTS_AFTER_AGENT, 65535)
            return cls(
                "tcp", host=host, ports=tuple(range(port + 1, last + 1)), key=f"{run}:{port}"
            )
        return cls("tcp", host=host, ports=(port,), key=run)

    def meet(self, opener: Opener, rank: int, world_size: int, deadline: float) -> list[bytes]:
        """Exchange addresses here; see exchange_over_tcp() and exchange_through_files()."""
        if self.scheme == "file":
            return exchange_through_files(self.directory, opener, rank, world_size, deadline)
        return exchange_over_tcp(
            self.host, self.ports, opener, rank, world_size, deadline, key=self.key
        )


# --- JSON -----------------------------------------------------------------------------------------


def _parse_line(line: bytes | bytearray) -> dict[str, Any]:
    """The object in `line`; {} if it holds anything else, which no message of ours is."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def _decode_address(text: object) -> bytes | None:
    if not isinstance(text, str) or len(text) > _LINE_BYTES_MAX:
        return None
    try:
        return base64.b64decode(text, validate=True) or None
    except (binascii.Error, ValueError):
        return None


def _encode_list(addresses: Sequence[bytes]) -> list[str]:
    return [base64.b64encode(address).decode() for address in addresses]


def _parse_list(message: object, world_size: int) -> list[bytes]:
    """The addresses that rank 0 published; ConnectError if it published an error instead."""
    if isinstance(message, dict) and "error" in message:
        raise ConnectError(str(message["error"])[:4000])
    addresses = [_decode_address(text) for text in message] if isinstance(message, list) else []
    known = [address for address in addresses if address is not None]
    if len(known) != world_size or len(addresses) != world_size:
        raise ConnectError(f"rendezvous: rank 0 published no list of {world_size} addresses")
    return known
