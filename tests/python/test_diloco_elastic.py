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
