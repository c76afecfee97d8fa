"""Collectives over numpy or any DLPack array, without torch. Start with `init`.

Method names and argument order are those of torch.distributed. P is the number of ranks and S the
bytes of the tensor in every cost below.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

import numpy as np

from pccl import _arrays, _core
from pccl._arrays import Buffer
from pccl._core import Work
from pccl._run import ContextOpener, Run
from pccl.config import Config, Launch
from pccl.rendezvous import Place, Store, exchange_through_store

Array = Any  # numpy.ndarray, or whatever has __dlpack__

_logger = logging.getLogger("pccl")

_OP_ALIASES = {"mean": "avg", "prod": "product"}


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
            all ranks see, in which left-overs do no harm. Under torchrun MASTER_PORT is taken by its
            own store, and rank 0 takes the first free one of the next 8 ports instead.
        rank: 0 to world_size - 1. Needed unless "env://" tells it, as is `world_size`.
        store: used instead of `init_method`: any object with set(key, bytes) and get(key) -> bytes,
            a torch.distributed store for one.
        timeout_seconds: default of every operation. None: what the configuration says (1800).
        config: None reads the PCCL_* variables.

    Raises:
        ConnectError: not everybody came within `config.connect_timeout_seconds`; the message names
            the missing ranks, on every rank.
        ValueError: an argument or a variable is missing, or cannot be understood.
    """
    config = config or Config.from_environment()
    _set_log_level(config.log)
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


def _set_log_level(level: str) -> None:
    _logger.setLevel(logging.CRITICAL + 1 if level == "off" else level.upper())


class Communicator:
    """A group of ranks: collectives in a fixed order, and messages between two ranks by tag.

    Every rank of the group calls the same collectives in the same order, with the same shapes, dtypes
    and arguments; what differs is an error on every rank that names both sides (CallMismatch). After
    a failed operation the group is broken and every later one fails at once: close it, and make a
    new one of the ranks that are left.

    Arguments are checked before a byte is sent: TypeError for what is no array on the CPU, ValueError
    for a read-only or non-contiguous output, a dtype, shape, rank or operator that does not fit. An
    input that is not contiguous is copied. `tensor` names an array throughout, as in torch.

    With `async_op=True` a method returns a Work at once; the arrays must not be touched before its
    wait() returns. Otherwise it returns None when the result is there. `timeout_seconds` is for the
    whole operation; 0 means the group's default, `self.timeout_seconds`.

    Errors of the network, the same for all operations:
        CollectiveTimeout: not done in time; the message names the ranks that were waited for.
        MemberLost: a rank died or cannot be reached.
        CallMismatch: ranks called different things.
        RemoteProtocolError: a rank sent what no rank may send.
        Aborted: abort() was called, here or elsewhere, or the group is closed.
    An output then holds undefined bytes; an all_reduce leaves in every element its input or its result.
    """

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

    @property
    def rank(self) -> int:
        """This process's rank in the group."""
        return self._core.rank

    @property
    def world_size(self) -> int:
        """Ranks in the group."""
        return self._core.world_size

    @property
    def timeout_seconds(self) -> float:
        """What an operation may take that is given no timeout of its own."""
        return self._core.timeout_seconds

    @timeout_seconds.setter
    def timeout_seconds(self, seconds: float) -> None:
        if not 0 < seconds < float("inf"):
            raise ValueError(f"timeout_seconds: expected a positive number, got {seconds}")
        self._core.timeout_seconds = seconds

    # --- the same result everywhere ---------------------------------------------------------------

    def all_reduce(
        self,
        tensor: Array,
        op: str = "sum",
        *,
        factor: float = 1.0,
        async_op: bool = False,
        timeout_seconds: float = 0,
    ) -> Work | None:
        """Reduce `tensor` over all ranks, in place; every rank ends with the same bytes.

        The cost model picks the algorithm by size and links: log2 P steps for small tensors, 2 (P - 1)
        / P * S bytes sent a rank for large ones.

        Args:
            tensor: shape [...], contiguous; same shape and dtype on every rank.
            op: "sum", "avg", "min", "max", "product", "band", "bor", "bxor" or "premul_sum", which
                multiplies each rank's contribution by its own `factor` first.

        Raises:
            ValueError: not contiguous, read-only, or a dtype that `op` cannot reduce.
            PcclError: see the class. Each element holds its input or its result.
        """
        buffer = _arrays.target(tensor, "tensor")
        code = _reduce_op(op, buffer, factor)
        work = self._core.all_reduce(
            buffer.pointer,
            buffer.pointer,
            buffer.count,
            buffer.dtype,
            code,
            factor,
            timeout_seconds,
            not async_op,
            buffer,
        )
        return work if async_op else None

    def reduce(
        self,
        tensor: Array,
        dst: int,
        op: str = "sum",
        *,
        factor: float = 1.0,
        async_op: bool = False,
        timeout_seconds: float = 0,
    ) -> Work | None:
        """Reduce `tensor` over all ranks, in place at rank `dst`; elsewhere it stays as it was.

        A tree: log2 P steps, S bytes sent a rank.

        Args:
            tensor: shape [...], contiguous; same shape and dtype on every rank.
            op, factor: see all_reduce().

        Raises:
            ValueError: as all_reduce(), or `dst` is no rank of the group.
            PcclError: see the class. At `dst` the tensor is undefined.
        """
        self._check_rank(dst, "dst")
        buffer = (_arrays.target if dst == self.rank else _arrays.source)(tensor, "tensor")
        code = _reduce_op(op, buffer, factor)
        # The core may write partial sums to the target of any rank.
        result = buffer if dst == self.rank else _arrays.empty_like(buffer)
        work = self._core.reduce(
            buffer.pointer,
            result.pointer,
            buffer.count,
            buffer.dtype,
            code,
            factor,
            dst,
            timeout_seconds,
            not async_op,
            (buffer, result),
        )
        return work if async_op else None

    def broadcast(
        self, tensor: Array, src: int, *, async_op: bool = False, timeout_seconds: float = 0
    ) -> Work | None:
        """Copy the tensor of rank `src` to all ranks, in place.

        A tree for small tensors, two for large ones: about log2 P steps, at most 2 S bytes sent a rank.

        Args:
            tensor: shape [...], contiguous; same shape and dtype on every rank.

        Raises:
            ValueError: not contiguous, read-only (except at `src`), or `src` is no rank of the group.
            PcclError: see the class. The tensor is undefined, except at `src`.
        """
        self._check_rank(src, "src")
        buffer = (_arrays.source if src == self.rank else _arrays.target)(tensor, "tensor")
        work = self._core.broadcast(
            buffer.pointer, buffer.count, buffer.dtype, src, timeout_seconds, not async_op, buffer
        )
        return work if async_op else None

    def all_gather(
        self,
        tensor_list: Sequence[Array],
        tensor: Array,
        *,
        async_op: bool = False,
        timeout_seconds: float = 0,
    ) -> Work | None:
        """Collect every rank's `tensor` at all ranks: `tensor_list[r]` becomes rank r's.

        log2 P steps for small tensors; S (P - 1) bytes sent a rank in any case.

        Args:
            tensor_list: P arrays; [r] has the count of rank r's tensor, which may differ from rank
                to rank.
            tensor: shape [...].

        Raises:
            ValueError: a wrong number of arrays, a count or dtype that does not fit.
            PcclError: see the class. The outputs are undefined.
        """
        buffer = _arrays.source(tensor, "tensor")
        outputs = _arrays.targets(tensor_list, "tensor_list", self.world_size)
        _check_equal(outputs[self.rank], buffer, f"tensor_list[{self.rank}]", "tensor")
        return self._all_gather(
            buffer,
            [output.block for output in outputs],
            (buffer, outputs),
            async_op,
            timeout_seconds,
        )

    def all_gather_into_tensor(
        self,
        output_tensor: Array,
        input_tensor: Array,
        *,
        async_op: bool = False,
        timeout_seconds: float = 0,
    ) -> Work | None:
        """Collect every rank's `input_tensor`, one after the other, in `output_tensor` at all ranks.

        Cost as all_gather(), without a copy.

        Args:
            output_tensor: P times the count of the input, contiguous.
            input_tensor: same count and dtype on every rank.

        Raises:
            ValueError: a count or dtype that does not fit, or an output that cannot be written.
            PcclError: see the class. The output is undefined.
        """
        buffer = _arrays.source(input_tensor, "input_tensor")
        output = _arrays.target(output_tensor, "output_tensor")
        _check_times(output, buffer, self.world_size, "output_tensor", "input_tensor")
        blocks = _arrays.split(output, [buffer.count] * self.world_size)
        return self._all_gather(buffer, blocks, (buffer, output), async_op, timeout_seconds)

    def _all_gather(
        self,
        buffer: Buffer,
        blocks: list[_core.Block],
        keep: object,
        async_op: bool,
        timeout_seconds: float,
    ) -> Work | None:
        work = self._core.all_gather(
            buffer.block, blocks, buffer.dtype, timeout_seconds, not async_op, keep
        )
        return work if async_op else None

    # --- a part for each --------------------------------------------------------------------------

    def reduce_scatter(
        self,
        output: Array,
        input_list: Sequence[Array],
        op: str = "sum",
        *,
        factor: float = 1.0,
        async_op: bool = False,
        timeout_seconds: float = 0,
    ) -> Work | None:
        """Reduce P arrays over all ranks and leave the r-th result at rank r.

        P - 1 steps or fewer; (P - 1) / P * S bytes sent a rank, where S is all of `input_list`.

        Args:
            output: as `input_list[rank]`, contiguous.
            input_list: P arrays; the r-th has the same count on every rank.
            op, factor: see all_reduce().

        Raises:
            ValueError: a wrong number of arrays, a count or dtype that does not fit.
            PcclError: see the class. The output is undefined.
        """
        inputs = _arrays.sources(input_list, "input_list", self.world_size)
        result = _arrays.target(output, "output")
        _check_equal(result, inputs[self.rank], "output", f"input_list[{self.rank}]")
        blocks = [buffer.block for buffer in inputs]
        return self._reduce_scatter(
            result, blocks, op, factor, (inputs, result), async_op, timeout_seconds
        )

    def reduce_scatter_tensor(
        self,
        output: Array,
        input: Array,
        op: str = "sum",
        *,
        factor: float = 1.0,
        async_op: bool = False,
        timeout_seconds: float = 0,
    ) -> Work | None:
        """Reduce `input` over all ranks and leave its r-th part of P at rank r.

        Cost as reduce_scatter().

        Args:
            output: contiguous.
            input: P times the count of the output.
            op, factor: see all_reduce().

        Raises:
            ValueError: a count or dtype that does not fit, or an output that cannot be written.
            PcclError: see the class. The output is undefined.
        """
        buffer = _arrays.source(input, "input")
        result = _arrays.target(output, "output")
        _check_times(buffer, result, self.world_size, "input", "output")
        blocks = _arrays.split(buffer, [result.count] * self.world_size)
        return self._reduce_scatter(
            result, blocks, op, factor, (buffer, result), async_op, timeout_seconds
        )

    def _reduce_scatter(
        self,
        result: Buffer,
        blocks: list[_core.Block],
        op: str,
        factor: float,
        keep: object,
        async_op: bool,
        timeout_seconds: float,
    ) -> Work | None:
        code = _reduce_op(op, result, factor)
        work = self._core.reduce_scatter(
            blocks, result.block, result.dtype, code, factor, timeout_seconds, not async_op, keep
        )
        return work if async_op else None

    def gather(
        self,
        tensor: Array,
        gather_list: Sequence[Array] | None = None,
        dst: int = 0,
        *,
        async_op: bool = False,
        timeout_seconds: float = 0,
    ) -> Work | None:
        """Collect every rank's `tensor` at rank `dst`: there `gather_list[r]` becomes rank r's.

        Everybody sends to `dst`: 1 step, S bytes a rank.

        Args:
            gather_list: P arrays at rank `dst`, None elsewhere; [r] has the count of rank r's tensor.

        Raises:
            ValueError: `gather_list` missing at `dst` or given elsewhere, or a count or dtype that
                does not fit.
            PcclError: see the class. The outputs are undefined.
        """
        self._check_rank(dst, "dst")
        self._check_list(gather_list, "gather_list", dst)
        buffer = _arrays.source(tensor, "tensor")
        outputs: list[Buffer] = []
        if gather_list is not None:
            outputs = _arrays.targets(gather_list, "gather_list", self.world_size)
            _check_equal(outputs[dst], buffer, f"gather_list[{dst}]", "tensor")
        work = self._core.gather(
            buffer.block,
            [output.block for output in outputs],
            buffer.dtype,
            dst,
            timeout_seconds,
            not async_op,
            (buffer, outputs),
        )
        return work if async_op else None

    def scatter(
        self,
        tensor: Array,
        scatter_list: Sequence[Array] | None = None,
        src: int = 0,
        *,
        async_op: bool = False,
        timeout_seconds: float = 0,
    ) -> Work | None:
        """Give rank r the r-th array of rank `src`, in `tensor`.

        `src` sends to everybody: 1 step, S (P - 1) bytes sent by `src`.

        Args:
            tensor: contiguous; receives.
            scatter_list: P arrays at rank `src`, None elsewhere; [r] has the count of rank r's tensor.

        Raises:
            ValueError: `scatter_list` missing at `src` or given elsewhere, or a count or dtype that
                does not fit.
            PcclError: see the class. `tensor` is undefined.
        """
        self._check_rank(src, "src")
        self._check_list(scatter_list, "scatter_list", src)
        result = _arrays.target(tensor, "tensor")
        inputs: list[Buffer] = []
        if scatter_list is not None:
            inputs = _arrays.sources(scatter_list, "scatter_list", self.world_size)
            _check_equal(result, inputs[src], "tensor", f"scatter_list[{src}]")
        work = self._core.scatter(
            [buffer.block for buffer in inputs],
            result.block,
            result.dtype,
            src,
            timeout_seconds,
            not async_op,
            (inputs, result),
        )
        return work if async_op else None

    def all_to_all(
        self,
        output_tensor_list: Sequence[Array],
        input_tensor_list: Sequence[Array],
        *,
        async_op: bool = False,
        timeout_seconds: float = 0,
    ) -> Work | None:
        """Send `input_tensor_list[r]` to rank r and receive `output_tensor_list[r]` from it.

        P - 1 pairwise steps; what is not for oneself is sent once.

        Args:
            output_tensor_list: P contiguous arrays; counts may differ, also 0.
            input_tensor_list: P arrays.

        Raises:
            ValueError: a wrong number of arrays, a count or dtype that does not fit.
            PcclError: see the class. The outputs are undefined.
        """
        inputs = _arrays.sources(input_tensor_list, "input_tensor_list", self.world_size)
        outputs = _arrays.targets(output_tensor_list, "output_tensor_list", self.world_size)
        own = self.rank
        _check_equal(
            outputs[own], inputs[own], f"output_tensor_list[{own}]", f"input_tensor_list[{own}]"
        )
        work = self._core.all_to_all(
            [buffer.block for buffer in inputs],
            [buffer.block for buffer in outputs],
            inputs[0].dtype,
            timeout_seconds,
            not async_op,
            (inputs, outputs),
        )
        return work if async_op else None

    def all_to_all_single(
        self,
        output: Array,
        input: Array,
        output_split_sizes: Sequence[int] | None = None,
        input_split_sizes: Sequence[int] | None = None,
        *,
        async_op: bool = False,
        timeout_seconds: float = 0,
    ) -> Work | None:
        """Send the r-th part of `input` to rank r; the parts received follow each other in `output`.

        Cost as all_to_all().

        Args:
            output: shape [rows, ...], contiguous.
            input: shape [rows, ...].
            output_split_sizes: rows received from each rank; None: equal parts.
            input_split_sizes: rows sent to each rank; None: equal parts.

        Raises:
            ValueError: sizes that do not add up, or a dtype that does not fit.
            PcclError: see the class. The output is undefined.
        """
        buffer = _arrays.source(input, "input")
        result = _arrays.target(output, "output")
        if buffer.dtype != result.dtype:
            raise ValueError(f"output and input: expected one dtype, got {result} and {buffer}")
        sends = _split_counts(buffer, input_split_sizes, self.world_size, "input")
        receives = _split_counts(result, output_split_sizes, self.world_size, "output")
        if sends[self.rank] != receives[self.rank]:
            raise ValueError(
                f"rank {self.rank} sends itself {sends[self.rank]} elements and expects "
                f"{receives[self.rank]}"
            )
        work = self._core.all_to_all(
            _arrays.split(buffer, sends),
            _arrays.split(result, receives),
            buffer.dtype,
            timeout_seconds,
            not async_op,
            (buffer, result),
        )
        return work if async_op else None

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
        if dst == self.rank:
            raise ValueError(
                f"dst: expected another rank, got this one, {dst}; isend() may do that"
            )
        self._send(tensor, dst, tag, True, timeout_seconds)

    def isend(self, tensor: Array, dst: int, tag: int = 0, *, timeout_seconds: float = 0) -> Work:
        """send() that returns a Work at once. Unlike send(), it may send to oneself."""
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
        """recv() that returns a Work at once; its `source_rank` tells the sender when it is done."""
        return self._recv(tensor, src, tag, False, timeout_seconds)

    def _send(self, tensor: Array, dst: int, tag: int, sync: bool, timeout_seconds: float) -> Work:
        self._check_rank(dst, "dst")
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
        """Return a communicator of some ranks of this group, or None if this rank is not among them.

        No traffic. The position in `ranks` is the rank in the new group; every member passes the same
        list, and calls new_group() with it equally often.

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

    def statistics(self) -> dict[str, int]:
        """Counters of this process, over all groups of the run: bytes, connections, operations."""
        return self._run.context.statistics()

    def _check_rank(self, rank: int, name: str) -> None:
        if isinstance(rank, bool) or not isinstance(rank, (int, np.integer)):
            raise TypeError(f"{name}: expected a rank, got {rank!r}")
        if not 0 <= rank < self.world_size:
            raise ValueError(f"{name}: expected 0 to {self.world_size - 1}, got {rank}")

    def _check_list(self, tensors: Sequence[Array] | None, name: str, root: int) -> None:
        if (tensors is not None) != (self.rank == root):
            raise ValueError(
                f"{name}: expected {self.world_size} arrays at rank {root} and None elsewhere, got "
                f"{'None' if tensors is None else 'a list'} at rank {self.rank}"
            )


def _reduce_op(op: str, buffer: Buffer, factor: float) -> int:
    if not isinstance(op, str):
        raise TypeError(f"op: expected a name like 'sum', got {op!r}")
    name = _OP_ALIASES.get(op.lower(), op.lower())
    code = _core.REDUCE_OPS.get(name)
    if code is None:
        raise ValueError(f"op: expected one of {sorted(_core.REDUCE_OPS)}, got {op!r}")
    if not is_reducible(buffer.dtype_name, name):
        raise ValueError(f"op: {name!r} is not defined for {buffer.dtype_name}")
    if factor != 1.0 and name != "premul_sum":
        raise ValueError(f"factor: only with op='premul_sum', got {factor} with op={op!r}")
    return code


def is_reducible(dtype: str, op: str) -> bool:
    """Whether `op` is defined for `dtype`; the same table as in csrc/base/types.cpp."""
    is_complex = dtype.startswith("complex")
    is_float = dtype in ("float64", "float32", "float16", "bfloat16")
    if dtype == "float8":
        return False
    if op == "avg":
        return dtype != "bool"
    if op == "premul_sum":
        return is_float or is_complex
    if op in ("min", "max"):
        return not is_complex
    if op in ("band", "bor", "bxor"):
        return not (is_float or is_complex)
    return True


def _check_tag(tag: int) -> None:
    if tag < 0:
        raise ValueError(f"tag: expected 0 or more, got {tag}")


def _check_equal(first: Buffer, second: Buffer, first_name: str, second_name: str) -> None:
    if first.dtype != second.dtype or first.count != second.count:
        raise ValueError(
            f"{first_name} and {second_name}: expected one dtype and count, got {first} and {second}"
        )


def _check_times(
    large: Buffer, small: Buffer, times: int, large_name: str, small_name: str
) -> None:
    if large.dtype != small.dtype or large.count != times * small.count:
        raise ValueError(
            f"{large_name}: expected {small.dtype_name} with {times} times the {small.count} elements "
            f"of {small_name}, got {large}"
        )


def _split_counts(
    buffer: Buffer, split_sizes: Sequence[int] | None, world_size: int, name: str
) -> list[int]:
    """Elements for each rank; split sizes count rows of the first dimension."""
    rows = buffer.shape[0] if buffer.shape else 1
    if not split_sizes:
        if rows % world_size:
            raise ValueError(
                f"{name}: expected rows that {world_size} ranks can share equally, got {rows}; or "
                f"pass {name}_split_sizes"
            )
        return [buffer.count // world_size] * world_size
    sizes = [int(size) for size in split_sizes]
    if len(sizes) != world_size or min(sizes) < 0 or sum(sizes) != rows:
        raise ValueError(
            f"{name}_split_sizes: expected {world_size} sizes that add up to {rows} rows, got {sizes}"
        )
    row_count = buffer.count // rows if rows else 0
    return [size * row_count for size in sizes]
