"""Operations that compute: all_reduce and its kin, over numpy or DLPack arrays.

P is the number of ranks and S the bytes of the tensor in every cost below.
"""

from __future__ import annotations

from collections.abc import Sequence

from pccl import _arrays, _core
from pccl._arrays import Buffer
from pccl._core import Work
from pccl._group import Array, GroupBase
from pccl.codecs import Difference, ErrorFeedback

# A sum of weights must not overflow; the core's kWeightMax.
_WEIGHT_MAX = 1e30

_HEADER_BYTES = 8  # of encoded bytes

_OP_ALIASES = {"mean": "avg", "prod": "product"}


class Reductions(GroupBase):
    """The operations of a Communicator that reduce; what holds for all of them is said there."""

    def all_reduce(
        self,
        tensor: Array,
        op: str = "sum",
        *,
        factor: float = 1.0,
        codec: str = "",
        error_feedback: ErrorFeedback | Difference | None = None,
        async_op: bool = False,
        timeout_seconds: float = 0,
    ) -> Work | None:
        """Reduce `tensor` over all ranks, in place; every rank ends with the same bytes.

        The cost model picks the algorithm by size and links: log2 P steps for small tensors,
        2 (P - 1) / P * S bytes sent a rank for large ones.

        Args:
            tensor: shape [...], contiguous; same shape and dtype on every rank.
            op: "sum", "avg", "min", "max", "product", "band", "bor" or "bxor"; "premul_sum"
                multiplies each rank's contribution by its own `factor` first, "weighted_avg" also
                divides the sum by the sum of all factors (0 or more; if all are 0, so is the
                result).
            codec: what travels instead of the elements: "int8" sends a quarter of float32's bytes
                with a relative error of about 1 %, "int4" an eighth with 10 %; docs/codecs.md lists
                all. Only sums and averages of floating point. Every rank still ends with the same
                bytes.
            error_feedback: with a codec: keeps what this rank's encodings lose, and adds it to what
                it sends next time; each rank has its own, as long as the tensor. A Difference
                (EF21) is for op="avg" of float32, and is done when the call returns.

        Raises:
            ValueError: not contiguous, read-only, or a dtype that `op` or `codec` cannot reduce.
            NonFiniteContribution: with a codec, NaN or infinity; the message names the rank.
            PcclError: see the class. The message says which elements hold the result.
        """
        buffer = _arrays.target(tensor, "tensor")
        code = reduce_op(op, buffer, factor)
        if isinstance(error_feedback, Difference):
            if async_op:
                raise ValueError("error_feedback: a Difference is not for async_op=True")
            self._average_difference(buffer, code, codec, error_feedback, timeout_seconds)
            return None
        residual, lost = feedback_memory(error_feedback, codec, buffer.count)
        work = self._core.all_reduce(
            buffer.pointer,
            buffer.pointer,
            buffer.count,
            buffer.dtype,
            code,
            factor,
            timeout_seconds,
            not async_op,
            (buffer, error_feedback),
            codec=codec,
            residual=residual,
            lost=lost,
        )
        if error_feedback is not None:
            error_feedback.end(work)
        return work if async_op else None

    def all_reduce_encoded(
        self,
        wire: Array,
        op: str = "sum",
        *,
        dtype: str = "float32",
        async_op: bool = False,
        timeout_seconds: float = 0,
    ) -> Work | None:
        """all_reduce of a contribution that is encoded already, as a GPU has done; in place.

        The others may encode theirs inside, by all_reduce(codec=) of a tensor of `dtype`: every
        rank ends with the same bytes, here still encoded. They are those of all_reduce() of what
        `wire` decodes to.

        Args:
            wire: uint8, what codecs.encode() returns, in memory that can be written to; the result
                replaces what is behind its header.
            op: "sum" or "avg".
            dtype: of the tensors; all ranks name the same.

        Raises:
            ValueError: not such bytes, or a codec that is not for sums.
            NonFiniteContribution: it holds a tile of values one of which was NaN or infinite.
            PcclError: see the class; `wire` must not be used then.
        """
        buffer = _arrays.target(wire, "wire")
        head = bytes(_arrays.bytes_at(buffer, 0, min(buffer.count, _HEADER_BYTES)))
        segment = _core.read_segment(head)
        if buffer.dtype_name != "uint8" or segment is None:
            raise ValueError(f"wire: expected encoded bytes as uint8, got {buffer}")
        codec, _, count = segment
        number = _core.DATA_TYPES[dtype]
        if codec == "none" or buffer.count != _core.encoded_bytes(codec, number, count):
            raise ValueError(
                f"wire: {buffer.count} bytes are not {count} elements in a codec that loses "
                f"something; its header says {codec}"
            )
        if op not in ("sum", "avg"):
            raise ValueError(f"op: encoded contributions have a sum and an avg, not {op!r}")
        tiles = buffer.pointer + _HEADER_BYTES
        work = self._core.all_reduce(
            tiles,
            tiles,
            count,
            number,
            _core.REDUCE_OPS[op],
            1.0,
            timeout_seconds,
            not async_op,
            buffer,
            codec=codec,
            is_encoded=True,
        )
        return work if async_op else None

    def _average_difference(
        self,
        buffer: Buffer,
        code: int,
        codec: str,
        difference: Difference,
        timeout_seconds: float,
    ) -> None:
        if code != _core.REDUCE_OPS["avg"] or buffer.dtype_name != "float32" or not codec:
            raise ValueError(
                "error_feedback: a Difference is for op='avg' of float32 in a codec, got "
                f"{buffer} in codec={codec!r}"
            )
        values = _arrays.floats(buffer)
        average, loss = difference.begin(values)
        self.all_reduce(
            average, "avg", codec=codec, error_feedback=loss, timeout_seconds=timeout_seconds
        )
        difference.end(values, average, loss)
        values[...] = difference.mean

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
        code = reduce_op(op, buffer, factor)
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
        _arrays.check_equal(result, inputs[self.rank], "output", f"input_list[{self.rank}]")
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
        _arrays.check_times(buffer, result, self.world_size, "input", "output")
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
        code = reduce_op(op, result, factor)
        work = self._core.reduce_scatter(
            blocks, result.block, result.dtype, code, factor, timeout_seconds, not async_op, keep
        )
        return work if async_op else None


def feedback_memory(
    error_feedback: ErrorFeedback | None, codec: str, count: int
) -> tuple[int, int]:
    """Where the core finds what was lost before, and writes what is lost now; 0: nowhere."""
    if error_feedback is None:
        return 0, 0
    if not isinstance(error_feedback, ErrorFeedback):
        raise TypeError(
            "error_feedback: expected a pccl.codecs.ErrorFeedback (a Difference only where members "
            f"don't change), got {error_feedback!r}"
        )
    if codec in ("", "none"):
        raise ValueError("error_feedback: only with a codec, which loses something")
    return error_feedback.begin(count)


def reduce_op(op: str, buffer: Buffer, factor: float) -> int:
    """The core's code of an operator, once it fits the dtype and the factor."""
    if not isinstance(op, str):
        raise TypeError(f"op: expected a name like 'sum', got {op!r}")
    name = _OP_ALIASES.get(op.lower(), op.lower())
    code = _core.REDUCE_OPS.get(name)
    if code is None:
        raise ValueError(f"op: expected one of {sorted(_core.REDUCE_OPS)}, got {op!r}")
    if not _arrays.is_reducible(buffer.dtype_name, name):
        raise ValueError(f"op: {name!r} is not defined for {buffer.dtype_name}")
    if factor != 1.0 and name not in ("premul_sum", "weighted_avg"):
        raise ValueError(
            f"factor: only with op='premul_sum' or 'weighted_avg', got {factor} with op={op!r}"
        )
    if name == "weighted_avg" and not 0 <= factor <= _WEIGHT_MAX:
        raise ValueError(f"factor: expected a weight from 0 to {_WEIGHT_MAX}, got {factor}")
    return code
