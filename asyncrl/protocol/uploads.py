"""The table of files that workers sent, and of the verdicts on them."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from asyncrl.validation.verdict import SignedVerdict

__all__ = ["Upload", "Uploads"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
  sha256 TEXT PRIMARY KEY, address TEXT NOT NULL, step INTEGER NOT NULL,
  submission_index INTEGER NOT NULL, bytes INTEGER NOT NULL, received REAL NOT NULL,
  state TEXT NOT NULL DEFAULT 'pending', reason TEXT NOT NULL DEFAULT '',
  detail TEXT NOT NULL DEFAULT '', units INTEGER NOT NULL DEFAULT 0, decided INTEGER);
CREATE UNIQUE INDEX IF NOT EXISTS in_order ON files (address, step, submission_index);
CREATE INDEX IF NOT EXISTS by_state ON files (state, step);
CREATE UNIQUE INDEX IF NOT EXISTS by_decision ON files (decided);
CREATE TABLE IF NOT EXISTS verdicts (
  file TEXT NOT NULL, validator TEXT NOT NULL, data BLOB NOT NULL, received REAL NOT NULL,
  PRIMARY KEY (file, validator, data));
"""


@dataclass(frozen=True)
class Upload:
    """A file that came, with what the coordinator knows of it."""

    sha256: str
    address: str
    step: int
    submission_index: int
    bytes: int
    received: float
    state: str = "pending"
    """"pending", "accepted", "refused", or "undecided": the validators disagree."""

    reason: str = ""
    detail: str = ""
    units: int = 0
    decided: int | None = None
    """Its place in the order of decisions."""


class Uploads:
    """Rows of `database`; nothing is kept beside it.

    Raises, from everything that writes:
        sqlite3.Error: the disk is full, or the row is there already. Nothing has changed.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        database.executescript(_SCHEMA)

    def _select(self, rest: str, *values: object) -> list[Upload]:
        rows = self._database.execute(f"SELECT * FROM files WHERE {rest}", values)
        return [Upload(*row) for row in rows.fetchall()]

    def _count(self, rest: str, *values: object) -> int:
        row = self._database.execute(f"SELECT count(*) FROM files WHERE {rest}", values).fetchone()
        return int(row[0])

    def _write(self, query: str, *values: object) -> None:
        with self._database:
            self._database.execute(query, values)

    def get(self, sha256: str) -> Upload | None:
        return next(iter(self._select("sha256 = ?", sha256)), None)

    def pending(self) -> list[Upload]:
        """Return what waits for verdicts, oldest first."""
        return self._select("state = 'pending' ORDER BY received")

    def pending_for(self, validator: str, limit: int) -> list[Upload]:
        """Return what waits for this validator's verdict, oldest first."""
        return self._select(
            "state = 'pending' AND sha256 NOT IN (SELECT file FROM verdicts WHERE validator = ?) "
            "ORDER BY received LIMIT ?",
            *(validator, limit),
        )

    def accepted_after(self, decided: int, limit: int) -> list[Upload]:
        """Return accepted files by the order of decisions, from behind `decided`."""
        return self._select(
            "state = 'accepted' AND decided > ? ORDER BY decided LIMIT ?", decided, limit
        )

    def count_of(self, address: str, step: int) -> int:
        """Return how many files of this step came from `address`."""
        return self._count("address = ? AND step = ?", address, step)

    def count_pending(self, address: str) -> int:
        return self._count("address = ? AND state = 'pending'", address)

    def count_useful(self, step: int) -> int:
        """Return how many files of this step are accepted, or may be."""
        return self._count("step = ? AND state IN ('pending', 'accepted')", step)

    def add(self, upload: Upload) -> None:
        """Add a pending file."""
        self._write(
            "INSERT INTO files (sha256, address, step, submission_index, bytes, received) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            *(upload.sha256, upload.address, upload.step, upload.submission_index),
            *(upload.bytes, upload.received),
        )

    def close(self, sha256: str, state: str, reason: str, detail: str, units: int) -> None:
        """Note what was decided about a file, as the next decision."""
        self._write(
            "UPDATE files SET state = ?, reason = ?, detail = ?, units = ?, "
            "decided = (SELECT coalesce(max(decided), 0) + 1 FROM files) WHERE sha256 = ?",
            *(state, reason, detail, units, sha256),
        )

    def add_verdict(self, signed: SignedVerdict, received: float) -> None:
        """Keep a verdict; the same one again changes nothing."""
        self._write(
            "INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?)",
            *(signed.verdict.file_sha256, signed.validator, signed.data, received),
        )

    def verdicts(self, sha256: str) -> list[SignedVerdict]:
        rows = self._database.execute(
            "SELECT data FROM verdicts WHERE file = ? ORDER BY received", (sha256,)
        )
        return [SignedVerdict.from_bytes(data) for (data,) in rows.fetchall()]
