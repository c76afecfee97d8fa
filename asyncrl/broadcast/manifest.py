"""What a version of the weights is, chunk by chunk, signed by the trainer."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import asdict, dataclass

from asyncrl.protocol.keys import BadSignature, Key, SignedDocument

__all__ = ["CHUNK_BYTES_MAX", "CHUNK_BYTES_MIN", "Manifest", "chunk_bytes_for"]

# Below, a request costs as much as its bytes; above, a lost chunk costs too much again.
CHUNK_BYTES_MIN = 256 << 10
CHUNK_BYTES_MAX = 4 << 20
# A file is cut into about this many, so that relays and clients have something to share. Twice as
# many were slower where processes wait for a core: less is under way while they do.
_CHUNKS_WANTED = 256
_BYTES_MAX = 1 << 40
_PURPOSE = "weights"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def chunk_bytes_for(size: int) -> int:
    """Return the chunk size for a file of `size` bytes: a power of two, 256 KB to 4 MB."""
    chunk = CHUNK_BYTES_MIN
    while chunk < CHUNK_BYTES_MAX and chunk * _CHUNKS_WANTED < size:
        chunk *= 2
    return chunk


@dataclass(frozen=True)
class Manifest:
    """One version. While the origin still writes, `chunks` is a prefix and `sha256` is empty."""

    run: str
    version: int
    bytes_total: int
    chunk_bytes: int
    model: str
    """Hash of the model's configuration: weights of another shape are refused before they come."""

    chunks: tuple[str, ...]
    """SHA-256 of each chunk, in hex."""

    sha256: str = ""
    """Of the whole file."""

    def __post_init__(self) -> None:
        numbers = (self.version, self.bytes_total, self.chunk_bytes)
        if not all(type(number) is int for number in numbers):
            raise ValueError("manifest: version, bytes_total and chunk_bytes are whole numbers")
        if not 0 <= self.version < 1 << 53 or not 0 < self.bytes_total <= _BYTES_MAX:
            raise ValueError(f"manifest: version {self.version} of {self.bytes_total} bytes")
        if not CHUNK_BYTES_MIN <= self.chunk_bytes <= CHUNK_BYTES_MAX:
            raise ValueError(f"manifest: chunks of {self.chunk_bytes} bytes")
        if not all(isinstance(text, str) for text in (self.run, self.model, self.sha256)):
            raise ValueError("manifest: run, model and sha256 are text")
        if not all(isinstance(chunk, str) and _SHA256.fullmatch(chunk) for chunk in self.chunks):
            raise ValueError("manifest: a chunk's hash is none")
        if len(self.chunks) > self.count or (self.is_final and len(self.chunks) != self.count):
            raise ValueError(f"manifest: {len(self.chunks)} chunks, not {self.count}")
        if self.sha256 and not _SHA256.fullmatch(self.sha256):
            raise ValueError("manifest: sha256 is no hash")

    @property
    def count(self) -> int:
        """Chunks of the whole file, also while fewer are known."""
        return -(-self.bytes_total // self.chunk_bytes)

    @property
    def is_final(self) -> bool:
        return bool(self.sha256)

    def size_of(self, index: int) -> int:
        """Bytes of chunk `index`."""
        return min(self.chunk_bytes, self.bytes_total - index * self.chunk_bytes)

    def sign(self, key: Key) -> SignedDocument:
        return SignedDocument.sign(key, _PURPOSE, asdict(self))

    @classmethod
    def verify(cls, data: bytes, signers: Collection[str], run: str) -> Manifest:
        """Read a signed manifest.

        Args:
            signers: addresses of those who may sign weights: the trainers'.
            run: its name; the same trainer may have signed weights of other runs.

        Raises:
            BadSignature: no manifest, of another run, or signed by somebody else.
        """
        document = SignedDocument.from_bytes(_PURPOSE, data)
        if document.signer not in signers:
            raise BadSignature(f"manifest: signed by {document.signer}, who is no trainer")
        try:
            fields = document.fields()
            manifest = cls(**{**fields, "chunks": tuple(fields["chunks"])})
        except (TypeError, KeyError, ValueError) as error:
            raise BadSignature(f"manifest: {error}") from None
        if manifest.run != run:
            raise BadSignature(f"manifest: of run {manifest.run!r}, not {run!r}")
        return manifest

    def extends(self, other: Manifest) -> bool:
        """Whether this is the same version, and knows at least as much of it."""
        same = (other.run, other.version, other.bytes_total, other.chunk_bytes, other.model)
        return (
            same == (self.run, self.version, self.bytes_total, self.chunk_bytes, self.model)
            and self.chunks[: len(other.chunks)] == other.chunks
            and other.sha256 in ("", self.sha256)
        )
