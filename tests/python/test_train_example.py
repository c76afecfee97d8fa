"""examples/train_ddp.py: it trains, proves that ranks agree, and says so when they do not."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RUN_SECONDS = 60


def has_pccl() -> bool:
    try:
        import pccl._core
        import pccl.process_group  # noqa: F401
    except ImportError:
        return False
    return True


BACKEND = "pccl" if has_pccl() else "gloo"


def train(
    folder: Path, *arguments: str, launcher: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, str(EXAMPLES / "train_ddp.py")]
    if not launcher:
        command += ["--processes", "2"]
    command += ["--text", "devil", "--batch", "2", "--output", str(folder), *arguments]
    root = str(EXAMPLES.parent)
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    )


def test_the_loss_falls_and_all_ranks_agree(tmp_path: Path) -> None:
    arguments = ["--backend", BACKEND, "--compare", "gloo", "--steps", "40"]
    done = train(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["backend"] == BACKEND]
    assert len(losses) == 40
    assert losses[-1] < losses[0] - 1
    for summary in json.loads((tmp_path / "summary.json").read_text()):
        assert summary["ranks_agreeing"] == summary["ranks"] == 2
        assert summary["bytes_sent"] > 0
    assert "2/2 ranks bit-identical" in done.stdout
    assert re.search(r"sha256 of all parameters and optimizer state: [0-9a-f]{32}", done.stdout)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_one_flipped_bit_is_found_and_is_exit_code_1(tmp_path: Path) -> None:
    done = train(tmp_path, "--backend", BACKEND, "--steps", "2", "--flip-rank", "1")
    assert done.returncode == 1
    assert "1/2 ranks bit-identical" in done.stdout
    assert "rank 1 has" in done.stdout
    assert (tmp_path / "summary.json").exists()


def test_a_failing_rank_ends_the_run_with_its_error(tmp_path: Path) -> None:
    done = train(tmp_path, "--backend", BACKEND, "--steps", "20", "--fail-rank", "1")
    assert done.returncode == 1
    assert "RuntimeError: rank 1 fails on purpose in step 10" in done.stderr
    assert "rank 1 failed first" in done.stderr


def test_the_same_file_runs_under_torchrun(tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    done = train(tmp_path, "--backend", BACKEND, "--steps", "3", launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert "2/2 ranks bit-identical" in done.stdout
