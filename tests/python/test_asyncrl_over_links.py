"""`examples/asyncrl_over_links.py`, a short run of it; needs wanlab: see wide_area.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from coordinator_processes import environment
from wide_area import REASON

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "asyncrl_over_links.py"
RUN_SECONDS = 900  # far more than it takes; the demo itself gives up after 300 s without a step
STEPS = 3
FAR_BYTES_PER_SECOND = 20e6 / 8
WEIGHTS_BYTES = 7_187_376  # of the default model


@pytest.mark.skipif(bool(REASON), reason=REASON)
def test_weights_and_rollouts_cross_slow_links_and_the_cheater_is_banned(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(EXAMPLE), "--cheat", "greedy", "--steps", str(STEPS)),
            *("--workers", "1", "--files-per-step", "1", "--honest-files", "0"),
            *("--warm-steps", "1", "--evaluate-every", "0", "--held-out-draws", "64"),
            *("--out", str(tmp_path / "out"), "--warm-folder", str(tmp_path / "warm")),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nok\n" in done.stdout  # before the table of traffic
    found = json.loads((tmp_path / "out" / "demo.json").read_text())
    verdict = found["verdict"]
    assert verdict["faults"] == []
    assert verdict["accounts"]["cheater"]["ban_reason"].startswith("sampling")
    assert verdict["accounts"]["worker 1"]["units"] > 0
    fetched = {
        one["fetched"]: one["seconds"] for one in found["fetches"] if one["by"] == "worker 1"
    }
    assert 0 in fetched
    assert all(0 <= version <= STEPS for version in fetched)
    # They came over the line, and not beside it.
    assert min(fetched.values()) > 0.9 * WEIGHTS_BYTES / FAR_BYTES_PER_SECOND
