"""Operations that move arrays as they are: broadcast, gather, scatter, all_to_all.

P is the number of ranks and S the bytes of the tensor in every cost below.
"""

from __future__ import annotations

from collections.abc import Sequence

from pccl import _arrays, _core
from pccl._arrays import Buffer
from pccl._core import Work
from pccl._group import Array, GroupBase


class Moves(GroupBase):
    """The operations of a Communicator that reduce nothing; what holds for all is said there."""

    def broadcast(
        self, tensor: Array, src: int, *, async_op: bool = False, timeout_seconds: float = 0
    ) -> Work | None:
        """Copy the tensor of rank `src` to all ranks, in place.

        A tree for small tensors, two for large ones: about log2 P steps, at most 2 S bytes sent a
        rank.

        Args:
            tensor: shape [...], contiguous; same shape and dtype on every rank.

        Raises:
            ValueError: not contiguous, read-only (except at `src`), or `src` is no rank here.
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
        _arrays.check_equal(outputs[self.rank], buffer, f"tensor_list[{self.rank}]", "tensor")
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
        """Collect every rank's `input_tensor` at all ranks, one after the other in `output_tensor`.

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
        _arrays.check_times(output, buffer, self.world_size, "output_tensor", "input_tensor")
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
            gather_list: P arrays at rank `dst`, None elsewhere; [r] has the count of rank r's
                tensor.

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
            _arrays.check_equal(outputs[dst], buffer, f"gather_list[{dst}]", "tensor")
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
            scatter_list: P arrays at rank `src`, None elsewhere; [r] has the count of rank r's
                tensor.

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
            _arrays.check_equal(result, inputs[src], "tensor", f"scatter_list[{src}]")
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
        _arrays.check_equal(
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
        """Send the r-th part of `input` to rank r; what is received follows each other in `output`.

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
        sends = _arrays.split_counts(buffer, input_split_sizes, self.world_size, "input")
        receives = _arrays.split_counts(result, output_split_sizes, self.world_size, "output")
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
