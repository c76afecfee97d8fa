"""Arrays of any library as the core sees them: pointer, count, dtype, shape."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pccl import _core

_DTYPE_NAMES = {number: name for name, number in _core.DATA_TYPES.items()}


@dataclass(frozen=True)
class Buffer:
    """Contiguous memory of an array, alive as long as this object is."""

    pointer: int
    count: int
    dtype: int
    shape: tuple[int, ...]
    keep: object

    @property
    def block(self) -> _core.Block:
        return self.pointer, self.count

    @property
    def dtype_name(self) -> str:
        return _DTYPE_NAMES[self.dtype]

    def __str__(self) -> str:
        return f"{self.dtype_name}{list(self.shape)}"


def source(array: object, name: str) -> Buffer:
    """The memory of an input; a non-contiguous one is copied first.

    Raises:
        TypeError: not an array (no __dlpack__), or not in the memory of the CPU.
        ValueError: a dtype that does not travel.
    """
    return _buffer(array, name, writes=False)


def target(array: object, name: str) -> Buffer:
    """The memory of an output, or of an input that the result replaces.

    Raises:
        TypeError: not an array (no __dlpack__), or not in the memory of the CPU.
        ValueError: read-only, not contiguous, or a dtype that does not travel.
    """
    return _buffer(array, name, writes=True)


def sources(arrays: Sequence[object], name: str, length: int) -> list[Buffer]:
    """One input a rank, all of one dtype."""
    return _same_dtype(
        [source(a, f"{name}[{i}]") for i, a in enumerate(_listed(arrays, name, length))], name
    )


def targets(arrays: Sequence[object], name: str, length: int) -> list[Buffer]:
    """One output a rank, all of one dtype."""
    return _same_dtype(
        [target(a, f"{name}[{i}]") for i, a in enumerate(_listed(arrays, name, length))], name
    )


def split(buffer: Buffer, counts: Sequence[int]) -> list[_core.Block]:
    """Consecutive pieces of `counts` elements each."""
    pointer = buffer.pointer
    element_bytes = ELEMENT_BYTES[buffer.dtype_name]
    blocks = []
    for count in counts:
        blocks.append((pointer, count))
        pointer += count * element_bytes
    return blocks


def bytes_at(buffer: Buffer, offset: int, count: int) -> memoryview:
    """`count` bytes of the buffer, as they lie in memory; valid as long as `buffer` is."""
    return memoryview((ctypes.c_uint8 * count).from_address(buffer.pointer + offset)).cast("B")


def floats(buffer: Buffer) -> npt.NDArray[np.float32]:
    """The elements of a float32 buffer, in a row; valid as long as `buffer` is."""
    memory = (ctypes.c_float * buffer.count).from_address(buffer.pointer)
    return np.ctypeslib.as_array(memory)


def empty_like(buffer: Buffer) -> Buffer:
    """Scratch of the same size, with undefined content."""
    memory = np.empty(buffer.count * ELEMENT_BYTES[buffer.dtype_name], np.uint8)
    return Buffer(memory.ctypes.data, buffer.count, buffer.dtype, buffer.shape, memory)


ELEMENT_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "bool": 1,
    "complex64": 8,
    "complex128": 16,
}


def is_reducible(dtype: str, op: str) -> bool:
    """Whether `op` is defined for `dtype`; the same table as in csrc/base/types.cpp."""
    is_complex = dtype.startswith("complex")
    is_float = dtype in ("float64", "float32", "float16", "bfloat16")
    if dtype == "float8":
        return False
    if op == "avg":
        return dtype != "bool"
    if op in ("premul_sum", "weighted_avg"):
        return is_float or is_complex
    if op in ("min", "max"):
        return not is_complex
    if op in ("band", "bor", "bxor"):
        return not (is_float or is_complex)
    return True


def check_equal(first: Buffer, second: Buffer, first_name: str, second_name: str) -> None:
    if first.dtype != second.dtype or first.count != second.count:
        raise ValueError(
            f"{first_name} and {second_name}: expected one dtype and count, got {first} and "
            f"{second}"
        )


def check_times(large: Buffer, small: Buffer, times: int, large_name: str, small_name: str) -> None:
    if large.dtype != small.dtype or large.count != times * small.count:
        raise ValueError(
            f"{large_name}: expected {small.dtype_name} with {times} times the {small.count} "
            f"elements of {small_name}, got {large}"
        )


def split_counts(
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
            f"{name}_split_sizes: expected {world_size} sizes that add up to {rows} rows, got "
            f"{sizes}"
        )
    row_count = buffer.count // rows if rows else 0
    return [size * row_count for size in sizes]


def _listed(arrays: Sequence[object], name: str, length: int) -> list[object]:
    if not isinstance(arrays, (list, tuple)):
        raise TypeError(f"{name}: expected a list of {length} arrays, got {type(arrays).__name__}")
    if len(arrays) != length:
        raise ValueError(f"{name}: expected one array a rank, {length}, got {len(arrays)}")
    return list(arrays)


def _same_dtype(buffers: list[Buffer], name: str) -> list[Buffer]:
    for index, buffer in enumerate(buffers):
        if buffer.dtype != buffers[0].dtype:
            raise ValueError(
                f"{name}: expected one dtype, got {buffers[0].dtype_name} at index 0 and "
                f"{buffer.dtype_name} at index {index}"
            )
    return buffers


def _buffer(array: object, name: str, *, writes: bool) -> Buffer:
    # numpy's own DLPack knows neither the dtypes of ml_dtypes nor, before 2.1, read-only arrays.
    if isinstance(array, np.ndarray):
        return _numpy_buffer(array, name, writes=writes)
    try:
        view = _core.DLPackBuffer(array)
    except (TypeError, ValueError, BufferError) as error:
        # A dtype or a layout is a matter of value, everything else of type.
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: {error}") from error
    if writes and view.readonly:
        raise ValueError(f"{name}: expected an array that can be written to, got a read-only one")
    if not view.contiguous:
        if writes:
            raise ValueError(_not_contiguous(name, view.shape))
        return _numpy_buffer(np.from_dlpack(array), name, writes=False)  # type: ignore[arg-type]
    return Buffer(view.pointer, view.count, view.dtype, tuple(view.shape), view)


def _numpy_buffer(array: np.ndarray[Any, Any], name: str, *, writes: bool) -> Buffer:
    dtype = array.dtype.name
    if dtype.startswith("float8"):
        dtype = "float8"
    number = _core.DATA_TYPES.get(dtype)
    if number is None or not array.dtype.isnative:
        raise ValueError(
            f"{name}: dtype {array.dtype!r} does not travel; expected one of "
            f"{sorted(_core.DATA_TYPES)}, in native byte order"
        )
    if writes and not array.flags.writeable:
        raise ValueError(f"{name}: expected an array that can be written to, got a read-only one")
    if not array.flags.c_contiguous:
        if writes:
            raise ValueError(_not_contiguous(name, array.shape))
        array = np.ascontiguousarray(array)
    return Buffer(array.ctypes.data, math.prod(array.shape), number, array.shape, array)


def _not_contiguous(name: str, shape: Sequence[int]) -> str:
    return (
        f"{name}: expected a contiguous array, since the result is written into it; the one of "
        f"shape {list(shape)} has gaps or another order"
    )
