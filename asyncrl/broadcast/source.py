"""One origin or relay, as a client sees it: what it holds, how fast it is, how it failed."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from asyncrl.broadcast.server import from_bitmap

__all__ = ["BroadcastError", "Source", "SourceFailed", "open_session"]

# Weight of the newest chunk in a source's rate.
_NEWEST = 0.3
_BACKOFF_SECONDS_MAX = 5.0
_CONNECT_SECONDS = 3.0
# Nothing for so long: the connection is dead, whatever its kernel says.
_STALL_SECONDS = 5.0
# What is expected of a source before anything is known of it.
_BYTES_PER_SECOND_MIN = 64 << 10
_ANSWER_BYTES_MAX = 64 << 10
_MANIFEST_BYTES_MAX = 16 << 20
_VERSIONS_MAX = 64
# A relay that sent so many wrong chunks is hostile, or its disk is.
_WRONG_MAX = 3


class BroadcastError(Exception):
    """Weights could not be had; the message names every source and what it did. What was fetched
    is kept and verified, so the next call goes on from there."""


class SourceFailed(Exception):
    """A request to one source failed; another one, or a later one, may not."""


def open_session() -> aiohttp.ClientSession:
    """Return a session for sources: no proxies, no cookies, no decompression of what they send."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=256),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        headers={"Accept-Encoding": "identity"},
    )


@dataclass
class Source:
    """State of one source during the life of a client."""

    url: str
    is_backup: bool = False
    """Asked for chunks only while another source is down."""

    bytes_per_second: float = 0.0
    failures: int = 0
    """In a row."""

    error: str = ""
    banned: str = ""
    """Why nothing of it is believed any more; empty: it is."""

    retry_at: float = 0.0
    held: set[int] = field(default_factory=set)
    excluded: set[int] = field(default_factory=set)
    """Chunks that it sent wrong or announced in vain."""

    bytes_received: int = 0
    chunks: int = 0
    wrong: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"source: expected http://host:port, got {self.url!r}")
        self.url = self.url.rstrip("/")

    @property
    def is_down(self) -> bool:
        return bool(self.banned) or self.failures > 0

    def begin(self) -> None:
        """Forget what belonged to another version."""
        self.held.clear()
        self.excluded.clear()
        self.wrong.clear()
        self.failures, self.retry_at = 0, 0.0

    def fail(self, error: str) -> None:
        """Note a failure; it is left alone for longer and longer. What its other connections say
        at the same time is the same failure."""
        self.error = error
        if time.monotonic() < self.retry_at:
            return
        self.failures += 1
        wait = min(0.1 * 2**self.failures, _BACKOFF_SECONDS_MAX)
        self.retry_at = time.monotonic() + wait * random.uniform(0.7, 1.3)

    def blame(self, index: int, is_final: bool) -> None:
        """Note that it sent other bytes than were signed. Until the manifest is final that may be
        the writer, which began anew; it is not asked for this chunk again either way."""
        self.wrong.append(index)
        self.excluded.add(index)
        self.error = f"sent wrong bytes for chunk {index}"
        if is_final and len(self.wrong) >= _WRONG_MAX:
            self.banned = f"sent wrong bytes for chunks {self.wrong}"

    def succeed(self, size: int, seconds: float) -> None:
        self.failures, self.retry_at = 0, 0.0
        self.chunks += 1
        rate = size / max(seconds, 1e-6)
        known = self.bytes_per_second
        self.bytes_per_second = (1 - _NEWEST) * known + _NEWEST * rate if known else rate

    def seconds_for(self, size: int) -> float:
        """How long a chunk of `size` bytes is expected to take."""
        return size / max(self.bytes_per_second, _BYTES_PER_SECOND_MIN)

    async def rest(self) -> None:
        """Wait until it may be asked again."""
        await asyncio.sleep(max(0.0, self.retry_at - time.monotonic()))

    def report(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "chunks": self.chunks,
            "bytes": self.bytes_received,
            "bytes_per_second": round(self.bytes_per_second),
            "wrong": list(self.wrong),
            "error": self.banned or self.error,
        }

    async def _get(
        self, session: aiohttp.ClientSession, path: str, limit: int, wait: float = 0.0
    ) -> bytes:
        timeout = aiohttp.ClientTimeout(
            total=wait + 20, sock_connect=_CONNECT_SECONDS, sock_read=wait + _STALL_SECONDS
        )
        try:
            async with session.get(
                self.url + path, timeout=timeout, allow_redirects=False
            ) as response:
                data = await read_bounded(response, limit)
                if response.status != 200:
                    raise SourceFailed(f"{path}: status {response.status}")
                return data
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            raise SourceFailed(f"{path}: {error or type(error).__name__}") from None

    async def versions(
        self, session: aiohttp.ClientSession, after: int = -1, wait: float = 0.0
    ) -> list[int]:
        """Return what it announces; with `wait`, as soon as there is one above `after`."""
        path = f"/versions?after={after}&wait={wait}"
        data = await self._get(session, path, _ANSWER_BYTES_MAX, wait)
        try:
            found = json.loads(data)["versions"]
            return sorted(number for number in found if type(number) is int)[-_VERSIONS_MAX:]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise SourceFailed("/versions: not the answer of a relay") from None

    async def manifest(self, session: aiohttp.ClientSession, version: int) -> bytes:
        return await self._get(session, f"/v/{version}/manifest", _MANIFEST_BYTES_MAX)

    async def have(
        self, session: aiohttp.ClientSession, version: int, after: str, count: int
    ) -> tuple[str, set[int]]:
        """Wait until what it holds differs from state `after`; return the state and the chunks."""
        path = f"/v/{version}/have?wait=10&after={after}"
        data = await self._get(session, path, _MANIFEST_BYTES_MAX, 10.0)
        try:
            answer = json.loads(data)
            state = str(answer["state"])[:64]
            if not all(letter in "0123456789abcdef-" for letter in state):
                raise ValueError(state)
            return state, from_bitmap(answer["have"], count)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise SourceFailed(f"{path}: not the answer of a relay") from None

    async def chunk(
        self, session: aiohttp.ClientSession, path: str, part: bytearray, size: int
    ) -> None:
        """Append to `part` what it lacks of a chunk of `size` bytes. What came before a failure
        stays in `part`, so that the next source goes on from there."""
        seconds = max(10.0, 5 * self.seconds_for(size))
        timeout = aiohttp.ClientTimeout(
            total=seconds, sock_connect=_CONNECT_SECONDS, sock_read=_STALL_SECONDS
        )
        headers = {"Range": f"bytes={len(part)}-"} if part else {}
        try:
            async with session.get(
                self.url + path, timeout=timeout, headers=headers, allow_redirects=False
            ) as response:
                if response.status not in (200, 206):
                    raise SourceFailed(f"{path}: status {response.status}")
                begins = f"bytes {len(part)}-"
                if response.status == 200 or not response.headers.get(
                    "Content-Range", ""
                ).startswith(begins):
                    if response.status == 206:
                        raise SourceFailed(f"{path}: another range than asked for")
                    part.clear()
                async for data in response.content.iter_any():
                    part += data
                    self.bytes_received += len(data)
                    if len(part) > size:
                        del part[:]
                        raise SourceFailed(f"{path}: more than {size} bytes")
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            raise SourceFailed(f"{path}: {error or type(error).__name__}") from None
        if len(part) < size:
            raise SourceFailed(f"{path}: {len(part)} of {size} bytes")


async def read_bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Read a body of at most `limit` bytes.

    Raises:
        SourceFailed: it is longer.
    """
    data = bytearray()
    async for piece in response.content.iter_any():
        data += piece
        if len(data) > limit:
            raise SourceFailed(f"{response.url.path}: more than {limit} bytes")
    return bytes(data)
