"""What workers, validators and relays use: find the newest version, fetch it, verify it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncrl.broadcast.download import Download, DownloadOptions, Trust
from asyncrl.broadcast.manifest import Manifest
from asyncrl.broadcast.source import BroadcastError, Source, SourceFailed, open_session
from asyncrl.broadcast.store import Store
from asyncrl.protocol.keys import BadSignature

__all__ = ["Fetched", "WeightsClient", "fetch_weights"]

# Given to a source that is asked for its versions; the others do not wait for a dead one longer.
_ASK_SECONDS = 5.0
# Given to the others when one has named a newer version: they may know a newer one still.
_OTHERS_SECONDS = 0.05


@dataclass(frozen=True)
class Fetched:
    """A version that is here, whole and verified."""

    path: Path
    manifest: Manifest
    seconds: float
    sources: list[dict[str, Any]]
    """Of each: bytes, rate, chunks that were wrong, its last error."""


class WeightsClient:
    """Fetches versions into `folder`, from whichever of `urls` are alive and honest.

    Args:
        folder: `folder`/VERSION.weights are whole files; what is on its way is in `folder`/parts.
        urls: http://host:port of relays, or of the origin; the order does not matter.
        trust: who may have signed.
        backup_urls: sources that are asked for chunks only while one of `urls` is down.
        keep: files that stay; older ones are removed.
    """

    def __init__(
        self,
        folder: Path,
        urls: list[str],
        trust: Trust,
        *,
        backup_urls: list[str] | None = None,
        keep: int = 5,
        options: DownloadOptions | None = None,
    ) -> None:
        if not urls:
            raise ValueError("broadcast: no source is given")
        self.store = Store(folder / "parts")
        self._folder = folder
        self._trust = trust
        self._keep = keep
        self._options = options or DownloadOptions()
        self.sources = [Source(url) for url in urls]
        self.sources += [Source(url, is_backup=True) for url in backup_urls or []]
        self._session = open_session()

    async def __aenter__(self) -> WeightsClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def latest(self, after: int = -1, wait: float = 0.0) -> int | None:
        """Return the newest version above `after` that a source proves by a signed manifest.

        Waits up to `wait` seconds for one; None: there is none. A source that claims versions which
        it cannot prove is not asked again by this client.
        """
        usable = [source for source in self.sources if not source.banned]
        asked = [asyncio.create_task(self._newest_of(source, after, wait)) for source in usable]
        if not asked:
            return None
        loop = asyncio.get_running_loop()
        deadline, newest = loop.time() + wait + _ASK_SECONDS, -1
        pending = set(asked)
        while pending and loop.time() < deadline:
            done, pending = await asyncio.wait(
                pending, timeout=deadline - loop.time(), return_when=asyncio.FIRST_COMPLETED
            )
            newest = max([newest, *(task.result() for task in done)])
            if newest > after:  # the others get the time of a round trip
                deadline = min(deadline, loop.time() + _OTHERS_SECONDS)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        return newest if newest > after else None

    async def _newest_of(self, source: Source, after: int, wait: float) -> int:
        try:
            claimed = await source.versions(self._session, after, wait)
            for version in reversed([number for number in claimed if number > after]):
                data = await source.manifest(self._session, version)
                manifest = Manifest.verify(data, self._trust.signers, self._trust.run)
                if manifest.version != version:
                    raise BadSignature(f"manifest: of version {manifest.version}, not {version}")
                return version
        except BadSignature as error:
            source.banned = str(error)
        except SourceFailed as error:
            source.error = str(error)
        return -1

    def path(self, version: int) -> Path:
        return self._folder / f"{version}.weights"

    async def fetch(self, version: int | None = None, *, wait: float = 0.0) -> Fetched:
        """Bring a version here; by default the newest one, for which it waits `wait` seconds.

        Its file appears under its name only when it is whole and its SHA-256 is the signed one.
        After a failure or a kill the next call goes on with the chunks that came.

        Raises:
            BroadcastError: no source could give it; each is named with what it did.
            OSError: the disk is full; nothing is left under the file's name.
        """
        if version is None:
            version = await self._newest(wait)
            if version is None:
                told = "; ".join(f"{s.url}: {s.banned or s.error}" for s in self.sources)
                raise BroadcastError(f"broadcast: no version is announced. {told}")
        begun = time.monotonic()
        known = self.store.load(version, self._trust.signers, self._trust.run)
        if known is None or not known.is_final or not await _is_file(self.path(version), known):
            known = await self._fetch_chunks(version)
        self._remove_old()
        reports = [source.report() for source in self.sources]
        return Fetched(self.path(version), known, time.monotonic() - begun, reports)

    async def _newest(self, wait: float) -> int | None:
        deadline = time.monotonic() + wait
        while True:
            left = max(0.0, deadline - time.monotonic())
            version = await self.latest(-1, min(left, 10.0))
            if version is not None or left == 0.0:
                return version
            await asyncio.sleep(min(left, 0.2))  # also when nobody could be asked

    async def _fetch_chunks(self, version: int) -> Manifest:
        download = self.download(version)
        path = self._folder / f".{version}.weights.{os.getpid()}"
        assembly = asyncio.create_task(self._assemble(download, version, path))
        try:
            manifest = await download.run(version)
            if await assembly != manifest.sha256:
                raise BroadcastError(
                    f"broadcast: version {version}: the trainer signed another hash of the whole "
                    f"than its chunks have"
                )
            os.replace(path, self.path(version))
        finally:
            assembly.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await assembly
            path.unlink(missing_ok=True)
        # The manifest stays: it says what the file has to be.
        shutil.rmtree(self.store.chunk_path(version, 0).parent, ignore_errors=True)
        return manifest

    def download(self, version: int) -> Download:
        """Return a download of `version` into the store, not begun."""
        return Download(self._session, self.store, self.sources, self._trust, self._options)

    async def _assemble(self, download: Download, version: int, path: Path) -> str:
        """Append chunks as they come, in order; return the SHA-256 of all."""
        whole, index, restarts = hashlib.sha256(), 0, 0
        with open(path, "wb") as file:
            while not (download.is_done and download.manifest and index == download.manifest.count):
                if restarts != download.restarts:
                    whole, index, restarts = hashlib.sha256(), 0, download.restarts
                    file.seek(0)
                if not download.has(index):
                    await asyncio.sleep(0.02)
                    continue
                data = self.store.chunk_path(version, index).read_bytes()
                whole.update(data)
                file.write(data)
                index += 1
                await asyncio.sleep(0)
        return whole.hexdigest()

    def _remove_old(self) -> None:
        found = sorted(
            int(path.stem) for path in self._folder.glob("*.weights") if path.stem.isdecimal()
        )
        for version in found[: -self._keep]:
            self.path(version).unlink(missing_ok=True)
        self.store.drop(self._keep)


async def _is_file(path: Path, manifest: Manifest) -> bool:
    if not path.is_file() or path.stat().st_size != manifest.bytes_total:
        return False

    def digest() -> str:
        whole = hashlib.sha256()
        with open(path, "rb") as file:
            while data := file.read(1 << 20):
                whole.update(data)
        return whole.hexdigest()

    return await asyncio.to_thread(digest) == manifest.sha256


def fetch_weights(
    folder: Path, urls: list[str], trust: Trust, version: int | None = None
) -> Fetched:
    """WeightsClient.fetch() for programs without an event loop."""

    async def fetch() -> Fetched:
        async with WeightsClient(folder, urls, trust) as client:
            return await client.fetch(version)

    return asyncio.run(fetch())
