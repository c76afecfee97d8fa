"""The operations of a group that compute."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch.distributed import ReduceOp, Work

from pccl import _core
from pccl._core import PcclError
from pccl._quantized import codec_in_force
from pccl._reductions import feedback_memory
from pccl.codecs import ErrorFeedback
from pccl.process_group import device_codec
from pccl.process_group.base import GroupBase
from pccl.process_group.tensors import (
    DEFAULTS,
    STRIDED,
    SUM,
    SUMMED_REAL,
    UNSET,
    Options,
    Staging,
    block,
    call_options,
    check_alike,
    check_dtypes,
    check_not_empty,
    check_root,
    check_single,
    equal_blocks,
    fail,
    listed,
    moved_dtype,
    reduce_codes,
    seconds,
)
from pccl.process_group.work import DONE, DoneWork, PcclWork, failed

# Coalesced tensors of fewer bytes together are copied into one message: below it the cost of a
# message exceeds that of the copies.
_FLATTEN_BYTES_MAX = 1 << 20

_AllreduceOptions: Any = torch.distributed.AllreduceOptions
_HAS_ASYNC_OP = hasattr(_AllreduceOptions(), "asyncOp")


class Reductions(GroupBase):
    """allreduce, reduce and reduce_scatter in all their forms."""

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
                and not codec_in_force(self._codec)
                and not self._abort_hooks.hooks
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
                    return DONE
                work = PcclWork()
                work.core = core
                work.completions = self._completions
                work.outputs = tensors
                return work
        return self._all_reduce(listed(tensors), call_options(opts, timeout, op))

    def _all_reduce(self, tensors: list[Tensor], opts: Any) -> Work:
        name = "allreduce"
        check_not_empty(tensors, name)
        check_alike(tensors, tensors[0], name)
        if tensors[0].layout is torch.sparse_coo:
            return self._all_reduce_sparse(tensors, opts)
        dtype, op, factor = reduce_codes(opts.reduceOp, tensors[0], name)
        codec = self._codec_for(tensors[0], opts)
        if len(tensors) == 1 and self._encodes_on_device(tensors[0], codec):
            return self._all_reduce_encoded(tensors[0], codec, (dtype, op), opts)
        staging = Staging(name)
        if len(tensors) == 1:
            staged = staging.both(tensors[0])
        else:
            staged = staging.source(_reduce_locally(tensors, opts.reduceOp))
            for tensor in tensors:
                staging.copy_later(tensor, staged)
        pointer = staged.data_ptr()
        arguments = (pointer, pointer, staged.numel(), dtype, op, factor)
        launch = self._coded_all_reduce(staged, opts)
        return self._launch("all_reduce", launch, arguments, opts, tensors, staging, staged)

    def _coded_all_reduce(self, tensor: Tensor, opts: Any) -> Any:
        """Return the core's all_reduce, with the codec in force if it is one for this call."""
        launch = self._core.all_reduce
        codec = self._codec_for(tensor, opts)
        return functools.partial(launch, codec=codec) if codec else launch

    def _codec_for(self, tensor: Tensor, opts: Any) -> str:
        """The codec in force if it is one for this call, else ""."""
        codec = codec_in_force(self._codec)
        # Not `in`, which asks torch's enum first, and that knows no ReduceOp.
        is_sum = opts.reduceOp == SUM or opts.reduceOp == ReduceOp.AVG
        return codec if is_sum and tensor.is_floating_point() else ""

    def _encodes_on_device(self, tensor: Tensor, codec: str) -> bool:
        # What an elastic run sends again after a loss are elements.
        is_fixed = isinstance(self._core, _core.Communicator)
        return codec not in ("", "none") and is_fixed and device_codec.takes(tensor, codec)

    def _all_reduce_encoded(
        self, tensor: Tensor, codec: str, codes: tuple[int, int], opts: Any
    ) -> Work:
        """A sum or an average of one tensor on a device, whose encoded bytes come to the host."""
        staging = device_codec.EncodedStaging(tensor, codec, self._rank, self._sequence)
        pointer = staging.host.data_ptr()
        arguments = (pointer, pointer, tensor.numel(), *codes, 1.0)
        launch = functools.partial(self._core.all_reduce, codec=codec, is_encoded=True)
        return self._launch("all_reduce", launch, arguments, opts, [tensor], staging, staging)

    def all_reduce_in(
        self,
        codec: str,
        tensor: Tensor,
        op: Any = ReduceOp.AVG,
        *,
        error_feedback: ErrorFeedback | None = None,
        timeout: timedelta | None = None,
    ) -> Work:
        """Start an all_reduce of one tensor in a codec of its own; for DDP's communication hooks.

        Args:
            codec: goes before the codec in force.
            tensor: dense floating point, in place.
            op: a sum or an average.
            error_feedback: of as many elements; used when the work is done, and not before.

        Raises:
            RuntimeError: arguments that do not fit. Errors of the network are in the work.
        """
        name = "all_reduce_in"
        dtype, code, factor = reduce_codes(op, tensor, name)
        if error_feedback is None and self._encodes_on_device(tensor, codec):
            options = Options(timeout=timeout)
            return self._all_reduce_encoded(tensor, codec, (dtype, code), options)
        staging = Staging(name)
        staged = staging.both(tensor)
        residual, lost = feedback_memory(error_feedback, codec, staged.numel())
        pointer = staged.data_ptr()
        arguments = (pointer, pointer, staged.numel(), dtype, code, factor)
        launch = functools.partial(self._core.all_reduce, codec=codec, residual=residual, lost=lost)
        options = Options(timeout=timeout)
        keep = (staged, error_feedback)
        work = self._launch("all_reduce", launch, arguments, options, [tensor], staging, keep)
        if error_feedback is not None and isinstance(work, PcclWork):
            error_feedback.end(work.core)
        return work

    def _all_reduce_sparse(self, tensors: list[Tensor], opts: Any) -> Work:
        """Exchange indices and values, and sum in the order of the ranks. Done when it returns."""
        name = "allreduce"
        if opts.reduceOp != SUM:
            fail(name, "sparse tensors can only be summed")
        self._sequence += 1
        own = tensors[0].coalesce()
        for tensor in tensors[1:]:
            own = (own + tensor).coalesce()
        own = own.cpu()
        moved_dtype(own, name)
        limit = seconds(opts.timeout)
        try:
            total = self._sum_sparse(own, limit)
        except PcclError as error:
            return failed(error, tensors)
        with torch.no_grad():
            for tensor in tensors:
                tensor.copy_(total.to(tensor.device))
        work = DoneWork()
        work.outputs = tensors
        return work

    def _sum_sparse(self, own: Tensor, limit: float) -> Tensor:
        indices, values = own.indices().contiguous(), own.values().contiguous()
        count = torch.tensor([own._nnz()], device="cpu")
        counts = torch.empty(self._size, dtype=torch.int64, device="cpu")
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
        tensors = listed(tensors)
        check_not_empty(tensors, name)
        opts = call_options(opts)
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
        launch = self._coded_all_reduce(flat, opts)
        return self._launch("all_reduce", launch, arguments, opts, tensors, staging, flat)

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
        opts = call_options(opts, timeout, op, root)
        tensors = listed(tensors)
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
        opts = call_options(opts, timeout, op)
        outputs = listed(output_tensors)
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
        opts = call_options(opts)
        check_dtypes([output], input, name)
        if input.numel() != output.numel() * self._size:
            fail(
                name,
                f"invalid tensor size: input tensor must be the same size as output size times "
                f"world size, got {input.numel()} and {output.numel()} elements at world size "
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
        opts = call_options(opts)
        works = [
            self.reduce_scatter_single(o, i, opts) for o, i in zip(outputs, inputs, strict=True)
        ]
        return self._together(works, outputs)

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced


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
