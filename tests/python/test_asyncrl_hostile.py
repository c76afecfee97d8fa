"""What strangers send to servers and clients over HTTP: bounded, named, and never believed."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from asyncrl.broadcast.client import Fetched, WeightsClient
from asyncrl.broadcast.download import DownloadOptions, Trust
from asyncrl.broadcast.manifest import CHUNK_BYTES_MIN
from asyncrl.broadcast.server import serve_store
from asyncrl.broadcast.source import BroadcastError
from asyncrl.broadcast.store import Publisher, Store
from asyncrl.protocol.keys import Key
from asyncrl.protocol.serving import Answer, FileAnswer, Limits, RunningServer, answer_json, serve

PATIENCE_SECONDS = 60.0
TRAINER, STRANGER = Key.from_seed(b"t" * 32), Key.from_seed(b"s" * 32)
TRUST = Trust(frozenset({TRAINER.address}), "run")
WEIGHTS = random.Random(1).randbytes(6 * CHUNK_BYTES_MIN + 7)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, PATIENCE_SECONDS))


async def fetched(folder: Path, ports: list[int], **options: Any) -> Fetched:
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    async with WeightsClient(folder, urls, TRUST, options=DownloadOptions(**options)) as client:
        return await client.fetch()


# --- hostile relays ---

Behaviour = Callable[[web.BaseRequest, Answer], Awaitable[web.StreamResponse]]


async def streamed(request: web.BaseRequest, size: int | None, pieces: int) -> web.StreamResponse:
    """A body of 64 KB pieces, which claims to have `size` bytes."""
    response = web.StreamResponse()
    response.content_length = size
    await response.prepare(request)
    for _ in range(pieces):
        await response.write(bytes(64 << 10))
    assert request.transport is not None
    request.transport.close()
    return response


async def truncated(request: web.BaseRequest, honest: Answer) -> web.StreamResponse:
    return await streamed(request, CHUNK_BYTES_MIN, 1)


async def endless(request: web.BaseRequest, honest: Answer) -> web.StreamResponse:
    return await streamed(request, None, 10**6)


async def absent(request: web.BaseRequest, honest: Answer) -> web.StreamResponse:
    return answer_json({}, 404)


async def elsewhere(request: web.BaseRequest, honest: Answer) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": "http://127.0.0.1:1/secret"})


async def zeros(request: web.BaseRequest, honest: Answer) -> web.StreamResponse:
    return web.Response(body=bytes(CHUNK_BYTES_MIN))


async def silent(request: web.BaseRequest, honest: Answer) -> web.StreamResponse:
    await asyncio.sleep(3600)
    raise AssertionError


async def garbage(request: web.BaseRequest, honest: Answer) -> web.StreamResponse:
    return web.Response(body=b"[" * 100_000)


async def another_chunk(request: web.BaseRequest, honest: Answer) -> web.StreamResponse:
    """Bytes that are signed, in the wrong place."""
    return await honest(request.clone(rel_url="/v/3/chunks/0"))


BEHAVIOURS: dict[str, tuple[str, Behaviour, str]] = {
    "truncated chunks": ("/chunks/", truncated, "not completed|more than"),
    "endless chunks": ("/chunks/", endless, "more than"),
    "no chunk that it announced": ("/chunks/", absent, "status 404"),
    "a way to somewhere else": ("/chunks/", elsewhere, "status 302"),
    "zeros": ("/chunks/", zeros, "wrong bytes|more than"),
    "another chunk": ("/chunks/", another_chunk, "wrong bytes|more than"),
    "garbage for what it has": ("/have", garbage, "not the answer of a relay"),
    "an endless manifest": ("/manifest", endless, "more than"),
    "garbage for a manifest": ("/manifest", garbage, "not a signed document"),
    "garbage for its versions": ("/versions", garbage, "/versions: more than"),
}


def hostile(store: Store, part: str, behaviour: Behaviour) -> Answer:
    honest = serve_store(store)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return await (behaviour(request, honest) if part in request.path else honest(request))

    return answer


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_a_relay_that_sends(tmp_path: Path, name: str) -> None:
    """Beside an honest one it costs nothing; alone it is named in the error."""
    part, behaviour, told = BEHAVIOURS[name]
    Publisher(tmp_path, TRAINER, "run").publish(WEIGHTS, 3)
    store = Store(tmp_path)

    async def main() -> None:
        bad = await serve(hostile(store, part, behaviour), "127.0.0.1", 0)
        good = await serve(serve_store(store), "127.0.0.1", 0)
        done = await fetched(tmp_path / "both", [bad.port, good.port])
        assert done.path.read_bytes() == WEIGHTS
        with pytest.raises(BroadcastError, match=told):
            await fetched(tmp_path / "alone", [bad.port], attempts=1, stall_seconds=0.5)
        assert not list((tmp_path / "alone").glob("*.weights"))
        await bad.close()
        await good.close()

    run(main())


def test_a_relay_that_says_nothing_is_given_up_and_the_other_serves(tmp_path: Path) -> None:
    Publisher(tmp_path, TRAINER, "run").publish(WEIGHTS, 3)

    async def main() -> None:
        bad = await serve(hostile(Store(tmp_path), "/chunks/", silent), "127.0.0.1", 0)
        good = await serve(serve_store(Store(tmp_path)), "127.0.0.1", 0)
        begun = time.monotonic()
        done = await fetched(tmp_path / "both", [bad.port, good.port])
        assert done.path.read_bytes() == WEIGHTS
        # It is not waited for until it stalls: 5 seconds and more, on any machine.
        assert all(source["error"] == "" for source in done.sources), time.monotonic() - begun
        await bad.close()
        await good.close()

    run(main())


@pytest.mark.parametrize("run_name", ["run", "other"])
def test_a_relay_with_weights_and_a_manifest_of_its_own_is_refused(
    tmp_path: Path, run_name: str
) -> None:
    """Signed by a stranger; or by the trainer, for another run. And it claims to be newer."""
    signer = STRANGER if run_name == "run" else TRAINER
    Publisher(tmp_path / "forged", signer, run_name).publish(bytes(len(WEIGHTS)), 9)
    Publisher(tmp_path / "true", TRAINER, "run").publish(WEIGHTS, 3)

    async def main() -> None:
        bad = await serve(serve_store(Store(tmp_path / "forged")), "127.0.0.1", 0)
        good = await serve(serve_store(Store(tmp_path / "true")), "127.0.0.1", 0)
        done = await fetched(tmp_path / "both", [bad.port, good.port])
        assert done.manifest.version == 3
        assert done.path.read_bytes() == WEIGHTS
        told = "who is no trainer" if run_name == "run" else "of run 'other'"
        assert told in done.sources[0]["error"]
        with pytest.raises(BroadcastError, match=told):
            await fetched(tmp_path / "alone", [bad.port])
        await bad.close()
        await good.close()

    run(main())


def test_a_manifest_of_another_version_is_not_taken_for_this_one(tmp_path: Path) -> None:
    """A relay that shows an old version, rightly signed, as the newest."""
    publisher = Publisher(tmp_path, TRAINER, "run")
    publisher.publish(WEIGHTS[:-1], 2)
    publisher.publish(WEIGHTS, 3)
    old = Store(tmp_path).manifest_path(2).read_bytes()

    async def stale(request: web.BaseRequest, honest: Answer) -> web.StreamResponse:
        return web.Response(body=old)

    async def main() -> None:
        bad = await serve(hostile(Store(tmp_path), "/manifest", stale), "127.0.0.1", 0)
        with pytest.raises(BroadcastError, match="of version 2, not 3"):
            await fetched(tmp_path / "client", [bad.port])
        await bad.close()

    run(main())


# --- hostile clients ---


async def echo(request: web.BaseRequest) -> web.StreamResponse:
    return answer_json({"path": request.path})


async def raw(server: RunningServer, data: bytes) -> tuple[asyncio.StreamReader, Any]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(data)
    return reader, writer


async def asked(server: RunningServer, path: str = "/a") -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{server.port}{path}") as response,
    ):
        await response.read()
        return response.status


def test_idle_sockets_and_endless_headers_keep_nobody_out() -> None:
    """More of them than the server takes; everybody else is served at once, and they are closed."""

    async def main() -> None:
        limits = Limits(connections=20, connections_per_host=20, idle_seconds=0.5)
        server = await serve(echo, "127.0.0.1", 0, limits)
        strangers = [await raw(server, b"" if i % 2 else b"GET / HT") for i in range(60)]
        assert await asked(server) == 200
        assert server.counters["evicted"] >= 40
        for reader, writer in strangers:
            assert await asyncio.wait_for(closed(reader), PATIENCE_SECONDS)
            writer.close()
        assert server.counters["idle"] > 0
        await server.close()

    run(main())


async def closed(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionError:
        return True


def test_whoever_does_not_read_is_hung_up_on(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(16 << 20))

    async def large(request: web.BaseRequest) -> web.StreamResponse:
        if request.path != "/large":
            return await echo(request)
        return FileAnswer(tmp_path / "large", request, {})

    async def main() -> None:
        limits = Limits(bytes_per_second_min=1 << 40, answer_seconds=0.3)
        server = await serve(large, "127.0.0.1", 0, limits)
        _, writer = await raw(server, b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        while not server.counters["slow"]:
            assert await asked(server) == 200
            await asyncio.sleep(0.05)
        writer.close()
        await server.close()

    run(main())


def test_a_flood_of_requests_is_told_to_wait() -> None:
    async def main() -> None:
        server = await serve(echo, "127.0.0.1", 0, Limits(requests_per_second=5))
        found = [await asked(server) for _ in range(20)]
        assert found[:10] == [200] * 10
        assert 429 in found
        assert server.counters["rate"] == found.count(429)
        await server.close()

    run(main())


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01\x02", b"GET /" + b"a" * 100_000, b"\0" * 1000, b"GET / HTTP/1.1\r\n\r\n" * 500],
)
def test_bytes_that_are_no_request_end_their_connection_only(data: bytes) -> None:
    async def main() -> None:
        server = await serve(echo, "127.0.0.1", 0, Limits(idle_seconds=0.5))
        reader, writer = await raw(server, data)
        assert await asked(server) == 200
        writer.close()
        await asyncio.wait_for(closed_after_data(reader), PATIENCE_SECONDS)
        assert await asked(server) == 200
        await server.close()

    run(main())


async def closed_after_data(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(1 << 16):
            pass
    except ConnectionError:
        return


def test_an_error_of_ours_is_told_without_its_text() -> None:
    async def broken(request: web.BaseRequest) -> web.StreamResponse:
        raise KeyError("a secret")

    async def main() -> None:
        server = await serve(broken, "127.0.0.1", 0)
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{server.port}/") as response,
        ):
            assert response.status == 500
            assert "secret" not in json.dumps(await response.json())
        assert server.counters["errors"] == 1
        await server.close()

    run(main())
