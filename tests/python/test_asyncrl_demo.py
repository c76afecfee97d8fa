"""`python -m asyncrl.demo`: a short one with real processes, and what its judgement finds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asyncrl_processes import run_small_demo

from asyncrl.demo.verdict import DemoRecord, judge

STEPS = 6


def test_a_short_run_learns_from_strangers_catches_the_cheater_and_survives_two_kills(
    tmp_path: Path,
) -> None:
    done, found = run_small_demo(["-m", "asyncrl.demo"], STEPS, tmp_path)
    assert done.stdout.rstrip().endswith("ok")
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "demo.png").stat().st_size > 10_000
    verdict = found["verdict"]
    # The judgement has looked at the rest: digests, kills, the ledger; see below.
    assert verdict["faults"] == []
    assert verdict["accounts"]["cheater"]["ban_reason"].startswith("sampling")
    assert verdict["accounts"]["worker 1"]["units"] > 0
    assert verdict["accepted"] >= STEPS
    weights = {one["version"] for one in found["status"]["versions"]}
    assert weights == set(range(STEPS + 1))


ADDRESSES = {"a": "worker 1", "c": "cheater"}


def account(address: str, **changes: Any) -> dict[str, Any]:
    found = {"address": address, "stake": 1000, "pending": 0, "claimable": 5, "units": 5}
    return {**found, "is_banned": False, "ban_reason": "", "files": {"accepted": 1}, **changes}


def record() -> DemoRecord:
    found = DemoRecord(cheat="oracle", steps=2, trainer_killed_at=1, relay_killed_at=1)
    found.names = dict(ADDRESSES)
    found.digests = {"trainer 1": "y", "trainer 2": "y"}
    for version, digest in ((1, "x"), (2, "y")):
        for trainer in ("trainer 1", "trainer 2"):
            report = {"version": version, "digest": digest, "wait_share": 0.1}
            found.add_step(trainer, report)
    found.accuracy = {0: {"greedy": 0.1}, 2: {"greedy": 0.2}}
    found.is_replayed = True
    banned = account("c", is_banned=True, ban_reason="sampling: ...", stake=0)
    found.status = {"workers": [account("a"), banned], "files": {"accepted": 1}}
    return found


def test_a_run_without_a_fault_has_none() -> None:
    verdict = judge(record())
    assert verdict.faults == []
    assert (verdict.accuracy_first, verdict.accuracy_last) == ({"greedy": 0.1}, {"greedy": 0.2})


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"digests": {"trainer 1": "y", "trainer 2": "z"}}, "the trainers end with"),
        ({"digests_by_version": {1: {"trainer 1": "x", "trainer 2": "z"}}}, "different weights"),
        ({"digests_by_version": {2: {"trainer 2": "y"}}}, "did not train again"),
        ({"steps": 3}, "steps are missing: [3]"),
        ({"trainer_killed_at": 0}, "a kill was not done"),
        ({"is_replayed": False}, "the ledger's rows"),
        ({"cheat": "int4_weights"}, "is not banned for ('proof',)"),
        ({"status": {"workers": [account("a"), account("c")]}}, "the cheater is not banned"),
        ({"status": {"workers": [account("a")]}}, "the cheater never came"),
        ({"status": {"workers": [account("a", is_banned=True)]}}, "worker 1 is honest, and was"),
        ({"status": {"workers": [account("a", files={"refused": 1})]}}, "worker 1 is honest"),
        ({"status": {"workers": [account("a", units=0)]}}, "worker 1 earned nothing"),
    ],
)
def test_a_planted_fault_is_found(changes: dict[str, Any], fault: str) -> None:
    faults = judge(replace(record(), **changes)).faults
    assert any(fault in text for text in faults), faults
