"""`pccl coordinator`: a coordinator and its status page, until somebody ends it.

Members wait for one that was killed and starts again, so this imports little: argparse, and not
what the other commands are made of; the status page once the coordinator listens.
"""

from __future__ import annotations

import argparse
import logging
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from pccl import _core
from pccl.address import DEFAULT_PORT, DEFAULT_STATUS_PORT, bracketed
from pccl.config import Config
from pccl.coordinator import Coordinator, CoordinatorOptions

if TYPE_CHECKING:
    from pccl.status_page import StatusServer

__all__ = ["StatusOptions", "abandon_run", "main", "run_coordinator"]

_logger = logging.getLogger("pccl.coordinator")

# How long the main thread sleeps between two looks at what a signal asked for.
_WAIT_SECONDS = 0.2
# At least so long a run that is to be abandoned may still answer.
_ABANDON_SECONDS_MIN = 5.0
# What a run is called when nobody has named one.
_DEFAULT_RUN = "main"


@dataclass(frozen=True, kw_only=True)
class StatusOptions:
    """Where the status page is served."""

    enabled: bool
    host: str
    port: int


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code. Wrong arguments raise SystemExit(2), with a text."""
    parser = _parser()
    given = parser.parse_args(arguments)
    sizes = given.world_size_min
    if len(sizes) not in (0, 1, len(given.name)) or (sizes and not given.name):
        parser.error("--min: expected one for all runs, or one behind each --name")
    if len(sizes) < 2:
        sizes = (sizes or [1]) * len(given.name)
    try:
        options = CoordinatorOptions(
            port=given.port,
            bind=given.bind,
            hosts=tuple(given.host),
            database=given.database,
            key=given.key,
            insecure=given.insecure,
            tls="auto" if given.insecure else Config.from_environment().tls,
            runs=dict(zip(given.name, sizes, strict=True)),
            heartbeat_seconds=given.heartbeat,
            silence_seconds=given.silence,
            link_grace_seconds=given.link_grace,
            takeover_seconds=given.takeover,
            listen_seconds=given.listen,
        )
    except ValueError as error:
        parser.error(str(error))
    if given.abandon:
        return abandon_run(options, given.abandon)
    page = StatusOptions(enabled=given.status, host=given.status_host, port=given.status_port)
    return run_coordinator(options, page)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pccl coordinator",
        description="Decide who is in a run; print the address that its members join with.",
        epilog="Example: pccl coordinator --name my-run --min 2. Ends politely with Ctrl+C or "
        "SIGTERM; members go on meanwhile. The same command takes up where the last one ended, "
        "however that was.",
        allow_abbrev=False,
    )
    place = parser.add_argument_group("Where it listens").add_argument
    place("--port", type=int, default=DEFAULT_PORT, help="default %(default)s; 0: any")
    place("--host", action="append", default=[], help="under which members reach it, best first")
    place("--bind", default="", metavar="ADDRESS", help="local; default: every one")
    runs = parser.add_argument_group("Runs").add_argument
    where = "what it must not forget; default: $XDG_STATE_HOME/pccl/coordinator.db"
    runs("--database", type=Path, metavar="FILE", help=where)
    runs("--name", action="append", default=[], help="a run, may be repeated; default: any")
    least = "to begin and to go on with; for all runs, or one behind each --name"
    sizes: dict[str, Any] = {"dest": "world_size_min", "metavar": "MEMBERS", "help": least}
    runs("--min", action="append", default=[], type=int, **sizes)
    keys = parser.add_argument_group("Who is let in").add_argument
    keys("--key", type=Path, metavar="FILE", help="made if not there; default: by the database")
    open_to_all = "no keys, no TLS: whoever reaches it is in; members say insecure=True"
    keys("--insecure", action="store_true", help=open_to_all)
    _add_times(parser)
    page = parser.add_argument_group("Status page").add_argument
    page("--status", action=argparse.BooleanOptionalAction, default=True, help="serve it")
    page("--status-port", type=int, default=DEFAULT_STATUS_PORT, metavar="PORT", help="0: any")
    everybody = "local; everybody who reaches it can read it; default %(default)s"
    page("--status-host", default="127.0.0.1", metavar="ADDRESS", help=everybody)
    return parser


def _add_times(parser: argparse.ArgumentParser) -> None:
    loss = parser.add_argument_group("Who is lost").add_argument
    gone = "declare all members of that run gone for good, if none answers, and end"
    loss("--abandon", default="", metavar="RUN", help=gone)
    for name, seconds, text in (
        ("--silence", 10.0, "who says nothing for so long is out"),
        ("--heartbeat", 0.5, "between two reports"),
        ("--link-grace", 10.0, "two members that can't reach each other for so long part"),
        ("--takeover", 10.0, "after so long without it a member takes its place"),
        ("--listen", 4.0, "with a new database, before a run begins: a lost one's may live"),
    ):
        words = f"{text}; default %(default)g"
        loss(name, type=float, default=seconds, metavar="SECONDS", help=words)


def run_coordinator(options: CoordinatorOptions, status: StatusOptions) -> int:
    """Print the address of each run, then work until Ctrl+C or SIGTERM; return the exit code."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    stop = threading.Event()

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask_to_stop)
    try:
        with Coordinator(options) as coordinator:
            # What is to be pasted is all that goes to the standard output.
            addresses = [coordinator.address(run) for run in options.runs or [_DEFAULT_RUN]]
            page = _open_page(coordinator, status) if status.enabled else None
            for address in addresses:
                print(address, flush=True)
            try:
                while not stop.is_set():
                    coordinator.wait(_WAIT_SECONDS)
            finally:
                if page is not None:
                    page.close()
            _logger.info("stopped; members go on, and find it again when it is back")
    except (_core.PcclError, ValueError, OSError) as error:
        _logger.error("pccl coordinator: %s", error)
        return 1
    return 0


def abandon_run(options: CoordinatorOptions, run: str) -> int:
    """Listen for members of `run`, and if none comes, declare them gone; return the exit code."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    # Members that have lost their coordinator call again every few seconds.
    patience = max(options.silence_seconds, _ABANDON_SECONDS_MIN)
    try:
        with Coordinator(options) as coordinator:
            _logger.info("listens for members of run %r for %g s", run, patience)
            coordinator.wait(patience)
            coordinator.abandon(run)
            _logger.info("run %r is abandoned: the next members begin a new quorum", run)
    except (_core.PcclError, ValueError, OSError) as error:
        _logger.error("pccl coordinator --abandon: %s", error)
        return 1
    return 0


def _open_page(coordinator: Coordinator, status: StatusOptions) -> StatusServer:
    from pccl.status_page import StatusServer

    place = f"{bracketed(status.host)}:{status.port}"
    try:
        page = StatusServer(coordinator.status, status.host, status.port, tuple(coordinator.hosts))
    except OSError as error:
        raise OSError(
            f"the status page can't be served at {place}: {error.strerror or error}. Choose "
            f"another place with --status-port and --status-host, or go without it: --no-status"
        ) from None
    _logger.info("status page: http://%s:%d/", bracketed(status.host), page.port)
    return page
