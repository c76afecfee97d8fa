"""One process's part in a run: the core's context, everybody's addresses, the groups over them.

Thread safety: everything may be called from any thread.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Callable, Sequence

from pccl import _core
from pccl._graphs import graph_text
from pccl._logs import EventLog
from pccl.config import Config

_logger = logging.getLogger("pccl")

# How long the completion thread sleeps when nothing completes; it is woken by every completion and
# by close(), so this only bounds a lost wake-up.
_COMPLETION_WAIT_SECONDS = 5.0

# How long the end of the program waits for the completion thread. It runs callbacks of the caller,
# which may never return.
_JOIN_SECONDS = 2.0


class ContextOpener:
    """Opens a context once the rendezvous has agreed on the run's name; see rendezvous.py."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._name = ""
        self._context: _core.Context | None = None

    def __call__(self, name: str) -> bytes:
        """Return the address of a context of run `name`; a context of another run is closed.

        A rendezvous calls this again with another name when rank 0 was started anew meanwhile.
        """
        if self._context is None or name != self._name:
            self.close()
            self._context = self._open(name)
            self._name = name
        return self._context.address

    def take(self) -> _core.Context:
        """Hand the context over to the caller, who closes it."""
        assert self._context is not None
        context, self._context = self._context, None
        return context

    def close(self) -> None:
        """Close the context if it was not taken."""
        if self._context is not None:
            self._context.close()
            self._context = None

    def _open(self, name: str) -> _core.Context:
        config = self._config
        options = config.endpoint_options()
        for port in config.ports:
            try:
                return _core.Context(
                    name,
                    port=port,
                    simd="" if config.simd == "auto" else config.simd,
                    **options,
                )
            except (_core.ConnectError, OSError) as error:
                if port == config.ports[-1]:
                    raise
                _logger.debug("port %d: %s; trying the next one", port, error)
        raise AssertionError("Config has at least one port")


class Run:
    """A context that several groups share; it is closed when the last of them is.

    addresses: by rank of the run's first group, whose ranks are what `open_group` calls ranks.
    """

    def __init__(
        self, context: _core.Context, rank: int, addresses: Sequence[bytes], config: Config
    ) -> None:
        self.context = context
        self.rank = rank
        self.addresses = tuple(addresses)
        self.config = config
        try:
            # Pairs of ranks that may talk; None: all.
            self.edges = _core.overlay(self.addresses, graph_text(config.graph))
        except ValueError:
            context.close()
            raise
        self.completions = CompletionThread(context)
        self._events = EventLog(context)
        self._lock = threading.Lock()
        # Guarded by _lock.
        self._groups_open = 0
        self._name_uses: dict[str, int] = {}
        self._closed = False
        _open_runs.add(self)

    @property
    def world_size(self) -> int:
        return len(self.addresses)

    @property
    def closed(self) -> bool:
        return self._closed

    def open_group(
        self,
        name: str,
        ranks: Sequence[int],
        *,
        timeout_seconds: float,
        algorithm: str = "",
    ) -> _core.Communicator:
        """Return a communicator of `ranks` (order is group rank), of which this process is one.

        No traffic. Every member calls this with the same name and ranks, in the same order of calls
        for one name; `name` may be used again after its group was closed.

        Raises:
            ValueError: the ranks are not connected by edges of `config.graph` among them.
        """
        with self._lock:
            if self._closed:
                raise _core.Aborted(f"group {name!r}: the run was closed")
            use = self._name_uses.get(name, 0)
            self._name_uses[name] = use + 1
            self._groups_open += 1
        try:
            return _core.Communicator(
                self.context,
                f"{name}#{use}",
                ranks.index(self.rank),
                [self.addresses[rank] for rank in ranks],
                timeout_seconds,
                algorithm or self.config.algorithm,
                self.config.deterministic,
                self.config.probes,
                self._edges_among(ranks),
            )
        except BaseException:
            self.release_group()
            raise

    def _edges_among(self, ranks: Sequence[int]) -> list[tuple[int, int]] | None:
        if self.edges is None:
            return None
        place = {rank: index for index, rank in enumerate(ranks)}
        return [(place[a], place[b]) for a, b in self.edges if a in place and b in place]

    def release_group(self) -> None:
        """Count one group as closed; the last one closes the context."""
        with self._lock:
            self._groups_open -= 1
            last = self._groups_open == 0
        if last:
            self.close()

    def close(self) -> None:
        """Leave the run politely; what is still in flight fails. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        _open_runs.discard(self)
        self.completions.announce_close()
        self.context.close()
        self._events.close()
        self.completions.join()


class CompletionThread:
    """Calls back when a work is done. One daemon thread a context, started by the first watch().

    It needs the interpreter lock, so it is slower than Work.wait(), which blocks in the core; only
    futures use it.
    """

    def __init__(self, context: _core.Context | _core.Run) -> None:
        self._context = context
        self._lock = threading.Lock()
        # Guarded by _lock.
        self._thread: threading.Thread | None = None
        self._callbacks: dict[_core.Work, list[Callable[[], None]]] = {}
        self._closing = False

    def watch(self, work: _core.Work, callback: Callable[[], None]) -> None:
        """Have `callback` called when `work` is done; it must not raise."""
        with self._lock:
            if not self._closing:
                self._callbacks.setdefault(work, []).append(callback)
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._deliver, name="pccl-completions", daemon=True
                    )
                    self._thread.start()
                work.notify()
                return
        callback()  # nothing is in flight any more

    def is_current(self) -> bool:
        """Whether the caller is this thread, that is, one of its callbacks."""
        return self._thread is threading.current_thread()

    def announce_close(self) -> None:
        """Tell the thread to end once the context is closed, and take no new work."""
        with self._lock:
            self._closing = True

    def join(self) -> None:
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_SECONDS)

    def _deliver(self) -> None:
        while True:
            works = self._context.wait_completions(_COMPLETION_WAIT_SECONDS)
            for work in works:
                with self._lock:
                    callbacks = self._callbacks.pop(work, [])
                for callback in callbacks:
                    callback()
            if not works and self._closing:
                break
        # Closing fails what was in flight, so the rest is done as well.
        with self._lock:
            rest, self._callbacks = list(self._callbacks.values()), {}
        for callbacks in rest:
            for callback in callbacks:
                callback()


_open_runs: set[Run] = set()


@atexit.register
def _close_open_runs() -> None:
    # Leaving without a word would look like a crash to the others, and a daemon thread that waits
    # in the core must not meet the end of the interpreter.
    for run in list(_open_runs):
        try:
            run.close()
        except Exception as error:
            _logger.warning("run not closed at exit: %s", error)
