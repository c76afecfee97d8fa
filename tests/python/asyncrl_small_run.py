"""A run with a model of 100 thousand parameters and a task in bare tokens, for tests of validators.

Weights are random and scaled up, so that the policy is sharp enough for temperature to matter.
"""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from asyncrl.cheats import CheatInputs
from asyncrl.model import Decoder, ModelConfig, save_weights
from asyncrl.protocol.keys import Key
from asyncrl.submission import Assignment
from asyncrl.validation.checks import Rules
from asyncrl.validation.policies import KeptPolicies
from asyncrl.validation.validator import JudgeRequest, Validator

EOS = 1
STEP = 9
VERSION = 8  # of the weights that rollouts for STEP come from
RULES = Rules(run_id="small", eos_token=EOS, vocabulary_count=16, token_count_max=6)
REQUEST = JudgeRequest(submission_index=0, open_steps=[STEP])
WORKER, OTHER = Key.from_seed(b"\3" * 32), Key.from_seed(b"\4" * 32)


class TokenTask:
    """Say the prompt backward; other answers earn something by chance."""

    count = 500

    def prompt_tokens(self, index: int) -> list[int]:
        digest = hashlib.sha256(str(index).encode()).digest()
        return [2 + byte % 14 for byte in digest[: 3 + digest[31] % 4]]

    def answer(self, index: int) -> list[int]:
        return [*reversed(self.prompt_tokens(index)), EOS][-RULES.token_count_max :]

    def score(self, index: int, tokens: Sequence[int]) -> float:
        if list(tokens) == self.answer(index):
            return 1.0
        return sum(tokens) % 17 / 34


TASK = TokenTask()


def make_versions(folder: Path) -> dict[int, Path]:
    """Weight files of versions 0 to VERSION, each a small step from the one before."""
    config = ModelConfig(
        vocabulary_count=16, width=64, layer_count=2, head_count=4, feed_forward_width=128
    )
    model = Decoder(config, seed=1)
    random = torch.Generator().manual_seed(2)
    paths = {}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6)
        for version in range(VERSION + 1):
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=random)
                parameter.add_(noise * parameter.std() * 0.01)
            paths[version] = folder / f"v{version}.safetensors"
            save_weights(model, paths[version])
    return paths


class SmallRun:
    """Validators, and what honest and other workers need."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.device = device
        self.paths = make_versions(folder)
        self.policies = KeptPolicies(device=device)
        for version, path in self.paths.items():
            self.policies.add(version, path)

    def validator(self, rollouts_checked: int | None = None) -> Validator:
        return Validator(
            RULES, TASK, self.policies, rollouts_checked=rollouts_checked, secret=b"secret"
        )

    def inputs(self, key: Key = WORKER, *, submission_index: int = 0) -> CheatInputs:
        return CheatInputs(
            assignment=Assignment(
                key=key,
                task=TASK,
                rules=RULES,
                step=STEP,
                submission_index=submission_index,
                weights_version=VERSION,
                weights_sha256=self.policies.weights[VERSION],
            ),
            decoders={version: self.policies.decoder(version) for version in self.paths},
            answer=TASK.answer,
        )
