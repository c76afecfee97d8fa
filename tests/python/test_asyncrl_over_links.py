"""`examples/asyncrl_over_links.py`, a short run of it; needs wanlab: see wide_area.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from asyncrl_processes import run_small_demo
from wide_area import REASON

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "asyncrl_over_links.py"
STEPS = 3
FAR_BYTES_PER_SECOND = 20e6 / 8
WEIGHTS_BYTES = 7_187_376  # of the default model


@pytest.mark.skipif(bool(REASON), reason=REASON)
def test_weights_and_rollouts_cross_slow_links_and_the_cheater_is_banned(tmp_path: Path) -> None:
    done, found = run_small_demo([str(EXAMPLE)], STEPS, tmp_path)
    assert "\nok\n" in done.stdout  # before the table of traffic
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
