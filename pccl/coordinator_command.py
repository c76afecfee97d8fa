"""`pccl coordinator`: a coordinator and its status page, until somebody ends it."""

from __future__ import annotations

import logging
import signal
import threading
from dataclasses import dataclass
from types import FrameType

from pccl import _core
from pccl.address import bracketed
from pccl.coordinator import Coordinator, CoordinatorOptions
from pccl.status_page import StatusServer

__all__ = ["StatusOptions", "abandon_run", "run_coordinator"]

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
            page = _open_page(coordinator, status) if status.enabled else None
            # What is to be pasted is all that goes to the standard output.
            for run in options.runs or [_DEFAULT_RUN]:
                print(coordinator.address(run), flush=True)
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
