"""An HTTP server (aiohttp) that strangers cannot exhaust: every number that they choose is bounded.

Connections are counted, in all and by host; where a bound is reached the oldest one without a
request gives way. Who opens a connection and says nothing, or sends its header byte by byte, or
reads an answer slower than a modem, is hung up on. A host that asks too often hears 429.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from asyncrl.protocol.requests import RequestRefused

__all__ = ["Answer", "FileAnswer", "Limits", "RunningServer", "answer_json", "serve"]

_logger = logging.getLogger("asyncrl.serving")

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
# Buckets of hosts that have not asked for a while are full, so they may be forgotten.
_HOSTS_MAX = 4096
_PIECE_BYTES = 256 << 10


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one server."""

    connections: int = 512
    connections_per_host: int = 128
    """Many members may share one address; on one machine all do."""

    idle_seconds: float = 10.0
    """For a connection without a complete request header, the first or the next one."""

    request_seconds: float = 60.0
    """For a request's body and for what is done with it."""

    answer_seconds: float = 10.0
    bytes_per_second_min: int = 32 << 10
    """To send an answer of B bytes may take `answer_seconds` + B / this, not longer."""

    requests_per_second: float = 500.0
    """Of one host, averaged over two seconds."""


class FileAnswer(web.StreamResponse):
    """A file, or the range of it that the request asks for.

    Raises:
        RequestRefused: it is not there, or the range is not in it.
    """

    def __init__(self, path: Path, request: web.BaseRequest, headers: dict[str, str]) -> None:
        try:
            self._file = open(path, "rb")  # noqa: SIM115  # closed when it has been sent
        except OSError:
            raise RequestRefused("absent", f"{request.path} is not here", 404) from None
        size = os.fstat(self._file.fileno()).st_size
        super().__init__(headers=headers)
        self.headers["Accept-Ranges"] = "bytes"
        begin, end = 0, size
        try:
            asked = request.http_range
            if asked.start is not None or asked.stop is not None:
                begin, end, _ = asked.indices(size)
                if not begin < end:
                    raise ValueError
                self.set_status(206)
                self.headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        except ValueError:
            self._file.close()
            raise RequestRefused("range", f"not a range of {size} bytes", 416) from None
        self._file.seek(begin)
        self.content_length = end - begin

    async def send(self, with_body: bool) -> None:
        with self._file:
            left = self.content_length if with_body else 0
            while left:
                data = self._file.read(min(left, _PIECE_BYTES))
                if not data:  # the file shrank: a truncated answer, which the caller sees
                    raise ConnectionResetError
                left -= len(data)
                await self.write(data)


class _Connection:
    def __init__(self, host: str, transport: asyncio.Transport) -> None:
        self.host = host
        self.transport = transport
        self.is_active = False
        self.since = time.monotonic()


class _Server(web.Server):
    """Bounds around `answer`."""

    def __init__(self, answer: Answer, limits: Limits) -> None:
        super().__init__(
            self._bounded_answer,
            access_log=None,
            keepalive_timeout=2 * limits.idle_seconds,  # sweep() comes first
            # For this long what a refused sender still sends is read and dropped, so that it
            # reads why; a connection closed with unread bytes would reset it first.
            lingering_time=2.0,
        )
        self._answer = answer
        self._limits = limits
        self._opened: dict[RequestHandler, _Connection] = {}
        self._buckets: dict[str, tuple[float, float]] = {}  # host -> (tokens, at)
        self.counters = dict.fromkeys(("requests", "evicted", "idle", "slow", "rate", "errors"), 0)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        peer = transport.get_extra_info("peername")
        new = _Connection(str(peer[0]) if peer else "", transport)
        same = [found for found in self._opened.values() if found.host == new.host]
        rivals = None
        if len(same) >= self._limits.connections_per_host:
            rivals = same
        elif len(self._opened) >= self._limits.connections:
            rivals = list(self._opened.values())
        if rivals is not None:
            self.counters["evicted"] += 1
            waiting = [found for found in rivals if not found.is_active]
            victim = min(waiting, key=lambda found: found.since, default=new)
            self._opened = {key: it for key, it in self._opened.items() if it is not victim}
            victim.transport.abort()
            if victim is new:
                return
        self._opened[handler] = new

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._opened.pop(handler, None)

    def sweep(self) -> None:
        """Hang up on connections without a request; called once a second."""
        oldest = time.monotonic() - self._limits.idle_seconds
        for connection in self._opened.values():
            if not connection.is_active and connection.since < oldest:
                self.counters["idle"] += 1
                connection.transport.abort()

    def _is_too_often(self, host: str) -> bool:
        rate, now = self._limits.requests_per_second, time.monotonic()
        if len(self._buckets) >= _HOSTS_MAX:
            self._buckets = {k: v for k, v in self._buckets.items() if now - v[1] < 2}
        tokens, at = self._buckets.get(host, (2 * rate, now))
        tokens = min(2 * rate, tokens + rate * (now - at)) - 1
        self._buckets[host] = (max(tokens, 0.0), now)
        return tokens < 0

    async def _bounded_answer(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = self._opened.get(request.protocol)
        if connection is None:  # evicted while its request was being parsed
            raise ConnectionResetError
        connection.is_active = True
        self.counters["requests"] += 1
        try:
            if self._is_too_often(connection.host):
                self.counters["rate"] += 1
                response: web.StreamResponse = _refusal("rate", "too many requests a second", 429)
            else:
                response = await self._response(request)
            await self._send(request, response, connection)
            return response
        finally:
            connection.is_active = False
            connection.since = time.monotonic()

    async def _response(self, request: web.BaseRequest) -> web.StreamResponse:
        seconds = self._limits.request_seconds
        try:
            return await asyncio.wait_for(_awaited(self._answer(request)), seconds)
        except RequestRefused as refused:
            response = _refusal(refused.code, str(refused), refused.status)
        except asyncio.TimeoutError:
            self.counters["slow"] += 1
            response = _refusal("slow", f"not done within {seconds:.0f} s", 408)
        except web.HTTPException as error:
            response = _refusal("http", error.reason, error.status)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            self.counters["errors"] += 1
            _logger.exception("%s %s: failed", request.method, request.path)
            response = _refusal("internal", "the server failed; its log says why", 500)
        if not request.content.is_eof():
            response.force_close()
        return response

    async def _send(
        self, request: web.BaseRequest, response: web.StreamResponse, connection: _Connection
    ) -> None:
        seconds = (
            self._limits.answer_seconds
            + (response.content_length or 0) / self._limits.bytes_per_second_min
        )

        async def send() -> None:
            await response.prepare(request)
            if isinstance(response, FileAnswer):
                await response.send(request.method == "GET")
            await response.write_eof()

        try:
            await asyncio.wait_for(send(), seconds)
        except asyncio.TimeoutError:
            self.counters["slow"] += 1
            connection.transport.abort()
        except ConnectionError:  # the caller is gone
            connection.transport.abort()


async def _awaited(it: Awaitable[web.StreamResponse]) -> web.StreamResponse:
    return await it


def answer_json(fields: Any, status: int = 200) -> web.Response:
    return web.Response(
        body=json.dumps(fields).encode(),
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def _refusal(code: str, text: str, status: int) -> web.Response:
    """What a program and its user read; the server's clock, for callers whose own is off."""
    return answer_json({"code": code, "error": text, "unix_seconds": time.time()}, status)


class RunningServer:
    """A server that listens; close() it."""

    def __init__(self, server: _Server, runner: web.ServerRunner, port: int) -> None:
        self._server = server
        self._runner = runner
        self._sweeper = asyncio.create_task(self._sweep())
        self.port = port

    @property
    def counters(self) -> dict[str, int]:
        """Requests, and how often each bound was reached."""
        return dict(self._server.counters)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._server._limits.idle_seconds / 2))
            self._server.sweep()

    async def close(self) -> None:
        self._sweeper.cancel()
        await self._runner.cleanup()


async def serve(
    answer: Answer, host: str, port: int, limits: Limits | None = None
) -> RunningServer:
    """Listen on `host`:`port` (0: any) and let `answer` answer, within `limits`.

    `answer` may raise RequestRefused: the caller reads its code and text as JSON.

    Raises:
        OSError: the port is in use, or `host` is no address of this machine.
    """
    limits = limits or Limits()
    server = _Server(answer, limits)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, host, port, backlog=256)
    await site.start()
    return RunningServer(server, runner, runner.addresses[0][1])


def run_until_stopped(main: Coroutine[Any, Any, None]) -> None:
    """Run `main` until it ends or the process gets SIGINT or SIGTERM; both are polite ends."""
    import signal

    async def watched() -> None:
        task = asyncio.ensure_future(main)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            return

    asyncio.run(watched())
