"""Verdicts, signed by their validators, and what several of them decide together."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from asyncrl.protocol.keys import BadSignature, Key, SignedDocument
from asyncrl.validation.checks import REASONS, Refusal

__all__ = ["Decision", "SignedVerdict", "Verdict", "decide"]

_PURPOSE = "verdict"
_VERDICT_BYTES_MAX = 1 << 14
_DETAIL_MAX = 1000


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one validator found about one file."""

    file_sha256: str
    run_id: str
    address: str = ""
    """Of the rollout worker; empty where no signature says who that is."""

    step: int = -1
    """-1, and likewise below, where the file was refused before it was parsed."""

    submission_index: int = -1
    accepted: bool = False
    reason: str = ""
    """One of REASONS; empty if accepted."""

    detail: str = ""
    token_count: int = 0
    """Of an accepted file's completions: its work units."""

    rollouts_checked: int = 0
    """With the model."""

    def of(self, **changes: str | int | bool) -> Verdict:
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def refused(self, refusal: Refusal) -> Verdict:
        return self.of(accepted=False, reason=refusal.reason, detail=refusal.detail[:_DETAIL_MAX])

    def sign(self, key: Key) -> SignedVerdict:
        document = SignedDocument.sign(key, _PURPOSE, dataclasses.asdict(self))
        return SignedVerdict(self, document.signer, document.to_bytes())


@dataclass(frozen=True)
class SignedVerdict:
    """A verdict of which it is known who gave it."""

    verdict: Verdict
    validator: str
    """The address of the key that signed it; whether it may is decide()'s question."""

    data: bytes = dataclasses.field(repr=False)

    @classmethod
    def from_bytes(cls, data: bytes) -> SignedVerdict:
        """Raises BadSignature: too long, not signed as a verdict, or no verdict."""
        if len(data) > _VERDICT_BYTES_MAX:
            raise BadSignature(f"verdict: {len(data)} bytes, at most {_VERDICT_BYTES_MAX}")
        document = SignedDocument.from_bytes(_PURPOSE, data)
        fields = document.fields()
        kinds = {field.name: field.type for field in dataclasses.fields(Verdict)}
        if {name: type(value).__name__ for name, value in fields.items()} != kinds:
            raise BadSignature(f"verdict of {document.signer}: expected {kinds}")
        verdict = Verdict(**fields)
        if (verdict.reason in REASONS) == verdict.accepted:
            raise BadSignature(
                f"verdict of {document.signer}: accepted={verdict.accepted} for {verdict.reason!r}"
            )
        return cls(verdict, document.signer, data)


@dataclass(frozen=True)
class Decision:
    """What the validators of a run say together about one file."""

    outcome: str
    """"accepted", "refused", "open" (verdicts are missing) or "undecided" (all have spoken, and
    neither side has a quorum)."""

    reason: str
    """The most frequent reason of those who refused, for a refused file; else empty."""

    dissenters: tuple[str, ...]
    """Validators that said the opposite of the outcome."""

    equivocators: tuple[str, ...]
    """Validators that signed both; they count for neither side."""


def decide(
    verdicts: Iterable[SignedVerdict], *, validators: Collection[str], quorum: int
) -> Decision:
    """Count the verdicts on one file.

    Args:
        verdicts: on one file; those of addresses outside `validators` don't count.
        validators: addresses of all validators of the run.
        quorum: how many have to say the same; more than half of them, so that two quorums meet.

    Raises:
        ValueError: such a quorum is not possible, or the verdicts are on several files.
    """
    if not len(validators) / 2 < quorum <= len(validators):
        raise ValueError(f"quorum: {quorum} of {len(validators)} validators")
    said: dict[str, set[bool]] = {}
    reasons: list[str] = []
    files = set()
    for signed in verdicts:
        files.add(signed.verdict.file_sha256)
        if signed.validator not in validators:
            continue
        if not signed.verdict.accepted and False not in said.get(signed.validator, set()):
            reasons.append(signed.verdict.reason)
        said.setdefault(signed.validator, set()).add(signed.verdict.accepted)
    if len(files) > 1:
        raise ValueError(f"decide: verdicts on {len(files)} files")
    equivocators = sorted(validator for validator, both in said.items() if len(both) == 2)
    pro = sorted(validator for validator, one in said.items() if one == {True})
    contra = sorted(validator for validator, one in said.items() if one == {False})
    outcome, reason, dissenters = "open", "", []
    if len(pro) >= quorum:
        outcome, dissenters = "accepted", contra
    elif len(contra) >= quorum:
        outcome, dissenters = "refused", pro
        reason = max(sorted(set(reasons)), key=reasons.count)
    elif len(said) == len(validators):
        outcome = "undecided"
    return Decision(outcome, reason, tuple(dissenters), tuple(equivocators))
