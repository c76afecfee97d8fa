"""A codec for all_reduces that do not name one: those of DDP and other code that is not yours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pccl import _core

__all__ = ["quantized"]

# Of the process and not of a thread: DDP calls from the threads that run backward().
_codecs: list[str] = []


@contextlib.contextmanager
def quantized(codec: str) -> Iterator[None]:
    """Have all_reduces of torch groups travel in `codec` while the block runs, in every thread.

    Sums and averages of floating point only; others travel as they are. All ranks use the same
    codec for the same call, or each of them gets CallMismatch.

    Args:
        codec: "int8", "int4", ...: docs/codecs.md. "none" turns an outer one off.

    Raises:
        ValueError: there is no such codec, or it is not for sums.
    """
    check_codec(codec)
    _codecs.append(codec)
    try:
        yield
    finally:
        _codecs.pop()


def check_codec(name: str) -> None:
    """Refuse what no all_reduce could travel in.

    Raises:
        ValueError: there is no such codec, or it is one that leaves most elements out.
    """
    full_name, _, _ = _core.parse_codec(name)
    if full_name.startswith("topk"):
        raise ValueError(f"codec {full_name!r} leaves most elements out: not for an all_reduce")


def codec_in_force(default: str) -> str:
    """Return the codec of the innermost block, or `default` outside of all."""
    return _codecs[-1] if _codecs else default
