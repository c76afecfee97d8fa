"""One line of `pccl doctor`'s report."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Check"]


@dataclass(frozen=True)
class Check:
    """What was looked at, and how to mend what is wrong with it."""

    name: str
    state: str  # "ok", "warning", "FAILED"
    value: str  # what was measured
    fix: str = ""
