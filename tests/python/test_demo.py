"""`pccl demo`: its judgement of planted faults, and a short one with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from coordinator_processes import environment

from pccl.demo.verdict import Event, Record, judge

DEMO_SECONDS = 300  # on a machine that does much else meanwhile
STEPS = 6


def recorded(member_id: str, first: int = 1) -> Record:
    """Two members, of which "b" is dead from step 4 on."""
    steps: list[dict[str, Any]] = [
        {
            "at": float(step),
            "step": step,
            "before": f"state {step - 1}",
            "after": f"state {step}",
            "loss": 1 / step,
            "contributors": [["a", "b"] if step < 4 else ["a", "c"]],
        }
        for step in range(first, STEPS + 1)
    ]
    return Record(ord(member_id), member_id, False, steps, f"state {STEPS}")


KILLED = Event(3.25, "member killed", ord("b"), "b")
AWAY = Event(4.5, "coordinator killed", 0)
BACK = Event(4.75, "coordinator back", 0)


def records() -> list[Record]:
    whole = recorded("b")
    return [recorded("a"), replace(whole, was_killed=True, steps=whole.steps[:3]), recorded("c", 4)]


def test_a_run_without_a_fault_has_none() -> None:
    verdict = judge(records(), [KILLED, AWAY, BACK])
    assert verdict.faults == []
    assert (verdict.steps, verdict.steps_lost) == (STEPS, 0)
    assert (verdict.identical, verdict.alive) == (2, 2)
    assert verdict.recovery_seconds == [0.75]
    assert verdict.pause_seconds == [1.0]


@pytest.mark.parametrize(
    ("member", "step", "change", "fault"),
    [
        (0, 2, {"after": "other"}, "step 2: the members differ in 'after'"),
        (0, 5, {"before": "other"}, "step 5 began with other bytes than step 4"),
        (2, 5, {"contributors": [["a"]]}, "step 5: the members differ in 'contributors'"),
        (0, 1, {"contributors": [["b"]]}, "step 1: the gradient of a is missing"),
        (0, 6, {"step": 5}, "left steps out or did some twice"),
        (2, 6, {"step": 7}, "left steps out or did some twice"),
    ],
)
def test_a_planted_fault_is_found(
    member: int, step: int, change: dict[str, Any], fault: str
) -> None:
    found = records()
    steps = [{**said, **change} if said["step"] == step else said for said in found[member].steps]
    found[member] = replace(found[member], steps=steps)
    assert any(fault in text for text in judge(found, [KILLED]).faults)


def test_a_step_that_nobody_did_is_lost() -> None:
    found = [
        replace(record, steps=[said for said in record.steps if said["step"] != 2])
        for record in records()
    ]
    verdict = judge(found, [])
    assert verdict.steps_lost == 1
    assert "step 2 was done by nobody" in verdict.faults


def test_members_that_end_with_other_bytes_and_no_recovery_are_found() -> None:
    found = records()
    found[2] = replace(found[2], digest="other")
    late = replace(KILLED, at=100.0)
    faults = judge(found, [late]).faults
    assert "1 of 2 members ended with the same bytes" in faults
    assert any("no step was done without member" in fault for fault in faults)


def start_demo(out: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pccl", "demo", "--out", str(out), *options],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a group of its own, as a terminal makes it
    )


def test_three_kills_are_survived_without_a_step_lost(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    with start_demo(tmp_path, "--members", "3", "--kill", "3", "--steps", "20") as demo:
        try:
            text, _ = demo.communicate(timeout=DEMO_SECONDS)
        finally:
            demo.kill()
    assert demo.returncode == 0, text
    assert "ok: 3 kills survived, 0 steps lost" in text
    document = json.loads((tmp_path / "demo.json").read_text())
    assert document["verdict"]["faults"] == []
    assert document["verdict"]["coordinator_kills"] == 1
    assert document["verdict"]["identical"] == 3
    assert [step["step"] for step in document["steps"]] == list(
        range(1, len(document["steps"]) + 1)
    )
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("to_group", [True, False])
def test_ctrl_c_ends_all_processes(tmp_path: Path, to_group: bool) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    with start_demo(tmp_path, "--members", "3", "--kill", "1") as demo:
        assert demo.stdout is not None
        try:
            line = ""
            while "is in" not in line:
                line = demo.stdout.readline()
                assert line
            children = Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()
            assert len(children) == 4
            (os.killpg if to_group else os.kill)(demo.pid, signal.SIGINT)
            rest = demo.communicate(timeout=60)[0]
        finally:
            demo.kill()
    assert "interrupted" in rest
    assert demo.returncode == 130
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline, children
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [(["--members", "2"], "members: expected 3 or more"), (["--kill", "-1"], "0 or more kills")],
)
def test_a_wrong_option_is_a_sentence(tmp_path: Path, options: list[str], sentence: str) -> None:
    with start_demo(tmp_path, *options) as demo:
        text, _ = demo.communicate(timeout=60)
    assert demo.returncode == 2
    assert sentence in " ".join(text.replace("│", " ").split())
