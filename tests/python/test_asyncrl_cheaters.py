"""Every way to cheat is refused for its own reason; who does not cheat is not."""

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from asyncrl_small_run import OTHER, REQUEST, RULES, WORKER, SmallRun

from asyncrl.cheats import CHEATS
from asyncrl.generator import CachedGenerator
from asyncrl.submission import generate_rollouts
from asyncrl.validation.checks import REASONS
from asyncrl.validation.honest import InRows
from asyncrl.validation.validator import JudgeRequest


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallRun]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield SmallRun(tmp_path_factory.mktemp("weights"))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def earlier(run: SmallRun) -> bytes:
    inputs = run.inputs(OTHER)
    return inputs.sign(inputs.honest())


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_is_refused_for_its_own_reason(run: SmallRun, earlier: bytes, name: str) -> None:
    cheat = CHEATS[name]
    validator = run.validator()
    if name in ("replayed", "stolen"):  # the other ones need no earlier file to be caught
        assert validator.judge(earlier, REQUEST).accepted
    data = cheat.make(dataclasses.replace(run.inputs(), earlier=earlier))
    # Of the worker whose file is sent again, the coordinator has counted one.
    request = dataclasses.replace(REQUEST, submission_index=1) if name == "replayed" else REQUEST
    verdict = validator.judge(data, request)
    assert not verdict.accepted
    assert verdict.reason in cheat.reasons, verdict
    assert verdict.token_count == 0


def test_every_reason_has_its_cheat() -> None:
    reasons = {reason for cheat in CHEATS.values() for reason in cheat.reasons}
    # The others are seen in test_asyncrl_validator.py.
    assert reasons == set(REASONS) - {"schema", "duplicates", "crash"}


@pytest.mark.parametrize(("rows", "threads"), [(1, 1), (7, 1), (64, 2)])
def test_an_honest_file_is_accepted_in_any_shape(run: SmallRun, rows: int, threads: int) -> None:
    inputs = run.inputs(submission_index=rows)
    torch.set_num_threads(threads)
    generator = InRows(CachedGenerator(inputs.decoder), rows)
    data = inputs.sign(generate_rollouts(generator, inputs.assignment))
    torch.set_num_threads(1)
    verdict = run.validator().judge(data, dataclasses.replace(REQUEST, submission_index=rows))
    assert verdict.accepted, verdict
    assert verdict.rollouts_checked == RULES.rollout_count
    assert verdict.address == WORKER.address
    assert verdict.token_count >= RULES.rollout_count


def test_a_sample_of_a_file_shows_what_all_of_it_would(run: SmallRun, earlier: bytes) -> None:
    validator = run.validator(rollouts_checked=16)
    verdict = validator.judge(earlier, REQUEST)
    assert verdict.accepted
    assert verdict.rollouts_checked == 16
    for name in ("int4_weights", "greedy", "other_model", "oracle"):
        verdict = validator.judge(CHEATS[name].make(run.inputs()), REQUEST)
        assert verdict.reason in CHEATS[name].reasons, name


def test_a_step_that_is_over_takes_no_rollouts(run: SmallRun, earlier: bytes) -> None:
    request = JudgeRequest(submission_index=0, open_steps=[10, 11])
    assert run.validator().judge(earlier, request).reason == "weights"
