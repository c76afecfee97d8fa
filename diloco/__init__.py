"""DiLoCo: many weakly connected members train one model and talk once in many steps."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diloco import variants
    from diloco.info import SyncInfo
    from diloco.optimizer import DiLoCo
    from diloco.outer import StabilityWarning
    from diloco.settings import Settings, SettingsMismatch

__all__ = ["DiLoCo", "Settings", "SettingsMismatch", "StabilityWarning", "SyncInfo", "variants"]

# Imported at first use: the command line needs no torch.
_HOMES = {
    "DiLoCo": "diloco.optimizer",
    "Settings": "diloco.settings",
    "SettingsMismatch": "diloco.settings",
    "StabilityWarning": "diloco.outer",
    "SyncInfo": "diloco.info",
    "variants": "diloco",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'diloco' has no attribute {name!r}")
    if home == "diloco":  # a module
        return importlib.import_module(f"diloco.{name}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
