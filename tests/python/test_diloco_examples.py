"""The examples of DiLoCo train over real processes, and end with the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from coordinator_processes import CoordinatorProcess, environment

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = ("loop", "accelerate", "transformers", "lightning")
LINES_MAX = 60
# Of a line with these slopes: their squares, summed up; of 16 words: log 16.
LOSS_BEGINS = {"loop": 14.25, "accelerate": 14.25, "transformers": 2.77, "lightning": 14.25}
PATIENCE_SECONDS = 400


def test_two_members_run_each_example_and_hold_the_same_bytes(tmp_path: Path) -> None:
    for package in ("accelerate", "transformers", "lightning"):
        pytest.importorskip(package)
    with CoordinatorProcess(tmp_path, status=False) as coordinator:
        here = str(Path(__file__).parent)
        path = f"{environment()['PYTHONPATH']}:{here}:{EXAMPLES}"
        local = {"PCCL_HOST": "127.0.0.1", "PCCL_BIND": "127.0.0.1", "PCCL_WORLD_SIZE_MIN": "2"}
        command = [
            sys.executable,
            str(Path(here) / "diloco_examples.py"),
            str(coordinator.port),
            *NAMES,
        ]
        members = [
            subprocess.Popen(
                command,
                env=environment(
                    PYTHONPATH=path, PCCL_CONNECT_TIMEOUT="300", HF_HUB_OFFLINE="1", **local
                ),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
            )
            for _ in range(2)
        ]
        try:
            said = [member.communicate(timeout=PATIENCE_SECONDS) for member in members]
        finally:
            for member in members:
                member.kill()
                member.communicate()
    assert [member.returncode for member in members] == [0, 0], said[0][1] + said[1][1]
    first, second = (
        [json.loads(line) for line in out.splitlines() if line.startswith('{"example"')]
        for out, _ in said
    )
    assert [row["example"] for row in first] == list(NAMES)
    for one, other in zip(first, second, strict=True):
        assert one["hash"] == other["hash"]
        assert len(one["contributors"]) == 2
        assert one["step"] >= 40
        assert max(one["losses"].values()) < LOSS_BEGINS[one["example"]] / 2


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short(name: str) -> None:
    lines = (EXAMPLES / f"diloco_{name}.py").read_text().splitlines()
    assert len(lines) <= LINES_MAX
