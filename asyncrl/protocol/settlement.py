"""Where coins come from and go to. The ledger says who is owed what; a settlement moves it.

A chain could be one implementation: lock() watches for a deposit, pay() sends a transfer. The one
here keeps accounts in SQLite, which is all that a run among people who trust its initiator needs.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Protocol

from asyncrl.protocol.ledger import Ledger

__all__ = ["LocalSettlement", "Settlement", "SettlementError", "pay_claims"]


class SettlementError(Exception):
    """Coins were not moved; nothing has changed."""


class Settlement(Protocol):
    """Moves coins between accounts outside and the run. Every call may come again after a crash:
    a `reference` that was done before is done, and moves nothing."""

    def lock(self, address: str, amount: int, reference: str) -> None:
        """Take coins of `address` into the run.

        Raises:
            SettlementError: it has not that much.
        """

    def pay(self, address: str, amount: int, reference: str) -> None:
        """Give coins of the run to `address`.

        Raises:
            SettlementError: it cannot now; the caller comes again.
        """


class LocalSettlement:
    """Accounts in a SQLite file. A new address begins with `grant` coins.

    Args:
        path: the file, made if it is not there; not the ledger's.
        grant: what an address has before it stakes; a run of strangers would want them to buy it.
    """

    def __init__(self, path: Path, *, grant: int) -> None:
        if grant < 0:
            raise ValueError(f"settlement: grant: expected 0 or more, got {grant}")
        self._grant = grant
        self._database = sqlite3.connect(path)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.executescript(
            "CREATE TABLE IF NOT EXISTS moves (reference TEXT PRIMARY KEY, address TEXT NOT NULL, "
            "amount INTEGER NOT NULL); CREATE INDEX IF NOT EXISTS by_address ON moves (address);"
        )

    def balance(self, address: str) -> int:
        """Return what `address` has outside the run."""
        (moved,) = self._database.execute(
            "SELECT coalesce(sum(amount), 0) FROM moves WHERE address = ?", (address,)
        ).fetchone()
        return self._grant + int(moved)

    def lock(self, address: str, amount: int, reference: str) -> None:
        self._move(address, -amount, reference)

    def pay(self, address: str, amount: int, reference: str) -> None:
        self._move(address, amount, reference)

    def _move(self, address: str, amount: int, reference: str) -> None:
        try:
            with self._database:
                done = self._database.execute(
                    "SELECT address, amount FROM moves WHERE reference = ?", (reference,)
                ).fetchone()
                if done == (address, amount):
                    return
                if done:
                    raise SettlementError(f"settlement: {reference} was for {done}")
                if self.balance(address) + amount < 0:
                    raise SettlementError(
                        f"settlement: {address} has {self.balance(address)}, not {-amount}"
                    )
                self._database.execute(
                    "INSERT INTO moves VALUES (?, ?, ?)", (reference, address, amount)
                )
        except sqlite3.Error as error:
            raise SettlementError(f"settlement: {reference}: {error}") from None

    def close(self) -> None:
        self._database.close()


def pay_claims(ledger: Ledger, settlement: Settlement, after: int = 0) -> int:
    """Pay every claim and unstaking of the ledger behind row `after`; return the last row's number.

    Called after each such row and at each start with 0: a crash between row and payment is mended
    then, and what was paid before is not paid again.
    """
    number = after
    for entry in ledger.entries(after):
        if entry.kind in ("claim", "unstake"):
            settlement.pay(entry.address, entry.amount, f"ledger row {entry.number}")
        number = entry.number
    return number
