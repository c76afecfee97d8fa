"""A validator: one file in, one verdict out, never an exception for what a file holds."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from asyncrl.validation.checks import (
    Drawn,
    Recomputed,
    Refusal,
    Rules,
    Task,
    Upload,
    before_the_model,
    check_replay,
    with_the_model,
)
from asyncrl.validation.history import History
from asyncrl.validation.rollout_file import ClaimedRollout, FileRefused, Signed, sha256_of
from asyncrl.validation.verdict import Verdict

__all__ = ["JudgeRequest", "Policies", "TextTask", "Validator"]


@dataclass(frozen=True, kw_only=True)
class JudgeRequest:
    """What the coordinator knows of an upload."""

    submission_index: int
    """How many files of this address and step were taken before."""

    open_steps: Sequence[int]
    """The steps that take rollouts now."""


class Policies(Protocol):
    """The kept weights, and what they compute; see KeptPolicies."""

    @property
    def weights(self) -> Mapping[int, str]:
        """version -> SHA-256 in hex of its file."""

    def recompute(
        self, version: int, prompts: Sequence[Sequence[int]], rollouts: Sequence[ClaimedRollout]
    ) -> list[Recomputed]:
        """One prefill of each prompt with its completion."""


class _TextEnvironment(Protocol):
    @property
    def count(self) -> int: ...

    def prompt(self, index: int) -> str: ...

    def score(self, index: int, text: str) -> float: ...


@dataclass(frozen=True)
class TextTask:
    """An environment of texts, with the tokenizer of the run."""

    environment: _TextEnvironment
    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]

    @property
    def count(self) -> int:
        return self.environment.count

    def prompt_tokens(self, index: int) -> list[int]:
        return self.encode(self.environment.prompt(index))

    def score(self, index: int, tokens: Sequence[int]) -> float:
        return self.environment.score(index, self.decode(tokens))


class Validator:
    """Judges files under one run's rules. Not for several threads."""

    def __init__(
        self,
        rules: Rules,
        task: Task,
        policies: Policies,
        *,
        rollouts_checked: int | None = None,
        secret: bytes = b"",
        history: History | None = None,
    ) -> None:
        """
        Args:
            rollouts_checked: how many of a file go through the model; None is all. Fewer cost less,
                and a cheat in a share q of the rollouts passes n of them with (1 - q)^n.
            secret: which ones follows from it and the file, so a worker can't know.
            history: of accepted files; None is one in memory.
        """
        self.rules = rules
        self.policies = policies
        self.history = history or History()
        self._task = task
        self._rollouts_checked = rollouts_checked
        self._secret = secret
        if rollouts_checked is not None and (rollouts_checked < 1 or not secret):
            raise ValueError("rollouts_checked: expected at least 1, and a secret to draw them by")
        bounds, proofs = rules.thresholds.dtype, rules.proof_format.dtype
        if bounds != proofs:
            raise ValueError(f"thresholds: bounds of {bounds}, proofs of {proofs}")

    def judge_path(self, path: Path, request: JudgeRequest) -> Verdict:
        """As judge(), and a file that is too long is never held."""
        limit = self.rules.limits.file_bytes
        if (size := path.stat().st_size) > limit:
            verdict = Verdict(file_sha256=sha256_of(path), run_id=self.rules.run_id)
            return verdict.refused(Refusal("size", f"{size} bytes, at most {limit}"))
        return self.judge(path.read_bytes(), request)

    def judge(self, data: bytes, request: JudgeRequest) -> Verdict:
        """The verdict on an uploaded file. What costs most comes last.

        An accepted file is remembered, and with it whose these rollouts are.
        """
        file_sha256 = hashlib.sha256(data).hexdigest()
        verdict = Verdict(file_sha256=file_sha256, run_id=self.rules.run_id)
        try:
            signed = Signed.from_bytes(data, self.rules.limits)
            verdict = verdict.of(address=signed.address)
            copied = check_replay(signed.address, signed.content_sha256, self.history)
            if copied is not None:
                return verdict.refused(copied)
            file = signed.parse(self.rules.limits)
        except FileRefused as error:
            return verdict.refused(Refusal(error.reason, str(error)))
        verdict = verdict.of(step=file.step, submission_index=file.submission_index)
        upload = Upload(
            address=signed.address,
            file=file,
            submission_index=request.submission_index,
            open_steps=request.open_steps,
            weights=dict(self.policies.weights),
            rules=self.rules,
            history=self.history,
        )
        refusal = before_the_model(upload, self._task)
        if refusal is None:
            drawn = self._draw(upload, signed.content_sha256)
            verdict = verdict.of(rollouts_checked=len(drawn))
            refusal = with_the_model(upload, self._task, drawn)
        if refusal is not None:
            return verdict.refused(refusal)
        self.history.record(signed.address, signed.content_sha256, file)
        token_count = sum(len(rollout.tokens) for rollout in file.rollouts)
        return verdict.of(accepted=True, token_count=token_count)

    def _draw(self, upload: Upload, content_sha256: str) -> list[Drawn]:
        rollouts = upload.file.rollouts
        places: Sequence[int] = range(len(rollouts))
        if self._rollouts_checked is not None and self._rollouts_checked < len(rollouts):
            drawn = random.Random(self._secret + content_sha256.encode())
            places = sorted(drawn.sample(places, self._rollouts_checked))
        chosen = [rollouts[place] for place in places]
        prompts = [self._task.prompt_tokens(rollout.prompt_index) for rollout in chosen]
        own = self.policies.recompute(upload.file.weights_version, prompts, chosen)
        return [Drawn(*one) for one in zip(places, chosen, own, strict=True)]
