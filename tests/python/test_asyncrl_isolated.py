"""A validator in a process with limits: a file that kills it is refused, the next one judged."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncrl.protocol.keys import Key
from asyncrl.validation.isolated import IsolatedValidator, ProcessLimits
from asyncrl.validation.rollout_file import RolloutFile, sha256_of
from asyncrl.validation.validator import JudgeRequest

KEY = Key.from_seed(b"\5" * 32)
REQUEST = JudgeRequest(submission_index=0, open_steps=[1])


@pytest.fixture
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[IsolatedValidator]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with IsolatedValidator(
        factory="asyncrl_validator_factories:make",
        config={"history": str(tmp_path / "history.sqlite")},
        run_id="small",
        limits=ProcessLimits(memory_bytes=1 << 30, file_seconds=60),
    ) as validator:
        yield validator


def upload(folder: Path, run_id: str) -> Path:
    file = RolloutFile(run_id, 1, 0, 1, "ab" * 32, ())
    path = folder / f"{run_id}.rollouts"
    path.write_bytes(file.sign(KEY))
    return path


@pytest.mark.parametrize("how", ["die", "eat", "raise", "hang"])
def test_a_file_that_kills_the_validator_is_refused(
    isolated: IsolatedValidator, tmp_path: Path, how: str
) -> None:
    remembered = upload(tmp_path, "remember")
    assert isolated.judge_path(remembered, REQUEST, {}).reason == "replay"
    if how == "hang":
        isolated.limits = ProcessLimits(memory_bytes=1 << 30, file_seconds=0.5)
    path = upload(tmp_path, how)
    verdict = isolated.judge_path(path, REQUEST, {})
    assert verdict.reason == "crash", verdict
    assert verdict.file_sha256 == sha256_of(path)
    assert isolated.crash_count == 2
    # Another process takes over, with what the first had remembered.
    isolated.limits = ProcessLimits(memory_bytes=1 << 30, file_seconds=60)
    assert isolated.judge_path(upload(tmp_path, "other"), REQUEST, {}).reason == "bounds"
    assert isolated.judge_path(remembered, REQUEST, {}).reason == "replay"
    assert isolated.crash_count == 2


def test_a_validator_that_is_killed_costs_no_file(
    isolated: IsolatedValidator, tmp_path: Path
) -> None:
    path = upload(tmp_path, "other")
    assert isolated.judge_path(path, REQUEST, {}).reason == "bounds"
    process_id = isolated.process_id
    assert process_id is not None
    os.kill(process_id, 9)
    assert isolated.judge_path(path, REQUEST, {}).reason == "bounds"
    assert isolated.crash_count == 1
    assert isolated.process_id != process_id


def test_a_huge_file_is_refused_without_being_read_whole(
    isolated: IsolatedValidator, tmp_path: Path
) -> None:
    path = tmp_path / "huge.rollouts"
    with path.open("wb") as file:
        file.truncate(600 << 20)  # more than the process may hold; no disk is used
    isolated.limits = ProcessLimits(memory_bytes=512 << 20, file_seconds=60)
    verdict = isolated.judge_path(path, REQUEST, {})
    assert verdict.reason == "size", verdict


def test_a_validator_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    with (
        IsolatedValidator(factory="no_such_module:make", config={}, run_id="small") as validator,
        pytest.raises(RuntimeError, match="no_such_module:make: the validator does not start"),
    ):
        validator.judge_path(upload(tmp_path, "small"), REQUEST, {})
