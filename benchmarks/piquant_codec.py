"""pi-quant (pip install pypiquant), the published library, behind the calls of quantization.py.

One scale and zero point for all that is encoded at once, found in a pass of its own; nearest
rounding, since its stochastic rounding draws one threshold a call; one thread.
"""

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["PIQUANT", "Wire", "decode", "encode"]

# It has no types, and need not be there.
piquant: Any = importlib.import_module("piquant") if find_spec("piquant") else None

Floats = npt.NDArray[np.float32]
_BITS = {"pi-quant u8": 8, "pi-quant u4": 4}
PIQUANT = tuple(_BITS) if piquant is not None else ()
_contexts: list[Any] = []


@dataclass(frozen=True)
class Wire:
    """Encoded values."""

    name: str
    codes: npt.NDArray[np.uint8]
    scale: float
    zero_point: int


def _context() -> Any:
    if not _contexts:
        _contexts.append(piquant.Context(1))
    return _contexts[0]


def _dtype(name: str) -> Any:
    return piquant.DataType.UINT8 if _BITS[name] == 8 else piquant.DataType.UINT4


def encode(name: str, values: Floats, codes: npt.NDArray[np.uint8] | None = None) -> Wire:
    """Encode contiguous values, into `codes` where that is given."""
    context, dtype, count = _context(), _dtype(name), values.size
    if codes is None:
        codes = np.empty((count * _BITS[name] + 7) // 8, np.uint8)
    pointer = values.ctypes.data
    scale, zero_point = context.compute_quant_params_ptr_float32(pointer, dtype, count)
    context.quantize_ptr(pointer, piquant.DataType.F32, codes.ctypes.data, dtype, count, scale,
                         zero_point, piquant.RoundMode.NEAREST)  # fmt: skip
    return Wire(name, codes, scale, zero_point)


def decode(wire: Wire, target: Floats, *, add: bool = False) -> None:
    """Decode into `target`, or add to it."""
    op = piquant.ReduceOp.ADD if add else piquant.ReduceOp.SET
    _context().dequantize_ptr(wire.codes.ctypes.data, _dtype(wire.name), target.ctypes.data,
                              piquant.DataType.F32, target.size, wire.scale, wire.zero_point,
                              op)  # fmt: skip
