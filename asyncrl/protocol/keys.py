"""Who somebody is: an ed25519 key, its address, and documents that it has signed."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["BadSignature", "Key", "SignedDocument", "address_of", "is_address", "verify"]

_ADDRESS_BYTES = 20
# Bounds what a document can make its reader hold: a manifest of 40 GB in 4 MB chunks is 1 MB.
_DOCUMENT_BYTES_MAX = 16 << 20


class BadSignature(ValueError):
    """Something is not signed by whom it names, or by nobody who may sign it."""


def address_of(public_key: bytes) -> str:
    """Return the address of a raw ed25519 public key: 20 bytes of its SHA-256, in hex."""
    if len(public_key) != 32:
        raise ValueError(f"public key: expected 32 bytes, got {len(public_key)}")
    return hashlib.sha256(public_key).digest()[:_ADDRESS_BYTES].hex()


def is_address(text: object) -> bool:
    """Whether `text` is written as an address is: 40 digits, lower case."""
    return (
        isinstance(text, str)
        and len(text) == 2 * _ADDRESS_BYTES
        and all(digit in "0123456789abcdef" for digit in text)
    )


def _tagged(purpose: str, message: bytes) -> bytes:
    """What is really signed: a signature made for one purpose is none for another."""
    return b"asyncrl/" + purpose.encode() + b"\0" + message


def verify(public_key: bytes, purpose: str, message: bytes, signature: bytes) -> None:
    """Check a signature of Key.sign().

    Raises:
        BadSignature: it is not of this key, purpose and message, or no key or signature at all.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(public_key)
        key.verify(signature, _tagged(purpose, message))
    except (InvalidSignature, ValueError):
        raise BadSignature(f"{purpose}: not signed by key {public_key.hex()[:16]}...") from None


class Key:
    """A private ed25519 key. Its `address` is its name everywhere in the protocol."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public_key: bytes = private.public_key().public_bytes_raw()
        self.address: str = address_of(self.public_key)

    @classmethod
    def generate(cls) -> Key:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Key:
        """Return the key of 32 secret bytes. For tests: a guessable seed is a public key."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def load(cls, path: Path) -> Key:
        """Read a key that save() wrote.

        Raises:
            OSError: it cannot be read.
            ValueError: it holds no ed25519 key.
        """
        private = serialization.load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(private, Ed25519PrivateKey):
            raise ValueError(f"{path}: not an ed25519 key")
        return cls(private)

    @classmethod
    def load_or_create(cls, path: Path) -> Key:
        """Read the key in `path`; make one there if there is no file."""
        if path.exists():
            return cls.load(path)
        key = cls.generate()
        key.save(path)
        return key

    def save(self, path: Path) -> None:
        """Write it as PEM, readable by its owner only. An existing file is an error."""
        data = self._private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)

    def sign(self, purpose: str, message: bytes) -> bytes:
        """Return 64 bytes that prove that this key signed `message` for `purpose`.

        Args:
            purpose: "request", "manifest", ...; verify() must be given the same.
        """
        return self._private.sign(_tagged(purpose, message))


@dataclass(frozen=True)
class SignedDocument:
    """A JSON object with a signature over its exact text, so that there is no second way to write
    it. It travels as one JSON object: {"text", "public_key", "signature"}."""

    purpose: str
    text: str
    public_key: bytes
    signature: bytes

    @classmethod
    def sign(cls, key: Key, purpose: str, fields: dict[str, Any]) -> SignedDocument:
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return cls(purpose, text, key.public_key, key.sign(purpose, text.encode()))

    @classmethod
    def from_bytes(cls, purpose: str, data: bytes) -> SignedDocument:
        """Parse and verify; the caller still has to ask whether `signer` may sign such a thing.

        Raises:
            BadSignature: not a document, or not signed by the key in it for this purpose.
        """
        if len(data) > _DOCUMENT_BYTES_MAX:
            raise BadSignature(f"{purpose}: {len(data)} bytes, at most {_DOCUMENT_BYTES_MAX}")
        try:
            found = json.loads(data)
            text, public, signature = (found[name] for name in ("text", "public_key", "signature"))
            if not isinstance(text, str):
                raise TypeError("text")
            document = cls(purpose, text, bytes.fromhex(public), bytes.fromhex(signature))
            encoded = text.encode()
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise BadSignature(f"{purpose}: not a signed document ({error!r})") from None
        verify(document.public_key, purpose, encoded, document.signature)
        return document

    @property
    def signer(self) -> str:
        """The address of the key that signed it."""
        return address_of(self.public_key)

    def fields(self) -> dict[str, Any]:
        """Return the object that was signed.

        Raises:
            BadSignature: what was signed is not an object of JSON.
        """
        try:
            fields = json.loads(self.text)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise BadSignature(f"{self.purpose}: {self.signer} signed no object of JSON")
        return fields

    def to_bytes(self) -> bytes:
        return json.dumps(
            {
                "text": self.text,
                "public_key": self.public_key.hex(),
                "signature": self.signature.hex(),
            }
        ).encode()
