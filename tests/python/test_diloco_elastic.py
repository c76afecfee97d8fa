"""DiLoCo with real processes that die, come, leave and differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from coordinator_processes import CoordinatorProcess
from member_processes import MemberProcess

WORKER = Path(__file__).with_name("diloco_worker.py")


def start(address: object, members: int, rounds: int, **options: Any) -> MemberProcess:
    return MemberProcess(address, members, rounds, json.dumps(options), worker=WORKER)


def by_round(member: MemberProcess) -> dict[int, dict[str, Any]]:
    return {said["round"]: said for said in member.said if "round" in said}


def agree(members: list[MemberProcess]) -> None:
    """The same bytes, weights and exclusions in every round that two of them saw."""
    seen = [by_round(member) for member in members]
    for rounds in seen[1:]:
        common = set(rounds) & set(seen[0])
        assert common
        for index in common:
            for key in ("hash", "weights", "excluded", "world_size", "step"):
                assert rounds[index][key] == seen[0][index][key], (index, key)


def test_one_dies_one_joins_one_has_a_nan_and_one_leaves(tmp_path: Path) -> None:
    with CoordinatorProcess(tmp_path, status=False) as coordinator:
        address = coordinator.address
        steady = start(address, 3, 16, **{"await": [7, 1]})
        sick = start(address, 3, 16, nan=[5, 1])
        dies = start(address, 3, 16, die=[3, 2])
        members = [steady, sick, dies]
        try:
            steady.wait_for("round", 6)
            late = start(address, 1, 16, leave=12)
            members.append(late)
            coordinator.restart()
            for member in (steady, sick, late):
                member.finish()
            agree([steady, sick, late])
            rounds = by_round(steady)
            assert sorted(rounds) == list(range(1, 17))
            [name] = [said["member"] for said in sick.said if "member" in said]
            assert list(rounds[6]["excluded"]) == [name]
            assert "NaN" in rounds[6]["excluded"][name]
            assert rounds[7]["excluded"] == {}
            assert len(rounds[3]["weights"]) == 3
            assert len(rounds[5]["weights"]) == 2
            [entered] = [said for said in late.said if "entered" in said]
            assert entered["entered"] == 8
            assert rounds[12]["world_size"] == 3
            assert len(rounds[16]["weights"]) == 2
        finally:
            for member in members:
                member.close()
