"""The group that torch sees: who it is, messages between two ranks, sub-groups, the end."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import Work

from pccl import _core
from pccl._core import CollectiveTimeout, PcclError
from pccl._run import Run
from pccl.process_group.moves import Moves
from pccl.process_group.reductions import Reductions
from pccl.process_group.tensors import (
    DEFAULTS,
    UNSET,
    Staging,
    call_options,
    fail,
    listed,
    moved_dtype,
)


class ProcessGroupPCCL(Reductions, Moves):
    """A group of ranks for torch.distributed. Made by create().

    Thread safety: as torch demands, operations may be launched from any thread, one at a time.
    """

    def __init__(
        self,
        run: Run,
        world_ranks: Sequence[int],
        group_id: str,
        timeout: timedelta,
        *,
        algorithm: str = "",
        codec: str = "",
        store: Any = None,
    ) -> None:
        self._size = len(world_ranks)
        self._rank = world_ranks.index(run.rank)
        self._run = run
        self._world_ranks = tuple(world_ranks)
        self._splits: dict[tuple[int, ...], int] = {}
        core = run.open_group(
            group_id, world_ranks, timeout_seconds=timeout.total_seconds(), algorithm=algorithm
        )
        place = (self._rank, self._size)
        super().__init__(core, run.completions, place, group_id, timeout, store)
        self._codec = codec

    # --- two ranks --------------------------------------------------------------------------------

    def send(self, tensors: Any, dstRank: int, tag: int = 0) -> Work:  # noqa: N803
        """Send one tensor to a rank; messages of one tag arrive in order."""
        tensor = self._check_message(tensors, dstRank, tag, "send")
        dtype = moved_dtype(tensor, "send")
        staging = Staging("send")
        staged = staging.source(tensor)
        arguments = (staged.data_ptr(), staged.numel(), dtype, dstRank, tag)
        return self._launch("send", self._core.send, arguments, DEFAULTS, [tensor], staging, staged)

    def recv(self, tensors: Any, srcRank: int, tag: int = 0) -> Work:  # noqa: N803
        """Receive one tensor from a rank."""
        return self._recv(self._check_message(tensors, srcRank, tag, "recv"), srcRank, tag, "recv")

    def recv_anysource(self, tensors: Any, tag: int = 0) -> Work:
        """Receive one tensor from whoever sends first; work.source_rank() tells who it was."""
        tensor = self._check_message(tensors, 0, tag, "recv_anysource")
        return self._recv(tensor, -1, tag, "recvAnySource")

    recvAnysource = recv_anysource  # noqa: N815  # torch 2.14 looks this name up

    def _recv(self, tensor: Tensor, source: int, tag: int, title: str) -> Work:
        dtype = moved_dtype(tensor, "recv")
        staging = Staging("recv")
        staged = staging.target(tensor)
        arguments = (staged.data_ptr(), staged.numel(), dtype, source, tag)
        return self._launch(title, self._core.recv, arguments, DEFAULTS, [tensor], staging, staged)

    def _check_message(self, tensors: Any, rank: int, tag: int, name: str) -> Tensor:
        tensors = listed(tensors)
        if len(tensors) != 1:
            fail(name, f"{name} takes a single tensor")
        if tag < 0:
            fail(name, "Tag must be nonnegative")
        if not 0 <= rank < self._size:
            fail(name, f"invalid rank: {rank}")
        tensor = tensors[0]
        assert isinstance(tensor, Tensor)
        return tensor

    # --- barriers ---------------------------------------------------------------------------------

    def barrier(self, opts: Any = DEFAULTS, timeout: timedelta | None = None) -> Work:
        """Complete when every rank has called it."""
        return self._launch(
            "barrier", self._barrier, (), call_options(opts, timeout), [], None, None
        )

    def _barrier(self, timeout_seconds: float, sync: bool, keep: object) -> _core.Work:
        work: _core.Work = self._core.barrier(timeout_seconds, sync)
        return work

    def monitored_barrier(
        self, timeout: timedelta | None = None, wait_all_ranks: bool = False
    ) -> None:
        """A barrier of which rank 0 says who is missing, and the others that it is rank 0."""
        self._sequence += 1
        limit = self._timeout if timeout is None or timeout == UNSET else timeout
        if limit <= timedelta(0):
            raise CollectiveTimeout(f"Rank {self._rank} timed out in monitoredBarrier after 0 ms")
        try:
            self._core.monitored_barrier(limit.total_seconds(), wait_all_ranks)
        except PcclError as error:
            if self._rank == 0:
                raise
            raise type(error)(
                f"Rank {self._rank} successfully reached monitoredBarrier, but received errors "
                "while waiting for send/recv from rank 0. Please check rank 0 logs for faulty "
                f"rank. {error}"
            ) from None

    # --- who this is ------------------------------------------------------------------------------

    def getBackendName(self) -> str:  # noqa: N802
        return "pccl"

    def name(self) -> str:
        return "pccl"

    def getRank(self) -> int:  # noqa: N802
        return self._rank

    def getSize(self) -> int:  # noqa: N802
        return self._size

    def getGroupName(self) -> str:  # noqa: N802
        return self._name

    def setGroupName(self, name: str) -> None:  # noqa: N802
        self._name = name

    def getGroupDesc(self) -> str:  # noqa: N802
        return self._description

    def setGroupDesc(self, description: str) -> None:  # noqa: N802
        self._description = description

    # Older versions of torch do not come by the methods above.
    _set_group_name = setGroupName
    _set_group_desc = setGroupDesc

    @property
    def group_name(self) -> str:
        return self._name

    @property
    def group_desc(self) -> str:
        return self._description

    def get_group_store(self) -> Any:
        return self._store

    @property
    def _device_types(self) -> list[torch.device]:
        types = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
        return [torch.device(kind) for kind in types]

    def _get_backend(self, device: Any) -> ProcessGroupPCCL:
        """This object, which is all there is: it has the methods of torch's Backend as well."""
        if torch.device(device).type not in ("cpu", "cuda"):
            raise RuntimeError(f"No backend type associated with device type {device}")
        return self

    supports_splitting = False  # of torch's kind, which NCCL groups would try to split from
    supports_coalescing = True
    supports_time_estimate = False

    @property
    def options(self) -> GroupOptions:
        return GroupOptions(self)

    def _set_default_timeout(self, timeout: timedelta) -> None:
        self._timeout = timeout
        self._core.timeout_seconds = timeout.total_seconds()

    set_timeout = _set_default_timeout

    def _set_sequence_number_for_group(self) -> None:
        self._sequence = 0

    def _get_sequence_number_for_group(self) -> int:
        """Operations launched so far; equal on all ranks when they are in step."""
        return self._sequence

    def get_error(self) -> Any:
        """What broke the group, as torch's ErrorType; SUCCESS while nothing has."""
        from torch._C._distributed_c10d import ErrorType

        error = self._core.error()
        if not error:
            return ErrorType.SUCCESS
        return ErrorType.TIMEOUT if "before its deadline" in error else ErrorType.COMM_ERROR

    # --- sub-groups and the end
    # ----------------------------------------------------------------------

    def splitGroup(  # noqa: N802
        self,
        ranks: Sequence[int],
        timeout: timedelta | None = None,
        opts: Any = None,
        group_name: str | None = None,
        group_desc: str | None = None,
        devices: Any = None,
        *,
        device_types: Any = None,
    ) -> ProcessGroupPCCL | None:
        """Return a group of some ranks of this one, in their order; None if this is not among them.

        No traffic. Every member passes the same ranks, in the same order of calls.
        """
        members = tuple(ranks)
        if not members or len(set(members)) != len(members):
            fail("split_group", f"ranks must be different, and at least one, got {list(members)}")
        for rank in members:
            if not 0 <= rank < self._size:
                fail("split_group", f"invalid rank: {rank}")
        if self._rank not in members:
            return None
        use = self._splits.get(members, 0)
        self._splits[members] = use + 1
        digest = hashlib.sha256(repr(members).encode()).hexdigest()[:16]
        name = group_name or f"{self._name}:split:{digest}:{use}"
        group = ProcessGroupPCCL(
            self._run,
            [self._world_ranks[rank] for rank in members],
            name,
            self._timeout if timeout is None else timeout,
            store=self._store,
        )
        group.setGroupDesc(group_desc or f"{self._description}:split")
        return group

    split_group = splitGroup

    supports_shrinking = True

    def shrink(
        self, ranks_to_exclude: Sequence[int], shrink_flags: int = 0, pg_options: Any = None
    ) -> ProcessGroupPCCL | None:
        """Return the group of the others, for dist.shrink_group(). No traffic.

        shrink_flags: SHRINK_ABORT, 1, fails what runs in this group.
        """
        if shrink_flags:
            self._core.abort(f"rank {self._rank} shrinks group {self._name!r}")
        return self.splitGroup([r for r in range(self._size) if r not in ranks_to_exclude])

    def abort(self) -> None:
        """Fail every operation of the group, here and at the others, and leave it."""
        if self._open:
            self._core.abort(f"rank {self._rank} called abort() on group {self._name!r}")
            self._abort_hooks.call()
            self.shutdown()

    def shutdown(self) -> None:
        """Leave the group politely; the last group that is left ends the run. Idempotent."""
        if not self._open:
            return
        self._open = False
        self._core.close()
        self._run.release_group()

    def statistics(self) -> dict[str, int]:
        """Counters of this process, over all groups of the run: bytes and connections."""
        return self._run.context.statistics()

    def flight_record(self) -> str:
        """What this member did and saw last, for `pccl trace`; see Communicator.flight_record."""
        return self._run.context.flight_record()


class GroupOptions:
    """A group's options as torch's tests look at them."""

    def __init__(self, group: ProcessGroupPCCL) -> None:
        self.backend = "pccl"
        self._timeout = group._timeout
        self.group_name = group.group_name
        self.global_ranks_in_group = list(group._world_ranks)
