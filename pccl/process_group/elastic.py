"""The group of an elastic run: its world shrinks and grows between operations."""

from __future__ import annotations

import atexit
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

from torch._C._distributed_c10d import HashStore, Store
from torch.distributed import distributed_c10d

from pccl._run import CompletionThread
from pccl.config import Config
from pccl.elastic import ElasticCommunicator, join
from pccl.process_group.base import GroupBase
from pccl.process_group.group import ProcessGroupPCCL
from pccl.process_group.tensors import DEFAULTS, fail

# Where meet() leaves the run's address for the creation of the group.
_ADDRESS_KEY = "pccl/run"

# These are called for a certain world: where it changes while they are being called, they end in
# MemberLost on every member.
_OF_ONE_WORLD = (
    *("allgather", "allgather_coalesced", "all_gather_single", "all_gather_single_coalesced"),
    *("reduce_scatter", "reduce_scatter_single", "reduce_scatter_single_coalesced"),
    *("alltoall", "all_to_all_single", "gather", "scatter", "reduce"),
    *("_allgather_base", "allgather_into_tensor_coalesced", "_reduce_scatter_base"),
    *("reduce_scatter_tensor_coalesced", "alltoall_base"),
)


def meet(url: str, **_: Any) -> Iterator[tuple[Store, int, int]]:
    """torch's rendezvous of "pccl://host:port/run", and of "env://" where PCCL_RUN is set.

    It yields placeholders, a store of this process alone among them: the group itself joins. A
    world size that the caller gave is how many members the group waits for.
    """
    parts = urlsplit(url)
    store = HashStore()
    if parts.scheme == "pccl":
        store.set(_ADDRESS_KEY, parts._replace(query="").geturl())
    yield store, 0, int(parse_qs(parts.query).get("world_size", ["1"])[0])
    raise RuntimeError("an elastic run has no second rendezvous: its group changes by itself")


def run_address(store: Any, config: Config) -> str:
    """The address of the run that a default group is to join; "" makes it a fixed group."""
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    if isinstance(store, HashStore) and store.check([_ADDRESS_KEY]):
        return store.get(_ADDRESS_KEY).decode()
    return config.run


class ChangingWorld(ProcessGroupPCCL):
    """A group whose rank and size change; torch asks it each time. It has no sub-groups."""

    @property
    def _world_ranks(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(range(self._size))

    # torch keeps a table of a group's ranks, made when the group is; this one lives.
    def _tell_torch(self) -> None:
        table = distributed_c10d._world.pg_group_ranks
        if type(table.get(self)) is dict:
            table[self] = _Ranks(self)  # type: ignore[assignment]

    def getRank(self) -> int:  # noqa: N802
        self._tell_torch()
        return self._rank

    def getSize(self) -> int:  # noqa: N802
        self._tell_torch()
        return self._size

    rank = getRank
    size = getSize

    supports_shrinking = False  # in torch's way, which makes another group

    def splitGroup(self, *_: Any, **__: Any) -> ProcessGroupPCCL | None:  # noqa: N802
        fail("new_group", "a group whose members change has no others beside it")

    split_group = splitGroup


class ElasticProcessGroup(ChangingWorld):
    """A process group over an ElasticCommunicator; rank and size follow the quorum.

    all_reduce and barrier complete although members die, ReduceOp.AVG divides by the members that
    are in the result; see ElasticCommunicator for the other operations. One a run: it has no
    sub-groups.
    """

    def __init__(self, communicator: ElasticCommunicator, options: Any) -> None:
        self.communicator = communicator
        core = communicator._core
        core.timeout_seconds = options.timeout.total_seconds()
        completions = CompletionThread(core)
        GroupBase.__init__(
            self,
            core,
            completions,
            core.place[:2],
            options.group_id,
            options.timeout,
            options.store,
        )
        _open_groups.add(self)

    def __repr__(self) -> str:
        return f"<ElasticProcessGroup {self.communicator!r}>"

    # --- who is in --------------------------------------------------------------------------------

    @property
    def _rank(self) -> int:  # type: ignore[override]
        return self._core.rank  # type: ignore[no-any-return]

    @property
    def _size(self) -> int:  # type: ignore[override]
        return self._core.world_size  # type: ignore[no-any-return]

    @property
    def quorum_id(self) -> int:
        """Grows with every change of the members."""
        return self.communicator.quorum_id

    # --- the rest ---------------------------------------------------------------------------------

    def monitored_barrier(
        self, timeout: timedelta | None = None, wait_all_ranks: bool = False
    ) -> None:
        """A barrier: who is missing is found by the run itself, and taken out."""
        self.barrier(DEFAULTS, timeout).wait()

    def statistics(self) -> dict[str, int]:
        return self.communicator.statistics()

    def flight_record(self) -> str:
        return self.communicator.flight_record()

    def abort(self) -> None:
        """Fail every operation of the run, here and at the others, and leave it."""
        if self._open:
            self.communicator.abort()
            self._abort_hooks.call()
            self.shutdown()

    def shutdown(self) -> None:
        """Leave the run politely: the others go on at once. Idempotent."""
        if not self._open:
            return
        self._open = False
        _open_groups.discard(self)
        self._completions.announce_close()
        self.communicator.leave()
        self._completions.join()


_open_groups: set[ElasticProcessGroup] = set()


@atexit.register
def _shut_open_groups_down() -> None:
    # As in _run.py: the completion thread must not meet the end of the interpreter.
    for group in list(_open_groups):
        with suppress(Exception):
            group.shutdown()


class _Ranks(Mapping[int, int]):
    """Rank by rank, as many as are in now."""

    def __init__(self, group: ChangingWorld) -> None:
        self._group = group

    def __len__(self) -> int:
        return self._group._size

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __getitem__(self, rank: int) -> int:
        if not 0 <= rank < len(self):
            raise KeyError(rank)
        return rank


def _of_one_world(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: ElasticProcessGroup, *arguments: Any, **options: Any) -> Any:
        self._core.pin()
        try:
            return method(self, *arguments, **options)
        finally:
            self._core.unpin()

    return call


for _name in _OF_ONE_WORLD:
    setattr(ElasticProcessGroup, _name, _of_one_world(getattr(ProcessGroupPCCL, _name)))


def join_group(address: str, options: Any, config: Config) -> ElasticProcessGroup:
    """Join a run, wait for as many members as torch was told, and make the group.

    Raises:
        ConnectError: not in, or not enough members, in time.
    """
    wanted = max(options.group_size, config.world_size_min)
    communicator = join(address, world_size_min=wanted, config=config)
    try:
        group = ElasticProcessGroup(communicator, options)
        group._codec = config.codec
        return group
    except BaseException:
        communicator.leave()
        raise
