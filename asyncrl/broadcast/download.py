"""One version, from several sources at once, into a store.

Each source has a few connections, and each takes the next chunk when it is free, so a source serves
in proportion to its rate. A chunk is kept when its hash is right; otherwise another source is asked
for it. A chunk that takes much longer than it should is asked for elsewhere as well, and the first
to come counts: so a source that stands still costs a chunk's time and not a timeout.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import aiohttp

from asyncrl.broadcast.manifest import Manifest
from asyncrl.broadcast.source import BroadcastError, Source, SourceFailed
from asyncrl.broadcast.store import Store
from asyncrl.protocol.keys import BadSignature

__all__ = ["Download", "DownloadOptions", "Trust"]

# Two connections to the same source that divide its rate are no reason to ask elsewhere.
_HEDGE_SECONDS = 0.5


@dataclass(frozen=True)
class Trust:
    """Whose weights are taken: addresses of the trainers' keys, and the run's name."""

    signers: Collection[str]
    run: str


@dataclass(frozen=True, kw_only=True)
class DownloadOptions:
    connections: int = 3
    """To each source."""

    attempts: int = 6
    """Failures of a source in a row until it is given up; together about ten seconds."""

    timeout_seconds: float = 3600.0
    """For a whole version."""

    stall_seconds: float = 60.0
    """Without one new chunk."""

    progress: Callable[[int, int], None] | None = None
    """Called with chunks held and chunks in all."""


class Download:
    """A version on its way into `store`; run() it once.

    Args:
        sources: origin or relays. Those with `is_backup` serve only while another one is down, and
            what they hold is asked for last: so relays that feed each other share the origin's
            work and fetch different chunks first.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        store: Store,
        sources: list[Source],
        trust: Trust,
        options: DownloadOptions,
    ) -> None:
        self._session = session
        self._store = store
        self._sources = sources
        self._trust = trust
        self._options = options
        self._version = -1
        self.manifest: Manifest | None = None
        self.restarts = 0
        """How often the writer began anew: chunks from before are of other bytes."""

        self._missing: set[int] = set()
        self._under_way: dict[int, list[tuple[Source, float]]] = {}
        self._parts: dict[int, tuple[bytearray, set[str]]] = {}
        self._waiting: set[asyncio.Future[None]] = set()
        self._last_chunk_at = 0.0
        self._lots: list[int] = []

    @property
    def held(self) -> int:
        """Chunks that are here and verified."""
        return self.manifest.count - len(self._missing) if self.manifest else 0

    def has(self, index: int) -> bool:
        return self.manifest is not None and index not in self._missing

    @property
    def is_done(self) -> bool:
        return self.manifest is not None and self.manifest.is_final and not self._missing

    async def run(self, version: int) -> Manifest:
        """Fetch all that is missing of `version`; return its final manifest.

        Raises:
            BroadcastError: no source could give it in time. What came is kept.
        """
        self._version = version
        manifest = self._store.load(version, self._trust.signers, self._trust.run)
        if manifest is not None:
            held = await asyncio.to_thread(self._store.verify, manifest)
            self.manifest = manifest
            self._missing = set(range(manifest.count)) - held
            self._report()
        self._last_chunk_at = time.monotonic()
        if self.is_done:
            return self._done()
        for source in self._sources:
            source.begin()
        tasks = []
        for source in self._sources:
            tasks.append(asyncio.create_task(self._watch(source)))
            tasks += [
                asyncio.create_task(self._take_chunks(source, number))
                for number in range(self._options.connections)
            ]
        try:
            await asyncio.wait_for(self._wait_until_done(tasks), self._options.timeout_seconds)
        except asyncio.TimeoutError:
            raise self._failure(f"not done in {self._options.timeout_seconds:.0f} s") from None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return self._done()

    def _done(self) -> Manifest:
        assert self.manifest is not None
        return self.manifest

    async def _wait_until_done(self, tasks: list[asyncio.Task[None]]) -> None:
        while not self.is_done:
            for task in tasks:
                if task.done() and task.exception():
                    task.result()  # a full disk, or a fault of ours
            if all(
                source.banned or source.failures >= self._options.attempts
                for source in self._sources
            ):
                raise self._failure("no source is left")
            quiet = time.monotonic() - self._last_chunk_at
            if quiet > self._options.stall_seconds:
                raise self._failure(f"no new chunk for {quiet:.0f} s")
            await self._wait_for_change(0.25)

    def _failure(self, reason: str) -> BroadcastError:
        count = self.manifest.count if self.manifest else "?"
        told = "; ".join(
            f"{source.url}: {source.banned or source.error or 'no error'}"
            for source in self._sources
        )
        return BroadcastError(
            f"broadcast: version {self._version}, {self.held} of {count} chunks: {reason}. {told}"
        )

    async def _wait_for_change(self, seconds: float) -> None:
        # Not wait_for(): before Python 3.12 it may swallow the cancellation that ends a task.
        loop = asyncio.get_running_loop()
        changed = loop.create_future()
        self._waiting.add(changed)
        timer = loop.call_later(seconds, _wake, changed)
        try:
            await changed
        finally:
            timer.cancel()
            self._waiting.discard(changed)

    def _tell(self) -> None:
        for changed in self._waiting:
            _wake(changed)

    def _report(self) -> None:
        if self._options.progress and self.manifest:
            self._options.progress(self.held, self.manifest.count)

    # --- what a source has ---

    async def _watch(self, source: Source) -> None:
        state = ""
        while not source.banned:
            try:
                if self.manifest is None or not self.manifest.is_final:
                    await self._adopt(await source.manifest(self._session, self._version))
                assert self.manifest is not None
                count = self.manifest.count
                state, held = await source.have(self._session, self._version, state, count)
                source.held = held - source.excluded
                source.failures = 0
            except SourceFailed as error:
                source.fail(str(error))
                state = ""
            except BadSignature as error:
                source.banned = str(error)
            self._tell()
            await source.rest()

    async def _adopt(self, data: bytes) -> None:
        """Take a manifest if it tells more than the one known.

        Raises:
            BadSignature: it is not one of the trainer's for this version.
        """
        new, old = Manifest.verify(data, self._trust.signers, self._trust.run), self.manifest
        if new.version != self._version:
            raise BadSignature(f"manifest: of version {new.version}, not {self._version}")
        if old is not None and (old.is_final or not new.extends(old)):
            if old.is_final or not new.is_final:
                return  # an older one, or a writer that began anew: its final one decides
            self.manifest = None
        if self.manifest is None:
            self._missing = set(range(new.count))
        self.manifest = new
        self._store.put_manifest(self._version, data)
        if old is not None and not new.extends(old):
            self.restarts += 1
            for source in self._sources:
                source.excluded.clear()
                source.wrong.clear()
            self._missing -= await asyncio.to_thread(self._store.verify, new)

    # --- chunks ---

    def _pick(self, source: Source) -> int | None:
        """Choose what this source is asked for next; None: nothing for now."""
        manifest = self.manifest
        if manifest is None or source.banned:
            return None
        if source.is_backup and not any(
            other.is_down for other in self._sources if not other.is_backup
        ):
            return None
        wanted = {
            index
            for index in (source.held & self._missing) - source.excluded
            if index < len(manifest.chunks)
        }
        free = wanted - self._under_way.keys()
        if free:
            return min(free, key=self._rank)
        now = time.monotonic()
        late = [
            (tries[0][1], index)
            for index in wanted & self._under_way.keys()
            for tries in [self._under_way[index]]
            if len(tries) == 1
            and tries[0][0] is not source
            # Twice the time that this source needs, or more: it would be here already.
            and now - tries[0][1] > 2 * source.seconds_for(manifest.size_of(index)) + _HEDGE_SECONDS
        ]
        return min(late)[1] if late else None

    def _rank(self, index: int) -> tuple[int, int]:
        """A relay: what fewest of its siblings have, by lot, since what they are just fetching is
        not announced yet, and whoever goes in order follows them. A client: in order, so that it
        puts the file together meanwhile."""
        assert self.manifest is not None
        siblings = [source for source in self._sources if source.is_backup]
        if not siblings:
            return 0, index
        if len(self._lots) != self.manifest.count:
            self._lots = random.sample(range(self.manifest.count), self.manifest.count)
        return sum(index in source.held for source in siblings), self._lots[index]

    async def _take_chunks(self, source: Source, number: int) -> None:
        """The source's connection of that number."""
        while not source.banned:
            await source.rest()
            # The fewer share the line at first, the sooner there is a whole chunk to pass on.
            index = self._pick(source) if number < 2 + self.held else None
            if index is None:
                await self._wait_for_change(0.25)
                continue
            tries = self._under_way.setdefault(index, [])
            tries.append((source, time.monotonic()))
            try:
                await self._take(source, index)
            except SourceFailed as error:
                source.fail(str(error))
                if "status 4" in str(error):
                    source.held.discard(index)  # until it announces something else
            finally:
                tries[:] = [it for it in tries if it[0] is not source]
                if not tries:
                    self._under_way.pop(index, None)
            self._tell()

    async def _take(self, source: Source, index: int) -> None:
        assert self.manifest is not None
        manifest, begun = self.manifest, time.monotonic()
        size = manifest.size_of(index)
        # Only one try goes on with what an earlier one left; another at the same time begins anew.
        part, givers = self._parts.pop(index, (bytearray(), set()))
        givers.add(source.url)
        had = len(part)
        try:
            await source.chunk(self._session, f"/v/{self._version}/chunks/{index}", part, size)
        except SourceFailed:
            if part and index in self._missing:
                self._parts[index] = (part, givers)
            raise
        if self.manifest is not manifest and not (
            self.manifest and self.manifest.extends(manifest)
        ):
            return  # the writer began anew
        if hashlib.sha256(part).hexdigest() != manifest.chunks[index]:
            if len(givers) == 1:
                source.blame(index, manifest.is_final)
            return
        source.succeed(size - had, time.monotonic() - begun)
        if index in self._missing:
            self._store.put_chunk(self._version, index, bytes(part))
            self._missing.discard(index)
            self._parts.pop(index, None)
            self._last_chunk_at = time.monotonic()
            self._report()


def _wake(changed: asyncio.Future[None]) -> None:
    if not changed.done():
        changed.set_result(None)
