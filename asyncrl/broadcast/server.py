"""Serves a folder of versions over HTTP: an origin's, or a relay's.

    GET /versions?after=4&wait=10  {"versions": [3, 4, 5]}; waits for one above 4
    GET /v/5/manifest              the signed manifest
    GET /v/5/have?after=S&wait=10  {"state": S, "have": bitmap of chunks, in hex}
    GET /v/5/chunks/17             bytes, with Range

Only what is in the folder is announced. `have` waits until something has changed since state S, so
that nobody polls.
"""

from __future__ import annotations

import asyncio
import re

from aiohttp import web

from asyncrl.broadcast.store import Store
from asyncrl.protocol.requests import RequestRefused
from asyncrl.protocol.serving import Answer, FileAnswer, answer_json

__all__ = ["serve_store"]

_WAIT_SECONDS_MAX = 20.0
# How often the folder is looked at while somebody waits: one or two stats.
_LOOK_SECONDS = 0.05
_WHOLE = re.compile(r"/v/([0-9]{1,15})/(manifest|have|chunks/([0-9]{1,9}))")


def bitmap(held: frozenset[int]) -> str:
    """Return chunk indices as hex: bit i of the number is chunk i."""
    bits = bytearray(max(held, default=0) // 8 + 1)
    for index in held:
        bits[index >> 3] |= 1 << (index & 7)
    return bits[::-1].hex()


def from_bitmap(text: str, count: int) -> set[int]:
    """Return the indices below `count` whose bits are set.

    Raises:
        ValueError: not hex, or longer than `count` needs.
    """
    if len(text) > count // 4 + 2:
        raise ValueError(f"have: {len(text)} digits for {count} chunks")
    bits = int(text, 16)
    return {index for index in range(count) if bits >> index & 1}


def serve_store(store: Store) -> Answer:
    """Return what answers for `store`; see asyncrl.protocol.serving.serve."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            raise RequestRefused("method", "only GET", 405)
        if request.path == "/versions":
            return await _versions(store, request)
        match = _WHOLE.fullmatch(request.path)
        if not match:
            raise RequestRefused("path", "no such path", 404)
        version = int(match[1])
        if match[2] == "have":
            return await _have(store, version, request)
        path = store.manifest_path(version)
        if match[3]:
            path = store.chunk_path(version, int(match[3]))
        cache = "max-age=86400, immutable" if match[3] else "no-store"
        headers = {"Cache-Control": cache, "Content-Type": "application/octet-stream"}
        return FileAnswer(path, request, headers)

    return answer


def _deadline(request: web.BaseRequest) -> float:
    try:
        wait = min(float(request.query.get("wait", "0")), _WAIT_SECONDS_MAX)
    except ValueError:
        raise RequestRefused("query", "wait: expected seconds", 400) from None
    return asyncio.get_running_loop().time() + wait


async def _versions(store: Store, request: web.BaseRequest) -> web.Response:
    deadline, after = _deadline(request), request.query.get("after", "-1")
    if not re.fullmatch(r"-1|[0-9]{1,15}", after):
        raise RequestRefused("query", "after: expected a version", 400)
    loop = asyncio.get_running_loop()
    while True:
        versions = store.versions()
        if max(versions, default=-1) > int(after) or not loop.time() < deadline:
            return answer_json({"versions": versions})
        await asyncio.sleep(_LOOK_SECONDS)


async def _have(store: Store, version: int, request: web.BaseRequest) -> web.Response:
    deadline, loop = _deadline(request), asyncio.get_running_loop()
    while True:
        try:
            stat = store.manifest_path(version).stat()
        except OSError:
            raise RequestRefused("absent", f"version {version} is not here", 404) from None
        held = store.held(version)
        state = f"{stat.st_mtime_ns:x}-{stat.st_size:x}-{len(held):x}"
        if state != request.query.get("after") or not loop.time() < deadline:
            return answer_json({"state": state, "have": bitmap(held)})
        await asyncio.sleep(_LOOK_SECONDS)
