"""Verdicts: signed, read back, and counted into one decision."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.protocol.keys import BadSignature, Key, SignedDocument
from asyncrl.validation.checks import Refusal
from asyncrl.validation.verdict import Decision, SignedVerdict, Verdict, decide

KEYS = [Key.from_seed(bytes([index]) * 32) for index in range(5)]
ADDRESSES = [key.address for key in KEYS]
PRO = Verdict(file_sha256="ab" * 32, run_id="run", step=3, accepted=True, token_count=70)
CONTRA = PRO.refused(Refusal("proof", "too far"))


def said(votes: str) -> list[SignedVerdict]:
    """A verdict of validator 0, 1, ... for each letter: + or -; anything else is silence."""
    verdicts = {"+": PRO, "-": CONTRA}
    return [verdicts[vote].sign(KEYS[i]) for i, vote in enumerate(votes) if vote in verdicts]


def test_a_verdict_comes_back_as_it_was_signed() -> None:
    for verdict in (PRO, CONTRA):
        signed = verdict.sign(KEYS[0])
        assert SignedVerdict.from_bytes(signed.data) == signed
        assert signed.validator == ADDRESSES[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"accepted": False},  # without a reason
        {"reason": "proof"},  # accepted, with a reason
        {"accepted": False, "reason": "mood"},
        {"accepted": 1},
        {"token_count": "70"},
        {"step": None},
        {"more": 1},
    ],
)
def test_what_is_no_verdict_is_refused(changes: dict[str, object]) -> None:
    fields = {**dataclasses.asdict(PRO), **changes}
    with pytest.raises(BadSignature):
        SignedVerdict.from_bytes(SignedDocument.sign(KEYS[0], "verdict", fields).to_bytes())


def test_missing_fields_other_purposes_and_changed_bytes_are_refused() -> None:
    fields = dataclasses.asdict(PRO)
    with pytest.raises(BadSignature):
        SignedVerdict.from_bytes(SignedDocument.sign(KEYS[0], "request", fields).to_bytes())
    del fields["step"]
    with pytest.raises(BadSignature):
        SignedVerdict.from_bytes(SignedDocument.sign(KEYS[0], "verdict", fields).to_bytes())
    document = json.loads(PRO.sign(KEYS[0]).data)
    document["text"] = document["text"].replace("70", "71")
    with pytest.raises(BadSignature):
        SignedVerdict.from_bytes(json.dumps(document).encode())
    with pytest.raises(BadSignature, match="at most"):
        SignedVerdict.from_bytes(bytes(1 << 15))


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=100))
def test_any_bytes_are_no_verdict(data: bytes) -> None:
    with pytest.raises(BadSignature):
        SignedVerdict.from_bytes(data)


@pytest.mark.parametrize(
    ("votes", "count", "quorum", "outcome", "dissenters"),
    [
        ("", 3, 2, "open", []),
        ("+", 3, 2, "open", []),
        ("+", 1, 1, "accepted", []),
        ("-", 1, 1, "refused", []),
        ("++", 3, 2, "accepted", []),
        ("-+-", 3, 2, "refused", [1]),
        ("+-+", 3, 2, "accepted", [1]),
        ("+-", 3, 2, "open", []),
        ("+-", 2, 2, "undecided", []),
        ("+-+-", 4, 3, "undecided", []),
        ("+-+-+", 5, 3, "accepted", [1, 3]),
        ("+  ++", 5, 3, "accepted", []),
    ],
)
def test_a_quorum_decides(
    votes: str, count: int, quorum: int, outcome: str, dissenters: list[int]
) -> None:
    decision = decide(said(votes), validators=ADDRESSES[:count], quorum=quorum)
    reason = "proof" if outcome == "refused" else ""
    expected = tuple(sorted(ADDRESSES[index] for index in dissenters))
    assert decision == Decision(outcome, reason, expected, ())


def test_a_validator_that_says_both_counts_for_neither() -> None:
    verdicts = [*said("+-"), CONTRA.sign(KEYS[0]), PRO.sign(KEYS[0])]
    decision = decide(verdicts, validators=ADDRESSES[:3], quorum=2)
    assert decision == Decision("open", "", (), (ADDRESSES[0],))
    decision = decide([*verdicts, CONTRA.sign(KEYS[2])], validators=ADDRESSES[:3], quorum=2)
    assert decision.outcome == "refused"


def test_strangers_and_repeats_do_not_count() -> None:
    verdicts = said("+") + [PRO.sign(KEYS[index]) for index in (0, 0, 4)]
    assert decide(verdicts, validators=ADDRESSES[:3], quorum=2).outcome == "open"


@pytest.mark.parametrize("quorum", [0, 1, 2, 5])
def test_two_quorums_always_meet(quorum: int) -> None:
    with pytest.raises(ValueError, match="quorum"):
        decide([], validators=ADDRESSES[:4], quorum=quorum)


def test_verdicts_on_two_files_are_not_counted_together() -> None:
    other = PRO.of(file_sha256="cd" * 32).sign(KEYS[1])
    with pytest.raises(ValueError, match="2 files"):
        decide([*said("+"), other], validators=ADDRESSES[:3], quorum=2)
