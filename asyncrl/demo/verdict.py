"""What a demo recorded, and whether it went as it had to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asyncrl.cheats import CHEATS
from asyncrl.protocol.keys import Key
from asyncrl.protocol.ledger import LedgerBroken, replay

__all__ = ["DemoRecord", "DemoVerdict", "judge"]


@dataclass(kw_only=True)
class DemoRecord:
    cheat: str
    steps: int
    begun_at: float = 0.0
    names: dict[str, str] = field(default_factory=dict)  # address -> name
    events: list[dict[str, Any]] = field(default_factory=list)
    trainer_steps: dict[int, dict[str, Any]] = field(default_factory=dict)  # version -> report
    digests_by_version: dict[int, dict[str, str]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)  # trainer -> at its end
    accuracy: dict[int, dict[str, float]] = field(default_factory=dict)  # version -> held out
    banned: dict[str, str] = field(default_factory=dict)  # worker -> why
    fetches: list[dict[str, Any]] = field(default_factory=list)
    trainer_killed_at: int = 0
    relay_killed_at: int = 0
    status: dict[str, Any] = field(default_factory=dict)  # the coordinator's last
    is_replayed: bool = False
    """The ledger's rows alone give the balances that the coordinator shows."""

    faults: list[str] = field(default_factory=list)

    def add_step(self, trainer: str, report: dict[str, Any]) -> None:
        version = report["version"]
        self.trainer_steps.setdefault(version, report)
        self.digests_by_version.setdefault(version, {})[trainer] = report["digest"]

    def audit(self, folder: Path) -> None:
        """Compute the balances anew from the ledger's rows."""
        key = Key.load_or_create(folder / "coordinator.pem")
        try:
            balances = replay(folder / "ledger.db", key.public_key)
        except LedgerBroken as error:
            self.faults.append(str(error))
            return
        shown = {one["address"]: one for one in self.status["workers"]}
        self.is_replayed = balances.is_balanced() and all(
            account.summary().items() <= shown[address].items()
            for address, account in balances.accounts.items()
        )


@dataclass(frozen=True)
class DemoVerdict:
    faults: list[str]
    accepted: int
    refused: dict[str, int]
    """reason -> files."""

    accounts: dict[str, dict[str, Any]]
    """name -> account, of workers."""

    accuracy_first: dict[str, float]
    accuracy_last: dict[str, float]
    wait_share: float


def judge(record: DemoRecord) -> DemoVerdict:
    """Look for everything that has to be true of a run with one cheater and two kills."""
    faults = list(record.faults)
    status = record.status
    accounts = {
        record.names.get(one["address"], one["address"]): one for one in status.get("workers", [])
    }
    if not faults:
        faults += _wrong_steps(record) + _wrong_workers(record, accounts)
        if not record.is_replayed:
            faults.append("the ledger's rows do not give the balances that are shown")
    done = [record.accuracy[version] for version in sorted(record.accuracy)] or [{}]
    return DemoVerdict(
        faults,
        status.get("files", {}).get("accepted", 0),
        dict(status.get("reasons", {})),
        accounts,
        done[0],
        done[-1],
        record.trainer_steps[max(record.trainer_steps)]["wait_share"]
        if record.trainer_steps
        else 0.0,
    )


def _wrong_steps(record: DemoRecord) -> list[str]:
    faults = []
    missing = set(range(1, record.steps + 1)) - set(record.trainer_steps)
    if missing:
        faults.append(f"steps are missing: {sorted(missing)}")
    for version, digests in record.digests_by_version.items():
        if len(set(digests.values())) > 1:
            faults.append(f"version {version}: the trainers have different weights")
    if len(record.digests) != 2 or len(set(record.digests.values())) != 1:
        faults.append(f"the trainers end with {record.digests}")
    last = record.digests_by_version.get(record.steps, {})
    if len(last) != 2:
        faults.append("the killed trainer did not train again")
    if not record.trainer_killed_at or not record.relay_killed_at:
        faults.append("a kill was not done")
    return faults


def _wrong_workers(record: DemoRecord, accounts: dict[str, dict[str, Any]]) -> list[str]:
    faults = []
    expected = CHEATS[record.cheat].reasons
    for name, account in accounts.items():
        if name == "cheater":
            found = account["ban_reason"].partition(":")[0]
            if not account["is_banned"] or found not in expected:
                faults.append(f"the cheater is not banned for {expected}: {account}")
            elif account["stake"] or account["pending"]:
                faults.append(f"the cheater keeps {account}")
        elif account["is_banned"] or account["files"].get("refused"):
            faults.append(f"{name} is honest, and was refused: {account}")
        elif not account["units"]:
            faults.append(f"{name} earned nothing")
    if "cheater" not in accounts:
        faults.append("the cheater never came")
    return faults
