"""examples/train_ddp.py: it trains, proves that ranks agree, and says so when they do not."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RUN_SECONDS = 120
STEPS = 30


def train(
    folder: Path, *arguments: str, launcher: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, str(EXAMPLES / "train_ddp.py")]
    if not launcher:
        command += ["--processes", "2"]  # a later one wins
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


@dataclass(frozen=True)
class Trained:
    folder: Path
    stdout: str
    summaries: list[dict[str, Any]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One run of 3 ranks over both backends, which several tests look at."""
    folder = tmp_path_factory.mktemp("train")
    done = train(folder, "--processes", "3", "--steps", str(STEPS))
    assert done.returncode == 0, done.stderr
    return Trained(folder, done.stdout, json.loads((folder / "summary.json").read_text()))


def test_the_loss_falls_and_begins_alike_over_both_backends(trained: Trained) -> None:
    lines = (trained.folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    losses = {
        backend: [row["loss"] for row in rows if row["backend"] == backend]
        for backend in ("pccl", "gloo")
    }
    for found in losses.values():
        assert len(found) == STEPS
        assert found[-1] < found[0] - 1
    assert losses["pccl"][0] == pytest.approx(losses["gloo"][0], rel=1e-5)


def test_the_last_line_proves_that_all_ranks_agree(trained: Trained) -> None:
    assert trained.stdout.splitlines()[-1] == (
        "3/3 ranks bit-identical over pccl, 3/3 ranks bit-identical over gloo"
    )
    shown = re.findall(r"sha256 of parameters and optimizer state: ([0-9a-f]{16})", trained.stdout)
    assert shown == [summary["sha256"][:16] for summary in trained.summaries]


def test_bytes_are_counted_over_pccl_and_computed_over_gloo(trained: Trained) -> None:
    pccl, gloo = trained.summaries
    assert (pccl["bytes_are_counted"], gloo["bytes_are_counted"]) == (True, False)
    match = re.search(r"([0-9,]+) parameters", trained.stdout)
    assert match
    parameter_bytes = 4 * int(match[1].replace(",", ""))
    # No all-reduce sends less, on the average of its ranks, than 2 (P - 1) / P of its bytes.
    assert gloo["bytes_sent_per_rank"] == STEPS * (2 * 2 * parameter_bytes // 3)
    assert 1.0 <= pccl["bytes_sent_per_rank"] / gloo["bytes_sent_per_rank"] <= 1.05


def test_the_report_is_a_table_of_80_columns_and_a_picture(trained: Trained) -> None:
    assert re.search(r"pccl takes a step [0-9.]+x as fast as gloo", trained.stdout)
    for backend in ("pccl", "gloo"):
        row = re.search(rf"^ {backend} .* ms .* MB", trained.stdout, re.MULTILINE)
        assert row
        assert len(row[0]) <= 80
    assert (trained.folder / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_example_of_hooks_is_short_and_ends_with_the_same_bytes() -> None:
    program = EXAMPLES / "ddp_hooks.py"
    assert len(program.read_text().splitlines()) <= 60
    command = [sys.executable, str(program), "--steps", "3", "--hook", "int4_error_feedback"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"int4_error_feedback: loss [0-9.]+, 1 digest", done.stdout), done.stdout


def test_one_flipped_bit_is_found_and_is_exit_code_1(tmp_path: Path) -> None:
    done = train(tmp_path, "--compare", "none", "--steps", "2", "--flip-rank", "1")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "1/2 ranks bit-identical over pccl"
    assert "rank 1 has" in done.stdout
    assert (tmp_path / "summary.json").exists()


def test_a_failing_rank_ends_the_run_with_its_error(tmp_path: Path) -> None:
    done = train(tmp_path, "--compare", "none", "--steps", "6", "--fail-rank", "1")
    assert done.returncode == 1
    assert "RuntimeError: rank 1 fails on purpose in step 3" in done.stderr
    assert "rank 1 failed first" in done.stderr


def test_the_same_file_runs_under_torchrun(tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    done = train(tmp_path, "--compare", "none", "--steps", "3", launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "2/2 ranks bit-identical over pccl"
