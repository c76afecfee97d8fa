"""What torch gets back from an operation: Work objects that wait in the core, futures at request.

Errors of the network never leave a launch: they are raised by wait(), and by the future. DDP's
reducer survives a failed future, and does not survive a launch that raises.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import Work
from torch.futures import Future

from pccl import _core
from pccl._core import CollectiveTimeout, PcclError
from pccl._run import CompletionThread

NO_TIMEOUT = timedelta(0)  # as in C++: until the operation's own deadline

# How long wait() waits for the profiler's record of an operation that is done.
_RECORD_SECONDS = 5.0


def explain(error: PcclError) -> PcclError:
    """The same error in the words that torch's users search for and torch's tests demand."""
    if isinstance(error, CollectiveTimeout) and " Timed out " not in str(error):
        return CollectiveTimeout(f"pccl: Timed out waiting for the operation: {error}")
    return error


class CopyBack:
    """Copies staged results into the caller's tensors once, whoever comes first.

    For CUDA tensors the copies are queued on the current stream of the thread that comes first; the
    streams of later callers wait for them.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Tensor, Tensor]],
        copy: Callable[[Tensor, Tensor], None] | None = None,
    ) -> None:
        """copy(caller's tensor, staged result): instead of a copy of the elements."""
        self._lock = threading.Lock()
        self._copy_one = copy or _copy_elements
        # Guarded by _lock.
        self._pairs = list(pairs)  # (caller's tensor, staged result)
        self._events: list[tuple[torch.device, Any]] = []

    def __call__(self) -> None:
        with self._lock:
            if self._pairs:
                self._copy()
                return
        for device, event in self._events:
            torch.cuda.current_stream(device).wait_event(event)

    def _copy(self) -> None:
        devices = {target.device for target, _ in self._pairs if target.is_cuda}
        for target, staged in self._pairs:
            # A parameter may be the target, and an inference tensor on another thread.
            with torch.inference_mode(target.is_inference()), torch.no_grad():
                self._copy_one(target, staged)
        for device in devices:
            event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(device))
            self._events.append((device, event))
        self._pairs.clear()


def _copy_elements(target: Tensor, staged: Tensor) -> None:
    target.copy_(staged, non_blocking=True)


class Recording:
    """A profiler's record of an operation in flight, which ends when the operation does.

    Only torch's own callback on a future takes the profiler's state along to the completion thread,
    and such a record knows no shapes.
    """

    def __init__(self, title: str) -> None:
        record: Any = torch.autograd.profiler.record_function(title)  # whose methods are untyped
        self._record = record
        self._record.__enter__()
        self._future: Future[None] = Future()
        self._ended = threading.Event()

    def end_with(self, core: _core.Work, completions: CompletionThread) -> None:
        """End when `core` does."""
        self._record._call_end_callbacks_on_future(self._future)
        completions.watch(core, self._end)

    def cancel(self) -> None:
        """End now: the launch failed."""
        self._record.__exit__(None, None, None)

    def wait(self) -> None:
        """Return once the record is written: the profiler may stop as soon as wait() returns."""
        self._ended.wait(_RECORD_SECONDS)

    def _end(self) -> None:
        self._future.set_result(None)
        self._ended.set()


class BaseWork(Work):
    """What all our works share; subclasses say how to wait.

    No __init__: creating a pybind11 object through one costs twice as much, so attributes are set
    by whoever creates the work.
    """

    outputs: Sequence[Any] = ()
    _future: Future[Any] | None = None

    def is_success(self) -> bool:
        return self.is_completed() and self.exception() is None

    def exception(self) -> BaseException | None:
        return None

    def result(self) -> list[Tensor]:
        return list(self.outputs)

    def synchronize(self) -> None:
        self.wait()

    def block_current_stream(self) -> None:
        self.wait()

    def source_rank(self) -> int:
        return -1

    def _source_rank(self) -> int:
        return self.source_rank()

    def get_future(self) -> Future[Any]:
        """A future of the output tensors. It fails with the operation's error.

        Its callbacks run on the completion thread, or right here if the operation is done.
        """
        if self._future is None:
            base: Future[None] = Future(devices=_cuda_devices(self.outputs))
            # Only a callback that raises makes an error that C++ sees as one; set_exception()
            # stores the exception as a value, which DDP would then read as a tensor.
            self._future = base.then(lambda _: self._settle())
            self._when_done(lambda: base.set_result(None))
        return self._future

    def _settle(self) -> list[Tensor]:
        self.wait()
        return self.result()

    def _when_done(self, callback: Callable[[], None]) -> None:
        callback()


class PcclWork(BaseWork):
    """One operation in flight."""

    core: _core.Work
    completions: CompletionThread
    copy_back: CopyBack | None = None
    recording: Recording | None = None

    def wait(self, timeout: timedelta = NO_TIMEOUT) -> bool:
        """Block without the interpreter lock until the operation is done; raise its error.

        A `timeout` that passes first raises too, and leaves the operation running.
        """
        try:
            self.core.wait(timeout.total_seconds() if timeout > NO_TIMEOUT else 0.0)
        except PcclError as error:
            raise explain(error) from None
        finally:
            if self.recording is not None:
                self.recording.wait()
        if self.copy_back is not None:
            self.copy_back()
        return True

    def is_completed(self) -> bool:
        if not self.core.is_completed():
            return False
        if self.copy_back is not None and self.core.exception() is None:
            self.copy_back()
        return True

    def exception(self) -> BaseException | None:
        return self.core.exception()

    def source_rank(self) -> int:
        return self.core.source_rank

    @property
    def contributions(self) -> list[tuple[int, int, list[str], float]]:
        """Of an all_reduce in an elastic run, once it is done; see pccl.Work."""
        return self.core.contributions

    @property
    def contributors(self) -> list[str]:
        """Ids of the members that are in every element."""
        return self.core.contributors

    def _when_done(self, callback: Callable[[], None]) -> None:
        if self.core.is_completed():
            callback()
        elif self.completions.is_current():
            # A callback of another future asks for this one, and may wait for it: nobody else
            # could complete it. (PowerSGD's hook does this.)
            self._settle_quietly()
            callback()
        else:
            self.completions.watch(self.core, callback)

    def _settle_quietly(self) -> None:
        with suppress(PcclError):  # kept by the core; the future raises it
            self.wait()


class DoneWork(BaseWork):
    """An operation that was done when its launch returned."""

    def wait(self, timeout: timedelta = NO_TIMEOUT) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


# What a launch that succeeded at once returns: it carries no result, as the caller asked to have it
# in the tensors when the call returns.
DONE = DoneWork()


class FailedWork(BaseWork):
    """An operation that had failed when its launch returned."""

    error: PcclError

    def wait(self, timeout: timedelta = NO_TIMEOUT) -> bool:
        raise self.error

    def is_completed(self) -> bool:
        return True

    def exception(self) -> BaseException | None:
        return self.error


class WorkGroup(BaseWork):
    """Several operations as one."""

    works: Sequence[BaseWork]
    copy_back: CopyBack | None = None

    def wait(self, timeout: timedelta = NO_TIMEOUT) -> bool:
        """Wait for all, so that no tensor is in use any more; then raise the first error."""
        deadline = time.monotonic() + timeout.total_seconds()
        failure: PcclError | None = None
        for work in self.works:
            left = NO_TIMEOUT
            if timeout > NO_TIMEOUT:
                left = timedelta(seconds=max(0.001, deadline - time.monotonic()))
            try:
                work.wait(left)
            except PcclError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        if self.copy_back is not None:
            self.copy_back()
        return True

    def is_completed(self) -> bool:
        if not all(work.is_completed() for work in self.works):
            return False
        if self.copy_back is not None and self.exception() is None:
            self.copy_back()
        return True

    def exception(self) -> BaseException | None:
        return next((e for work in self.works if (e := work.exception()) is not None), None)

    def _when_done(self, callback: Callable[[], None]) -> None:
        left = len(self.works)
        if left == 0:
            callback()
            return
        lock = threading.Lock()

        def count() -> None:
            nonlocal left
            with lock:
                left -= 1
                last = left == 0
            if last:
                callback()

        for work in self.works:
            work._when_done(count)


def failed(error: PcclError, outputs: Sequence[Any]) -> FailedWork:
    """Return the work of an operation whose launch failed."""
    work = FailedWork()
    work.error = explain(error)
    work.outputs = outputs
    return work


def joined(
    works: Sequence[BaseWork], outputs: Sequence[Any], copy_back: CopyBack | None = None
) -> BaseWork:
    """Return one work for several; `copy_back` runs after all of them."""
    work = WorkGroup()
    work.works = works
    work.outputs = outputs
    work.copy_back = copy_back
    return work


def _cuda_devices(outputs: Sequence[Any]) -> list[int | str | torch.device] | None:
    devices: set[torch.device] = set()
    for output in outputs:
        for tensor in output if isinstance(output, (list, tuple)) else [output]:
            if tensor.is_cuda:
                devices.add(tensor.device)
    return [*sorted(devices, key=str)] or None
