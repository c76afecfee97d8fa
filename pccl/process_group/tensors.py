"""torch's tensors and options as the core takes them: codes, staging, checks.

Bad arguments are RuntimeErrors with gloo's wordings, which PyTorch's tests demand.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.distributed import ReduceOp

from pccl._arrays import is_reducible
from pccl._core import DATA_TYPES, REDUCE_OPS
from pccl.process_group.work import CopyBack

Block = tuple[int, int]  # pointer and count, as the core takes them

# What torch's options hold where the caller gave no timeout.
UNSET = timedelta(milliseconds=-1)
STRIDED = torch.strided
SUM = ReduceOp.SUM

_REDUCE_OP_NAMES = {
    ReduceOp.SUM: "sum",
    ReduceOp.AVG: "avg",
    ReduceOp.MIN: "min",
    ReduceOp.MAX: "max",
    ReduceOp.PRODUCT: "product",
    ReduceOp.BAND: "band",
    ReduceOp.BOR: "bor",
    ReduceOp.BXOR: "bxor",
    ReduceOp.PREMUL_SUM: "premul_sum",
}


def _dtype_names() -> dict[torch.dtype, str]:
    names = {
        getattr(torch, name): name
        for name in DATA_TYPES
        if isinstance(getattr(torch, name, None), torch.dtype)
    }
    for name in dir(torch):
        dtype = getattr(torch, name)
        if isinstance(dtype, torch.dtype) and name.startswith(("float8_", "float4_")):
            names[dtype] = "float8"  # one byte an element, moved as it is
    return names


_DTYPE_NAMES = _dtype_names()

# Code of a dtype, for operations that only move bytes.
MOVED = {dtype: DATA_TYPES[name] for dtype, name in _DTYPE_NAMES.items()}
# torch's half-precision complex numbers travel as the 4 bytes they are.
MOVED[torch.complex32] = DATA_TYPES["uint32"]

# Code of a dtype by operator, for those that the operator can reduce.
_REDUCED = {
    op: {dtype: DATA_TYPES[name] for dtype, name in _DTYPE_NAMES.items() if is_reducible(name, op)}
    for op in REDUCE_OPS
}

# The dtypes of the short path of all_reduce. Complex tensors may be lazily conjugated: not there.
SUMMED_REAL = {dtype: code for dtype, code in _REDUCED["sum"].items() if not dtype.is_complex}


class Options:
    """Stands in for torch's option classes, where a caller passes the values one by one."""

    def __init__(
        self,
        *,
        reduce_op: Any = SUM,
        root: int = 0,
        timeout: timedelta | None = None,
        is_async: bool = True,
    ) -> None:
        self.reduceOp = reduce_op
        self.rootRank = root
        self.rootTensor = 0
        self.timeout = UNSET if timeout is None else timeout
        self.asyncOp = is_async


DEFAULTS = Options()


def seconds(timeout: timedelta) -> float:
    """The core's notion of a timeout: 0 is the group's default."""
    return timeout.total_seconds() if timeout > timedelta(0) else 0.0


def fail(operation: str, reason: str) -> NoReturn:
    raise RuntimeError(f"ProcessGroupPCCL::{operation}: {reason}")


# --- codes ----------------------------------------------------------------------------------------


def moved_dtype(tensor: Tensor, operation: str) -> int:
    """The core's code of a dtype that is only moved."""
    code = MOVED.get(tensor.dtype)
    if code is None:
        fail(operation, f"invalid tensor type: {tensor.dtype} does not travel")
    return code


def reduce_codes(op: Any, tensor: Tensor, operation: str) -> tuple[int, int, float]:
    """The core's codes of dtype and operator, and the factor of PREMUL_SUM."""
    kind = getattr(op, "op", op)  # a ReduceOp, or the enumerator that it is made of
    name = _REDUCE_OP_NAMES.get(kind)
    if name is None:
        fail(operation, f"Cannot use ReduceOp {kind}")
    factor = 1.0
    if name == "premul_sum":
        value = op.factor if hasattr(op, "factor") else op.__getstate__()[1]
        if isinstance(value, Tensor) and value.numel() != 1:
            fail(operation, "ReduceOp.PREMUL_SUM takes one factor, not one an element")
        factor = float(value)
    code = _REDUCED[name].get(tensor.dtype)
    if code is None:
        fail(operation, f"invalid tensor type: ReduceOp {kind} is not defined for {tensor.dtype}")
    return code, REDUCE_OPS[name], factor


# --- memory ---------------------------------------------------------------------------------------


class Staging:
    """Contiguous CPU memory for the tensors of one operation; a copy only where it must be.

    A CUDA tensor goes through pinned memory: copied on its current stream, which ready() waits for.
    """

    def __init__(self, operation: str) -> None:
        self._operation = operation
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._devices: set[torch.device] = set()

    def source(self, tensor: Tensor) -> Tensor:
        """Memory that holds the tensor's values once ready() has returned."""
        self._check(tensor)
        if tensor.is_cuda:
            # Else torch conjugates the copy on the host, perhaps before the values are there.
            tensor = tensor.resolve_conj().resolve_neg()
            staged = empty_staged(tensor.shape, tensor)
            staged.copy_(tensor.detach(), non_blocking=True)
            self._devices.add(tensor.device)
            return staged
        if tensor.is_conj() or tensor.is_neg():
            tensor = tensor.resolve_conj().resolve_neg()
        return tensor if tensor.is_contiguous() else tensor.detach().contiguous()

    def target(self, tensor: Tensor) -> Tensor:
        """Memory whose content becomes the tensor's by copy_back()."""
        self._check(tensor)
        if self._is_plain(tensor):
            return tensor
        staged = empty_staged(tensor.shape, tensor)
        self._pairs.append((tensor, staged))
        return staged

    def both(self, tensor: Tensor) -> Tensor:
        """source() and target() in one."""
        staged = self.source(tensor)
        if staged is not tensor:
            self._pairs.append((tensor, staged))
        return staged

    def copy_later(self, target: Tensor, source: Tensor) -> None:
        """Have `source`, a staged result, copied to one more tensor at the end."""
        self._pairs.append((target, source))

    def ready(self) -> None:
        """Return when the copies into staged memory are done."""
        for device in self._devices:
            torch.cuda.current_stream(device).synchronize()

    def copy_back(self) -> CopyBack | None:
        """What is to be done when the operation is; None: nothing."""
        return CopyBack(self._pairs) if self._pairs else None

    def _is_plain(self, tensor: Tensor) -> bool:
        return (
            tensor.is_cpu and tensor.is_contiguous() and not (tensor.is_conj() or tensor.is_neg())
        )

    def _check(self, tensor: Tensor) -> None:
        if tensor.layout is not STRIDED:
            fail(
                self._operation,
                f"unsupported layout: only supports dense tensors, got {tensor.layout}",
            )
        if not (tensor.is_cpu or tensor.is_cuda):
            fail(self._operation, f"unsupported device type {tensor.device.type}")


def empty_staged(shape: Sequence[int], like: Tensor) -> Tensor:
    """Memory of the host for what tensors like `like` hold, wherever the caller's default is."""
    return torch.empty(tuple(shape), dtype=like.dtype, device="cpu", pin_memory=like.is_cuda)


def block(tensor: Tensor) -> Block:
    """Pointer and count of a staged tensor."""
    return tensor.data_ptr(), tensor.numel()


def equal_blocks(tensor: Tensor, parts: int) -> list[Block]:
    """A staged tensor in equal parts."""
    count = tensor.numel() // parts
    pointer, part_bytes = tensor.data_ptr(), count * tensor.element_size()
    return [(pointer + index * part_bytes, count) for index in range(parts)]


def split_blocks(
    tensor: Tensor, split_sizes: Sequence[int], world_size: int, operation: str
) -> list[Block]:
    """A staged tensor in parts of `split_sizes` rows; none given: equal parts."""
    rows = tensor.size(0) if tensor.dim() else 1
    if not split_sizes:
        if rows % world_size:
            fail(
                operation, f"Tensor's dim 0 does not divide equally across group size {world_size}"
            )
        return equal_blocks(tensor, world_size)
    if len(split_sizes) != world_size:
        fail(operation, "Number of tensor splits not equal to group size")
    if sum(split_sizes) != rows or min(split_sizes) < 0:
        fail(operation, f"Split sizes doesn't match total dim 0 size {rows}")
    row_count = tensor.numel() // rows if rows else 0
    row_bytes = row_count * tensor.element_size()
    blocks, pointer = [], tensor.data_ptr()
    for size in split_sizes:
        blocks.append((pointer, size * row_count))
        pointer += size * row_bytes
    return blocks


# --- checks ---------------------------------------------------------------------------------------


def check_root(root: int, world_size: int, operation: str) -> None:
    if not 0 <= root < world_size:
        fail(operation, f"invalid root rank: {root}")


def check_not_empty(tensors: Sequence[Any], operation: str, what: str = "tensor list") -> None:
    if not isinstance(tensors, (list, tuple)) or len(tensors) == 0:
        fail(operation, f"requires non-empty {what}")


def check_single(tensors: Sequence[Any], operation: str, what: str = "tensor list") -> Tensor:
    """The only tensor of a list."""
    if not isinstance(tensors, (list, tuple)) or len(tensors) != 1:
        fail(operation, f"requires a single-element {what}")
    tensor = tensors[0]
    assert isinstance(tensor, Tensor)
    return tensor


def check_alike(tensors: Sequence[Tensor], like: Tensor, operation: str) -> None:
    """Every tensor has the dtype and the shape of `like`."""
    dtype, shape = like.dtype, like.shape
    for index, tensor in enumerate(tensors):
        if tensor.dtype != dtype:
            fail(
                operation,
                f"invalid tensor type at index {index} (expected {dtype}, got {tensor.dtype})",
            )
        if tensor.shape != shape:
            fail(
                operation,
                f"invalid tensor size at index {index} (expected {list(shape)}, got "
                f"{list(tensor.shape)})",
            )


def check_dtypes(tensors: Sequence[Tensor], like: Tensor, operation: str) -> None:
    """Every tensor has the dtype of `like`."""
    for index, tensor in enumerate(tensors):
        if tensor.dtype != like.dtype:
            fail(
                operation,
                f"invalid tensor type at index {index} (expected {like.dtype}, got {tensor.dtype})",
            )


# --- what callers pass ----------------------------------------------------------------------------


def listed(tensors: Any) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def call_options(
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
