"""The kept versions of the policy, and what each computes for given tokens."""
# mypy: disable-error-code="no-untyped-call"
# ruff: noqa: N806 (tensor names end with their shape)

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy
import torch

from asyncrl.model import Decoder, load_policy
from asyncrl.validation.checks import Recomputed
from asyncrl.validation.rollout_file import ClaimedRollout

__all__ = ["COMPUTE", "KeptPolicies", "prefill_rollouts"]

# dtype of a proof format -> what the decoder computes in, and what proofs are built from. The
# float32 of bf16 values is rounded to those values again, so one array type serves both.
COMPUTE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_HIDDEN = {"fp32": numpy.float32, "bf16": numpy.float32, "fp16": numpy.float16}


class KeptPolicies:
    """Weight files by version; a version is loaded when it is asked for first."""

    def __init__(
        self,
        *,
        dtype: str = "fp32",
        versions_max: int = 16,
        batch_rows: int = 128,
        device: str = "cpu",
    ) -> None:
        """
        Args:
            dtype: what rollout workers have to compute in: "fp32", "bf16" or "fp16".
            versions_max: older ones are forgotten.
            batch_rows: rollouts that go through the model at once.
            device: where it computes.
        """
        self._device = device
        self._dtype = dtype
        self._versions_max = versions_max
        self.batch_rows = batch_rows
        self._paths: dict[int, Path] = {}
        self._weights: dict[int, str] = {}
        self._loaded: dict[int, Decoder] = {}

    @property
    def weights(self) -> Mapping[int, str]:
        """version -> SHA-256 in hex of its file."""
        return self._weights

    def add(self, version: int, path: Path) -> None:
        """Take a version's file, which has to stay there; known versions stay what they are."""
        if version in self._weights:
            return
        self._weights[version] = hashlib.sha256(path.read_bytes()).hexdigest()
        self._paths[version] = path
        while len(self._weights) > self._versions_max:
            oldest = min(self._weights)
            del self._weights[oldest], self._paths[oldest]
            self._loaded.pop(oldest, None)

    def decoder(self, version: int) -> Decoder:
        """Raises KeyError for a version that is not kept, ValueError for a file that is none."""
        if version not in self._loaded:
            policy = load_policy(self._paths[version], COMPUTE[self._dtype])
            self._loaded[version] = policy.to(self._device)
        return self._loaded[version]

    def recompute(
        self, version: int, prompts: Sequence[Sequence[int]], rollouts: Sequence[ClaimedRollout]
    ) -> list[Recomputed]:
        """One prefill of each prompt with its completion."""
        model = self.decoder(version)
        pairs = [(list(p), list(r.tokens)) for p, r in zip(prompts, rollouts, strict=True)]
        found: list[Recomputed] = []
        for begin in range(0, len(pairs), self.batch_rows):
            found += prefill_rollouts(model, pairs[begin : begin + self.batch_rows], self._dtype)
        return found


@torch.inference_mode()
def prefill_rollouts(
    model: Decoder, pairs: Sequence[tuple[list[int], list[int]]], dtype: str = "fp32"
) -> list[Recomputed]:
    """What each (prompt, completion) gives: one forward of all, padded on the right."""
    longest = max(len(prompt) + len(tokens) for prompt, tokens in pairs) - 1
    tokens_BT = torch.zeros(len(pairs), longest, dtype=torch.int64)
    for row, (prompt, tokens) in enumerate(pairs):
        tokens_BT[row, : len(prompt) + len(tokens) - 1] = torch.tensor([*prompt, *tokens[:-1]])
    # The mask is causal, so nothing real looks at the padding behind it.
    logits_BTV, hidden_BTC = model(tokens_BT.to(model.device))
    logits = logits_BTV.float().cpu().numpy()
    hidden = hidden_BTC.float().cpu().numpy().astype(_HIDDEN[dtype], copy=False)
    found = []
    for row, (prompt, tokens) in enumerate(pairs):
        end = len(prompt) + len(tokens) - 1
        found.append(Recomputed(hidden[row, :end], logits[row, len(prompt) - 1 : end]))
    return found
