"""Versions of the weights on disk, a file a chunk; and the publisher, which writes them.

    FOLDER/v/VERSION/manifest          signed, replaced as a whole
    FOLDER/v/VERSION/chunks/INDEX      there only when it is complete and verified

The folder is the state: whoever serves it looks into it, and a process that is killed leaves either
a chunk or none. So a restart loses nothing, and an ordinary web server can serve it as well.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Collection
from pathlib import Path

from asyncrl.broadcast.manifest import CHUNK_BYTES_MAX, Manifest, chunk_bytes_for
from asyncrl.protocol.keys import BadSignature, Key

__all__ = ["Publisher", "Store", "VersionWriter"]

# A folder's time of change has the resolution of the kernel's tick; a listing younger than that may
# have missed a file of the same tick.
_SETTLED_SECONDS = 0.05


def write_whole(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: readers see the old bytes or the new ones, never a part.

    Not synced to the disk: after a power cut a hash tells, and the chunk is fetched again.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


class Store:
    """A folder of versions. Several processes may read it while one writes.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listings: dict[int, tuple[int, float, frozenset[int]]] = {}
        (folder / "v").mkdir(parents=True, exist_ok=True)

    def manifest_path(self, version: int) -> Path:
        return self.folder / "v" / str(version) / "manifest"

    def chunk_path(self, version: int, index: int) -> Path:
        return self.folder / "v" / str(version) / "chunks" / str(index)

    def versions(self) -> list[int]:
        """Return what is here, wholly or in part, ascending."""
        names = [name for name in os.listdir(self.folder / "v") if name.isdecimal()]
        return sorted(int(name) for name in names if self.manifest_path(int(name)).exists())

    def held(self, version: int) -> frozenset[int]:
        """Return the chunks that are here. Costs one stat while nothing changes."""
        folder = self.folder / "v" / str(version) / "chunks"
        try:
            changed = os.stat(folder).st_mtime_ns
        except FileNotFoundError:
            return frozenset()
        known = self._listings.get(version)
        if known and known[0] == changed and known[1] > changed / 1e9 + _SETTLED_SECONDS:
            return known[2]
        now = time.time()
        found = frozenset(int(name) for name in os.listdir(folder) if name.isdecimal())
        self._listings[version] = (changed, now, found)
        return found

    def put_manifest(self, version: int, data: bytes) -> None:
        (self.folder / "v" / str(version) / "chunks").mkdir(parents=True, exist_ok=True)
        write_whole(self.manifest_path(version), data)

    def put_chunk(self, version: int, index: int, data: bytes) -> None:
        """Keep a chunk that the caller has verified."""
        write_whole(self.chunk_path(version, index), data)

    def verify(self, manifest: Manifest) -> set[int]:
        """Return the chunks that are here and right; remove those that are not. 0.6 ms a MB."""
        right = set()
        for index in self.held(manifest.version):
            path = self.chunk_path(manifest.version, index)
            known = index < len(manifest.chunks)
            if known and hashlib.sha256(path.read_bytes()).hexdigest() == manifest.chunks[index]:
                right.add(index)
            else:
                path.unlink(missing_ok=True)
        return right

    def load(self, version: int, signers: Collection[str], run: str) -> Manifest | None:
        """Return the manifest kept for `version`; None if there is none that is right."""
        try:
            data = self.manifest_path(version).read_bytes()
            manifest = Manifest.verify(data, signers, run)
        except (OSError, BadSignature):
            return None
        return manifest if manifest.version == version else None

    def drop(self, keep: int) -> list[int]:
        """Remove all but the newest `keep` versions; return those removed."""
        old = self.versions()[:-keep]
        for version in old:
            # The manifest first: what has none is not announced.
            self.manifest_path(version).unlink(missing_ok=True)
            shutil.rmtree(self.folder / "v" / str(version), ignore_errors=True)
            self._listings.pop(version, None)
        return old


class Publisher:
    """Writes versions for an origin to serve, and signs them. Used in the trainer's process.

    A version may be written piece by piece: relays fetch its first chunks while the last ones are
    still to come.

    Args:
        folder: the one that `python -m asyncrl.broadcast origin` serves.
        key: the trainer's; clients take weights of its address only.
        run: the run's name.
        keep: versions that stay; a worker that far behind has to take a newer one.
    """

    def __init__(self, folder: Path, key: Key, run: str, *, keep: int = 5) -> None:
        if keep < 1:
            raise ValueError(f"publisher: keep: expected 1 or more, got {keep}")
        self._store = Store(folder)
        self._key = key
        self._run = run
        self._keep = keep

    def publish(self, data: bytes, version: int, model: str = "") -> Manifest:
        """Publish a whole file that is in memory; return its manifest. 1.5 ms a MB.

        Its first chunks are on their way before the last are written.

        Raises:
            ValueError: the version is there already, or older than what is there.
            OSError: the disk is full; the version has no end, and may be published again.
        """
        writer = self.begin(version, len(data), model)
        view = memoryview(data)
        for begin in range(0, len(view), CHUNK_BYTES_MAX):
            writer.write(view[begin : begin + CHUNK_BYTES_MAX])
        return writer.finish()

    def begin(self, version: int, size: int, model: str = "") -> VersionWriter:
        """Begin a version of `size` bytes; its manifest is announced with the first chunk."""
        signers = (self._key.address,)
        kept = (self._store.load(known, signers, self._run) for known in self._store.versions())
        # One that a killed writer left unfinished may be written anew.
        newest = max((known.version for known in kept if known and known.is_final), default=-1)
        if version <= newest:
            raise ValueError(f"publisher: version {version} is not newer than {newest}")
        manifest = Manifest(self._run, version, size, chunk_bytes_for(size), model, ())
        return VersionWriter(self._store, self._key, manifest, self._keep)


class VersionWriter:
    """A version that is being written: write() its bytes in order, then finish()."""

    # A manifest is signed again not more often: 1 MB of hashes a time for the largest files.
    _ANNOUNCE_SECONDS = 0.1

    def __init__(self, store: Store, key: Key, manifest: Manifest, keep: int) -> None:
        self._store = store
        self._key = key
        self._manifest = manifest
        self._keep = keep
        self._chunks: list[str] = []
        self._rest = b""
        self._whole = hashlib.sha256()
        self._announced_at = 0.0
        # What a killed writer left of this version is not of this one.
        shutil.rmtree(store.folder / "v" / str(manifest.version), ignore_errors=True)
        store.put_manifest(manifest.version, manifest.sign(key).to_bytes())

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes; whole chunks go out at once."""
        self._whole.update(data)
        view, at, size = memoryview(data).cast("B"), 0, self._manifest.chunk_bytes
        if self._rest:
            at = size - len(self._rest)
            self._rest += view[:at]
            if len(self._rest) < size:
                return
            self._put(self._rest)
            self._rest = b""
        while at + size <= len(view):
            self._put(bytes(view[at : at + size]))
            at += size
        self._rest = bytes(view[at:])
        if time.monotonic() - self._announced_at > self._ANNOUNCE_SECONDS:
            self._announce("")

    def finish(self) -> Manifest:
        """Announce the whole; drop old versions.

        Raises:
            ValueError: other than the announced number of bytes was written.
        """
        if self._rest:
            self._put(self._rest)
            self._rest = b""
        manifest = self._announce(self._whole.hexdigest())
        self._store.drop(self._keep)
        return manifest

    def _put(self, chunk: bytes) -> None:
        index = len(self._chunks)
        if index >= self._manifest.count or len(chunk) != self._manifest.size_of(index):
            raise ValueError(
                f"publisher: version {self._manifest.version} has other than the "
                f"{self._manifest.bytes_total} bytes that were announced"
            )
        self._store.put_chunk(self._manifest.version, index, chunk)
        self._chunks.append(hashlib.sha256(chunk).hexdigest())

    def _announce(self, sha256: str) -> Manifest:
        known = self._manifest
        manifest = Manifest(
            *(known.run, known.version, known.bytes_total, known.chunk_bytes, known.model),
            tuple(self._chunks),
            sha256,
        )
        self._store.put_manifest(known.version, manifest.sign(self._key).to_bytes())
        self._announced_at = time.monotonic()
        return manifest
