"""The torch.distributed backend: `init_process_group("pccl")`.

A Python subclass of ProcessGroup over the core, so that one wheel serves every version of torch. Both
the old and the new name of each operation are there, since versions of torch call different ones.
This file and its neighbours process_group_*.py are the only ones of pccl that import torch.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import timedelta
from typing import Any, cast

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch._C._distributed_c10d import _register_work, _resolve_process_group
from torch._C._profiler import _RecordFunctionFast
from torch.distributed import ProcessGroup, ReduceOp, Work

from pccl import _core
from pccl._core import CollectiveTimeout, PcclError
from pccl._run import ContextOpener, Run
from pccl.config import Config
from pccl.process_group_tensors import (
    DEFAULTS,
    STRIDED,
    SUM,
    SUMMED_REAL,
    UNSET,
    Options,
    Staging,
    block,
    check_alike,
    check_dtypes,
    check_not_empty,
    check_root,
    check_single,
    empty_staged,
    equal_blocks,
    fail,
    moved_dtype,
    reduce_codes,
    seconds,
    split_blocks,
)
from pccl.process_group_work import (
    BaseWork,
    DoneWork,
    PcclWork,
    Recording,
    failed,
    joined,
)
from pccl.rendezvous import exchange_through_store

# Coalesced tensors of fewer bytes together are copied into one message: below it the cost of a
# message exceeds that of the copies.
_FLATTEN_BYTES_MAX = 1 << 20

# What a launch that succeeded at once returns: it carries no result, as the caller asked to have it
# in the tensors when the call returns.
_DONE = DoneWork()

# The run of the default group, whose sub-groups share its context. One a process, as torch has one
# default group a process.
_world: Run | None = None


def create(options: Any, group_options: Any = None) -> ProcessGroupPCCL:
    """Make a group for torch; the creator function of the backend.

    Args:
        options: torch's _DistributedBackendOptions: store, ranks, timeout.
        group_options: a pccl.Config, from the argument `pg_options`; None reads the PCCL_* variables.
            A sub-group shares the sockets of the default group and takes only its `algorithm`.

    Raises:
        ConnectError: not all ranks came in time; the message names the missing.
    """
    global _world
    if group_options is not None and not isinstance(group_options, Config):
        raise TypeError(f"pg_options: expected a pccl.Config, got {type(group_options).__name__}")
    config = group_options or Config.from_environment()
    world_ranks = list(options.global_ranks_in_group)
    _define_out_form()
    is_default = not world_ranks
    if not is_default and _world is not None and not _world.closed:
        run = _world
    else:
        run = _meet(options, config)
        world_ranks = list(range(options.group_size))
    group = ProcessGroupPCCL(
        run,
        world_ranks,
        options.group_id,
        options.timeout,
        algorithm=config.algorithm if group_options else "",
        store=options.store,
    )
    if is_default:
        _world = run
    return group


@functools.cache
def _define_out_form() -> None:
    """Make the functional all_gather_into_tensor_out reach groups written in Python.

    Up to torch 2.13 its C++ looks for a C++ backend in the group. This kernel does the same through
    the group's method, for groups of any kind.
    """
    operator = "all_gather_into_tensor_out"
    if not hasattr(torch.ops._c10d_functional, operator):
        return

    def gather(input: Tensor, group_size: int, group_name: Any, *, out: Tensor) -> Tensor:
        group = group_name  # a name, or since torch 2.13 also the group itself
        if isinstance(group, str):
            group = _resolve_process_group(cast(Any, group))
        _register_work(out, group._allgather_base(out, input))
        return out

    # Kept for the life of the process: dropping the library would undo it.
    library: Any = torch.library.Library
    _libraries.append(library("_c10d_functional", "IMPL"))
    for device in ("CPU", "CUDA"):
        _libraries[-1].impl(operator, gather, device)


_libraries: list[Any] = []


def _meet(options: Any, config: Config) -> Run:
    """Meet the other ranks in torch's store."""
    rank, world_size = options.group_rank, options.group_size
    # A group may want its operations to fail within a second; starting processes takes longer.
    patience = max(options.timeout.total_seconds(), config.connect_timeout_seconds)
    opener = ContextOpener(config)
    try:
        addresses = exchange_through_store(
            options.store, opener, rank, world_size, time.monotonic() + patience
        )
        return Run(opener.take(), rank, addresses, config)
    finally:
        opener.close()


# torch's stub lists the overloads of C++, of which each method below takes all in one signature.
_Base: Any = ProcessGroup


class ProcessGroupPCCL(_Base):  # type: ignore[misc]
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
        store: Any = None,
    ) -> None:
        self._size = len(world_ranks)
        self._rank = world_ranks.index(run.rank)
        # (store, rank, size), the other constructor, refuses subclasses up to torch 2.13.
        super().__init__(self._rank, self._size)
        self._run = run
        self._world_ranks = tuple(world_ranks)
        self._core = run.open_group(
            group_id, world_ranks, timeout_seconds=timeout.total_seconds(), algorithm=algorithm
        )
        self._core_all_reduce = self._core.all_reduce  # spares a look-up in the short path
        self._completions = run.completions
        self._store = store
        self._timeout = timeout
        self._name = group_id
        self._description = "undefined"
        self._sequence = 0
        self._splits: dict[tuple[int, ...], int] = {}
        self._collected: list[BaseWork] | None = None  # since _start_coalescing()
        self._open = True

    def __repr__(self) -> str:
        return f"<ProcessGroupPCCL {self._name!r} rank {self._rank} of {self._size}>"

    # --- all_reduce ----------------------------------------------------------------------------------

    def allreduce(
        self,
        tensors: Any,
        opts: Any = DEFAULTS,
        timeout: timedelta | None = None,
        op: Any = None,
    ) -> Work:
        """Sum (or opts.reduceOp) over all ranks, and over the list if it has several; in place."""
        # The short path, which small tensors feel: one plain real tensor, to be summed.
        if type(tensors) is list and len(tensors) == 1 and self._collected is None:
            tensor = tensors[0]
            dtype = SUMMED_REAL.get(tensor.dtype)
            if (
                dtype is not None
                and tensor.layout is STRIDED
                and tensor.is_contiguous()
                and tensor.is_cpu
                and not _profiler_enabled()
                and type(opts) is _AllreduceOptions
                and opts.reduceOp == SUM
            ):
                self._sequence += 1
                limit = opts.timeout
                is_async = opts.asyncOp if _HAS_ASYNC_OP else True
                pointer = tensor.data_ptr()
                try:
                    core = self._core_all_reduce(
                        pointer,
                        pointer,
                        tensor.numel(),
                        dtype,
                        0,
                        1.0,
                        0.0 if limit == UNSET else seconds(limit),
                        not is_async,
                        tensor,
                    )
                except PcclError as error:
                    return failed(error, tensors)
                if not is_async:
                    return _DONE
                work = PcclWork()
                work.core = core
                work.completions = self._completions
                work.outputs = tensors
                return work
        return self._all_reduce(_listed(tensors), _options(opts, timeout, op))

    def _all_reduce(self, tensors: list[Tensor], opts: Any) -> Work:
        name = "allreduce"
        check_not_empty(tensors, name)
        check_alike(tensors, tensors[0], name)
        if tensors[0].layout is torch.sparse_coo:
            return self._all_reduce_sparse(tensors, opts)
        dtype, op, factor = reduce_codes(opts.reduceOp, tensors[0], name)
        staging = Staging(name)
        if len(tensors) == 1:
            staged = staging.both(tensors[0])
        else:
            staged = staging.source(_reduce_locally(tensors, opts.reduceOp))
            for tensor in tensors:
                staging.copy_later(tensor, staged)
        pointer = staged.data_ptr()
        arguments = (pointer, pointer, staged.numel(), dtype, op, factor)
        return self._launch(
            "all_reduce", self._core.all_reduce, arguments, opts, tensors, staging, staged
        )

    def _all_reduce_sparse(self, tensors: list[Tensor], opts: Any) -> Work:
        """Exchange indices and values, and sum in the order of the ranks. Done when it returns."""
        name = "allreduce"
        if opts.reduceOp != SUM:
            fail(name, "sparse tensors can only be summed")
        if not tensors[0].is_cpu:
            fail(name, "sparse tensors only in the memory of the CPU")
        self._sequence += 1
        own = tensors[0].coalesce()
        for tensor in tensors[1:]:
            own = (own + tensor).coalesce()
        moved_dtype(own, name)
        limit = seconds(opts.timeout)
        try:
            total = self._sum_sparse(own, limit)
        except PcclError as error:
            return failed(error, tensors)
        with torch.no_grad():
            for tensor in tensors:
                tensor.copy_(total)
        work = DoneWork()
        work.outputs = tensors
        return work

    def _sum_sparse(self, own: Tensor, limit: float) -> Tensor:
        indices, values = own.indices().contiguous(), own.values().contiguous()
        count = torch.tensor([own._nnz()])
        counts = torch.empty(self._size, dtype=torch.int64)
        everyone = equal_blocks(counts, self._size)
        gather = self._core.all_gather
        int64 = moved_dtype(counts, "allreduce")
        gather(block(count), everyone, int64, limit, True, (count, counts))
        shapes = [int(c) for c in counts]
        all_indices = [indices.new_empty((indices.size(0), c)) for c in shapes]
        all_values = [values.new_empty((c, *values.shape[1:])) for c in shapes]
        for source, targets in ((indices, all_indices), (values, all_values)):
            blocks = [block(target) for target in targets]
            dtype = moved_dtype(source, "allreduce")
            gather(block(source), blocks, dtype, limit, True, (source, targets))
        return torch.sparse_coo_tensor(
            torch.cat(all_indices, 1), torch.cat(all_values), own.shape, check_invariants=False
        ).coalesce()

    def allreduce_coalesced(self, tensors: Any, opts: Any = DEFAULTS) -> Work:
        """all_reduce of several tensors, each for itself; small ones travel in one message."""
        name = "allreduce_coalesced"
        tensors = _listed(tensors)
        check_not_empty(tensors, name)
        opts = _options(opts)
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        alike = len({(t.dtype, t.device, t.layout) for t in tensors}) == 1
        if len(tensors) == 1 or not alike or total > _FLATTEN_BYTES_MAX:
            return self._together([self._all_reduce([t], opts) for t in tensors], tensors)
        dtype, op, factor = reduce_codes(opts.reduceOp, tensors[0], name)
        staging = Staging(name)
        with torch.no_grad():
            flat = staging.source(torch.cat([tensor.reshape(-1) for tensor in tensors]))
        pieces = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, piece in zip(tensors, pieces, strict=True):
            staging.copy_later(tensor, piece.view(tensor.shape))
        pointer = flat.data_ptr()
        arguments = (pointer, pointer, flat.numel(), dtype, op, factor)
        return self._launch(
            "all_reduce", self._core.all_reduce, arguments, opts, tensors, staging, flat
        )

    # --- from or to one rank -------------------------------------------------------------------------

    def broadcast(
        self,
        tensors: Any,
        opts: Any = DEFAULTS,
        timeout: timedelta | None = None,
        root: int | None = None,
    ) -> Work:
        """Copy the tensor of rank opts.rootRank to all ranks, and over the list if it has several."""
        name = "broadcast"
        opts = _options(opts, timeout, root=root)
        tensors = _listed(tensors)
        check_root(opts.rootRank, self._size, name)
        check_not_empty(tensors, name)
        if not 0 <= opts.rootTensor < len(tensors):
            fail(name, f"invalid root tensor: {opts.rootTensor}")
        check_alike(tensors, tensors[0], name)
        tensor = tensors[opts.rootTensor]
        dtype = moved_dtype(tensor, name)
        staging = Staging(name)
        is_root = opts.rootRank == self._rank
        staged = staging.source(tensor) if is_root else staging.target(tensor)
        for index, other in enumerate(tensors):
            if index != opts.rootTensor:
                staging.copy_later(other, staged)
        arguments = (staged.data_ptr(), staged.numel(), dtype, opts.rootRank)
        return self._launch(
            "broadcast", self._core.broadcast, arguments, opts, tensors, staging, staged
        )

    def reduce(
        self,
        tensors: Any,
        opts: Any = DEFAULTS,
        op: Any = None,
        timeout: timedelta | None = None,
        root: int | None = None,
    ) -> Work:
        """Sum (or opts.reduceOp) over all ranks, in place at rank opts.rootRank only."""
        name = "reduce"
        opts = _options(opts, timeout, op, root)
        tensors = _listed(tensors)
        check_root(opts.rootRank, self._size, name)
        tensor = check_single(tensors, name)
        dtype, code, factor = reduce_codes(opts.reduceOp, tensor, name)
        staging = Staging(name)
        # Elsewhere the core may need room for partial sums.
        is_root = opts.rootRank == self._rank
        source = staging.both(tensor) if is_root else staging.source(tensor)
        target = source if is_root else torch.empty_like(source)
        arguments = (
            source.data_ptr(),
            target.data_ptr(),
            source.numel(),
            dtype,
            code,
            factor,
            opts.rootRank,
        )
        keep = (source, target)
        return self._launch("reduce", self._core.reduce, arguments, opts, tensors, staging, keep)

    def gather(
        self,
        output_tensors: Any,
        input_tensors: Any,
        opts: Any = DEFAULTS,
        timeout: timedelta | None = None,
        root: int | None = None,
    ) -> Work:
        """Collect every rank's tensor at rank opts.rootRank, in the list output_tensors[0]."""
        name = "gather"
        opts = _options(opts, timeout, root=root)
        check_root(opts.rootRank, self._size, name)
        tensor = check_single(_listed(input_tensors), name, "input tensor list")
        dtype = moved_dtype(tensor, name)
        outputs: list[Tensor] = []
        if opts.rootRank == self._rank:
            outputs = self._list_of_ranks(output_tensors, "output", name)
            check_alike(outputs, tensor, name)
        elif len(output_tensors) > 0:
            fail(name, "requires empty output on non-root")
        staging = Staging(name)
        source = staging.source(tensor)
        targets = [staging.target(output) for output in outputs]
        arguments = (block(source), [block(t) for t in targets], dtype, opts.rootRank)
        keep = (source, targets)
        return self._launch(
            "gather", self._core.gather, arguments, opts, outputs, staging, keep, [tensor]
        )

    def scatter(
        self,
        output_tensors: Any,
        input_tensors: Any,
        opts: Any = DEFAULTS,
        timeout: timedelta | None = None,
        root: int | None = None,
    ) -> Work:
        """Give each rank its tensor of the list input_tensors[0] at rank opts.rootRank."""
        name = "scatter"
        opts = _options(opts, timeout, root=root)
        check_root(opts.rootRank, self._size, name)
        outputs = _listed(output_tensors)
        tensor = check_single(outputs, name, "output tensor list")
        dtype = moved_dtype(tensor, name)
        inputs: list[Tensor] = []
        if opts.rootRank == self._rank:
            inputs = self._list_of_ranks(input_tensors, "input", name)
            check_alike(inputs, tensor, name)
        elif len(input_tensors) > 0:
            fail(name, "requires empty input on non-root")
        staging = Staging(name)
        sources = [staging.source(t) for t in inputs]
        target = staging.target(tensor)
        arguments = ([block(s) for s in sources], block(target), dtype, opts.rootRank)
        keep = (sources, target)
        return self._launch(
            "scatter", self._core.scatter, arguments, opts, outputs, staging, keep, inputs
        )

    def _list_of_ranks(self, tensors: Any, what: str, name: str) -> list[Tensor]:
        """The one list in a list, with a tensor for each rank; a plain list will do as well."""
        if not tensors or isinstance(tensors[0], Tensor):
            tensors = [list(tensors)] if tensors else []
        if len(tensors) != 1:
            fail(
                name,
                f"requires a single-element {what} list containing a list with {self._size} tensors",
            )
        if len(tensors[0]) != self._size:
            fail(
                name,
                f"Incorrect {what} list size {len(tensors[0])}. {what.capitalize()} list size should "
                f"be {self._size}",
            )
        return list(tensors[0])

    # --- all_gather ----------------------------------------------------------------------------------

    def allgather(
        self,
        output_tensors: Any,
        input_tensors: Any,
        opts: Any = DEFAULTS,
        timeout: timedelta | None = None,
    ) -> Work:
        """Collect every rank's tensors at all ranks; each list of outputs gets all of them."""
        name = "allgather"
        opts = _options(opts, timeout)
        inputs = _listed(input_tensors)
        check_not_empty(inputs, name, "input tensor list")
        if output_tensors and isinstance(output_tensors[0], Tensor):
            output_tensors = [output_tensors]
        if len(output_tensors) != len(inputs):
            fail(name, "requires input/output tensor lists to have the same length")
        check_alike(inputs, inputs[0], name)
        expected = self._size * len(inputs)
        for index, outputs in enumerate(output_tensors):
            if len(outputs) != expected:
                fail(
                    name,
                    f"invalid output tensor list at index {index} (expected length {expected}, got "
                    f"{len(outputs)})",
                )
            check_alike(outputs, inputs[0], name)
        if len(inputs) > 1:
            return self._all_gather_several(output_tensors, inputs, opts)
        dtype = moved_dtype(inputs[0], name)
        staging = Staging(name)
        source = staging.source(inputs[0])
        targets = [staging.target(output) for output in output_tensors[0]]
        arguments = (block(source), [block(t) for t in targets], dtype)
        keep = (source, targets)
        return self._launch(
            "all_gather",
            self._core.all_gather,
            arguments,
            opts,
            output_tensors,
            staging,
            keep,
            inputs,
        )

    def _all_gather_several(
        self, output_lists: Sequence[list[Tensor]], inputs: list[Tensor], opts: Any
    ) -> Work:
        name = "allgather"
        dtype = moved_dtype(inputs[0], name)
        staging = Staging(name)
        with torch.no_grad():
            source = staging.source(torch.stack(inputs))
        target = empty_staged((self._size * len(inputs), *inputs[0].shape), inputs[0])
        for outputs in output_lists:
            for output, result in zip(outputs, target, strict=True):
                staging.copy_later(output, result)
        arguments = (block(source), equal_blocks(target, self._size), dtype)
        keep = (source, target)
        return self._launch(
            "all_gather",
            self._core.all_gather,
            arguments,
            opts,
            output_lists,
            staging,
            keep,
            inputs,
        )

    def all_gather_single(self, output: Tensor, input: Tensor, opts: Any = DEFAULTS) -> Work:
        """Collect every rank's input at all ranks, one after the other in `output`."""
        name = "all_gather_single"
        check_dtypes([output], input, name)
        if output.numel() != input.numel() * self._size:
            fail(
                name,
                f"invalid tensor size: output tensor size must be equal to world_size times input "
                f"tensor size, got {output.numel()} and {input.numel()} elements at world size "
                f"{self._size}",
            )
        dtype = moved_dtype(input, name)
        staging = Staging(name)
        source, target = staging.source(input), staging.target(output)
        arguments = (block(source), equal_blocks(target, self._size), dtype)
        return self._launch(
            "all_gather",
            self._core.all_gather,
            arguments,
            _options(opts),
            [output],
            staging,
            (source, target),
            [input],
        )

    _allgather_base = all_gather_single

    def allgather_coalesced(self, output_lists: Any, input_list: Any, opts: Any = DEFAULTS) -> Work:
        """all_gather of several tensors; output_lists[r][i] becomes rank r's input_list[i]."""
        name = "allgather_coalesced"
        opts = _options(opts)
        inputs = _listed(input_list)
        check_not_empty(inputs, name, "input tensor list")
        if len(output_lists) != self._size:
            fail(name, "output lists should be equal to world size")
        for index, outputs in enumerate(output_lists):
            if len(outputs) != len(inputs):
                fail(
                    name,
                    f"invalid output size: (expected length {len(inputs)}, got {len(outputs)}) at "
                    f"index {index}",
                )
            for output, tensor in zip(outputs, inputs, strict=True):
                check_alike([output], tensor, name)
        if len({(t.dtype, t.device) for t in inputs}) > 1:
            works = []
            for index, tensor in enumerate(inputs):
                column = [outputs[index] for outputs in output_lists]
                works.append(self.allgather([column], [tensor], opts))
            return self._together(works, output_lists)
        # All tensors of a rank in one message.
        dtype = moved_dtype(inputs[0], name)
        staging = Staging(name)
        with torch.no_grad():
            source = staging.source(torch.cat([tensor.reshape(-1) for tensor in inputs]))
        target = empty_staged((self._size, source.numel()), inputs[0])
        counts = [tensor.numel() for tensor in inputs]
        for outputs, row in zip(output_lists, target, strict=True):
            for output, piece in zip(outputs, torch.split(row, counts), strict=True):
                staging.copy_later(output, piece.view(output.shape))
        arguments = (block(source), equal_blocks(target, self._size), dtype)
        return self._launch(
            "all_gather",
            self._core.all_gather,
            arguments,
            opts,
            output_lists,
            staging,
            (source, target),
            inputs,
        )

    def all_gather_single_coalesced(self, outputs: Any, inputs: Any, opts: Any = DEFAULTS) -> Work:
        """all_gather_single of several tensors."""
        name = "all_gather_single_coalesced"
        if len(outputs) != len(inputs):
            fail(name, "requires input/output tensor lists to have the same length")
        opts = _options(opts)
        works = [self.all_gather_single(o, i, opts) for o, i in zip(outputs, inputs, strict=True)]
        return self._together(works, outputs)

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    # --- reduce_scatter ------------------------------------------------------------------------------

    def reduce_scatter(
        self,
        output_tensors: Any,
        input_tensors: Any,
        opts: Any = DEFAULTS,
        timeout: timedelta | None = None,
        op: Any = None,
    ) -> Work:
        """Reduce the lists input_tensors[0] over all ranks; rank r gets the r-th result."""
        name = "reduce_scatter"
        opts = _options(opts, timeout, op)
        outputs = _listed(output_tensors)
        output = check_single(outputs, name, "output tensor list")
        inputs = self._list_of_ranks(input_tensors, "input", name)
        check_dtypes(inputs, output, name)
        check_alike([output], inputs[self._rank], name)
        dtype, code, factor = reduce_codes(opts.reduceOp, output, name)
        staging = Staging(name)
        sources = [staging.source(tensor) for tensor in inputs]
        target = staging.target(output)
        arguments = ([block(s) for s in sources], block(target), dtype, code, factor)
        return self._launch(
            "reduce_scatter",
            self._core.reduce_scatter,
            arguments,
            opts,
            outputs,
            staging,
            (sources, target),
            inputs,
        )

    def reduce_scatter_single(self, output: Tensor, input: Tensor, opts: Any = DEFAULTS) -> Work:
        """Reduce `input` over all ranks; rank r gets the r-th of its equal parts in `output`."""
        name = "reduce_scatter_single"
        opts = _options(opts)
        check_dtypes([output], input, name)
        if input.numel() != output.numel() * self._size:
            fail(
                name,
                f"invalid tensor size: input tensor must be the same size as output size times world "
                f"size, got {input.numel()} and {output.numel()} elements at world size "
                f"{self._size}",
            )
        dtype, code, factor = reduce_codes(opts.reduceOp, output, name)
        staging = Staging(name)
        source, target = staging.source(input), staging.target(output)
        arguments = (equal_blocks(source, self._size), block(target), dtype, code, factor)
        return self._launch(
            "reduce_scatter",
            self._core.reduce_scatter,
            arguments,
            opts,
            [output],
            staging,
            (source, target),
            [input],
        )

    _reduce_scatter_base = reduce_scatter_single

    def reduce_scatter_single_coalesced(
        self, outputs: Any, inputs: Any, opts: Any = DEFAULTS
    ) -> Work:
        """reduce_scatter_single of several tensors."""
        name = "reduce_scatter_single_coalesced"
        if len(outputs) != len(inputs):
            fail(name, "requires input/output tensor lists to have the same length")
        opts = _options(opts)
        works = [
            self.reduce_scatter_single(o, i, opts) for o, i in zip(outputs, inputs, strict=True)
        ]
        return self._together(works, outputs)

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    # --- all_to_all ----------------------------------------------------------------------------------

    def alltoall(
        self,
        output_tensors: Any,
        input_tensors: Any,
        opts: Any = DEFAULTS,
        timeout: timedelta | None = None,
    ) -> Work:
        """Send input_tensors[r] to rank r, receive output_tensors[r] from it; sizes may differ."""
        name = "alltoall"
        opts = _options(opts, timeout)
        for tensors, what in ((input_tensors, "input"), (output_tensors, "output")):
            check_not_empty(tensors, name, f"{what} tensor list")
            if len(tensors) != self._size:
                fail(name, f"invalid {what} tensor list: expected {self._size}, got {len(tensors)}")
            check_dtypes(tensors, input_tensors[0], name)
        dtype = moved_dtype(input_tensors[0], name)
        staging = Staging(name)
        sources = [staging.source(tensor) for tensor in input_tensors]
        targets = [staging.target(tensor) for tensor in output_tensors]
        arguments = ([block(s) for s in sources], [block(t) for t in targets], dtype)
        return self._launch(
            "all_to_all",
            self._core.all_to_all,
            arguments,
            opts,
            output_tensors,
            staging,
            (sources, targets),
            input_tensors,
        )

    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,
        output_split_sizes: Sequence[int],
        input_split_sizes: Sequence[int],
        opts: Any = DEFAULTS,
        timeout: timedelta | None = None,
    ) -> Work:
        """Send rank r its rows of `input`; what is received follows each other in `output`."""
        name = "all_to_all_single"
        check_dtypes([output], input, name)
        dtype = moved_dtype(input, name)
        staging = Staging(name)
        source, target = staging.source(input), staging.target(output)
        arguments = (
            split_blocks(source, input_split_sizes, self._size, name),
            split_blocks(target, output_split_sizes, self._size, name),
            dtype,
        )
        return self._launch(
            "all_to_all",
            self._core.all_to_all,
            arguments,
            _options(opts, timeout),
            [output],
            staging,
            (source, target),
            [input],
        )

    alltoall_base = all_to_all_single

    # --- two ranks -----------------------------------------------------------------------------------

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
        tensors = _listed(tensors)
        if len(tensors) != 1:
            fail(name, f"{name} takes a single tensor")
        if tag < 0:
            fail(name, "Tag must be nonnegative")
        if not 0 <= rank < self._size:
            fail(name, f"invalid rank: {rank}")
        tensor = tensors[0]
        assert isinstance(tensor, Tensor)
        return tensor

    # --- barriers ------------------------------------------------------------------------------------

    def barrier(self, opts: Any = DEFAULTS, timeout: timedelta | None = None) -> Work:
        """Complete when every rank has called it."""
        return self._launch("barrier", self._barrier, (), _options(opts, timeout), [], None, None)

    def _barrier(self, timeout_seconds: float, sync: bool, keep: object) -> _core.Work:
        return self._core.barrier(timeout_seconds, sync)

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
                f"Rank {self._rank} successfully reached monitoredBarrier, but received errors while "
                f"waiting for send/recv from rank 0. Please check rank 0 logs for faulty rank. {error}"
            ) from None

    # --- several at once -----------------------------------------------------------------------------

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

    def _launch(
        self,
        title: str,
        start: Callable[..., _core.Work],
        arguments: tuple[Any, ...],
        opts: Any,
        outputs: Any,
        staging: Staging | None,
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
            return self._collect(failed(error, outputs))
        copy_back = None if staging is None else staging.copy_back()
        if sync and copy_back is None:
            return _DONE
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

    # --- who this is ---------------------------------------------------------------------------------

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
        return ErrorType.TIMEOUT if "timed out" in error.lower() else ErrorType.COMM_ERROR

    # --- sub-groups and the end ----------------------------------------------------------------------

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

    def abort(self) -> None:
        """Fail every operation of the group, here and at the others, and leave it."""
        if self._open:
            self._core.abort(f"rank {self._rank} called abort() on group {self._name!r}")
            self.shutdown()

    def shutdown(self) -> None:
        """Leave the group politely; the last group that is left ends the run. Idempotent."""
        global _world
        if not self._open:
            return
        self._open = False
        self._core.close()
        self._run.release_group()
        if _world is self._run and self._run.closed:
            _world = None


class GroupOptions:
    """A group's options as torch's tests look at them."""

    def __init__(self, group: ProcessGroupPCCL) -> None:
        self.backend = "pccl"
        self._timeout = group._timeout
        self.group_name = group.group_name
        self.global_ranks_in_group = list(group._world_ranks)


def _listed(tensors: Any) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _options(
    opts: Any, timeout: timedelta | None = None, op: Any = None, root: int | None = None
) -> Any:
    """torch's options, from the ways in which they can be given: as such, or value by value."""
    if opts is None:
        opts = DEFAULTS
    if hasattr(opts, "timeout") and timeout is None and op is None and root is None:
        return opts
    if isinstance(opts, ReduceOp) or type(opts).__name__ == "RedOpType":
        op, opts = opts, DEFAULTS
    elif isinstance(opts, timedelta):
        timeout, opts = opts, DEFAULTS
    elif isinstance(opts, int):
        root, opts = opts, DEFAULTS
    return Options(
        reduce_op=getattr(opts, "reduceOp", SUM) if op is None else op,
        root=getattr(opts, "rootRank", 0) if root is None else root,
        timeout=getattr(opts, "timeout", UNSET) if timeout is None else timeout,
        is_async=getattr(opts, "asyncOp", True),
    )


def _reduce_locally(tensors: Sequence[Tensor], op: Any) -> Tensor:
    """Combine the tensors that one rank contributes to one all_reduce."""
    combine: Any = {
        ReduceOp.SUM: torch.add,
        ReduceOp.PRODUCT: torch.mul,
        ReduceOp.MIN: torch.minimum,
        ReduceOp.MAX: torch.maximum,
        ReduceOp.BAND: torch.bitwise_and,
        ReduceOp.BOR: torch.bitwise_or,
        ReduceOp.BXOR: torch.bitwise_xor,
    }.get(getattr(op, "op", op))
    if combine is None:
        fail("allreduce", f"ReduceOp {op} takes one tensor a rank")
    with torch.no_grad():
        result = tensors[0].clone(memory_format=torch.contiguous_format)
        for tensor in tensors[1:]:
            result = combine(result, tensor)
    return result


_AllreduceOptions: Any = torch.distributed.AllreduceOptions
_HAS_ASYNC_OP = hasattr(_AllreduceOptions(), "asyncOp")
