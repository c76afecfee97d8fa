"""A coordinator in this process: decides who is in its runs; see docs/decisions/0005."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from pccl import _core
from pccl.address import DEFAULT_PORT, RunAddress, check_run_name
from pccl.config import Config, state_directory

__all__ = ["Coordinator", "CoordinatorOptions"]

_logger = logging.getLogger("pccl.coordinator")

# How long one look for events takes while there are none; close() ends it at once.
_LOOK_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class CoordinatorOptions:
    """How a coordinator listens, what it looks after, and when it takes a member for lost."""

    port: int = DEFAULT_PORT
    """Where members reach it; 0 is any free port."""

    bind: str = ""
    """The local address to listen on. Empty: all interfaces, IPv4 and IPv6."""

    hosts: tuple[str, ...] = ()
    """Names or addresses under which members reach it, best first. Empty: found by itself."""

    database: Path | None = None
    """The file that it must find again after a crash. None: coordinator.db of this user."""

    key: Path | None = None
    """The file with its key, of which the fingerprint stands in the address; made where there is
    none. None: beside the database."""

    insecure: bool = False
    """No keys and no TLS: whoever reaches its port is in. Members say insecure=True as well."""

    tls: str = "auto"
    """"always": members of this machine need a key as well; see Config.tls."""

    runs: Mapping[str, int] = field(default_factory=dict)
    """Name -> the smallest world size to begin and go on with. Empty: any run, from one member."""

    heartbeat_seconds: float = 0.5
    """How often a member reports that has nothing new to say."""

    silence_seconds: float = 10.0
    """A member that says nothing for so long is out."""

    link_grace_seconds: float = 10.0
    """Of two members that can't reach each other for so long, one is out."""

    takeover_seconds: float = 10.0
    """After so long without a coordinator a member takes its place, once more than half of the
    last quorum follow it; it gives the run back when this one returns."""

    listen_seconds: float = 4.0
    """With a database that knows of no quorum, a run begins no sooner than this after the start: if
    it is in place of one that was lost, the members that live have called by then. 0 where none
    can."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: expected 0 to 65535, got {self.port}")
        for name, world_size_min in self.runs.items():
            check_run_name(name)
            if world_size_min < 1:
                raise ValueError(f"run {name!r}: expected 1 or more members, got {world_size_min}")
        for option in (
            "heartbeat_seconds",
            "silence_seconds",
            "link_grace_seconds",
            "takeover_seconds",
        ):
            seconds = getattr(self, option)
            if not 0 < seconds < float("inf"):
                raise ValueError(f"{option}: expected a positive number of seconds, got {seconds}")
        if not 0 <= self.listen_seconds < float("inf"):
            raise ValueError(f"listen_seconds: expected 0 or more, got {self.listen_seconds}")
        for option in ("silence_seconds", "takeover_seconds"):
            if getattr(self, option) < 2 * self.heartbeat_seconds:
                raise ValueError(
                    f"{option}: expected at least two heartbeats of {self.heartbeat_seconds} s, "
                    f"got {getattr(self, option)}"
                )


def database_file(database: Path | None) -> Path:
    """Where a coordinator's database is. Raises ValueError as state_directory()."""
    return database or state_directory() / "coordinator.db"


def key_file(key: Path | None, database: Path) -> Path:
    """Where a coordinator's key is."""
    return key or database.with_suffix(".key")


class Coordinator:
    """Listens from the moment it is made until close(); what happens goes to Python's logging.

    Members hold one connection to it. It is not in the data path: while it is away their operations
    go on, and the same command started again finds everything in its database.

    Raises:
        DatabaseError: its database can't be used; the message says why, and the way out.
        ConnectError: its port is in use, or `bind` is no address of this machine.
        ValueError: neither `database` nor the environment says where its file shall be; or its key
            file is none, or others may read it.
    """

    def __init__(self, options: CoordinatorOptions | None = None) -> None:
        self.options = options or CoordinatorOptions()
        self._database = database_file(self.options.database)
        self._key = key_file(self.options.key, self._database)
        self._server = _core.CoordinatorServer(
            str(self._database),
            tls=Config(tls=self.options.tls, insecure=self.options.insecure).tls_use,
            key_file=str(self._key),
            bind_host=self.options.bind,
            port=self.options.port,
            advertise_hosts=self.options.hosts,
            runs=dict(self.options.runs),
            heartbeat_seconds=self.options.heartbeat_seconds,
            silence_seconds=self.options.silence_seconds,
            link_grace_seconds=self.options.link_grace_seconds,
            takeover_seconds=self.options.takeover_seconds,
            listen_seconds=self.options.listen_seconds,
        )
        self._ended = threading.Event()
        self._failure = ""
        self._reader = threading.Thread(target=self._log_events, name="pccl-events", daemon=True)
        self._reader.start()

    def __enter__(self) -> Coordinator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def hosts(self) -> Sequence[str]:
        """Names and addresses under which members reach it, best first."""
        return self._server.hosts

    @property
    def port(self) -> int:
        return self._server.port

    def address(self, run: str) -> RunAddress:
        """What members of `run` join with: with its key, and a token without limits."""
        place = RunAddress(self.hosts[0], self.port, run)
        if self.options.insecure:
            return place
        token = _core.KeyBook(str(self._database)).standing_token(run, str(self._key))
        return replace(place, fingerprint=self.fingerprint, token=token)

    @property
    def fingerprint(self) -> bytes:
        """Of its key; 32 bytes, zeros where it is insecure."""
        return self._server.fingerprint

    def status(self) -> dict[str, Any]:
        """What it knows now, as data that JSON can hold; pccl/status.py shows it."""
        return self._server.status()

    def wait(self, timeout_seconds: float) -> None:
        """Return when it was closed or `timeout_seconds` are over.

        Raises:
            DatabaseError: it had to stop because its database can't be written any more.
        """
        self._ended.wait(timeout_seconds)
        if self._failure:
            raise _core.DatabaseError(self._failure)

    def abandon(self, run: str) -> None:
        """Declare the members of the last quorum of `run` gone for good.

        Nobody waits for them any more: the next members begin a new quorum, which goes on from the
        run's last committed state if one of them brings it from a checkpoint. Call it only when
        they can't come back: one that does meets a run that has gone on without it.

        Raises:
            ValueError: there is no such run, a member of it is here, or it waits for nobody.
        """
        why_not = self._server.abandon(run)
        if why_not:
            raise ValueError(f"run {run!r} can't be abandoned: {why_not}")

    def close(self) -> None:
        """Say goodbye to the members, which go on without it. Idempotent."""
        self._server.close()
        if self._reader is not threading.current_thread():
            self._reader.join()

    def _log_events(self) -> None:
        while not self._server.is_closed:
            events = self._server.next_events(_LOOK_SECONDS)
            for event in events:
                run = event["run"]
                # `run` and `event` are for those who gather logs as data.
                _logger.info(
                    "%s%s",
                    f"run '{run}': " if run else "",
                    event["text"],
                    extra={"run": run, "event": event["text"]},
                )
            if events:
                self._failure = self._server.status()["failure"]
                if self._failure:
                    break
        self._ended.set()
