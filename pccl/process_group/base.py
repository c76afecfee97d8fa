"""The launch that all operations of a group share, and several of them as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch._C._profiler import _RecordFunctionFast
from torch.distributed import ProcessGroup, Work

from pccl import _core
from pccl._core import PcclError
from pccl._run import CompletionThread
from pccl.process_group.abort_hooks import AbortHooks
from pccl.process_group.device_codec import EncodedStaging
from pccl.process_group.tensors import Staging, fail, seconds
from pccl.process_group.work import DONE, BaseWork, PcclWork, Recording, failed, joined

# torch's stub lists the overloads of C++, of which each method below takes all in one signature.
_Base: Any = ProcessGroup


class GroupBase(_Base):  # type: ignore[misc]
    """What the operations of a group are built on: one launch for all of them, and coalescing."""

    # Of an elastic group they may change between operations.
    _rank: int
    _size: int

    def __init__(
        self,
        core: _core.Communicator | _core.Run,
        completions: CompletionThread,
        place: tuple[int, int],
        name: str,
        timeout: timedelta,
        store: Any,
    ) -> None:
        """core: a _core.Communicator or a _core.Run; place: rank and world size for torch's C++."""
        # (store, rank, size), the other constructor, refuses subclasses up to torch 2.13.
        super().__init__(*place)
        self._core: Any = core
        self._core_all_reduce = core.all_reduce  # spares a look-up in the short path
        self._completions = completions
        self._store = store
        self._timeout = timeout
        self._name = name
        self._codec = ""  # of all_reduces outside of pccl.quantized()
        self._description = "undefined"
        self._sequence = 0
        self._collected: list[BaseWork] | None = None  # since _start_coalescing()
        self._open = True
        self._abort_hooks = AbortHooks()

    def __repr__(self) -> str:
        return f"<ProcessGroupPCCL {self._name!r} rank {self._rank} of {self._size}>"

    def _launch(
        self,
        title: str,
        start: Callable[..., _core.Work],
        arguments: tuple[Any, ...],
        opts: Any,
        outputs: Any,
        staging: Staging | EncodedStaging | None,
        keep: object,
        inputs: Sequence[Tensor] | None = None,
    ) -> Work:
        """Start an operation. Errors of the network go into the work that is returned.

        title: the operation in profiles, "pccl:" before it.
        keep: what must live until the operation has ended.
        inputs: for the profiler; None: `outputs`.
        """
        self._sequence += 1
        sync = self._collected is None and not getattr(opts, "asyncOp", True)
        if staging is not None:
            staging.ready()
        recording = None
        record: Any = nullcontext()
        if _profiler_enabled():
            if sync:
                tensors = list(outputs if inputs is None else inputs)
                record = _RecordFunctionFast(f"pccl:{title}", tensors)
            else:
                recording = Recording(f"pccl:{title}")
        try:
            with record:
                core = start(*arguments, seconds(opts.timeout), sync, keep)
        except (PcclError, ValueError) as error:
            if recording is not None:
                recording.cancel()
            if isinstance(error, ValueError):
                raise RuntimeError(f"ProcessGroupPCCL::{title}: {error}") from error
            if self._core.error():
                self._abort_hooks.call()
            return self._collect(failed(error, outputs))
        if self._abort_hooks.hooks:
            self._watch_for_abort(core)
        copy_back = None if staging is None else staging.copy_back()
        if sync and copy_back is None:
            return DONE
        work = PcclWork()
        work.core = core
        work.completions = self._completions
        work.outputs = outputs
        work.copy_back = copy_back
        if recording is not None:
            recording.end_with(core, self._completions)
            work.recording = recording
        return self._collect(work)

    def _collect(self, work: BaseWork) -> BaseWork:
        if self._collected is not None:
            self._collected.append(work)
        return work

    def _watch_for_abort(self, work: _core.Work) -> None:
        # reconfigure() may replace both.
        group, generation = self._core, self._abort_hooks.generation

        def look() -> None:
            if work.exception() is not None and group.error():
                self._abort_hooks.call(generation)

        self._completions.watch(work, look)

    def register_abort_hook(self, hook_id: int, hook: Callable[[], None]) -> None:
        """Have `hook` called once the group is broken: by abort(), a timeout, a lost member.

        It is called by abort() itself, or on pccl's completion thread when an operation ends that
        was started since; it must not wait for operations. An id that is there is replaced.
        """
        self._abort_hooks.register(hook_id, hook)

    def unregister_abort_hook(self, hook_id: int) -> None:
        """Forget that hook, if it is there."""
        self._abort_hooks.unregister(hook_id)

    def _list_of_ranks(self, tensors: Any, what: str, name: str) -> list[Tensor]:
        """The one list in a list, with a tensor for each rank; a plain list will do as well."""
        if not tensors or isinstance(tensors[0], Tensor):
            tensors = [list(tensors)] if tensors else []
        if len(tensors) != 1:
            fail(
                name,
                f"requires a single-element {what} list containing a list with {self._size} "
                "tensors",
            )
        if len(tensors[0]) != self._size:
            fail(
                name,
                f"Incorrect {what} list size {len(tensors[0])}. {what.capitalize()} list size "
                f"should be {self._size}",
            )
        return list(tensors[0])

    def _start_coalescing(self, device: Any = None) -> None:
        self._collected = []

    def _end_coalescing(self, device: Any = None) -> Work:
        """Return one work for all operations since _start_coalescing()."""
        works, self._collected = self._collected or [], None
        return joined(works, [output for work in works for output in work.outputs])

    start_coalescing = _start_coalescing
    end_coalescing = _end_coalescing

    def _together(self, works: Sequence[Work], outputs: Any) -> Work:
        if len(works) == 1:
            return works[0]
        return joined([work for work in works if isinstance(work, BaseWork)], outputs)
