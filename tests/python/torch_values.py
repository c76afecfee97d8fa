"""Inputs that every rank can compute for every rank, and what reductions of them must give.

The reference is torch on one process, in wider types: no process group takes part in it.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8]
COMPLEX = [torch.complex64, torch.complex128]
FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]
DTYPES = [*FLOATS, *INTEGERS, torch.bool, *COMPLEX]

# 0, 1, a prime, and more than a segment of the wire.
COUNTS = [0, 1, 1009, 300_007]

Op = dist.ReduceOp
OPS = [Op.SUM, Op.AVG, Op.MIN, Op.MAX, Op.PRODUCT, Op.BAND, Op.BOR, Op.BXOR]
_BITWISE = (Op.BAND, Op.BOR, Op.BXOR)

# Relative errors of a sum of a few numbers; integers must be exact.
_TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
    torch.complex64: 1e-5,
    torch.complex128: 1e-12,
}


def value(rank: int, count: int, dtype: torch.dtype = torch.float32, salt: int = 0) -> Tensor:
    """The input of `rank`: the same wherever it is computed; on the default device."""
    return _made(rank, count, dtype, salt).to(torch.get_default_device())


def _made(rank: int, count: int, dtype: torch.dtype, salt: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * salt + rank)
    with torch.device("cpu"):
        if dtype == torch.bool:
            return torch.randint(0, 2, (count,), generator=generator).to(dtype)
        if dtype in FLOAT8:
            return torch.randint(0, 256, (count,), generator=generator).to(torch.uint8).view(dtype)
        if dtype in INTEGERS:
            return torch.randint(0, 4, (count,), generator=generator).to(dtype)
        numbers = torch.rand(count, generator=generator, dtype=torch.float64) * 2 - 1
        if dtype.is_complex:
            numbers = torch.complex(numbers, torch.flip(numbers, [0]))
        return numbers.to(dtype)


def values(world_size: int, count: int, dtype: torch.dtype, salt: int = 0) -> list[Tensor]:
    return [value(rank, count, dtype, salt) for rank in range(world_size)]


def is_defined(op: object, dtype: torch.dtype) -> bool:
    """Whether the reduction means something: what a user of torch would expect to work."""
    if dtype in FLOAT8:
        return False
    if op in _BITWISE:
        return not (dtype.is_floating_point or dtype.is_complex)
    if op in (Op.MIN, Op.MAX):
        return not dtype.is_complex
    return not (op == Op.AVG and dtype == torch.bool)


def reduced(inputs: list[Tensor], op: object) -> Tensor:
    """The reference, in the dtype of the inputs."""
    dtype = inputs[0].dtype
    wide = dtype
    if dtype.is_complex:
        wide = torch.complex128
    elif dtype.is_floating_point:
        wide = torch.float64
    elif dtype != torch.bool:
        wide = torch.int64
    stack = torch.stack(inputs).to(wide)
    if op == Op.SUM:
        result = stack.any(0) if dtype == torch.bool else stack.sum(0)
    elif op == Op.AVG:
        total = stack.sum(0)
        whole = not (dtype.is_floating_point or dtype.is_complex)
        result = (
            torch.div(total, len(inputs), rounding_mode="trunc") if whole else total / len(inputs)
        )
    elif op == Op.PRODUCT:
        result = stack.all(0) if dtype == torch.bool else stack.prod(0)
    elif op == Op.MIN:
        result = stack.amin(0)
    elif op == Op.MAX:
        result = stack.amax(0)
    else:
        combine = {
            "BAND": torch.bitwise_and,
            "BOR": torch.bitwise_or,
            "BXOR": torch.bitwise_xor,
        }[str(op).rpartition(".")[2]]
        result = stack[0]
        for other in stack[1:]:
            result = combine(result, other)
    return result.to(dtype)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Within rounding of the dtype, exactly for dtypes that do not round."""
    tolerance = _TOLERANCES.get(actual.dtype, 0.0)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """The same bytes."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    left, right = (t.resolve_conj().contiguous().reshape(-1) for t in (actual, expected))
    assert torch.equal(left.view(torch.uint8), right.view(torch.uint8))
