"""The run's coordinator, without HTTP: who is in, which files came, how they are judged and paid.

It is trusted to count and to keep; it computes nothing of the model. All that it must not forget is
in SQLite files in one folder, so a kill at any instruction loses nothing that was answered for.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from asyncrl.protocol.keys import Key, SignedDocument
from asyncrl.protocol.ledger import Ledger, LedgerError
from asyncrl.protocol.options import RunOptions
from asyncrl.protocol.requests import NonceStore, RequestRefused
from asyncrl.protocol.settlement import LocalSettlement, Settlement, SettlementError, pay_claims
from asyncrl.protocol.uploads import Upload, Uploads
from asyncrl.validation.verdict import Decision, SignedVerdict, decide

__all__ = ["Coordinator"]

_logger = logging.getLogger("asyncrl.coordinator")

_EVENTS_MAX = 500
# Of so many steps the files themselves stay.
_STEPS_KEPT = 16
_METRIC_BYTES_MAX = 4096

_SCHEMA = """
CREATE TABLE IF NOT EXISTS steps (step INTEGER PRIMARY KEY, unix_seconds REAL, metrics TEXT);
CREATE TABLE IF NOT EXISTS weights (version INTEGER PRIMARY KEY, sha256 TEXT, unix_seconds REAL);
CREATE TABLE IF NOT EXISTS broadcasts (
  version INTEGER, address TEXT, seconds REAL, PRIMARY KEY (version, address));
"""


class Coordinator:
    """One run's state. Used from one thread.

    Args:
        folder: everything is kept in it; the same one at every start.
        key: signs the ledger and the run's document; the same one at every start.
        settlement: where stakes come from; by default accounts in the folder, `10 * stake` each.

    Raises:
        LedgerBroken: a row of the ledger was changed; it is named.
        LedgerError, OSError, sqlite3.Error: the folder cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        key: Key,
        options: RunOptions,
        *,
        settlement: Settlement | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        (folder / "files").mkdir(parents=True, exist_ok=True)
        for part in (folder / "files").glob("*.part"):
            part.unlink()
        self.folder = folder
        self.options = options
        self._clock = clock
        self.document = SignedDocument.sign(
            key, "run", {**asdict(options), "coordinator": key.address}
        ).to_bytes()
        self.ledger = Ledger(
            folder / "ledger.db",
            key,
            coins_per_unit=options.coins_per_unit,
            pending_steps=options.pending_steps,
        )
        self._settlement = settlement or LocalSettlement(
            folder / "coins.db", grant=10 * options.stake
        )
        self.database = sqlite3.connect(folder / "coordinator.db")
        self.database.execute("PRAGMA journal_mode=WAL")
        self.database.execute("PRAGMA synchronous=FULL")
        self.database.executescript(_SCHEMA)
        self.uploads = Uploads(self.database)
        nonces = sqlite3.connect(folder / "nonces.db")
        nonces.execute("PRAGMA journal_mode=WAL")
        nonces.execute("PRAGMA synchronous=NORMAL")  # no fsync for each request
        self.nonces = NonceStore(nonces)
        self._heard = dict.fromkeys(options.validators, clock())
        self.events: list[dict[str, Any]] = []
        self._paid = 0
        self._pay()
        for upload in self.uploads.pending():
            self._decide(upload)

    # --- who ---

    def role(self, address: str) -> str:
        """Return trainer, validator, worker, banned or stranger."""
        if address in self.options.trainers:
            return "trainer"
        if address in self.options.validators:
            return "validator"
        account = self.ledger.account(address)
        if account.is_banned:
            return "banned"
        return "worker" if account.stake > 0 else "stranger"

    def hear(self, address: str) -> None:
        """Note that `address` has asked for something, freshly signed: as a validator it lives."""
        if address in self._heard:
            self._heard[address] = self._clock()

    def register(self, address: str, amount: int, reference: str) -> dict[str, Any]:
        """Put down a stake; with the same reference again it is done already.

        Raises:
            RequestRefused: banned, too little, or it has not that much.
        """
        account = self.ledger.account(address)
        if account.is_banned:
            raise RequestRefused("banned", f"{address}: banned: {account.ban_reason}", 403)
        name = f"stake {address} {reference}"[:200]
        if not self.ledger.has("stake", name):
            if account.stake + amount < self.options.stake:
                raise RequestRefused("stake", f"at least {self.options.stake} coins", 400)
            if account.stake == 0 and self._worker_count() >= self.options.workers_max:
                raise RequestRefused("full", f"{self.options.workers_max} workers already", 429)
            self._booked(lambda: self._settlement.lock(address, amount, name))
            self._booked(lambda: self.ledger.append("stake", address, amount, reference=name))
            self._event(f"{address[:8]} is in, with a stake of {amount}")
        return self.ledger.account(address).summary()

    def _worker_count(self) -> int:
        return sum(account.stake > 0 for account in self.ledger.balances.accounts.values())

    def _booked(self, write: Callable[[], object]) -> None:
        """Do a write; what keeps it from being done is an answer, and nothing has changed."""
        try:
            write()
        except SettlementError as error:
            raise RequestRefused("coins", str(error), 402) from None
        except (LedgerError, sqlite3.Error, OSError) as error:
            code, status = ("disk", 507) if _is_full(error) else ("conflict", 409)
            raise RequestRefused(code, str(error), status) from None

    def validator_states(self) -> list[dict[str, Any]]:
        """Return each validator with how long it has said nothing, and its verdicts so far."""
        present, now, found = self._present(), self._clock(), []
        for address, heard in self._heard.items():
            (count,) = self._one("SELECT count(*) FROM verdicts WHERE validator = ?", address)
            found.append(
                {
                    "address": address,
                    "is_present": address in present,
                    "seconds_since_heard": now - heard,
                    "verdicts": count,
                }
            )
        return found

    # --- steps and weights ---

    @property
    def step(self) -> int:
        return self.ledger.balances.step

    def open_steps(self) -> list[int]:
        """Return the steps for which files are taken."""
        return list(range(self.step, self.step + self.options.async_level + 1))

    def assignment(self, address: str) -> dict[str, Any]:
        """Say for which step `address` is to make its next file, its number there, and which
        weights there are. `step` is None while every open step has enough."""
        wanted = None
        for step in self.open_steps():
            if self.uploads.count_useful(step) < self.options.files_per_step:
                wanted = step
                break
        return {
            "step": wanted,
            "submission_index": None if wanted is None else self.uploads.count_of(address, wanted),
            "trainer_step": self.step,
            "weights": self.weights(),
        }

    def weights(self) -> dict[str, str]:
        """Return the newest versions, with the SHA-256 of their files."""
        rows = self.database.execute("SELECT version, sha256 FROM weights ORDER BY version DESC")
        return {str(version): sha256 for version, sha256 in rows.fetchmany(10)}

    def add_weights(self, version: int, sha256: str) -> None:
        """A trainer has published a version."""
        row = self.database.execute("SELECT sha256 FROM weights WHERE version = ?", (version,))
        if (row.fetchone() or (sha256,)) != (sha256,):
            raise RequestRefused("version", f"version {version} has another hash already", 409)
        self._write(
            "INSERT OR IGNORE INTO weights VALUES (?, ?, ?)", version, sha256, self._clock()
        )

    def advance(self, step: int, metrics: dict[str, Any]) -> None:
        """A trainer begins `step`; told again, it is done already.

        Args:
            metrics: of the step that ended: numbers by name, shown on the page.
        """
        text = json.dumps(metrics)
        if len(text) > _METRIC_BYTES_MAX:
            raise RequestRefused("metrics", f"more than {_METRIC_BYTES_MAX} bytes", 400)
        if step > self.step:
            if step > self.step + 1 and self.step > 0:
                raise RequestRefused("step", f"the run is in step {self.step}, not {step - 1}", 409)
            self._booked(lambda: self.ledger.append("step", step=step))
            self._remove_old_files()
        self._write("INSERT OR IGNORE INTO steps VALUES (?, ?, ?)", step, self._clock(), text)

    def _remove_old_files(self) -> None:
        """What a file of an old step said is in the ledger and the table; its bytes can go."""
        rows = self.database.execute(
            "SELECT sha256 FROM files WHERE step = ?", (self.step - _STEPS_KEPT,)
        )
        for (sha256,) in rows.fetchall():
            self.path(sha256).unlink(missing_ok=True)

    def add_broadcast(self, address: str, version: int, seconds: float) -> None:
        """A worker or validator tells how long a version took to come; for the page only."""
        if str(version) in self.weights():
            self._write(
                "INSERT OR REPLACE INTO broadcasts VALUES (?, ?, ?)", version, address, seconds
            )

    # --- files ---

    def expect(self, address: str, step: int, submission_index: int, size: int) -> None:
        """Say whether a file would be taken, before a byte of it is read.

        Raises:
            RequestRefused: too large, for a step that is not open, out of order, or too many.
        """
        if size > self.options.file_bytes_max:
            raise RequestRefused(
                "size", f"a file of {size} bytes, at most {self.options.file_bytes_max}", 413
            )
        if step not in self.open_steps():
            raise RequestRefused("step", f"step {step}; open are {self.open_steps()}", 409)
        expected = self.uploads.count_of(address, step)
        if submission_index != expected:
            raise RequestRefused(
                "order", f"file {submission_index} of step {step}; the next is {expected}", 409
            )
        pending = self.uploads.count_pending(address)
        if pending >= self.options.pending_max:
            raise RequestRefused("rate", f"{pending} of your files wait for validators", 429)

    def path(self, sha256: str) -> Path:
        return self.folder / "files" / sha256

    def add_file(self, part: Path, sha256: str, address: str, step: int, index: int) -> Upload:
        """Take a file that has come to `part`; its place on disk is the coordinator's from now on.

        Raises:
            RequestRefused: this content came before, or the disk is full; `part` is gone.
        """
        known = self.uploads.get(sha256)
        if known is not None:
            part.unlink()
            if known.address == address:
                return known  # its answer was lost, and it asks again
            raise RequestRefused("replay", f"{sha256}: came from {known.address} before", 409)
        new = Upload(sha256, address, step, index, part.stat().st_size, self._clock())
        try:
            self._booked(lambda: os.replace(part, self.path(sha256)))
            self._booked(lambda: self.uploads.add(new))
        except RequestRefused:
            self.path(sha256).unlink(missing_ok=True)
            raise
        return new

    # --- verdicts ---

    def add_verdict(self, signed: SignedVerdict) -> Upload:
        """Count a verdict; it may decide its file, book work, or slash and ban.

        Raises:
            RequestRefused: of no validator of this run, of another run, or about no file here.
        """
        verdict = signed.verdict
        upload = self.uploads.get(verdict.file_sha256)
        if signed.validator not in self.options.validators:
            raise RequestRefused("role", f"{signed.validator}: no validator of this run", 403)
        if verdict.run_id != self.options.run:
            raise RequestRefused("run", f"a verdict of run {verdict.run_id!r}", 400)
        if upload is None:
            raise RequestRefused("absent", f"{verdict.file_sha256}: no such file", 404)
        self._booked(lambda: self.uploads.add_verdict(signed, self._clock()))
        self._decide(upload)
        decided = self.uploads.get(upload.sha256)
        assert decided is not None
        return decided

    def decide_without_the_silent(self) -> None:
        """Decide what waits for validators that are gone; called once a second."""
        if len(self._present()) < len(self.options.validators):
            for upload in self.uploads.pending():
                self._decide(upload)

    def _present(self) -> set[str]:
        oldest = self._clock() - self.options.validator_silence_seconds
        return {address for address, heard in self._heard.items() if heard >= oldest}

    def _decide(self, upload: Upload) -> None:
        if upload.state != "pending":
            return
        verdicts = self.uploads.verdicts(upload.sha256)
        spoken = {signed.validator for signed in verdicts}
        voters = self._present() | spoken
        if not spoken:
            return
        quorum = min(self.options.quorum, len(voters) // 2 + 1)
        decision = decide(verdicts, validators=voters, quorum=quorum)
        for address in decision.equivocators:
            self._event(f"validator {address[:8]} signed both about {upload.sha256[:8]}")
        if decision.outcome == "open":
            return
        if decision.outcome == "undecided":
            self._close(upload, "undecided", "validators disagree", self._told(verdicts))
        elif decision.outcome == "accepted":
            self._accept(upload, decision, verdicts)
        else:
            self._refuse(upload, decision.reason, self._told(verdicts))

    def _told(self, verdicts: list[SignedVerdict]) -> str:
        return "; ".join(
            f"{signed.validator[:8]}: {signed.verdict.reason or 'accepted'} {signed.verdict.detail}"
            for signed in verdicts
        )[:1000]

    def _accept(self, upload: Upload, decision: Decision, verdicts: list[SignedVerdict]) -> None:
        if self.ledger.account(upload.address).is_banned:
            self._close(upload, "refused", "banned", "its worker was banned meanwhile")
            return
        # Validators that agree count the same tokens; a wrong one cannot raise the sum.
        units = min(s.verdict.token_count for s in verdicts if s.verdict.accepted)
        if units > 0 and not self.ledger.has("work", upload.sha256):
            self._booked(
                lambda: self.ledger.append("work", upload.address, units, reference=upload.sha256)
            )
        for address in decision.dissenters:
            self._event(f"validator {address[:8]} was alone in refusing {upload.sha256[:8]}")
        self._close(upload, "accepted", "", "", units)

    def _refuse(self, upload: Upload, reason: str, detail: str) -> None:
        address, told = upload.address, f"{reason}: {detail}"
        if not self.ledger.has("slash", upload.sha256):
            self._booked(
                lambda: self.ledger.append(
                    *("slash", address, self.options.penalty), reference=upload.sha256, detail=told
                )
            )
        if not self.ledger.account(address).is_banned:
            self._booked(
                lambda: self.ledger.append("ban", address, reference=upload.sha256, detail=told)
            )
        self._close(upload, "refused", reason, detail)
        self._event(f"{address[:8]} is banned: {told}")
        for other in self.uploads.pending():
            if other.address == address:
                self._close(other, "refused", "banned", f"its worker was banned: {reason}")

    def _close(self, upload: Upload, state: str, reason: str, detail: str, units: int = 0) -> None:
        self._booked(lambda: self.uploads.close(upload.sha256, state, reason, detail, units))
        if state != "accepted":
            self._event(f"{upload.sha256[:8]} of {upload.address[:8]}: {state}, {reason}")

    # --- coins ---

    def claim(self, address: str, amount: int, reference: str) -> dict[str, Any]:
        """Pay out claimable coins; with the same reference again it is done already.

        Raises:
            RequestRefused: it has not that much.
        """
        return self._take_out("claim", address, amount, reference)

    def unstake(self, address: str, amount: int, reference: str) -> dict[str, Any]:
        """Give back coins of a stake, when nothing is pending that a slash would take."""
        pending = self.uploads.count_pending(address)
        if pending:
            raise RequestRefused("pending", f"{pending} of your files wait for validators", 409)
        return self._take_out("unstake", address, amount, reference)

    def _take_out(self, kind: str, address: str, amount: int, reference: str) -> dict[str, Any]:
        name = f"{kind} {address} {reference}"[:200]
        if not self.ledger.has(kind, name):
            self._booked(lambda: self.ledger.append(kind, address, amount, reference=name))
        self._pay()
        return self.ledger.account(address).summary()

    def _pay(self) -> None:
        try:
            self._paid = pay_claims(self.ledger, self._settlement, self._paid)
        except SettlementError as error:
            _logger.warning("%s; it is paid at the next claim or start", error)

    # --- helpers ---

    def _one(self, query: str, *values: object) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self.database.execute(query, values).fetchone()
        return row

    def _write(self, query: str, *values: object) -> None:
        def write() -> None:
            with self.database:
                self.database.execute(query, values)

        self._booked(write)

    def _event(self, text: str) -> None:
        _logger.info("%s", text)
        self.events.append({"unix_seconds": self._clock(), "text": text})
        del self.events[:-_EVENTS_MAX]


def _is_full(error: Exception) -> bool:
    return getattr(error, "errno", None) == errno.ENOSPC or "is full" in str(error)
