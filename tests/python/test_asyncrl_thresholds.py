"""The bounds that ship: no honest file of the default model is beyond them, other weights are."""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from asyncrl.cheats import CHEATS, CheatInputs
from asyncrl.generator import CachedGenerator
from asyncrl.model import save_weights
from asyncrl.proof import calibrate
from asyncrl.proof.thresholds import (
    Thresholds,
    default_thresholds,
    load_thresholds,
    save_thresholds,
)
from asyncrl.protocol.keys import Key
from asyncrl.run_task import RunTask
from asyncrl.submission import Assignment, generate_rollouts
from asyncrl.validation.honest import CALIBRATION_RUN, InRows
from asyncrl.validation.policies import KeptPolicies
from asyncrl.validation.validator import JudgeRequest, Validator
from asyncrl.warm_start import WarmStartOptions, warm_start

DTYPES = ("fp32", "bf16", "fp16")
# Of the words that calibration does not see: the split is another one.
TASK = RunTask(draw_count=64, prompts_per_file=2)
ENVIRONMENT = TASK.environment("train")
TEXTS = TASK.text_task(ENVIRONMENT)
VERSION = 1  # version 0 is one step older
# (rows generated at once, threads there, rows recomputed at once, threads there), none of which
# calibration had.
SHAPES = ((16, 2, 3, 1), (5, 1, 16, 2), (2, 1, 9, 1))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("weights")
    made = []
    for version in range(VERSION + 1):
        made.append(folder / f"{version}.safetensors")
        options = WarmStartOptions(step_count=4 + version, batch_count=16)
        save_weights(warm_start(ENVIRONMENT, TASK.model, options), made[-1])
    yield made
    torch.set_num_threads(threads)


class Bench:
    """A validator with the bounds that ship, and what workers of one dtype need."""

    def __init__(self, files: list[Path], dtype: str) -> None:
        self.policies = KeptPolicies(dtype=dtype)
        for version, path in enumerate(files):
            self.policies.add(version, path)
        self.rules = dataclasses.replace(TASK, dtype=dtype).rules("thresholds", 1)
        assert self.rules.run_id != CALIBRATION_RUN

    def inputs(self, submission_index: int) -> CheatInputs:
        assignment = Assignment(
            key=Key.from_seed(b"\5" * 32),
            task=TEXTS,
            rules=self.rules,
            step=VERSION,
            submission_index=submission_index,
            weights_version=VERSION,
            weights_sha256=self.policies.weights[VERSION],
        )
        decoders = {version: self.policies.decoder(version) for version in range(VERSION + 1)}
        return CheatInputs(assignment=assignment, decoders=decoders, answer=lambda index: [])

    def reason(self, data: bytes, submission_index: int) -> str:
        request = JudgeRequest(submission_index=submission_index, open_steps=[VERSION])
        return Validator(self.rules, TEXTS, self.policies).judge(data, request).reason


@pytest.mark.parametrize("dtype", DTYPES)
def test_honest_files_of_other_shapes_and_threads_are_accepted(
    files: list[Path], dtype: str
) -> None:
    bench = Bench(files, dtype)
    for index, (rows, threads, validator_rows, validator_threads) in enumerate(SHAPES):
        inputs = bench.inputs(index)
        torch.set_num_threads(threads)
        made = generate_rollouts(InRows(CachedGenerator(inputs.decoder), rows), inputs.assignment)
        torch.set_num_threads(validator_threads)
        bench.policies.batch_rows = validator_rows
        assert bench.reason(inputs.sign(made), index) == ""
    torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_weights_are_refused(files: list[Path], dtype: str) -> None:
    bench = Bench(files, dtype)
    cheats = ["other_model", "int4_weights", "stale_by_1"]
    cheats += ["int8_weights", "bf16_weights"] if dtype == "fp32" else []
    found = {name: bench.reason(CHEATS[name].make(bench.inputs(0)), 0) for name in cheats}
    assert found == dict.fromkeys(cheats, "proof")


def test_the_calibration_command_writes_what_is_loaded(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "thresholds.json"
    words = ["calibrate", str(path), str(files[0]), "--files", "1"]
    monkeypatch.setattr(sys, "argv", words)
    assert calibrate.main() == 0
    made = load_thresholds(path)
    assert list(made) == ["fp32"]
    assert made["fp32"].mantissa_mean_max <= default_thresholds().mantissa_mean_max
    assert "asyncrl.proof.calibrate" in json.loads(path.read_text())["made_by"]
    monkeypatch.setattr(sys, "argv", ["calibrate", str(path), str(tmp_path / "absent")])
    assert calibrate.main() == 2
    assert load_thresholds(path) == made


def test_the_bounds_that_ship_are_of_each_dtype_and_as_they_were_made() -> None:
    shipped = {dtype: default_thresholds(dtype) for dtype in DTYPES}
    assert {one.dtype for one in shipped.values()} == set(DTYPES)
    for narrow, wide in (("fp32", "fp16"), ("fp16", "bf16")):
        assert shipped[narrow].gap_max < shipped[wide].gap_max
    with pytest.raises(KeyError):
        default_thresholds("fp64")


def test_thresholds_come_back_from_their_file(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    made = [Thresholds(gap_max=0.25), Thresholds(dtype="fp16", exponent_mismatches_max=7)]
    save_thresholds(path, made, {"made_by": "hand"})
    assert load_thresholds(path) == {"fp32": made[0], "fp16": made[1]}
    for text in (
        "",
        "[]",
        "{}",
        '{"thresholds": [{"gap_max": NaN}]}',
        '{"thresholds": [{"x": 1}]}',
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match="thresholds"):
            load_thresholds(path)
