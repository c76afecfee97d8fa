"""DiLoCo with real processes that die, come, leave and differ."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from coordinator_processes import CoordinatorProcess
from diloco_reference import make_inner, make_model, train_step
from member_processes import MemberProcess
from thread_ranks import run_threads

import diloco
import pccl

WORKER = Path(__file__).with_name("diloco_worker.py")
SHARDED_WORKER = Path(__file__).with_name("diloco_sharded_worker.py")


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


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "streaming", "sync_every": 4, "fragments": 2, "delay_steps": 2},
        {"method": "asynchronous", "sync_every": 4},
        {"method": "gossip", "graph": "ring"},
    ],
)
def test_kill_9_with_something_under_way(tmp_path: Path, settings: dict[str, Any]) -> None:
    with CoordinatorProcess(tmp_path, status=False) as coordinator:
        deaths: list[dict[str, Any]] = [{}, {}, {"die": [3, 2]}]
        members = [start(coordinator.address, 3, 8, settings=settings, **d) for d in deaths]
        try:
            for member in members[:2]:
                member.finish()
        finally:
            for member in members:
                member.close()
    assert [said for m in members for said in m.said if "error" in said] == []
    first, second = (by_round(member) for member in members[:2])
    for rounds in (first, second):
        assert max(rounds) >= 8
        assert {said["world_size"] for said in rounds.values()} >= {2, 3}
    one, other = (
        {
            tuple(said["merge"]): (said["hash"], said["weights"])
            for said in m.said
            if "merge" in said
        }
        for m in members[:2]
    )
    if settings["method"] != "gossip":  # there everybody has a theta of its own
        common = set(one) & set(other)
        assert len(common) > 4
        assert {key: one[key] for key in common} == {key: other[key] for key in common}
        assert len({name for _, weights in one.values() for name in weights}) == 3


class Meeting:
    """Lets members, threads of this process, come when a round of the others has begun."""

    def __init__(self, address: object) -> None:
        self.address = str(address)
        self.begun = threading.Event()

    def train(
        self, rounds: int, waits_in: int = -1, first: int = 1, **settings: Any
    ) -> dict[int, Any]:
        """Train to a round of the run; in round `waits_in` until a newcomer is at the door."""
        model = make_model()
        if settings.pop("wide", False):
            model.append(torch.nn.Linear(3, 3))
        inner = make_inner(model)
        seen: dict[int, Any] = {}
        options = {"warmup_sync_steps": 0, **settings}
        with pccl.join(self.address, world_size_min=first) as comm:
            number = int(comm.member_id, 16) % 1000
            with diloco.DiLoCo(comm, model, inner, **options) as run:
                run.on_round.append(lambda run: seen.update({run.round: (run.info, run.roster)}))
                while run.round < rounds:
                    if run.round == waits_in:
                        self._wait(comm)
                    train_step(model, inner, number, run.step)
        return seen

    def _wait(self, comm: pccl.ElasticCommunicator) -> None:
        self.begun.set()
        deadline = time.monotonic() + 30
        while comm._core.pending_quorum_id == 0 and comm.world_size < 3:
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sync_every": 7}, "sync_every: 7 here, 3 in the run"),
        ({"codec": "int8", "seed": 4}, "codec: 'int8' here, 'none' in the run; seed: 4 here, 0 in"),
        ({"wide": True}, r"parameter 6\.bias: \[3\] here, 'nothing' in the run"),
    ],
)
def test_a_joiner_that_differs_is_refused_by_name_and_the_run_goes_on(
    tmp_path: Path, change: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with CoordinatorProcess(tmp_path, status=False) as coordinator:
        meeting = Meeting(coordinator.address)

        def take_part(place: int) -> Any:
            if place < 2:
                return meeting.train(6, 2, first=2, sync_every=3)
            assert meeting.begun.wait(30)
            with pytest.raises(diloco.SettingsMismatch, match=message):
                meeting.train(6, **{"sync_every": 3, **change})
            return None

        first, second, _ = run_threads(3, take_part)
    assert sorted(first) == [1, 2, 3, 4, 5, 6]
    assert [first[r][0].hash for r in first] == [second[r][0].hash for r in first]
    assert "is refused: " in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "delayed"},
        {"method": "eager", "outer_lr": 0.3},
        {"method": "streaming", "fragments": 2, "delay_steps": 1, "keep_local": 0.5},
        {"method": "streaming", "fragments": 2, "delay_steps": 3},
        {"codec": "int4"},
        {"codec": "topk_2bit:64", "outer_lr": 1.0, "outer_momentum": 0.0},
        {"warmup_sync_steps": 30, "inherit_inner_state": True},
    ],
)
def test_a_newcomer_comes_in_between_rounds(tmp_path: Path, settings: dict[str, Any]) -> None:
    with CoordinatorProcess(tmp_path, status=False) as coordinator:
        meeting = Meeting(coordinator.address)

        def take_part(place: int) -> dict[int, Any]:
            if place == 2:
                assert meeting.begun.wait(30)
            waits_in = 3 if place < 2 else -1
            return meeting.train(8, waits_in, 2 - place // 2, sync_every=6, **settings)

        seen = run_threads(3, take_part)
    for other in seen[1:]:
        for index, (info, roster) in other.items():
            reference, names = seen[0][index]
            assert roster == names
            if index > 1:  # a delayed run has merged nothing in its first round
                assert (info.hash, info.weights) == (reference.hash, reference.weights), index
    assert sorted(seen[2]) == [5, 6, 7, 8]
    assert len(seen[0][3][1]) == 2
    assert len(seen[0][4][1]) == 3
    assert len(seen[0][8][0].weights) == 3


def test_a_sharded_member_dies_and_another_comes(tmp_path: Path) -> None:
    """FSDP2 in each of two members: a run for each half of the parameters, in one coordinator."""
    rounds = 12

    def start_member(number: int, members: int, *options: dict[str, Any]) -> list[MemberProcess]:
        common = {"settings": {"warmup_sync_steps": 6}}
        return [
            MemberProcess(
                addresses[shard], members, shard, tmp_path / f"meeting-{number}", rounds,
                json.dumps(common | options[shard]), worker=SHARDED_WORKER,
            )
            for shard in range(2)
        ]  # fmt: skip

    names = ("--name", "half-0", "--name", "half-1")
    with CoordinatorProcess(tmp_path, *names, status=False) as coordinator:
        addresses = [str(coordinator.address), coordinator._next_line()]
        # Two rounds of warm start. The newcomer's second process comes to its run a round later
        # than the first one to its own.
        steady = start_member(0, 2, {"await": [4, 1]}, {"await": [5, 1]})
        dies = start_member(1, 2, {"die": [2, 1]}, {"die": [2, 1]})
        late: list[MemberProcess] = []
        try:
            for process in steady:
                process.wait_for("round", 3)
            late = start_member(2, 1, {}, {"is_split": True})
            for process in [*steady, *late]:
                process.finish()
        finally:
            for process in [*steady, *dies, *late]:
                process.close()
    for shard in range(2):
        mine, others = by_round(steady[shard]), by_round(late[shard])
        assert set(mine) == set(range(1, rounds + 1))
        common = set(mine) & set(others)
        assert max(common) == rounds
        for index in common:
            assert mine[index]["hash"] == others[index]["hash"], (shard, index)
            assert mine[index]["sum"] == others[index]["sum"], (shard, index)
        assert len(mine[2]["weights"]) == 2
        assert len(mine[rounds]["weights"]) == 2
    # Both processes of the newcomer began in the same round, and had the same whole model.
    entered = [said["entered"] for process in late for said in process.said if "entered" in said]
    assert entered == [6, 6]
    assert sorted(by_round(late[0])) == list(range(7, rounds + 1))
    for one, other in ((steady[0], steady[1]), (late[0], late[1])):
        sums = [{index: said["sum"] for index, said in by_round(p).items()} for p in (one, other)]
        both = set(sums[0]) & set(sums[1])
        assert {index: sums[0][index] for index in both} == {
            index: sums[1][index] for index in both
        }


def test_a_sharded_member_that_comes_in_the_warm_start_is_told_to_come_later(
    tmp_path: Path,
) -> None:
    names = ("--name", "half-0", "--name", "half-1")
    settings = {"settings": {"warmup_sync_steps": 9}}
    with CoordinatorProcess(tmp_path, *names, status=False) as coordinator:
        addresses = [str(coordinator.address), coordinator._next_line()]

        def start_shard(number: int, shard: int, **options: Any) -> MemberProcess:
            told = json.dumps(settings | options)
            place = (addresses[shard], 1, shard, tmp_path / f"meeting-{number}", 6)
            return MemberProcess(*place, told, worker=SHARDED_WORKER)

        steady = [start_shard(0, 0, **{"await": [1, 1]}), start_shard(0, 1)]
        late: list[MemberProcess] = []
        try:
            steady[0].wait_for("round", 1)
            late = [start_shard(1, 0), start_shard(1, 1, is_split=True)]
            for process in steady:
                process.finish()
                assert max(by_round(process)) == 6
            assert late[0].process.wait(30) != 0
            assert "the run averages gradients until step 9; a member with a sharded model" in (
                late[0].errors()
            )
        finally:
            for process in [*steady, *late]:
                process.close()
