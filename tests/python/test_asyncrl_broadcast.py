"""Weights from an origin over relay processes that die, lie, stand still and come back."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from asyncrl_processes import PATIENCE_SECONDS, ServingProcess, start_relay, two_relays
from coordinator_processes import environment

import asyncrl.broadcast
from asyncrl.broadcast.client import Fetched, WeightsClient
from asyncrl.broadcast.download import DownloadOptions, Trust
from asyncrl.broadcast.manifest import CHUNK_BYTES_MIN, Manifest, chunk_bytes_for
from asyncrl.broadcast.server import bitmap, from_bitmap
from asyncrl.broadcast.source import BroadcastError
from asyncrl.broadcast.store import Publisher, Store, VersionWriter
from asyncrl.protocol.keys import BadSignature, Key

TRAINER = Key.from_seed(b"t" * 32)
TRUST = Trust(frozenset({TRAINER.address}), "run")
# 24 chunks and a rest.
WEIGHTS = random.Random(1).randbytes(24 * CHUNK_BYTES_MIN + 12345)


def fetch(folder: Path, urls: list[str], version: int | None = None, **options: float) -> Fetched:
    async def run() -> Fetched:
        chosen = DownloadOptions(**options)  # type: ignore[arg-type]
        async with WeightsClient(folder, urls, TRUST, options=chosen) as client:
            return await asyncio.wait_for(client.fetch(version), PATIENCE_SECONDS)

    return asyncio.run(run())


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:
        return bytes(answer.read())


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServingProcess, Path]]:
    """An origin that serves version 3."""
    folder = tmp_path_factory.mktemp("origin")
    Publisher(folder, TRAINER, "run").publish(WEIGHTS, 3, "model")
    with ServingProcess("asyncrl.broadcast", "origin", "--folder", folder) as process:
        yield process, folder


# --- manifests, stores ---


def test_a_file_is_cut_into_about_256_chunks_of_256_kb_to_4_mb() -> None:
    sizes = [chunk_bytes_for(size) >> 10 for size in (1, 7_200_000, 200_000_000, 62_000_000_000)]
    assert sizes == [256, 256, 1024, 4096]


@pytest.mark.parametrize("size", [1, CHUNK_BYTES_MIN - 1, CHUNK_BYTES_MIN, CHUNK_BYTES_MIN * 2 + 1])
def test_what_is_written_in_pieces_is_what_is_published(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    writer = Publisher(tmp_path, TRAINER, "run").begin(0, size)
    draw, at = random.Random(2), 0
    while at < size:
        step = draw.choice((1, 1000, CHUNK_BYTES_MIN, 3 * CHUNK_BYTES_MIN))
        writer.write(data[at : at + step])
        at += step
    manifest = writer.finish()
    store = Store(tmp_path)
    assert store.load(0, TRUST.signers, "run") == manifest
    assert manifest.sha256 == hashlib.sha256(data).hexdigest()
    found = b"".join(store.chunk_path(0, i).read_bytes() for i in range(manifest.count))
    assert found == data
    assert store.verify(manifest) == set(range(manifest.count))


def test_the_first_chunks_are_announced_before_the_last_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VersionWriter, "_ANNOUNCE_SECONDS", -1.0)
    announced: list[tuple[int, int]] = []
    put = Store.put_manifest

    def put_manifest(store: Store, version: int, data: bytes) -> None:
        manifest = Manifest.verify(data, TRUST.signers, "run")
        announced.append((len(manifest.chunks), len(store.held(version))))
        put(store, version, data)

    monkeypatch.setattr(Store, "put_manifest", put_manifest)
    Publisher(tmp_path, TRAINER, "run").publish(WEIGHTS, 1)
    assert announced == [(0, 0), (16, 16), (24, 24), (25, 25)]  # 4 MB each


def test_a_version_must_be_newer_and_as_long_as_announced(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path, TRAINER, "run", keep=2)
    for version in (1, 2, 3):
        publisher.publish(b"weights", version)
    assert Store(tmp_path).versions() == [2, 3]
    with pytest.raises(ValueError, match="not newer than 3"):
        publisher.publish(b"weights", 3)
    for data in (b"short", b"longer than that"):
        writer = publisher.begin(4, 7)

        def write_all(writer: VersionWriter = writer, data: bytes = data) -> None:
            writer.write(data)
            writer.finish()

        with pytest.raises(ValueError, match="other than the 7 bytes"):
            write_all()
        Store(tmp_path).manifest_path(4).unlink()


def test_a_manifest_of_another_signer_run_or_form_is_refused() -> None:
    manifest = Manifest("run", 3, 10, CHUNK_BYTES_MIN, "model", ("0" * 64,), "1" * 64)
    data = manifest.sign(TRAINER).to_bytes()
    assert Manifest.verify(data, TRUST.signers, "run") == manifest
    with pytest.raises(BadSignature, match="no trainer"):
        Manifest.verify(manifest.sign(Key.generate()).to_bytes(), TRUST.signers, "run")
    with pytest.raises(BadSignature, match="of run 'run', not 'other'"):
        Manifest.verify(data, TRUST.signers, "other")
    for text in (b"", data[:-9], data.replace(b"000", b"00g", 1), b"{}"):
        with pytest.raises(BadSignature):
            Manifest.verify(text, TRUST.signers, "run")
    for change in (
        {"bytes_total": 1 << 50},
        {"chunk_bytes": 1},
        {"chunks": ()},
        {"chunks": ("0" * 64,) * 2},
        {"version": 1.5},
        {"sha256": "zz"},
    ):
        with pytest.raises(ValueError, match="manifest"):
            Manifest(**{**vars(manifest), **change})


def test_bitmaps_are_exact_and_bounded() -> None:
    for held in (frozenset[int](), frozenset({0}), frozenset({7, 8, 300}), frozenset(range(257))):
        assert from_bitmap(bitmap(held), 301) == held
    with pytest.raises(ValueError, match="digits for 8 chunks"):
        from_bitmap("f" * 100, 8)


# --- processes ---


def test_any_relay_that_is_alive_is_enough(
    tmp_path: Path, origin: tuple[ServingProcess, Path]
) -> None:
    """Both; then one killed in the middle; then one that stands still; then one dead from the
    start. Never a wrong byte."""
    with two_relays(tmp_path, origin[0].url, TRAINER.address) as (first, second):
        urls = [first.url, second.url]
        done = fetch(tmp_path / "both", urls)
        assert done.path.read_bytes() == WEIGHTS
        assert (done.manifest.version, done.manifest.model) == (3, "model")
        assert all(source["chunks"] > 0 for source in done.sources)
        assert sum(source["bytes"] for source in done.sources) == len(WEIGHTS)
        # Again: it is there.
        assert fetch(tmp_path / "both", urls, 3).sources[0]["bytes"] == 0
        first.process.send_signal(signal.SIGSTOP)
        still = fetch(tmp_path / "still", urls)
        assert still.path.read_bytes() == WEIGHTS
        first.process.send_signal(signal.SIGCONT)
        held = kill_in_the_middle(tmp_path / "killed", urls, first)
        assert 0 < held < 25
        assert fetch(tmp_path / "dead", urls).path.read_bytes() == WEIGHTS
        second.end()
        with pytest.raises(BroadcastError, match="no version is announced") as raised:
            fetch(tmp_path / "none", urls)
        assert all(url in str(raised.value) for url in urls)
        with pytest.raises(BroadcastError, match="0 of \\? chunks: no source is left"):
            fetch(tmp_path / "none", urls, 3, attempts=2)


def kill_in_the_middle(folder: Path, urls: list[str], victim: ServingProcess) -> int:
    """Kill `victim` when the first chunk has come; the chunks held at that moment."""
    held_at_kill: list[int] = []

    def progress(held: int, _: int) -> None:
        if not held_at_kill:
            held_at_kill.append(held)
            victim.end()

    async def run() -> Fetched:
        options = DownloadOptions(progress=progress, connections=1)
        async with WeightsClient(folder, urls, TRUST, options=options) as client:
            return await asyncio.wait_for(client.fetch(3), PATIENCE_SECONDS)

    assert asyncio.run(run()).path.read_bytes() == WEIGHTS
    return held_at_kill[0]


def test_wrong_bytes_of_a_relay_are_named_and_come_from_the_other(
    tmp_path: Path, origin: tuple[ServingProcess, Path]
) -> None:
    with two_relays(tmp_path, origin[0].url, TRAINER.address) as (bad, good):
        for path in (tmp_path / "relay 0" / "parts" / "v" / "3" / "chunks").iterdir():
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        done = fetch(tmp_path / "client", [bad.url, good.url])
        assert done.path.read_bytes() == WEIGHTS
        told = {source["url"]: source for source in done.sources}
        assert told[bad.url]["wrong"]
        assert told[bad.url]["chunks"] == 0
        assert told[good.url]["wrong"] == []
        # Alone it is an error that names it, and nothing stands under the final name.
        with pytest.raises(BroadcastError, match="sent wrong bytes for chunk"):
            fetch(tmp_path / "alone", [bad.url])
        assert not list((tmp_path / "alone").glob("*.weights"))


def test_a_relay_restarted_over_its_data_fetches_nothing_again(tmp_path: Path) -> None:
    Publisher(tmp_path / "o", TRAINER, "run").publish(WEIGHTS, 3)
    relay = tmp_path / "relay"
    with ServingProcess("asyncrl.broadcast", "origin", "--folder", tmp_path / "o") as source:
        with start_relay(relay, source.url, TRAINER.address) as process:
            process.wait_for("complete")
        chunks = relay / "parts" / "v" / "3" / "chunks"
        before = {path.name: path.stat().st_mtime_ns for path in chunks.iterdir()}
        rotten = chunks / "7"
        rotten.write_bytes(bytes(CHUNK_BYTES_MIN))
        with start_relay(relay, source.url, TRAINER.address) as process:
            process.wait_for("complete")
            after = {path.name: path.stat().st_mtime_ns for path in chunks.iterdir()}
            assert {name for name in before if before[name] != after[name]} == {"7"}
            source.end()
            assert fetch(tmp_path / "client", [process.url]).path.read_bytes() == WEIGHTS


def test_a_fetch_that_is_killed_goes_on_where_it_was(
    tmp_path: Path, origin: tuple[ServingProcess, Path]
) -> None:
    """The command, as a process: the chunks that came are not fetched again."""
    command = [
        *(sys.executable, "-m", "asyncrl.broadcast", "fetch", origin[0].url, "--run", "run"),
        *("--folder", str(tmp_path), "--signer", TRAINER.address),
    ]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    chunks = tmp_path / "parts" / "v" / "3" / "chunks"
    while process.poll() is None and not (chunks.is_dir() and any(chunks.glob("[0-9]*"))):
        threading.Event().wait(0.002)
    process.kill()
    process.wait(PATIENCE_SECONDS)
    held = len(list(chunks.glob("[0-9]*"))) if chunks.is_dir() else 25
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    told = json.loads(done.stdout)
    assert Path(told["path"]).read_bytes() == WEIGHTS
    if held < 25:  # otherwise it was through before it was killed
        assert told["sources"][0]["chunks"] == 25 - held


def test_chunks_travel_while_the_origin_still_writes(
    tmp_path: Path, origin: tuple[ServingProcess, Path]
) -> None:
    """A client holds what was written before it is told how it ends."""
    process, folder = origin
    half = 12 * CHUNK_BYTES_MIN
    version = 4
    writer = Publisher(folder, TRAINER, "run").begin(version, len(WEIGHTS))
    writer.write(WEIGHTS[:half])
    written = asyncio.Event()

    async def run() -> tuple[int, Fetched]:
        def progress(held: int, _: int) -> None:
            if held == 12:
                written.set()

        options = DownloadOptions(progress=progress)
        client = WeightsClient(tmp_path, [process.url], TRUST, options=options)
        async with client:
            fetching = asyncio.create_task(client.fetch(version))
            await asyncio.wait_for(written.wait(), PATIENCE_SECONDS)
            before = len(client.store.held(version))
            assert not client.path(version).exists()
            writer.write(WEIGHTS[half:])
            writer.finish()
            return before, await asyncio.wait_for(fetching, PATIENCE_SECONDS)

    before, done = asyncio.run(run())
    assert before == 12
    assert done.path.read_bytes() == WEIGHTS
    # Only what is there is announced.
    have = json.loads(get(f"{process.url}/v/{version}/have"))["have"]
    assert from_bitmap(have, 25) == set(range(25))


def test_a_writer_that_died_begins_anew_and_its_first_bytes_are_not_kept(
    tmp_path: Path, origin: tuple[ServingProcess, Path]
) -> None:
    """A client already has chunks of the first attempt; the second one has other bytes."""
    process, folder = origin
    other = random.Random(2).randbytes(len(WEIGHTS))
    Publisher(folder, TRAINER, "run").begin(5, len(WEIGHTS)).write(WEIGHTS[: 12 * CHUNK_BYTES_MIN])

    async def run() -> Fetched:
        written = asyncio.Event()
        options = DownloadOptions(progress=lambda held, _: written.set() if held > 2 else None)
        async with WeightsClient(tmp_path, [process.url], TRUST, options=options) as client:
            fetching = asyncio.create_task(client.fetch(5))
            await asyncio.wait_for(written.wait(), PATIENCE_SECONDS)
            Publisher(folder, TRAINER, "run").publish(other, 5)
            return await asyncio.wait_for(fetching, PATIENCE_SECONDS)

    assert asyncio.run(run()).path.read_bytes() == other


@pytest.mark.skipif(shutil.which("nginx") is None, reason="no nginx: apt-get install nginx-light")
def test_nginx_is_a_relay_by_the_configuration_that_is_shipped(
    tmp_path: Path, origin: tuple[ServingProcess, Path]
) -> None:
    """It keeps each chunk, cuts ranges from it, and serves one that the origin has no more."""
    process, folder = origin
    template = (Path(asyncrl.broadcast.__file__).parent / "nginx.conf").read_text()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    tmp_path.chmod(0o777)  # its workers are another user
    for part in tmp_path.parents[:2]:
        part.chmod(part.stat().st_mode | 0o111)
    for name, value in (
        ("@ORIGIN@", process.url.removeprefix("http://")),
        ("@LISTEN@", f"127.0.0.1:{port}"),
        ("@CACHE@", str(tmp_path)),
    ):
        template = template.replace(name, value)
    (tmp_path / "nginx.conf").write_text(template)
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(["nginx", "-c", str(tmp_path / "nginx.conf")], stderr=log) as nginx,
    ):
        try:
            wait_until_open(port)
            url = f"http://127.0.0.1:{port}"
            assert fetch(tmp_path / "a", [url], 3).path.read_bytes() == WEIGHTS
            cached = [path for path in (tmp_path / "chunks").rglob("*") if path.is_file()]
            assert len(cached) == 25
            request = urllib.request.Request(f"{url}/v/3/chunks/0", headers={"Range": "bytes=5-9"})
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
                assert (answer.status, answer.read()) == (206, WEIGHTS[5:10])
            chunk = folder / "v" / "3" / "chunks" / "0"
            chunk.rename(tmp_path / "away")
            try:
                assert get(f"{url}/v/3/chunks/0") == WEIGHTS[:CHUNK_BYTES_MIN]
            finally:
                (tmp_path / "away").rename(chunk)
        finally:
            nginx.terminate()
    assert b"emerg" not in (tmp_path / "log").read_bytes()


def wait_until_open(port: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise AssertionError(f"nothing listens on {port}")
