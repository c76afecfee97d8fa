"""Collectives over numpy or any DLPack array, without torch. Start with `init`.

Method names and argument order are those of torch.distributed. P is the number of ranks and S the
bytes of the tensor in every cost below.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

import numpy as np

from pccl import _arrays, _core
from pccl._core import Communicator as CoreCommunicator
from pccl._core import Work
from pccl._gossip import Gossip
from pccl._group import Array
from pccl._logs import set_log_level
from pccl._moves import Moves
from pccl._reductions import Reductions
from pccl._run import ContextOpener, Run
from pccl.config import Config, Launch
from pccl.rendezvous import Place, Store, exchange_through_store


def init(
    init_method: str = "env://",
    *,
    rank: int | None = None,
    world_size: int | None = None,
    store: Store | None = None,
    timeout_seconds: float | None = None,
    config: Config | None = None,
) -> Communicator:
    """Meet the other ranks and return the communicator of all of them.

    Each rank publishes its address and gets the others'; connections are made at first use.

    Args:
        init_method: "env://" reads RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torchrun sets
            them; "tcp://host:port" is where rank 0 listens; "file:///directory" is a directory that
            all ranks see, in which left-overs do no harm. Under torchrun MASTER_PORT is taken by
            its own store, and rank 0 takes the first free one of the next 8 ports instead.
        rank: 0 to world_size - 1. Needed unless "env://" tells it, as is `world_size`.
        store: used instead of `init_method`: any object with set(key, bytes) and get(key) -> bytes,
            a torch.distributed store for one.
        timeout_seconds: default of every operation. None: what the configuration says (1800).
        config: None reads the PCCL_* variables.

    Raises:
        ConnectError: not everybody came within `config.connect_timeout_seconds`; the message names
            the missing ranks, on every rank.
        ValueError: an argument or a variable is missing, or cannot be understood; or the graph of
            the configuration does not fit these ranks, or another one's is different.
    """
    config = config or Config.from_environment()
    set_log_level(config.log)
    place = None
    if store is None:
        place, rank, world_size = _find_place(init_method, rank, world_size)
    if rank is None or world_size is None:
        raise ValueError(
            f"rank and world_size: expected both with store= or init_method={init_method!r}, got "
            f"rank={rank}, world_size={world_size}"
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"rank: expected 0 to world_size - 1 = {world_size - 1}, got {rank}")
    opener = ContextOpener(config)
    deadline = time.monotonic() + config.connect_timeout_seconds
    try:
        if place is None:
            assert store is not None
            addresses = exchange_through_store(store, opener, rank, world_size, deadline)
        else:
            addresses = place.meet(opener, rank, world_size, deadline)
        run = Run(opener.take(), rank, addresses, config)
    finally:
        opener.close()
    seconds = config.timeout_seconds if timeout_seconds is None else timeout_seconds
    return Communicator(run, range(world_size), "world", seconds)


def _find_place(
    init_method: str, rank: int | None, world_size: int | None
) -> tuple[Place, int | None, int | None]:
    if init_method != "env://":
        return Place.parse(init_method), rank, world_size
    launch = Launch.from_environment(rank=rank, world_size=world_size)
    place = Place.of_launch(
        launch.host, launch.port, port_is_taken=launch.port_is_taken, run=launch.run
    )
    return place, launch.rank, launch.world_size


class Communicator(Reductions, Moves, Gossip):
    """A group of ranks: collectives in a fixed order, and messages between two ranks by tag.

    Every rank of the group calls the same collectives in the same order, with the same shapes,
    dtypes and arguments; what differs is an error on every rank that names both sides
    (CallMismatch). After a failed operation the group is broken and every later one fails at once:
    close it, and make a new one of the ranks that are left.

    Arguments are checked before a byte is sent: TypeError for what is no array on the CPU,
    ValueError for a read-only or non-contiguous output, a dtype, shape, rank or operator that does
    not fit. An input that is not contiguous is copied. `tensor` names an array throughout, as in
    torch.

    With `async_op=True` a method returns a Work at once; the arrays must not be touched before its
    wait() returns. Otherwise it returns None when the result is there. `timeout_seconds` is for the
    whole operation; 0 means the group's default, `self.timeout_seconds`.

    Errors of the network, the same for all operations:
        CollectiveTimeout: not done in time; the message names the ranks that were waited for.
        MemberLost: a rank died or cannot be reached.
        CallMismatch: ranks called different things.
        RemoteProtocolError: a rank sent what no rank may send.
        Aborted: abort() was called, here or elsewhere, or the group is closed.
    What is only input is unchanged then. The tensor of all_reduce holds the result in some elements
    and its input in others, and the message says in which; segments that were just arriving hold
    fragments of both. Any other output holds undefined bytes. All are the caller's again: nobody
    reads or writes them any more.
    """

    _core: CoreCommunicator

    def __init__(self, run: Run, ranks: Sequence[int], name: str, timeout_seconds: float) -> None:
        """For init(), new_group() and split(). `ranks` are those of the world, in group order."""
        self._run = run
        self._ranks = tuple(ranks)
        self._name = name
        self._core = run.open_group(name, self._ranks, timeout_seconds=timeout_seconds)
        self._closed = False

    def __enter__(self) -> Communicator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            # The others may be waiting for an operation that this rank will never call.
            with suppress(_core.PcclError):
                self.abort(f"rank {self.rank} left with {type(error).__name__}: {error}")
        self.close()

    def __repr__(self) -> str:
        return f"<pccl.Communicator {self._name!r} rank {self.rank} of {self.world_size}>"

    # --- waiting for each other -------------------------------------------------------------------

    def barrier(self, *, async_op: bool = False, timeout_seconds: float = 0) -> Work | None:
        """Return when every rank has called it. log2 P steps.

        Raises:
            PcclError: see the class.
        """
        work = self._core.barrier(timeout_seconds, not async_op)
        return work if async_op else None

    def monitored_barrier(
        self, *, timeout_seconds: float = 0, wait_all_ranks: bool = False
    ) -> None:
        """A barrier that says who is missing. 2 steps, but P - 1 messages at rank 0: for debugging.

        Args:
            wait_all_ranks: rank 0 names all missing ranks instead of the first.

        Raises:
            CollectiveTimeout: on rank 0 it names who did not come, elsewhere rank 0.
            PcclError: see the class.
        """
        self._core.monitored_barrier(timeout_seconds, wait_all_ranks)

    # --- two ranks --------------------------------------------------------------------------------

    def send(self, tensor: Array, dst: int, tag: int = 0, *, timeout_seconds: float = 0) -> None:
        """Send `tensor` to rank `dst`; return when the array may be changed again.

        Args:
            tensor: shape [...].
            tag: matches the receive; messages of one tag arrive in order.

        Raises:
            ValueError: `dst` is this rank or none of the group, or the tag is negative.
            PcclError: see the class.
        """
        self._send(tensor, dst, tag, True, timeout_seconds)

    def isend(self, tensor: Array, dst: int, tag: int = 0, *, timeout_seconds: float = 0) -> Work:
        """send() that returns a Work at once."""
        return self._send(tensor, dst, tag, False, timeout_seconds)

    def recv(
        self, tensor: Array, src: int | None = None, tag: int = 0, *, timeout_seconds: float = 0
    ) -> int:
        """Receive into `tensor` and return the rank that sent.

        Args:
            tensor: shape [...], contiguous; as many elements as were sent, of the same dtype.
            src: None: whoever sends first.

        Raises:
            ValueError: `src` is no rank of the group, or the tag is negative.
            CallMismatch: what was sent has another count or dtype.
            PcclError: see the class. `tensor` is undefined.
        """
        return self._recv(tensor, src, tag, True, timeout_seconds).source_rank

    def irecv(
        self, tensor: Array, src: int | None = None, tag: int = 0, *, timeout_seconds: float = 0
    ) -> Work:
        """recv() that returns a Work at once; when done, its `source_rank` tells the sender."""
        return self._recv(tensor, src, tag, False, timeout_seconds)

    def _send(self, tensor: Array, dst: int, tag: int, sync: bool, timeout_seconds: float) -> Work:
        self._check_rank(dst, "dst")
        if dst == self.rank:
            raise ValueError(f"dst: expected another rank, got this one, {dst}")
        _check_tag(tag)
        buffer = _arrays.source(tensor, "tensor")
        return self._core.send(
            buffer.pointer, buffer.count, buffer.dtype, dst, tag, timeout_seconds, sync, buffer
        )

    def _recv(
        self, tensor: Array, src: int | None, tag: int, sync: bool, timeout_seconds: float
    ) -> Work:
        if src is not None:
            self._check_rank(src, "src")
        _check_tag(tag)
        buffer = _arrays.target(tensor, "tensor")
        return self._core.recv(
            buffer.pointer,
            buffer.count,
            buffer.dtype,
            -1 if src is None else src,
            tag,
            timeout_seconds,
            sync,
            buffer,
        )

    # --- groups -----------------------------------------------------------------------------------

    def new_group(
        self, ranks: Sequence[int], *, timeout_seconds: float | None = None
    ) -> Communicator | None:
        """Return a communicator of some ranks of this group; None if this rank is not one of them.

        No traffic. The position in `ranks` is the rank in the new group; every member passes the
        same list, and calls new_group() with it equally often.

        Args:
            timeout_seconds: default of every operation; None: that of this group.

        Raises:
            ValueError: empty, a rank twice, or one that is not of this group.
        """
        members = list(ranks)
        for rank in members:
            self._check_rank(rank, "ranks")
        if not members or len(set(members)) != len(members):
            raise ValueError(f"ranks: expected different ranks, at least one, got {members}")
        if self.rank not in members:
            return None
        world_ranks = [self._ranks[rank] for rank in members]
        digest = hashlib.sha256(repr(world_ranks).encode()).hexdigest()[:16]
        seconds = self.timeout_seconds if timeout_seconds is None else timeout_seconds
        return Communicator(self._run, world_ranks, f"{self._name}/{digest}", seconds)

    def split(
        self, color: int | None, key: int = 0, *, timeout_seconds: float | None = None
    ) -> Communicator | None:
        """Divide the group: ranks of the same color form a new one, in the order of (key, rank).

        One all_gather of 24 bytes. Every rank of the group calls it.

        Args:
            color: None: this rank joins no group, and gets None.
            timeout_seconds: default of every operation; None: that of this group.

        Raises:
            PcclError: see the class.
        """
        own = np.array([color is not None, 0 if color is None else color, key], np.int64)
        everyone = np.empty((self.world_size, 3), np.int64)
        self.all_gather_into_tensor(everyone, own)
        if color is None:
            return None
        members = sorted(
            (int(entry[2]), rank)
            for rank, entry in enumerate(everyone)
            if entry[0] and entry[1] == color
        )
        return self.new_group([rank for _, rank in members], timeout_seconds=timeout_seconds)

    # --- the end ----------------------------------------------------------------------------------

    def abort(self, reason: str = "") -> None:
        """Fail every operation of the group, here and at the others; they read `reason`."""
        self._core.abort(reason or f"rank {self.rank} called abort()")

    def close(self) -> None:
        """Leave the group politely; the last group that is closed ends the run. Idempotent."""
        if not self._closed:
            self._closed = True
            self._core.close()
            self._run.release_group()

    def plan(self, collective: str, count: int, dtype: str = "float32") -> str:
        """Name the algorithm that a call would take: "ring" for plan("all_reduce", 10**8), say.

        Nothing is sent. See docs/collectives.md for what each does.

        Args:
            collective: "all_reduce", "broadcast", ...; root 0 where it has one.
            count: elements of the tensor, or of each block.

        Raises:
            ValueError: an unknown collective or dtype.
        """
        code = _core.DATA_TYPES.get(dtype)
        if code is None:
            raise ValueError(f"dtype: expected one of {sorted(_core.DATA_TYPES)}, got {dtype!r}")
        return self._core.plan(collective, count, code)

    def statistics(self) -> dict[str, int]:
        """Counters of this process, over all groups of the run: bytes and connections.

        A connection outlives its sockets: `replaced_sockets` is how many broke under it,
        `resumed_connections` how often it had none left and got one again, `resent_bytes` what was
        sent again for that, `probe_bytes` what only showed how fast links are. `bytes_sent_tcp`
        holds both. `added_sockets` were dialed on long links because several are faster,
        `changed_controls` counts how often a connection got another congestion control for it.
        """
        return self._run.context.statistics()

    def flight_record(self) -> str:
        """What this member did and saw last, as JSON lines for `pccl trace`: a header, then events.

        The last 4096 beginnings and ends of operations, and the last 512 of all other events:
        connections, quorums, recoveries, errors. Also after the end of the run. PCCL_TRACE_DIR
        has it written to a file when an operation ends in an error.
        """
        return self._run.context.flight_record()


def _check_tag(tag: int) -> None:
    if tag < 0:
        raise ValueError(f"tag: expected 0 or more, got {tag}")
