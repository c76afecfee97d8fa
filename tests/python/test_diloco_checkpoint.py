"""diloco/checkpoint.py: what comes after a restore is what would have come without a break."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coordinator_processes import CoordinatorProcess, environment
from diloco_reference import make_inner, make_model, train_step
from thread_ranks import run_ranks, run_threads
from torch import nn

import diloco
import pccl
from diloco.checkpoint import CheckpointError, Checkpoints
from diloco.metrics import Metrics
from diloco.sampler import RoundSampler, rounds
from diloco.schedule import RunSchedule, cosine

SAMPLES = 40


class Member:
    """A run of one member, with all that can make the next bytes differ."""

    def __init__(self, folder: Path, width: int = 4, **settings: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(width, 4), nn.BatchNorm1d(4), nn.Dropout(0.3))
        self.inner = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.sampler = RoundSampler(SAMPLES, batch=3, seed=1)
        options = {"sync_every": 4, "warmup_sync_steps": 4, "codec": "int4", **settings}
        self.run = diloco.DiLoCo(None, self.model, self.inner, sampler=self.sampler, **options)
        schedule = RunSchedule(self.inner, cosine(30), lambda: self.run.step)
        self.checkpoints = Checkpoints(folder, self.run, more={"schedule": schedule})
        self.seen: list[list[int]] = []

    def train(self, until: int) -> None:
        batches = rounds(self.sampler)
        while self.run.step < until:
            batch = next(batches)
            self.seen.append(batch)
            x = torch.tensor([[sample / 40, 1.0, 0.5, random.random()] for sample in batch])
            loss = self.model(x + np.random.rand()).square().mean()
            loss.backward()
            self.inner.step()
            self.inner.zero_grad()

    def bytes(self) -> bytes:
        tensors = [*self.run.shared_state().values(), *self.model.state_dict().values()]
        for own in self.inner.state_dict()["state"].values():
            tensors += own.values()
        tensors += self.run.compressor.state_dict().values()
        return b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)


@pytest.mark.parametrize("at", [8, 10])  # where a round ends, and in the middle of one
def test_after_a_restore_come_the_same_bytes(tmp_path: Path, at: int) -> None:
    whole = Member(tmp_path / "a")
    with whole.run:
        whole.train(at)
        saved = whole.checkpoints.save()
        whole.train(18)
    again = Member(tmp_path / "b")
    (tmp_path / "b" / "alone" / saved.name).symlink_to(saved)
    random.seed(99)  # a new process has other states
    np.random.seed(99)
    assert again.checkpoints.restore() == at
    with again.run:
        again.train(18)
    assert again.seen == whole.seen[at:]
    assert again.bytes() == whole.bytes()


def test_it_saves_every_so_many_rounds_and_keeps_the_newest(tmp_path: Path) -> None:
    member = Member(tmp_path / "a")
    kept = Checkpoints(tmp_path / "b", member.run, every=2, keep=2)
    with member.run:
        member.train(33)
    assert kept.steps() == [24, 32]
    assert kept.save().name == "step-00000033"
    before = (kept.folder / "step-00000033" / "manifest.json").stat().st_mtime_ns
    kept.save()  # it is there already
    assert (kept.folder / "step-00000033" / "manifest.json").stat().st_mtime_ns == before
    assert kept.steps() == [32, 33]


@contextmanager
def files_of_at_most(limit: int) -> Iterator[None]:
    """What a full disk is to a program: writing fails in the middle of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_where_a_save_fails_the_run_goes_on_and_the_last_one_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    member = Member(tmp_path / "a")
    kept = Checkpoints(tmp_path / "b", member.run, every=1)
    with member.run:
        member.train(4)
        with files_of_at_most(1000):
            member.train(8)
            with pytest.raises(CheckpointError, match=r"step 8 .*File too large.* steps \[4\]"):
                kept.save()
        assert "File too large" in caplog.text
        assert "The run goes on" in caplog.text
        assert [path.name for path in kept.folder.iterdir()] == [".lock", "step-00000004"]
        member.train(12)
    assert kept.steps() == [4, 12]


def damage(place: Path, name: str, change: str) -> None:
    path = place / name
    if change == "gone":
        path.unlink()
    elif change == "short":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        whole = bytearray(path.read_bytes())
        whole[len(whole) // 2] ^= 1
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["manifest.json", ".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("change", ["gone", "short", "a bit"])
def test_a_damaged_one_is_refused_and_others_are_named(
    tmp_path: Path, name: str, change: str
) -> None:
    member = Member(tmp_path)
    with member.run:
        member.train(4)
        member.checkpoints.save()
        member.train(8)
        damage(member.checkpoints.save(), name, change)
    member.checkpoints.close()
    again = Member(tmp_path)
    before = again.bytes()
    with pytest.raises(CheckpointError, match=rf"step-00000008: {name} .*steps \[4\]"):
        again.checkpoints.restore()
    assert again.bytes() == before
    assert again.checkpoints.restore(4) == 4
    again.checkpoints.close()


def rewrite_manifest(place: Path, **changes: Any) -> None:
    import hashlib

    manifest = json.loads((place / "manifest.json").read_text().splitlines()[0])
    text = json.dumps({**manifest, **changes})
    digest = hashlib.sha256(text.encode()).hexdigest()
    (place / "manifest.json").write_text(f"{text}\n{digest}\n")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"version": 0}, "version 0, this library reads 1"), ({"format": "x"}, "none of a diloco")],
)
def test_another_version_and_a_foreign_one_are_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    member = Member(tmp_path)
    rewrite_manifest(member.checkpoints.save(), **changes)
    with pytest.raises(CheckpointError, match=reason):
        member.checkpoints.restore()
    (member.checkpoints.folder / "step-00000007").mkdir()
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing: it is no diloco"):
        member.checkpoints.restore(7)
    member.checkpoints.close()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"width": 5}, r"0\.weight: \[4, 4\] .* there, \[4, 5\]"),
        ({"sync_every": 5}, "sync_every: 5 here, 4 in the"),
    ],
)
def test_that_of_another_model_or_settings_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    member = Member(tmp_path)
    member.checkpoints.save()
    member.checkpoints.close()
    other = Member(tmp_path, **change)
    before = other.bytes()
    with pytest.raises(diloco.SettingsMismatch, match=reason):
        other.checkpoints.restore()
    assert other.bytes() == before
    other.checkpoints.close()


def test_a_slot_in_use_is_refused_and_none_is_no_restore(tmp_path: Path) -> None:
    member = Member(tmp_path)
    assert member.checkpoints.restore() is None
    with pytest.raises(CheckpointError, match="alone is in use by another process"):
        Member(tmp_path)
    member.checkpoints.close()


KILLED = """
import sys
from pathlib import Path
from test_diloco_checkpoint import Member
member = Member(Path(sys.argv[1]))
with member.run:
    for step in range(1, 1000):
        member.train(step)
        print(step, flush=True)
        member.checkpoints.save()
"""


def test_kill_9_while_saving_leaves_the_last_one_whole(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    path = f"{environment()['PYTHONPATH']}:{here}"
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env=environment(PYTHONPATH=path),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) == 5:
            break
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=30)
    member = Member(tmp_path)
    restored = member.checkpoints.restore()
    assert restored is not None
    assert restored >= 4
    with member.run:
        member.train(restored + 1)
        member.checkpoints.save()
    assert not list(member.checkpoints.folder.glob(".step-*"))
    member.checkpoints.close()


def test_metrics_go_on_in_the_same_file(tmp_path: Path) -> None:
    for until in (4, 8):
        member = Member(tmp_path / "a")
        member.checkpoints.restore()
        with member.run, Metrics(member.run, tmp_path / "b"):
            member.train(until)
        member.checkpoints.save()
        member.checkpoints.close()
    lines = (tmp_path / "b" / "member-alone.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows if row["kind"] == "inner"] == list(range(1, 9))


# Members that are threads: filters of warnings belong to the process.
IN_TURN = threading.Lock()


def train_together(comm: Any, folder: Path, until: int, saves_at: int = -1) -> dict[int, str]:
    """A member of several, from its slot's checkpoint if there is one: the run's hash by round."""
    model = make_model()
    inner = make_inner(model)
    seen: dict[int, str] = {}
    run = diloco.DiLoCo(comm, model, inner, sync_every=3, warmup_sync_steps=0, codec="int4")
    checkpoints = Checkpoints(folder, run)
    with IN_TURN:
        checkpoints.restore()

    def note(run: diloco.DiLoCo) -> None:
        assert run.info is not None
        seen[run.round] = run.info.hash

    run.on_round.append(note)
    with run:
        while run.round < until:
            train_step(model, inner, comm.rank, run.step)
            if run.step == saves_at:
                with IN_TURN:
                    checkpoints.save()
    checkpoints.close()
    return seen


@pytest.mark.parametrize("at", [6, 7])
def test_members_that_all_restore_go_on_as_without_a_break(tmp_path: Path, at: int) -> None:
    whole = run_ranks(3, lambda comm: train_together(comm, tmp_path, 5, saves_at=at))
    again = run_ranks(3, lambda comm: train_together(comm, tmp_path, 5))
    assert again == [{number: seen[number] for number in (3, 4, 5)} for seen in whole]


@pytest.mark.parametrize("members", [2, 4])
def test_a_restored_run_has_as_many_members_as_come(tmp_path: Path, members: int) -> None:
    def train(address: object, count: int, until: int, saves_at: int = -1) -> list[dict[int, str]]:
        def take_part(_: int) -> dict[int, str]:
            with pccl.join(str(address), world_size_min=count) as comm:
                return train_together(comm, tmp_path / "saved", until, saves_at)

        return run_threads(count, take_part)

    for name in ("before", "after"):
        (tmp_path / name).mkdir()
    with CoordinatorProcess(tmp_path / "before", status=False) as coordinator:
        before = train(coordinator.address, 3, 2, saves_at=6)
    # All is lost but the members' files.
    with CoordinatorProcess(tmp_path / "after", status=False) as coordinator:
        after = train(coordinator.address, members, 4)
    assert before == [before[0]] * 3
    assert sorted(after[0]) == [3, 4]
    assert after == [after[0]] * members
