"""The file that a rollout worker uploads: rollouts of one step, signed as a whole.

msgpack within msgpack: an envelope {key, signature, body}, and the body as bytes, so that exactly
what was signed is what is parsed. Sizes are bounded before anything is parsed, and parsing makes
no more objects than the bounds allow. Everything in the body is a claim of somebody untrusted.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy

from asyncrl.protocol.keys import BadSignature, Key, address_of, verify
from asyncrl.sampling import SubmissionScope

__all__ = ["ClaimedRollout", "FileLimits", "FileRefused", "RolloutFile", "Signed", "sha256_of"]

_PURPOSE = "rollouts"
_FORMAT = 1
# Steps, versions and numbers beyond it are nonsense, and this still fits every reader's integers.
_NUMBER_MAX = 1 << 48
_BODY_KEYS = frozenset(
    (
        "format",
        "run_id",
        "step",
        "submission_index",
        "weights_version",
        "weights_sha256",
        "rollouts",
    )
)
_ROLLOUT_KEYS = frozenset(("prompt_index", "tokens", "proof", "reward"))


class FileRefused(ValueError):
    """A file is not what it has to be; `reason` is one of "size", "signature", "schema"."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class FileLimits:
    """What a file may hold at most; checked before it is parsed where that is possible."""

    file_bytes: int = 16 << 20
    rollout_count: int = 1024
    token_count: int = 1 << 16
    """Of one completion."""


@dataclass(frozen=True)
class ClaimedRollout:
    """One completion, as its worker states it."""

    prompt_index: int
    tokens: tuple[int, ...]
    """The completion alone; the prompt follows from its index."""

    proof: bytes
    """build_proofs() of the hidden states of prompt + completion but its last position."""

    reward: float


@dataclass(frozen=True)
class RolloutFile:
    run_id: str
    step: int
    submission_index: int
    weights_version: int
    weights_sha256: str
    """In hex, of the weights' file."""

    rollouts: tuple[ClaimedRollout, ...] = field(repr=False)

    def scope(self, address: str) -> SubmissionScope:
        """What its prompts and noise follow from, if `address` is who signed it."""
        return SubmissionScope(
            run_id=self.run_id,
            address=address,
            step=self.step,
            submission_index=self.submission_index,
        )

    def sign(self, key: Key) -> bytes:
        """The bytes to upload."""
        body = msgpack.packb(
            {
                "format": _FORMAT,
                "run_id": self.run_id,
                "step": self.step,
                "submission_index": self.submission_index,
                "weights_version": self.weights_version,
                "weights_sha256": self.weights_sha256,
                "rollouts": [
                    {
                        "prompt_index": one.prompt_index,
                        "tokens": numpy.asarray(one.tokens, "<u4").tobytes(),
                        "proof": one.proof,
                        "reward": one.reward,
                    }
                    for one in self.rollouts
                ],
            }
        )
        return Signed.sign(key, body).to_bytes()


@dataclass(frozen=True)
class Signed:
    """A body of which it is known who signed it, and nothing else yet."""

    public_key: bytes
    signature: bytes = field(repr=False)
    body: bytes = field(repr=False)

    @classmethod
    def sign(cls, key: Key, body: bytes) -> Signed:
        return cls(key.public_key, key.sign(_PURPOSE, body), body)

    @classmethod
    def from_bytes(cls, data: bytes, limits: FileLimits) -> Signed:
        """Raises FileRefused ("size", "signature"): too long, no such envelope, wrongly signed."""
        if len(data) > limits.file_bytes:
            raise FileRefused("size", f"{len(data)} bytes, at most {limits.file_bytes}")
        try:
            found = _unpack(data, limits)
            if not isinstance(found, dict) or set(found) != {"public_key", "signature", "body"}:
                raise FileRefused("signature", "not a signed rollout file")
            signed = cls(**{name: _expect(found, name, bytes) for name in found})
            verify(signed.public_key, _PURPOSE, signed.body, signed.signature)
        except BadSignature as error:
            raise FileRefused("signature", str(error)) from None
        except FileRefused as error:
            raise FileRefused("signature", str(error)) from None
        return signed

    @property
    def address(self) -> str:
        return address_of(self.public_key)

    @property
    def content_sha256(self) -> str:
        """Of the body: the same for whoever signs it again."""
        return hashlib.sha256(self.body).hexdigest()

    def to_bytes(self) -> bytes:
        packed: bytes = msgpack.packb(
            {"public_key": self.public_key, "signature": self.signature, "body": self.body}
        )
        return packed

    def parse(self, limits: FileLimits) -> RolloutFile:
        """Raises FileRefused ("schema"): something is missing, surplus, of another type or size."""
        found = _unpack(self.body, limits)
        if not isinstance(found, dict) or set(found) != _BODY_KEYS:
            raise FileRefused("schema", f"expected a map of {sorted(_BODY_KEYS)}")
        if _number(found, "format") != _FORMAT:
            raise FileRefused("schema", f"format {found['format']!r}, expected {_FORMAT}")
        rollouts = _expect(found, "rollouts", list)
        if len(rollouts) > limits.rollout_count:
            raise FileRefused("schema", f"{len(rollouts)} rollouts, at most {limits.rollout_count}")
        return RolloutFile(
            run_id=_expect(found, "run_id", str),
            step=_number(found, "step"),
            submission_index=_number(found, "submission_index"),
            weights_version=_number(found, "weights_version"),
            weights_sha256=_expect(found, "weights_sha256", str),
            rollouts=tuple(_rollout(one, limits) for one in rollouts),
        )


def sha256_of(path: Path) -> str:
    """Of a file of any length, in hex, without holding it."""
    hashing = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            hashing.update(piece)
    return hashing.hexdigest()


def _rollout(found: object, limits: FileLimits) -> ClaimedRollout:
    if not isinstance(found, dict) or set(found) != _ROLLOUT_KEYS:
        raise FileRefused("schema", f"a rollout: expected a map of {sorted(_ROLLOUT_KEYS)}")
    tokens = _expect(found, "tokens", bytes)
    if len(tokens) % 4 or len(tokens) > 4 * limits.token_count:
        raise FileRefused(
            "schema", f"tokens: {len(tokens)} bytes, at most {limits.token_count} * 4"
        )
    return ClaimedRollout(
        prompt_index=_number(found, "prompt_index"),
        tokens=tuple(numpy.frombuffer(tokens, "<u4").tolist()),
        proof=_expect(found, "proof", bytes),
        reward=_expect(found, "reward", float),
    )


def _unpack(data: bytes, limits: FileLimits) -> object:
    # Lists of more than rollout_count are refused while they are read, so nothing small unpacks
    # to something large.
    try:
        return msgpack.unpackb(
            data,
            max_array_len=limits.rollout_count,
            max_map_len=len(_BODY_KEYS),
            max_ext_len=0,
            strict_map_key=True,
        )
    except (ValueError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise FileRefused("schema", f"not msgpack within the limits: {error!r}"[:300]) from None


def _expect(found: dict[Any, Any], name: str, kind: type) -> Any:
    # bool is an int to Python, and to nobody else.
    if not isinstance(found[name], kind) or isinstance(found[name], bool):
        raise FileRefused("schema", f"{name}: expected {kind.__name__}, got {type(found[name])}")
    return found[name]


def _number(found: dict[Any, Any], name: str) -> int:
    number: int = _expect(found, name, int)
    if not 0 <= number <= _NUMBER_MAX:
        raise FileRefused("schema", f"{name}: {number} is out of bounds")
    return number
