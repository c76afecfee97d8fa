"""torch 2.14's abort hooks: functions that are called when a group breaks, however it does."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

_logger = logging.getLogger("pccl")


class AbortHooks:
    """Those of one group. They are called once a break, on the thread that learns of it first.

    Any thread may call any method.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Guarded by _lock; every launch asks whether there are any, without it.
        self.hooks: dict[int, Callable[[], None]] = {}
        self._was_called = False
        self.generation = 0
        """How often the group was made anew; written with _lock."""

    def register(self, hook_id: int, hook: Callable[[], None]) -> None:
        with self._lock:
            self.hooks[hook_id] = hook

    def unregister(self, hook_id: int) -> None:
        with self._lock:
            self.hooks.pop(hook_id, None)

    def renew(self) -> None:
        """The group works again: its next break is another one."""
        with self._lock:
            self._was_called = False
            self.generation += 1

    def call(self, generation: int = -1) -> None:
        """The group is broken. What a hook raises is logged: it must not hide what broke.

        generation: that of the call which found it; the breaks of older ones are over. -1: now.
        """
        with self._lock:
            if generation not in (-1, self.generation):
                return
            hooks = [] if self._was_called else list(self.hooks.values())
            self._was_called = True
        for hook in hooks:
            try:
                hook()
            except Exception:
                _logger.exception("an abort hook failed")
