"""What a member's flight recorder notes, as records of Python's logging with fields.

Each record of the logger "pccl" that comes from here has `event` (its name, "quorum_entered"),
`run`, `member` (whose log it is), `quorum` (in force then), `operation` (its number, where one is
concerned), `about` (the other member, where there is one) and `error` (the name of the exception).
What there is not is None. Gather them with any formatter for logs as data.
"""

from __future__ import annotations

import json
import logging
import threading
from typing import Any

from pccl import _core

__all__ = ["EventLog", "log_fields", "set_log_level"]

_logger = logging.getLogger("pccl")

# How late an event is told at most.
_LOOK_SECONDS = 0.25
_JOIN_SECONDS = 2.0
# The caller's operation, or the run, does not go on as it was meant to.
_WARNINGS = {"operation_error", "evicted", "group_broken"}
# Of these events the number is that of an operation.
_OF_OPERATIONS = {"recovery_begun", "recovery_ended", "operation_error"}
# By set_log_level().
_level_set = logging.NOTSET


def set_log_level(level: str) -> None:
    """What Config.log says, unless the program has set a level of its own."""
    global _level_set
    if _logger.level == _level_set:
        _logger.setLevel(logging.CRITICAL + 1 if level == "off" else level.upper())
        _level_set = _logger.level


def log_fields(event: str, **known: Any) -> dict[str, Any]:
    """The `extra` of a record: every field, those that are not `known` None."""
    names = ("run", "member", "quorum", "operation", "about", "error")
    return {"event": event} | {name: known.get(name) for name in names}


class EventLog:
    """Tells the events of one core to the logger, from a thread that ends with close().

    Where nobody listens for level INFO when it is made, it does nothing and costs nothing.
    """

    def __init__(self, core: _core.Run | _core.Context) -> None:
        self._core = core
        self._seen = 0
        self._quorum: int | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if not _logger.isEnabledFor(logging.INFO):
            return
        header = json.loads(core.flight_record().partition("\n")[0])
        self._run, self._member = header["run"], header["member"]
        self._thread = threading.Thread(target=self._follow, name="pccl-log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Tell what is left, and end. To be called once the core is closed. Idempotent."""
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_SECONDS)

    def _follow(self) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            self._tell()
        self._tell()

    def _tell(self) -> None:
        text, self._seen = self._core.flight_events(self._seen)
        for line in text.splitlines():
            event = json.loads(line)
            name, number = event["event"], event["number"]
            if name == "connection_lost" and "error" not in event:
                name = "connection_closed"  # politely
            if name == "quorum_entered":
                self._quorum = number
            about = event.get("member")
            _logger.log(
                logging.WARNING if name in _WARNINGS else logging.INFO,
                "%s%s: %s",
                name.replace("_", " "),
                f" {about}" if about else "",
                event["text"],
                extra=log_fields(
                    name,
                    run=self._run,
                    member=self._member,
                    quorum=self._quorum,
                    operation=number if name in _OF_OPERATIONS else None,
                    about=about,
                    error=event.get("error"),
                ),
            )
