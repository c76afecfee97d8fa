"""wanlab, which makes hosts out of network namespaces; WANLAB names its folder, which otherwise is
looked for beside the repository. It needs root."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "wanlab"


def load_wanlab() -> tuple[ModuleType | None, str]:
    """The module, or why there is none."""
    folder = Path(os.environ.get("WANLAB", "") or BESIDE)
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


WANLAB, REASON = load_wanlab()
