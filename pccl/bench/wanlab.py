"""Finds wanlab, which makes hosts with links between them out of network namespaces (root)."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

__all__ = ["load_wanlab"]


def load_wanlab(folder: Path) -> tuple[ModuleType | None, str]:
    """The module wanlab.py of that folder, and why it can't be used: "" if it can."""
    file = folder / "wanlab.py"
    if not file.is_file():
        return None, f"no wanlab in {folder} (WANLAB names another folder)"
    spec = importlib.util.spec_from_file_location("wanlab", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["wanlab"] = module
    spec.loader.exec_module(module)
    reason = module.unavailable_reason()
    if reason is None:
        try:
            with module.Lab() as lab:
                lab.add_host("probe")
        except (OSError, module.WanlabError) as error:
            reason = f"wanlab cannot make a host here: {error}"
    return module, reason or ""
