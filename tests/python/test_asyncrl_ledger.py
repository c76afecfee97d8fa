"""The ledger: rules, replay to the same balances, and every changed row found and named."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.protocol.keys import Key
from asyncrl.protocol.ledger import Balances, Entry, Ledger, LedgerBroken, LedgerError, replay
from asyncrl.protocol.settlement import LocalSettlement, SettlementError, pay_claims

KEY = Key.from_seed(b"k" * 32)
A, B = (Key.from_seed(letter * 32).address for letter in (b"a", b"b"))


def a_run(path: Path) -> Ledger:
    """Two workers; one is caught."""
    ledger = Ledger(path, KEY, coins_per_unit=2, pending_steps=2)
    for address in (A, B):
        ledger.append("stake", address, 100, reference=f"join {address}")
    for step in (1, 2, 3):
        ledger.append("step", step=step)
        for address in (A, B):
            ledger.append("work", address, 10, step=step, reference=f"{address} {step}")
    ledger.append("slash", B, 60, detail="proof: 128 mismatches", reference="verdict 7")
    ledger.append("ban", B, detail="proof: 128 mismatches")
    ledger.append("claim", A, 15)
    return ledger


def test_work_is_pending_then_claimable_and_a_slash_takes_stake_and_pending(tmp_path: Path) -> None:
    ledger = a_run(tmp_path / "ledger.db")
    a, b = (ledger.account(address) for address in (A, B))
    # By hand: 20 coins a step; in step 3 those of step 1 are claimable.
    assert (a.stake, a.pending, a.claimable, a.paid, a.units) == (100, {2: 20, 3: 20}, 5, 15, 30)
    assert (b.stake, b.pending, b.claimable, b.is_banned) == (40, {}, 20, True)
    assert b.ban_reason == "proof: 128 mismatches"
    assert ledger.balances.burnt == 60 + 40
    assert ledger.balances.is_balanced()


def test_the_rows_replay_to_the_same_balances(tmp_path: Path) -> None:
    ledger = a_run(tmp_path / "ledger.db")
    assert replay(tmp_path / "ledger.db", KEY.public_key) == ledger.balances
    head = ledger.head
    ledger.close()
    again = Ledger(tmp_path / "ledger.db", KEY, coins_per_unit=2, pending_steps=2)
    assert again.head == head
    assert again.balances == ledger.balances
    again.append("claim", A, 5)
    assert again.account(A).claimable == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("work", A, 10), "banned"),
        (("work", B, 10, {"step": 4}), "the run is in step 3"),
        (("work", Key.generate().address, 10), "nothing is at stake"),
        (("work", B, 10, {"reference": "twice"}), "booked before"),
        (("work", B, 0), "not an amount"),
        (("work", B, -3), "not an amount"),
        (("work", B, 1 << 60), "not an amount"),
        (("work", "B", 3), "no address"),
        (("claim", B, 21), "it has 20"),
        (("unstake", B, 1), "pending rewards"),
        (("mint", B, 1), "no such kind"),
        (("begin", "", 0), "begins once"),
        (("step", "", 0, {"step": 3}), "in step 3 already"),
    ],
)
def test_what_breaks_a_rule_changes_nothing(
    tmp_path: Path, arguments: tuple[object, ...], reason: str
) -> None:
    ledger = Ledger(tmp_path / "ledger.db", KEY, pending_steps=2)
    for address in (A, B):
        ledger.append("stake", address, 100)
    for step in (1, 2, 3):
        ledger.append("step", step=step)
        if step != 2:
            ledger.append("work", B, 20, step=step, reference="twice" if step == 3 else "")
    ledger.append("ban", A, detail="why")
    head = ledger.head
    *given_, options = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
    with pytest.raises(LedgerError, match=reason):
        ledger.append(*given_, **options)  # type: ignore[arg-type]
    assert ledger.head == head
    assert replay(tmp_path / "ledger.db", KEY.public_key) == ledger.balances


CHANGES = {
    "amount": "UPDATE entries SET amount = amount + 1 WHERE number = 5",
    "address": f"UPDATE entries SET address = '{B}' WHERE number = 5",
    "detail": "UPDATE entries SET detail = 'x' WHERE number = 5",
    "type": "UPDATE entries SET amount = 'x' WHERE number = 5",
    "time": "UPDATE entries SET unix_seconds = unix_seconds + 1 WHERE number = 5",
    "hash": "UPDATE entries SET hash = iif(hash LIKE '0%', '1', '0') || substr(hash, 2) "
    "WHERE number = 5",
    "signature": "UPDATE entries SET signature = 'zz' WHERE number = 5",
    "removed": "DELETE FROM entries WHERE number = 5",
    "moved": "UPDATE entries SET number = 500 WHERE number = 5",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_row_is_found_and_named(tmp_path: Path, change: str) -> None:
    a_run(tmp_path / "ledger.db").close()
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            database.execute(CHANGES[change])
        database.executescript("DROP TRIGGER no_change; DROP TRIGGER no_removal;")
        database.execute(CHANGES[change])
    database.close()
    for read in (
        lambda: Ledger(tmp_path / "ledger.db", KEY, coins_per_unit=2, pending_steps=2),
        lambda: replay(tmp_path / "ledger.db", KEY.public_key),
    ):
        with pytest.raises(LedgerBroken, match="row 5") as raised:
            read()
        assert raised.value.number == 5


def test_a_chain_that_was_rewritten_with_all_hashes_lacks_the_signatures(tmp_path: Path) -> None:
    a_run(tmp_path / "ledger.db").close()
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.executescript("DROP TRIGGER no_change")
        rows = database.execute("SELECT * FROM entries ORDER BY number").fetchall()
        previous = rows[3][-2]
        for row in rows[4:]:
            entry = Entry(*(*row[:3], row[3] + (row[0] == 5), *row[4:8], previous))
            database.execute(
                "UPDATE entries SET amount = ?, previous = ?, hash = ? WHERE number = ?",
                (entry.amount, previous, entry.hash(), entry.number),
            )
            previous = entry.hash()
    database.close()
    with pytest.raises(LedgerBroken, match="row 5: not signed"):
        replay(tmp_path / "ledger.db", KEY.public_key)


def test_rows_cut_from_the_end_are_seen_by_whoever_noted_the_head(tmp_path: Path) -> None:
    ledger = a_run(tmp_path / "ledger.db")
    count, _ = ledger.head
    ledger.close()
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.executescript(
            f"DROP TRIGGER no_removal; DELETE FROM entries WHERE number = {count}"
        )
    database.close()
    again = Ledger(tmp_path / "ledger.db", KEY, coins_per_unit=2, pending_steps=2)
    assert again.head[0] == count - 1


def test_a_ledger_of_other_numbers_or_another_key_is_refused(tmp_path: Path) -> None:
    a_run(tmp_path / "ledger.db").close()
    with pytest.raises(LedgerError, match="not \\(3, 2\\)"):
        Ledger(tmp_path / "ledger.db", KEY, coins_per_unit=3, pending_steps=2)
    with pytest.raises(LedgerBroken, match="row 1: not signed"):
        Ledger(tmp_path / "ledger.db", Key.generate(), coins_per_unit=2, pending_steps=2)
    (tmp_path / "text").write_text("no database " * 500)
    with pytest.raises(LedgerError, match="not a database"):
        Ledger(tmp_path / "text", KEY)


def test_a_full_disk_is_an_error_that_changes_nothing(tmp_path: Path) -> None:
    ledger = a_run(tmp_path / "ledger.db")
    pages = ledger._database.execute("PRAGMA page_count").fetchone()[0]
    ledger._database.execute(f"PRAGMA max_page_count = {pages}")
    written = 0

    def fill() -> None:
        nonlocal written
        for _ in range(1000):
            ledger.append("stake", A, 1, detail="x" * 900)
            written += 1

    (count, _), stake = ledger.head, ledger.account(A).stake
    with pytest.raises(LedgerError, match="disk is full"):
        fill()
    assert (ledger.head[0], ledger.account(A).stake) == (count + written, stake + written)
    ledger._database.execute(f"PRAGMA max_page_count = {pages + 100}")
    ledger.append("stake", A, 1)
    assert replay(tmp_path / "ledger.db", KEY.public_key) == ledger.balances


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["stake", "unstake", "work", "step", "claim", "slash", "ban"]),
            st.sampled_from([A, B]),
            st.integers(-1, 50),
            st.integers(0, 8),
        ),
        max_size=60,
    )
)
def test_no_coin_is_lost_or_made(rows: list[tuple[str, str, int, int]]) -> None:
    balances = Balances()
    balances.apply(Entry(1, "begin", "", 0, 0, "row 1", "[3, 2]", 0.0, ""))
    for kind, address, amount, step in rows:
        paid = {name: account.paid for name, account in balances.accounts.items()}
        with contextlib.suppress(LedgerError):
            balances.apply(Entry(2, kind, address, amount, step, "", "", 0.0, ""))
        assert balances.is_balanced()
        for name, account in balances.accounts.items():
            assert min(account.stake, account.claimable, *account.pending.values(), 0) == 0
            assert account.paid >= paid.get(name, 0)


def test_a_claim_is_paid_once_whatever_crashes_between(tmp_path: Path) -> None:
    ledger = a_run(tmp_path / "ledger.db")
    settlement = LocalSettlement(tmp_path / "coins.db", grant=100)
    settlement.lock(A, 100, "join")
    settlement.lock(A, 100, "join")
    assert settlement.balance(A) == 0
    with pytest.raises(SettlementError, match="has 0, not 1"):
        settlement.lock(A, 1, "more")
    with pytest.raises(SettlementError, match="was for"):
        settlement.lock(B, 100, "join")
    # The row is there, the process died before it paid: the next start pays, and only once.
    for _ in range(2):
        pay_claims(ledger, settlement)
    assert settlement.balance(A) == 15
    last = pay_claims(ledger, settlement)
    ledger.append("claim", A, 5)
    pay_claims(ledger, settlement, last)
    assert settlement.balance(A) == 20


def test_a_ledger_copied_while_it_is_written_is_a_prefix(tmp_path: Path) -> None:
    ledger = a_run(tmp_path / "ledger.db")
    for suffix in ("", "-wal"):
        shutil.copy(f"{tmp_path}/ledger.db{suffix}", f"{tmp_path}/copy.db{suffix}")
    ledger.append("claim", A, 5)
    assert replay(tmp_path / "copy.db", KEY.public_key).accounts[A].claimable == 5
