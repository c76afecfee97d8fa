"""Requests over HTTP that are signed as a whole: method, path, query, body, nonce and time.

One header carries it: `Authorization: asyncrl <public key>:<nonce>:<milliseconds>:<body bytes>:
<body sha256>:<signature>`. The audience (which run at which coordinator) is signed as well and not
sent, so a request to one run is worth nothing at another. GET is signed like everything else.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import sqlite3
import time
from dataclasses import dataclass

from asyncrl.protocol.keys import BadSignature, Key, address_of, verify

__all__ = [
    "HEADER",
    "SKEW_SECONDS",
    "NonceStore",
    "Request",
    "RequestRefused",
    "SignedHeader",
    "audience",
    "sign_request",
]

HEADER = "Authorization"
# Home machines without NTP are a few seconds off; the store below keeps nonces for twice as long.
SKEW_SECONDS = 30.0

_SCHEME = "asyncrl "
_PURPOSE = "request"
_NONCE_BYTES = 16
_FORM = re.compile(
    r"asyncrl ([0-9a-f]{64}):([0-9a-f]{32}):([0-9]{1,15}):([0-9]{1,15}):([0-9a-f]{64})"
    r":([0-9a-f]{128})"
)


class RequestRefused(ValueError):
    """A request is not taken; `code` is for programs, the text for people, `status` for HTTP."""

    def __init__(self, code: str, text: str, status: int = 401) -> None:
        super().__init__(text)
        self.code = code
        self.status = status


def audience(run: str, coordinator_address: str) -> str:
    """Return what signed requests to this coordinator are for."""
    return f"{run}@{coordinator_address}"


@dataclass(frozen=True)
class Request:
    """What is asked. `target` is path and query exactly as they stand in the request line."""

    audience: str
    method: str
    target: str

    def message(self, nonce: str, milliseconds: int, body_bytes: int, body_sha256: str) -> bytes:
        """Return what is signed: a line each, and no line can hold a line break."""
        lines = (self.audience, self.method, self.target, nonce, str(milliseconds))
        if any("\n" in line or "\r" in line for line in lines):
            raise ValueError("request: a line break in audience, method or target")
        return "\n".join((*lines, str(body_bytes), body_sha256)).encode()


@dataclass(frozen=True)
class SignedHeader:
    """A parsed and verified header. Who calls is known; whether it is fresh is not yet."""

    address: str
    public_key: bytes
    nonce: str
    milliseconds: int
    body_bytes: int
    body_sha256: str

    @classmethod
    def verify(cls, request: Request, header: str | None) -> SignedHeader:
        """Check form and signature, before anything of the body is read. About 0.15 ms.

        Raises:
            RequestRefused: no header, not of this form, or not signed for this very request.
        """
        if not header:
            raise RequestRefused("unsigned", f"{request.method} {request.target}: not signed")
        match = _FORM.fullmatch(header)
        if not match:
            raise RequestRefused("malformed", f"{HEADER}: not of the form 'asyncrl <key>:<...>'")
        public_key = bytes.fromhex(match[1])
        nonce, milliseconds, body_bytes, body_sha256 = (
            match[2],
            int(match[3]),
            int(match[4]),
            match[5],
        )
        try:
            message = request.message(nonce, milliseconds, body_bytes, body_sha256)
            verify(public_key, _PURPOSE, message, bytes.fromhex(match[6]))
        except (BadSignature, ValueError):
            raise RequestRefused(
                "signature",
                f"{request.method} {request.target}: not signed by key {match[1][:16]}... for "
                f"{request.audience!r} with this query, body, nonce and time",
            ) from None
        address = address_of(public_key)
        return cls(address, public_key, nonce, milliseconds, body_bytes, body_sha256)

    def check_body(self, body_bytes: int, body_sha256: str) -> None:
        """Compare with the body that came.

        Raises:
            RequestRefused: it is another one.
        """
        if (body_bytes, body_sha256) != (self.body_bytes, self.body_sha256):
            raise RequestRefused(
                "body", f"body: {body_bytes} bytes with another hash than was signed", 400
            )


def sign_request(
    key: Key, request: Request, body: bytes = b"", *, unix_seconds: float | None = None
) -> str:
    """Return the value of the header; each call makes another nonce.

    Args:
        body: hashed here; for a large one, its file is hashed once and this costs 0.6 ms a MB.
        unix_seconds: the caller's clock; for tests.
    """
    nonce = secrets.token_hex(_NONCE_BYTES)
    now = time.time() if unix_seconds is None else unix_seconds
    milliseconds = int(now * 1000)
    body_sha256 = hashlib.sha256(body).hexdigest()
    message = request.message(nonce, milliseconds, len(body), body_sha256)
    signature = key.sign(_PURPOSE, message).hex()
    parts = (key.public_key.hex(), nonce, str(milliseconds), str(len(body)), body_sha256, signature)
    return _SCHEME + ":".join(parts)


@dataclass
class NonceStore:
    """Refuses what is late, early, or was here before. Survives a kill of the process.

    A nonce is kept until its time is out of bounds, so forgetting it opens nothing. Both bounds
    refuse new requests rather than forget old ones: only whoever floods is refused.

    Args:
        database: where nonces are kept; a replay after a restart is a replay. ":memory:" for tests.
        skew_seconds: how far a caller's clock may be off, either way.
        per_address_max: requests of one address within twice `skew_seconds`.
        addresses_max: different callers within that time.
    """

    database: sqlite3.Connection
    skew_seconds: float = SKEW_SECONDS
    per_address_max: int = 6000
    addresses_max: int = 1024

    def __post_init__(self) -> None:
        self.database.execute(
            "CREATE TABLE IF NOT EXISTS nonces (address TEXT, nonce TEXT, milliseconds INTEGER, "
            "PRIMARY KEY (address, nonce)) WITHOUT ROWID"
        )
        self._seen: dict[str, dict[str, int]] = {}  # address -> nonce -> milliseconds
        rows = self.database.execute("SELECT address, nonce, milliseconds FROM nonces")
        for address, nonce, milliseconds in rows.fetchall():
            self._seen.setdefault(address, {})[nonce] = milliseconds
        self._swept_at = 0.0

    def __len__(self) -> int:
        return sum(len(seen) for seen in self._seen.values())

    def admit(self, header: SignedHeader, *, unix_seconds: float | None = None) -> None:
        """Take the request's nonce, once.

        Raises:
            RequestRefused: "clock", "replay", or "rate" where a bound is reached.
        """
        now = time.time() if unix_seconds is None else unix_seconds
        ahead = header.milliseconds / 1000 - now
        if abs(ahead) > self.skew_seconds:
            way = "ahead" if ahead > 0 else "behind"
            raise RequestRefused(
                "clock",
                f"{header.address}: its clock is {abs(ahead):.1f} s {way}; at most "
                f"{self.skew_seconds:.0f} s are allowed",
            )
        # Sweeping costs one pass over all; once a second at most.
        if now - self._swept_at >= 1 or now < self._swept_at:
            self._sweep(now)
        seen = self._seen.get(header.address)
        if seen is None:
            if len(self._seen) >= self.addresses_max:
                raise RequestRefused("rate", f"{self.addresses_max} callers already", 429)
            seen = self._seen[header.address] = {}
        if header.nonce in seen:
            raise RequestRefused("replay", f"{header.address}: this request was here before")
        if len(seen) >= self.per_address_max:
            raise RequestRefused(
                "rate",
                f"{header.address}: {len(seen)} requests within {2 * self.skew_seconds:.0f} s",
                429,
            )
        with self.database:
            self.database.execute(
                "INSERT INTO nonces VALUES (?, ?, ?)",
                (header.address, header.nonce, header.milliseconds),
            )
        seen[header.nonce] = header.milliseconds

    def _sweep(self, now: float) -> None:
        self._swept_at = now
        oldest = int((now - self.skew_seconds) * 1000)
        for address in list(self._seen):
            seen = self._seen[address]
            self._seen[address] = {nonce: at for nonce, at in seen.items() if at >= oldest}
            if not self._seen[address]:
                del self._seen[address]
        with self.database:
            self.database.execute("DELETE FROM nonces WHERE milliseconds < ?", (oldest,))
