"""Who has what: stakes, work, pending and claimable rewards, slashing; an append-only ledger.

Each row names the hash of the row before it and is signed by the ledger's key, so a row that was
changed, removed, added or moved is found and named. Balances are kept nowhere: they are what
`Balances.apply` makes of the rows, in order, and anybody with a copy computes the same.

All amounts are whole numbers of the run's smallest coin. Nothing is lost or made by itself:
staked + earned = stake + pending + claimable + paid + burnt, for every prefix of the rows.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asyncrl.protocol.keys import BadSignature, Key, is_address, verify

__all__ = ["Account", "Balances", "Entry", "Ledger", "LedgerBroken", "LedgerError", "replay"]

_PURPOSE = "ledger"
_GENESIS = "0" * 64
_AMOUNT_MAX = 1 << 53  # what readers of JSON elsewhere hold exactly
# kind -> what its amount means
_KINDS = {
    "begin": "the first row; its detail holds the run's two numbers",
    "stake": "coins put down by `address`",
    "unstake": "coins of its stake that `address` takes back",
    "work": "work units of `address` that were accepted in `step`",
    "step": "the run is in `step`; older work becomes claimable",
    "claim": "claimable coins paid out to `address`",
    "slash": "coins of its stake that `address` loses, with all that is pending",
    "ban": "`address` takes part no more; amount 0",
}

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
  number INTEGER PRIMARY KEY, kind TEXT NOT NULL, address TEXT NOT NULL, amount INTEGER NOT NULL,
  step INTEGER NOT NULL, reference TEXT NOT NULL, detail TEXT NOT NULL, unix_seconds REAL NOT NULL,
  previous TEXT NOT NULL, hash TEXT NOT NULL, signature TEXT NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS once ON entries (kind, reference);
CREATE TRIGGER IF NOT EXISTS no_change BEFORE UPDATE ON entries
  BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS no_removal BEFORE DELETE ON entries
  BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""


class LedgerError(Exception):
    """An entry was not written; the ledger and the balances are as before."""


class LedgerBroken(Exception):
    """The stored rows are not what was written; `number` is the first that is wrong."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(f"ledger: row {number}: {text}")
        self.number = number


@dataclass(frozen=True)
class Entry:
    """A row. `reference` names what it is for: a second row of that kind for it is refused."""

    number: int
    kind: str
    address: str
    amount: int
    step: int
    reference: str
    detail: str
    unix_seconds: float
    previous: str

    def hash(self) -> str:
        values = [getattr(self, name) for name in self.__dataclass_fields__]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()


@dataclass
class Account:
    """What one address has, in coins; `units` counts its accepted work since ever."""

    stake: int = 0
    pending: dict[int, int] = field(default_factory=dict)  # step -> coins
    claimable: int = 0
    paid: int = 0
    units: int = 0
    is_banned: bool = False
    ban_reason: str = ""

    def summary(self) -> dict[str, Any]:
        return {**vars(self), "pending": sum(self.pending.values())}


@dataclass
class Balances:
    """All accounts after some rows. A pure function of them."""

    coins_per_unit: int = 0
    pending_steps: int = 0
    has_begun: bool = False
    accounts: dict[str, Account] = field(default_factory=dict)
    step: int = 0
    staked: int = 0
    earned: int = 0
    burnt: int = 0

    def apply(self, entry: Entry) -> None:
        """Book one entry.

        Raises:
            LedgerError: it cannot be; nothing has changed.
        """
        reason = self.why_not(entry)
        if reason:
            raise LedgerError(
                f"ledger: {entry.kind} of {entry.amount} for {entry.address}: {reason}"
            )
        if entry.kind == "begin":
            self.has_begun = True
            self.coins_per_unit, self.pending_steps = json.loads(entry.detail)
            return
        if entry.kind == "step":
            self._begin_step(entry.step)
            return
        account = self.accounts.setdefault(entry.address, Account())
        if entry.kind == "stake":
            account.stake += entry.amount
            self.staked += entry.amount
        elif entry.kind == "unstake":
            account.stake -= entry.amount
            account.paid += entry.amount
        elif entry.kind == "work":
            coins = entry.amount * self.coins_per_unit
            account.units += entry.amount
            account.pending[entry.step] = account.pending.get(entry.step, 0) + coins
            self.earned += coins
        elif entry.kind == "claim":
            account.claimable -= entry.amount
            account.paid += entry.amount
        elif entry.kind == "slash":
            taken = min(entry.amount, account.stake)
            account.stake -= taken
            self.burnt += taken + sum(account.pending.values())
            account.pending.clear()
        else:
            account.is_banned, account.ban_reason = True, entry.detail

    def why_not(self, entry: Entry) -> str:
        """Say why an entry cannot be booked; empty: it can."""
        if entry.kind not in _KINDS:
            return "there is no such kind"
        if (entry.kind == "begin") == self.has_begun:
            return "a ledger begins once, with its first row"
        if entry.kind == "begin":
            return ""
        if entry.kind == "step":
            return "" if entry.step > self.step else f"the run is in step {self.step} already"
        if not is_address(entry.address):
            return "that is no address"
        if not 0 <= entry.amount <= _AMOUNT_MAX or (entry.amount == 0) != (entry.kind == "ban"):
            return "not an amount"
        account = self.accounts.get(entry.address, Account())
        if entry.kind in ("work", "unstake", "stake") and account.is_banned:
            return f"banned: {account.ban_reason}"
        if entry.kind == "work" and account.stake == 0:
            return "nothing is at stake"
        if entry.kind == "work" and entry.step > self.step:
            return f"work for step {entry.step}, and the run is in step {self.step}"
        if entry.kind == "unstake" and account.pending:
            return "it has pending rewards, which a slash would take"
        held = {"unstake": account.stake, "claim": account.claimable}.get(entry.kind)
        if held is not None and entry.amount > held:
            return f"it has {held}"
        return ""

    def _begin_step(self, step: int) -> None:
        self.step = step
        for account in self.accounts.values():
            for done in [old for old in account.pending if old + self.pending_steps <= step]:
                account.claimable += account.pending.pop(done)

    def is_balanced(self) -> bool:
        """Whether nothing was lost or made: the sum in this module's first lines."""
        held = sum(
            account.stake + sum(account.pending.values()) + account.claimable + account.paid
            for account in self.accounts.values()
        )
        return self.staked + self.earned == held + self.burnt


class Ledger:
    """The rows in a file, and the balances that follow from them.

    One process writes; any number may read the file. A row is on disk when append() returns
    (SQLite, WAL, synchronous=FULL: one fsync, 0.1 to 10 ms). Not thread-safe.

    Args:
        path: the SQLite file; it is made if it is not there.
        key: signs the rows; the same one at every start.
        coins_per_unit: reward for a work unit.
        pending_steps: an accepted work unit of step s is claimable from step s + this on; until
            then it can be slashed.

    Raises:
        LedgerBroken: the rows are not what `key` wrote; the first wrong one is named.
        LedgerError: the file belongs to a run with other numbers, or is no database.
    """

    def __init__(
        self, path: Path, key: Key, *, coins_per_unit: int = 1, pending_steps: int = 4
    ) -> None:
        if coins_per_unit < 0 or pending_steps < 0:
            raise ValueError("ledger: coins_per_unit and pending_steps cannot be negative")
        self._key = key
        self.balances = Balances()
        self._head = _GENESIS
        self._count = 0
        self._references: set[tuple[str, str]] = set()
        try:
            self._database = sqlite3.connect(path)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise LedgerError(f"ledger: {path}: {error}") from None
        for entry, digest in verified_rows(self._database, key.public_key):
            self._take(entry, digest)
        numbers = (coins_per_unit, pending_steps)
        if not self.balances.has_begun:
            self.append("begin", detail=json.dumps(numbers))
        found = (self.balances.coins_per_unit, self.balances.pending_steps)
        if found != numbers:
            raise LedgerError(
                f"ledger: {path}: coins per unit and pending steps are {found}, not {numbers}"
            )

    @property
    def head(self) -> tuple[int, str]:
        """How many rows there are, and the hash of the last one: whoever notes it can tell later
        whether rows at the end were removed."""
        return self._count, self._head

    def has(self, kind: str, reference: str) -> bool:
        return (kind, reference) in self._references

    def append(
        self,
        kind: str,
        address: str = "",
        amount: int = 0,
        *,
        step: int | None = None,
        reference: str = "",
        detail: str = "",
    ) -> Entry:
        """Write one row and book it.

        Args:
            kind: stake, unstake, work, step, claim, slash or ban.
            step: of the work, or the one that begins; otherwise the current one.
            reference: what it is for (a file's hash, a request's nonce); by default the row itself.
            detail: a sentence for people: why somebody is slashed.

        Raises:
            LedgerError: it breaks a rule, is there already, or the disk is full. Nothing changed.
        """
        number = self._count + 1
        entry = Entry(
            *(number, kind, address, amount),
            self.balances.step if step is None else step,
            *(reference or f"row {number}", detail[:1000], time.time(), self._head),
        )
        reason = self.balances.why_not(entry)
        if self.has(kind, entry.reference):
            reason = f"{entry.reference} has been booked before"
        if reason:
            raise LedgerError(f"ledger: {kind} of {amount} for {address or 'the run'}: {reason}")
        digest = entry.hash()
        signature = self._key.sign(_PURPOSE, digest.encode()).hex()
        row = (*vars(entry).values(), digest, signature)
        try:
            with self._database:
                self._database.execute(
                    f"INSERT INTO entries VALUES ({', '.join('?' * len(row))})", row
                )
        except sqlite3.Error as error:
            raise LedgerError(f"ledger: {kind} for {address or 'the run'}: {error}") from None
        self._take(entry, digest)
        return entry

    def _take(self, entry: Entry, digest: str) -> None:
        _book(self.balances, entry)
        self._references.add((entry.kind, entry.reference))
        self._count, self._head = entry.number, digest

    def account(self, address: str) -> Account:
        """Return the account of `address`; an empty one if it never did anything."""
        return self.balances.accounts.get(address, Account())

    def entries(self, after: int = 0, limit: int = -1) -> list[Entry]:
        """Return the rows with a number above `after`, at most `limit`; -1: all."""
        rows = self._database.execute(
            "SELECT * FROM entries WHERE number > ? ORDER BY number LIMIT ?", (after, limit)
        )
        return [Entry(*row[:-2]) for row in rows]

    def close(self) -> None:
        self._database.close()


def verified_rows(database: sqlite3.Connection, public_key: bytes) -> Iterator[tuple[Entry, str]]:
    """Yield each row with its hash, in order.

    Raises:
        LedgerBroken: a row is missing, was changed, or is not signed by `public_key`.
    """
    previous, number = _GENESIS, 0
    rows = database.execute("SELECT * FROM entries ORDER BY number")
    while True:
        number += 1
        try:
            row = next(rows, None)
        except sqlite3.Error as error:
            raise LedgerBroken(number, f"cannot be read: {error}") from None
        if row is None:
            return
        entry, digest, signature = Entry(*row[:-2]), row[-2], row[-1]
        if entry.number != number:
            raise LedgerBroken(number, f"missing; the next one is {entry.number}")
        if entry.previous != previous:
            raise LedgerBroken(number, "does not follow the row before it")
        if entry.hash() != digest:
            raise LedgerBroken(number, f"changed since it was written: {entry}")
        try:
            verify(public_key, _PURPOSE, digest.encode(), bytes.fromhex(signature))
        except (BadSignature, ValueError, TypeError):
            raise LedgerBroken(number, "not signed by the ledger's key") from None
        yield entry, digest
        previous = digest


def replay(path: Path, public_key: bytes) -> Balances:
    """Compute the balances from a copy of the file, with nothing but the ledger's public key.

    Raises:
        LedgerBroken: a row is wrong; it is named.
    """
    balances = Balances()
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        for entry, _ in verified_rows(database, public_key):
            _book(balances, entry)
    finally:
        database.close()
    return balances


def _book(balances: Balances, entry: Entry) -> None:
    try:
        balances.apply(entry)
    except (LedgerError, ValueError, TypeError) as error:
        raise LedgerBroken(entry.number, str(error)) from None
