"""Codecs: fewer bytes for a tensor of floats, the same on every machine (docs/codecs.md).

    wire = pccl.codecs.encode(gradient, "int8")        # bytes
    pccl.codecs.decode(wire, target)                   # an array of as many elements

Collectives encode by themselves; this is for exchanges of one's own, as of pseudo-gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pccl import _arrays, _core

__all__ = [
    "Difference",
    "ErrorFeedback",
    "Segment",
    "combine",
    "decode",
    "describe",
    "encode",
    "encoded_bytes",
]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Segment:
    """What encoded bytes say of themselves."""

    codec: str
    dtype: str | None  # of "none", which keeps the elements; None: any float takes them
    elements: int


def encoded_bytes(codec: str, elements: int, dtype: str = "float32") -> int:
    """Return the exact size of `elements` encoded, known beforehand. `dtype` matters to "none".

    Raises:
        ValueError: no such codec, or one that does not take `dtype`.
    """
    return _core.encoded_bytes(codec, _core.DATA_TYPES[dtype], elements)


def encode(
    array: object,
    codec: str = "int8",
    *,
    divisor: float = 1,
    seed: int = 0,
    step: int = 0,
    first_element: int = 0,
) -> bytes:
    """Encode an array of float64, float32, float16 or bfloat16, in the order of its memory.

    Args:
        array: of any library with DLPack, any shape, in the memory of the CPU.
        codec: "int8", "int4:hadamard", ...; a wrong name's error lists all.
        divisor: of float32 sums: they are divided first, as an average.
        seed: with `step` and the element's index it decides what ":stochastic" rounds up.
        step: different for each exchange.
        first_element: index of the array's first element in the whole that it is a part of.

    Raises:
        NonFiniteContribution: an element is NaN, or infinite as float32; the error says which.
        ValueError: no such codec, or a dtype that it does not take.
    """
    source = _arrays.source(array, "array")
    return _core.encode(
        codec,
        source.block,
        source.dtype,
        divisor=divisor,
        seed=seed,
        step=step,
        first_element=first_element,
    )


def combine(
    array: object,
    wires: Sequence[bytes],
    codec: str = "int8",
    *,
    divisor: float = 1,
    seed: int = 0,
    step: int = 0,
) -> bytes:
    """Encode the sum of an array and of what others have encoded: what an owner does.

    The bytes are those of decode(add=True) into float32, one after the other, and encode() of the
    sum; but everything is read once, and no sum is written to memory.

    Args:
        array: the own contribution, as for encode().
        wires: segments in `codec` of as many elements, added in this order.
        divisor: of the sum; len(wires) + 1 makes an average.
        seed, step: as for encode().

    Raises:
        RemoteProtocolError: one of `wires` is damaged or forged; the message says which.
        NonFiniteContribution: an element of the sum is NaN or infinite; the error says which.
        ValueError: no such codec, one that is not for sums, or a dtype that it does not take.
    """
    own = _arrays.source(array, "array")
    return _core.combine(
        codec, own.block, own.dtype, list(wires), divisor=divisor, seed=seed, step=step
    )


def describe(wire: bytes) -> Segment | None:
    """Return what the header of encoded bytes says, without believing it; None if it is none."""
    found = _core.read_segment(wire)
    if found is None:
        return None
    codec, dtype, elements = found
    names = {number: name for name, number in _core.DATA_TYPES.items()}
    return Segment(codec, names.get(dtype), elements)


def decode(wire: bytes, target: object, codec: str | None = None, *, add: bool = False) -> None:
    """Decode into an array, or add to it; every element of it is set or added to.

    Args:
        wire: what encode() returned, from whomever.
        target: contiguous, as many elements as were encoded, of any float dtype (`add`: float32).
        codec: that `wire` must be in. None: whichever it says.
        add: one multiplication and one addition for each element, never fused.

    Raises:
        RemoteProtocolError: `wire` is damaged or forged; `target` is as it was.
        ValueError: a target that the codec does not take.
    """
    if codec is None:
        segment = describe(wire)
        if segment is None:
            raise _core.RemoteProtocolError(
                "decode: no header of a segment that this version knows"
            )
        codec = segment.codec
    into = _arrays.target(target, "target")
    _core.decode(codec, wire, into.block, into.dtype, adds=add)


class ErrorFeedback:
    """What a codec has lost so far, to be sent later; part of the caller's state.

    For encode() or for all_reduce(error_feedback=), one object for each tensor. Save and restore
    `residual` with the parameters; a newcomer begins with zeros. In an all_reduce a member is the
    source of some elements and the owner of others, so one residual serves both; it is in the units
    of the sum, and what is in the result and in all residuals together is exactly what was
    contributed. Memory: 4 bytes an element, and as much again once all_reduce() was called.

    Source: Karimireddy et al., Error feedback fixes signSGD, ICML 2019, arXiv 1901.09847; of owners
    as of sources: Tang et al., DoubleSqueeze, ICML 2019, arXiv 1905.05957.
    """

    def __init__(self, elements: int) -> None:
        self.elements = elements
        self._residual: Floats = np.zeros(elements, np.float32)
        self._lost: Floats | None = None  # of the operation in `_work`
        self._work: _core.Work | None = None

    @property
    def residual(self) -> Floats:
        """float32 [elements]: what is to be sent; read it anew after each operation.

        Raises:
            RuntimeError: an all_reduce with it is under way; wait for that first.
        """
        if self._work is not None and self._lost is not None:
            if not self._work.is_completed():
                raise RuntimeError(
                    f"error feedback of {self.elements} elements: its {self._work.operation} is "
                    "still under way; wait for that first"
                )
            if self._work.exception() is None:
                self._residual, self._lost = self._lost, self._residual
            self._work = None
        return self._residual

    @residual.setter
    def residual(self, values: npt.ArrayLike) -> None:
        self.residual[...] = values

    def encode(self, array: object, codec: str = "int8", **options: Any) -> bytes:
        """As encode() of `array` and the residual together; the residual is then what was lost.

        After an error the residual is as it was.
        """
        return _encode_with(self.residual, "residual", array, codec, options)

    def begin(self, count: int) -> tuple[int, int]:
        """For all_reduce: pointers to what was lost before, and to what will have been."""
        if count != self.elements:
            raise ValueError(f"error_feedback: it is of {self.elements} elements, not of {count}")
        residual = self.residual
        if self._lost is None:
            self._lost = np.empty_like(residual)
        np.copyto(self._lost, residual)  # stays where nothing is encoded here
        return residual.ctypes.data, self._lost.ctypes.data

    def end(self, work: _core.Work) -> None:
        """For all_reduce: the operation that uses them, which may be done."""
        self._work = work


class Difference:
    """EF21: sends the difference from an estimate that sender and receivers keep alike.

    With encode(), a receiver calls `decode(wire, estimate, add=True)` on its own copy, zeros at
    first. With all_reduce(error_feedback=), whose members don't change, `mean` is the average of
    all estimates, the same bytes on every member, and the result. Both belong to the checkpoint.

    Source: Richtarik, Sokolov, Fatkhullin, EF21, NeurIPS 2021, arXiv 2106.05203.
    """

    def __init__(self, elements: int) -> None:
        self.elements = elements
        self.estimate: Floats = np.zeros(elements, np.float32)
        self.mean: Floats = np.zeros(elements, np.float32)

    def encode(self, array: object, codec: str = "int8", **options: Any) -> bytes:
        """Encode `array` less the estimate, and move the estimate as every receiver does."""
        return _encode_with(self.estimate, "estimate", array, codec, options)

    def begin(self, values: Floats) -> tuple[Floats, ErrorFeedback]:
        """For all_reduce: what is averaged instead of `values`, and what notes its loss."""
        if values.size != self.elements:
            raise ValueError(
                f"error_feedback: it is of {self.elements} elements, not of {values.size}"
            )
        return values - self.estimate, ErrorFeedback(self.elements)

    def end(self, values: Floats, average: Floats, loss: ErrorFeedback) -> None:
        """For all_reduce: the average of the differences is there; sets `mean`."""
        np.subtract(values, loss.residual, out=self.estimate)
        self.mean += average


def _encode_with(
    memory: Floats,
    name: str,
    array: object,
    codec: str,
    options: dict[str, Any],
) -> bytes:
    source = _arrays.source(array, "array")
    kept = _arrays.target(memory, name)
    if kept.dtype_name != "float32" or kept.count != source.count:
        raise ValueError(f"{name}: expected float32[{source.count}], got {kept}")
    return _core.encode(codec, source.block, source.dtype, **{name: kept.pointer}, **options)
