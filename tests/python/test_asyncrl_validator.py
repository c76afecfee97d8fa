"""A validator's answers to files that no cheat of test_asyncrl_cheaters.py makes."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
import torch
from asyncrl_small_run import EOS, OTHER, REQUEST, RULES, STEP, TASK, VERSION, WORKER, SmallRun
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from asyncrl.proof import ProofErrors, ProofFormat
from asyncrl.proof.thresholds import PUBLISHED, Thresholds, calibrated
from asyncrl.validation.checks import Upload, check_duplicates
from asyncrl.validation.history import History
from asyncrl.validation.policies import KeptPolicies
from asyncrl.validation.rollout_file import ClaimedRollout, RolloutFile, Signed
from asyncrl.validation.validator import TextTask, Validator


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallRun]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield SmallRun(tmp_path_factory.mktemp("weights"))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def honest(run: SmallRun) -> bytes:
    inputs = run.inputs()
    return inputs.sign(inputs.honest())


# --- files ---


def test_a_body_of_another_schema_is_refused(run: SmallRun) -> None:
    data = Signed.sign(WORKER, msgpack.packb({"rollouts": []})).to_bytes()
    verdict = run.validator().judge(data, REQUEST)
    assert verdict.reason == "schema"
    assert verdict.address == WORKER.address
    assert verdict.step == -1


def test_a_refused_file_makes_no_thief_of_its_worker(run: SmallRun, honest: bytes) -> None:
    """Somebody who gets hold of a file and signs it first does not own it."""
    validator = run.validator()
    stolen = Signed.sign(OTHER, Signed.from_bytes(honest, RULES.limits).body).to_bytes()
    assert validator.judge(stolen, REQUEST).reason == "prompts"
    assert validator.judge(honest, REQUEST).accepted
    assert validator.judge(stolen, REQUEST).reason == "replay"


def test_who_asks_again_about_an_upload_gets_the_same_answer(run: SmallRun, honest: bytes) -> None:
    """A validator may die between its judgement and its answer."""
    validator = run.validator()
    first = validator.judge(honest, REQUEST)
    assert first.accepted
    assert validator.judge(honest, REQUEST) == first
    again = dataclasses.replace(REQUEST, submission_index=1)
    assert validator.judge(honest, again).reason == "replay"


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example(position=0.7364132656823839, bits=1, signs=True)  # a modulus of 65496
@given(position=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255), signs=st.booleans())
def test_a_file_with_any_changed_byte_is_refused(
    run: SmallRun, honest: bytes, position: float, bits: int, signs: bool
) -> None:
    """Whether the worker itself signs the changed body or somebody else changed it on the way."""
    body = bytearray(Signed.from_bytes(honest, RULES.limits).body if signs else honest)
    body[int(position * len(body))] ^= bits
    data = Signed.sign(WORKER, bytes(body)).to_bytes() if signs else bytes(body)
    verdict = run.validator().judge(data, REQUEST)
    assert not verdict.accepted or is_within_rounding(honest, bytes(body))


def is_within_rounding(honest: bytes, body: bytes) -> bool:
    """A changed last bit of a reward is no lie; of all else, every bit counts."""
    changed = Signed(b"", b"", body).parse(RULES.limits)
    original = Signed.from_bytes(honest, RULES.limits).parse(RULES.limits)
    return all(
        dataclasses.replace(a, reward=b.reward) == b and abs(a.reward - b.reward) <= 1e-6
        for a, b in zip(changed.rollouts, original.rollouts, strict=True)
    )


# --- duplicates ---


def test_copies_of_another_address_are_found_without_a_model() -> None:
    rollouts = tuple(ClaimedRollout(index, (5, EOS), b"", 0.0) for index in range(8))
    history = History()
    file = RolloutFile("small", STEP, 0, VERSION, "", rollouts)
    history.record(OTHER.address, "first", file)

    def refused(address: str, copies: int) -> bool:
        own = tuple(ClaimedRollout(100 + index, (6, EOS), b"", 0.0) for index in range(8 - copies))
        upload = Upload(
            address=address,
            file=dataclasses.replace(file, rollouts=rollouts[:copies] + own),
            submission_index=0,
            open_steps=[STEP],
            weights={},
            rules=RULES,
            history=history,
        )
        found = check_duplicates(upload)
        return found is not None and found.reason == "duplicates"

    again = dataclasses.replace(rollouts[0], proof=b"of other weights")
    assert not history.is_copy(WORKER.address, again)
    assert not refused(WORKER.address, 4)
    assert refused(WORKER.address, 5)
    assert not refused(OTHER.address, 8)  # its own


def test_a_history_keeps_the_newest_and_survives_its_process(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    history = History(path, files_max=2, rollouts_max=3)
    for index in range(4):
        rollouts = (ClaimedRollout(index, (EOS,), b"", 0.0),)
        history.record("a", f"file {index}", RolloutFile("small", 1, 0, 1, "", rollouts))
    history.close()
    history = History(path)
    assert [history.owner(f"file {index}") for index in range(4)] == [None, None, "a", "a"]
    copies = [history.is_copy("b", ClaimedRollout(index, (EOS,), b"", 0)) for index in range(4)]
    assert copies == [False, True, True, True]
    history.close()


# --- thresholds ---


def error(exponents: int, mantissa: float) -> ProofErrors:
    return ProofErrors(exponents, mantissa, mantissa)


def test_a_proof_or_their_sum_may_be_too_far() -> None:
    bounds = Thresholds(
        exponent_mismatches_max=4,
        mantissa_mean_max=0.5,
        exponent_mismatches_mean_max=0.1,
        mantissa_mean_mean_max=0.01,
    )
    assert bounds.refuse_proofs([error(4, 0.5)] + [error(0, 0.0)] * 63) is None
    assert "proof 1 of 2" in str(bounds.refuse_proofs([error(0, 0), error(5, 0)]))
    assert "proof 0 of 1" in str(bounds.refuse_proofs([error(0, 0.51)]))
    assert "proof 0 of 1" in str(bounds.refuse_proofs([error(0, float("nan"))]))
    assert "proof 0 of 1" in str(bounds.refuse_proofs([error(128, float("inf"))]))
    # Each one alone is what an honest one may be.
    assert "64 proofs together: 64 exponents" in str(bounds.refuse_proofs([error(1, 0)] * 64))
    assert "64 proofs together: 0 exponents" in str(bounds.refuse_proofs([error(0, 0.1)] * 64))
    assert all(PUBLISHED.accepts(one) for one in [error(38, 8.0)] * 64)
    assert not PUBLISHED.accepts(error(39, 0.0))


def test_calibration_leaves_room_and_has_floors() -> None:
    none = calibrated("fp32", [[error(0, 0.0)] * 64], [0.0])
    assert none == Thresholds(
        exponent_mismatches_max=4,
        mantissa_mean_max=0.1,
        exponent_mismatches_mean_max=0.02,
        mantissa_mean_mean_max=0.002,
        gap_max=1e-4,
    )
    some = calibrated("bf16", [[error(3, 0.5), error(0, 0.1)]], [0.0, 0.03])
    assert some.dtype == "bf16"
    assert some.exponent_mismatches_max == 6
    assert some.mantissa_mean_max == 1.0
    assert some.exponent_mismatches_mean_max == 3
    assert some.mantissa_mean_mean_max == pytest.approx(0.6)
    assert some.gap_max == pytest.approx(0.09)
    with pytest.raises(ValueError, match="no rollouts"):
        calibrated("fp32", [], [])


# --- arguments ---


def test_bounds_are_those_of_the_dtype(run: SmallRun) -> None:
    rules = dataclasses.replace(RULES, proof_format=ProofFormat(dtype="bf16"))
    with pytest.raises(ValueError, match="bounds of fp32, proofs of bf16"):
        Validator(rules, TASK, run.policies)


def test_a_sample_needs_a_secret(run: SmallRun) -> None:
    with pytest.raises(ValueError, match="secret"):
        Validator(RULES, TASK, run.policies, rollouts_checked=3)
    with pytest.raises(ValueError, match="rollouts_checked"):
        Validator(RULES, TASK, run.policies, rollouts_checked=0, secret=b"s")


def test_policies_keep_the_newest_versions(run: SmallRun) -> None:
    policies = KeptPolicies(versions_max=2)
    for version in (4, 6, 5):
        policies.add(version, run.paths[version])
    assert sorted(policies.weights) == [5, 6]
    assert policies.weights[6] == run.policies.weights[6]
    with pytest.raises(KeyError):
        policies.decoder(4)


def test_texts_become_tokens_and_back() -> None:
    class Environment:
        count = 1

        def prompt(self, index: int) -> str:
            return "abc"

        def score(self, index: int, text: str) -> float:
            return float(text == "cba")

    task = TextTask(
        Environment(), lambda text: [ord(c) for c in text], lambda t: "".join(map(chr, t))
    )
    assert task.prompt_tokens(0) == [97, 98, 99]
    assert task.score(0, [99, 98, 97]) == 1.0
    assert json.dumps(task.count) == "1"
