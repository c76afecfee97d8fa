"""Validators for processes of their own: one that works, and some that a file kills."""

import os
import time
from pathlib import Path
from typing import Any

from asyncrl.validation.checks import Rules
from asyncrl.validation.history import History
from asyncrl.validation.rollout_file import FileLimits, RolloutFile, Signed
from asyncrl.validation.validator import JudgeRequest, Validator
from asyncrl.validation.verdict import Verdict


class Weights:
    """Knows the versions' names and computes nothing: for files that are refused before that."""

    def __init__(self) -> None:
        self.weights: dict[int, str] = {}

    def add(self, version: int, path: Path) -> None:
        self.weights[version] = path.name

    def recompute(self, version: int, prompts: Any, rollouts: Any) -> Any:
        raise NotImplementedError


class Dying(Validator):
    """Does what the file's run says."""

    def judge(self, data: bytes, request: JudgeRequest) -> Verdict:
        print("noise on stdout")
        signed = Signed.from_bytes(data, FileLimits())
        file: RolloutFile = signed.parse(FileLimits())
        if file.run_id == "remember":
            self.history.record("somebody", signed.content_sha256, file)
        if file.run_id == "die":
            os.abort()
        if file.run_id == "hang":
            time.sleep(600)
        if file.run_id == "eat":
            bytearray(8 << 30)
        if file.run_id == "raise":
            raise RuntimeError("a bug")
        return super().judge(data, request)


def make(config: dict[str, Any]) -> tuple[Validator, Weights]:
    weights = Weights()
    rules = Rules(run_id="small", eos_token=1, vocabulary_count=16)
    history = History(Path(config["history"]))
    return Dying(rules, _NoTask(), weights, history=history), weights


class _NoTask:
    count = 1

    def prompt_tokens(self, index: int) -> list[int]:
        return [2]

    def score(self, index: int, tokens: Any) -> float:
        return 0.0
