"""The wire format of docs/codecs.md once more, in numpy and on its own: slow and plain.

Rounding of 8- and 16-bit floats is that of ml_dtypes and numpy.
"""

import struct
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# name -> (number on the wire, block, levels)
INTEGERS = {"int8": (3, 256, 127), "int6": (4, 64, 31), "int4": (5, 32, 7)}
FLOAT8 = {
    "fp8_e4m3": (6, 128, 448, ml_dtypes.float8_e4m3fn),
    "fp8_e5m2": (7, 128, 57344, ml_dtypes.float8_e5m2),
}
FLOAT16: dict[str, tuple[int, Any, float]] = {
    "bf16": (1, ml_dtypes.bfloat16, float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)),
    "fp16": (2, np.float16, 65504.0),
}
OPTIONS = {"stochastic": 1, "mse_clip": 2, "hadamard": 4}
SCALE_MIN = 2.0**-100


def encode(values: Floats, codec: str) -> bytes:
    """Encode without stochastic rounding."""
    name, *options = codec.split(":")
    number = (INTEGERS.get(name) or FLOAT8.get(name) or FLOAT16[name])[0]
    bits = sum(OPTIONS[option] for option in options)
    head = struct.pack("<BBBBI", 1, number, bits, 0xFF, len(values))
    tiles = [values[i : i + 256] for i in range(0, len(values), 256)]
    return head + b"".join(_tile(tile, name, options) for tile in tiles)


def _tile(values: Floats, name: str, options: list[str]) -> bytes:
    if name in FLOAT16:
        _, dtype, most = FLOAT16[name]
        return np.clip(values, -most, most).astype(dtype).tobytes()
    if "hadamard" in options:
        values = _rotated(values)
    _, block, levels = (INTEGERS.get(name) or FLOAT8[name])[:3]
    scales, codes = [], []
    for i in range(0, len(values), block):
        part = values[i : i + block]
        scale = _scale(part, levels)
        if "mse_clip" in options:
            scale = _clipped(part, scale, levels)
        scales.append(scale)
        codes.append(_scaled(part, scale, levels))
    head = np.array(scales, ml_dtypes.bfloat16).tobytes()
    scaled = np.concatenate(codes)
    if name in FLOAT8:
        return head + scaled.astype(FLOAT8[name][3]).tobytes()
    return head + _packed(np.rint(scaled).astype(np.int64), name)


def _scale(values: Floats, levels: float) -> np.float32:
    most = np.float32(np.max(np.abs(values)))
    scale = np.float32(ml_dtypes.bfloat16(most * (np.float32(1) / np.float32(levels))))
    return scale if scale >= SCALE_MIN else np.float32(0)


def _scaled(values: Floats, scale: np.float32, levels: float) -> Floats:
    if scale == 0:
        return values * np.float32(0)  # keeps signs
    scaled: Floats = np.clip(values * (np.float32(1) / scale), -levels, levels).astype(np.float32)
    return scaled


def _clipped(values: Floats, scale: np.float32, levels: float) -> np.float32:
    """The scale of least squared error among 16/16, 15/16, ... 9/16 of it."""
    if scale == 0:
        return scale
    best, least = scale, np.inf
    padded = np.zeros(32, np.float32)
    padded[: len(values)] = values
    for k in range(8):
        candidate = np.float32(ml_dtypes.bfloat16(scale * np.float32(1 - k / 16)))
        if candidate < SCALE_MIN:
            break
        scaled = padded * (np.float32(1) / candidate)
        difference = scaled - np.rint(np.clip(scaled, -levels, levels))
        squares = difference * difference
        while len(squares) > 1:  # a tree: the first half plus the second
            squares = squares[: len(squares) // 2] + squares[len(squares) // 2 :]
        ratio = candidate / scale
        error = squares[0] * (ratio * ratio)
        if error < least:
            best, least = candidate, error
    return best


def _rotated(values: Floats) -> Floats:
    """Each group of 128 times the Hadamard matrix / 8; the order of additions is part of it."""
    padded = np.zeros(-(-len(values) // 128) * 128, np.float32)
    padded[: len(values)] = values
    rows = padded.reshape(-1, 128) * np.float32(1 / 8)
    step = 1
    while step < 128:
        pairs = rows.reshape(len(rows), -1, 2, step)
        rows = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2)
        rows = rows.reshape(len(padded) // 128, 128)
        step *= 2
    return rows.reshape(-1)


def _packed(codes: npt.NDArray[np.int64], name: str) -> bytes:
    if name == "int8":
        return codes.astype(np.int8).tobytes()
    half, quarter = -(-len(codes) // 2), -(-len(codes) // 4)
    padded = np.zeros(4 * quarter + 2, np.int64)
    padded[: len(codes)] = codes
    low = padded & 15
    data = (low[:half] | low[half : 2 * half] << 4).astype(np.uint8).tobytes()
    if name == "int6":
        high = padded[: 4 * quarter].reshape(4, quarter) >> 4 & 3
        data += (high[0] | high[1] << 2 | high[2] << 4 | high[3] << 6).astype(np.uint8).tobytes()
    return data


def quantized(values: npt.NDArray[np.float64], codec: str) -> npt.NDArray[np.float64]:
    """What comes back, in double precision and with exact scales: how well a format can do."""
    name, *options = codec.split(":")
    if name in FLOAT16:
        return values.astype(np.float32).astype(FLOAT16[name][1]).astype(np.float64)
    _, block, levels = (INTEGERS.get(name) or FLOAT8[name])[:3]
    padded = np.zeros(-(-len(values) // 256) * 256)
    padded[: len(values)] = values
    matrix = _matrix() if "hadamard" in options else np.eye(1)
    blocks = (padded.reshape(-1, len(matrix)) @ matrix).reshape(-1, block)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / levels
    scale[scale == 0] = 1
    scaled = blocks / scale
    rounded = scaled.astype(FLOAT8[name][3]).astype(float) if name in FLOAT8 else np.rint(scaled)
    back = (rounded * scale).reshape(-1, len(matrix)) @ matrix
    result: npt.NDArray[np.float64] = back.reshape(-1)[: len(values)]
    return result


def _matrix() -> npt.NDArray[np.float64]:
    matrix = np.ones((1, 1))
    while len(matrix) < 128:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(128)
