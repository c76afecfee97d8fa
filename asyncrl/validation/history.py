"""What a validator remembers of accepted files, to know copies when it sees them."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

from asyncrl.validation.rollout_file import ClaimedRollout, RolloutFile

__all__ = ["History"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
  number INTEGER PRIMARY KEY, content TEXT NOT NULL UNIQUE, address TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS rollouts (
  number INTEGER PRIMARY KEY, content BLOB NOT NULL UNIQUE, address TEXT NOT NULL
);
"""


class History:
    """Hashes of files and of rollouts, the newest of each, about 100 bytes each; in SQLite, so that
    a validator that died and came back still knows them.

    Forgetting a file opens nothing if `files_max` is more than a few steps hold: its step takes no
    rollouts any more.
    """

    def __init__(
        self, path: Path | None = None, *, files_max: int = 10_000, rollouts_max: int = 1_000_000
    ) -> None:
        """
        Args:
            path: of the database; None keeps it in memory.
        """
        self._database = sqlite3.connect(path or ":memory:")
        self._database.executescript(_SCHEMA)
        self._bounds = {"files": files_max, "rollouts": rollouts_max}

    def close(self) -> None:
        self._database.close()

    def owner(self, content_sha256: str) -> str | None:
        """The address from which this content came first, if it did."""
        return self._address("files", content_sha256)

    def is_copy(self, address: str, rollout: ClaimedRollout) -> bool:
        """Whether another address gave this completion, with this proof, to this prompt first."""
        return (self._address("rollouts", _key(rollout)) or address) != address

    def record(self, address: str, content_sha256: str, file: RolloutFile) -> None:
        """Remember an accepted file. A refused one proves nothing: whoever steals a file and sends
        it first would make its worker the thief."""
        rows = [(_key(rollout), address) for rollout in file.rollouts]
        with self._database as database:
            insert = "INSERT OR IGNORE INTO {} (content, address) VALUES (?, ?)"
            database.execute(insert.format("files"), (content_sha256, address))
            database.executemany(insert.format("rollouts"), rows)
            for table, bound in self._bounds.items():
                database.execute(
                    f"DELETE FROM {table} WHERE number <= (SELECT max(number) FROM {table}) - ?",
                    (bound,),
                )

    def _address(self, table: str, content: str | bytes) -> str | None:
        row = self._database.execute(
            f"SELECT address FROM {table} WHERE content = ?", (content,)
        ).fetchone()
        return None if row is None else str(row[0])


def _key(rollout: ClaimedRollout) -> bytes:
    # With the proof: the same answer from other weights is no copy, and a good policy gives the
    # same answer to a prompt whenever it comes up.
    text = f"{rollout.prompt_index} {rollout.tokens} ".encode() + rollout.proof
    return hashlib.blake2b(text, digest_size=16).digest()
