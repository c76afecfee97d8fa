"""wanlab, which makes hosts out of network namespaces; WANLAB names its folder, which otherwise is
looked for beside the repository. It needs root."""

import os
from pathlib import Path

from pccl.bench.wanlab import load_wanlab

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "wanlab"

WANLAB, REASON = load_wanlab(Path(os.environ.get("WANLAB", "") or BESIDE))
