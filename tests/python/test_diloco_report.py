"""diloco/metrics.py writes it, diloco/report.py judges it: each planted fault is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from diloco.cli import app
from diloco.metrics import Metrics, OuterStep
from diloco.report import make_report, read_run

PARAMETERS = 1000
MEMBERS = ("aa", "bb", "cc")
ROUNDS, STEPS, TOKENS = 6, 5, 64


def write_run(folder: Path) -> None:
    """Three members; bb dies after round 2, dd joins in round 5."""
    members = {name: Metrics(folder, member=name) for name in MEMBERS}
    for metrics in members.values():
        metrics.start(parameters=PARAMETERS, settings={"sync_every": STEPS})
    step = 0
    for number in range(1, ROUNDS + 1):
        if number == 3:
            members.pop("bb").__exit__(RuntimeError, RuntimeError(), None)
        if number == 5:
            members["dd"] = Metrics(folder, member="dd")
            members["dd"].start(parameters=PARAMETERS, settings={"sync_every": STEPS})
        for _ in range(STEPS):
            step += 1
            for metrics in members.values():
                metrics.inner(step, loss=4 / number, tokens=TOKENS)
        for metrics in members.values():
            metrics.outer(
                OuterStep(
                    round=number,
                    step=step,
                    members=sorted(members),
                    contributors=sorted(members),
                    tokens=TOKENS * STEPS * len(members),
                    bytes_sent=PARAMETERS * 4,
                    sync_seconds=0.0,
                    hash=f"{number:064x}",
                )
            )
    for metrics in members.values():
        metrics.close()


def rewrite(path: Path, number: int, **changes: Any) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row.get("round") == number:
            row.update(changes)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_is_put_together_from_its_members_files(tmp_path: Path) -> None:
    write_run(tmp_path)
    report = make_report(read_run(tmp_path))
    assert report.faults == []
    assert [found.step for found in report.rounds] == [STEPS * n for n in range(1, ROUNDS + 1)]
    assert [found.members for found in report.rounds] == [3, 3, 2, 2, 3, 3]
    assert [member for _, member in report.deaths] == ["bb"]
    assert [member for _, member in report.joins] == ["dd"]
    assert report.leaves == []
    assert (report.loss_first, report.loss_last) == (4.0, 4 / ROUNDS)
    assert report.bytes_sent == ROUNDS * PARAMETERS * 4
    ring = sum(STEPS * 2 * (found.members - 1) / found.members for found in report.rounds)
    assert report.bytes_of_ddp == pytest.approx(ring * PARAMETERS * 4)
    assert (report.rounds_identical, report.hash) == (ROUNDS, f"{ROUNDS:064x}")


@pytest.mark.parametrize(
    ("member", "changes", "fault"),
    [
        ("aa", {"hash": "other"}, "round 4: the members differ in 'hash'"),
        ("cc", {"contributors": ["cc"]}, "round 4: the members differ in 'contributors'"),
        ("cc", {"round": 5}, "member cc left rounds out or did some twice"),
        ("aa", {"excluded": {"cc": "its contribution has NaN"}}, "round 4: cc was excluded"),
    ],
)
def test_a_planted_fault_is_found(
    tmp_path: Path, member: str, changes: dict[str, Any], fault: str
) -> None:
    write_run(tmp_path)
    rewrite(tmp_path / f"member-{member}.jsonl", 4, **changes)
    assert any(fault in text for text in make_report(read_run(tmp_path)).faults)


def test_a_round_that_nobody_did_is_found(tmp_path: Path) -> None:
    write_run(tmp_path)
    for member in ("aa", "cc"):
        rewrite(tmp_path / f"member-{member}.jsonl", 4, kind="other")
    assert "round 4 was done by nobody" in make_report(read_run(tmp_path)).faults


def test_half_a_line_at_the_end_is_a_killed_member_and_nonsense_is_none(tmp_path: Path) -> None:
    write_run(tmp_path)
    path = tmp_path / "member-bb.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"kind": "inn')
    assert make_report(read_run(tmp_path)).faults == []
    path.write_text("hello\n" + whole)
    with pytest.raises(ValueError, match=r"member-bb\.jsonl:1: not a line"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="no member-"):
        read_run(tmp_path / "nothing")


def diloco_report(folder: Path) -> Any:
    return CliRunner().invoke(app, ["report", str(folder)])


def test_the_command_draws_and_its_exit_code_is_the_verdict(tmp_path: Path) -> None:
    write_run(tmp_path)
    done = diloco_report(tmp_path)
    assert done.exit_code == 0, done.stderr
    assert "1 died, 1 joined on the way, 0 left" in done.stdout
    assert done.stdout.splitlines()[-1] == (
        "ok: 6 outer steps, all members hold the same bytes in each"
    )
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    rewrite(tmp_path / "member-aa.jsonl", 4, hash="other")
    done = diloco_report(tmp_path)
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-1] == "FAILED"
    done = diloco_report(tmp_path / "nothing")
    assert done.exit_code == 1
    assert "no member-" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_ends_the_file_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "member-aa.jsonl").symlink_to("/dev/full")
    with Metrics(tmp_path, member="aa") as metrics:
        metrics.start(parameters=1, settings={})
        metrics.inner(1, loss=1.0, tokens=1)
    assert caplog.text.count("No space left on device") == 1
    assert "the run goes on" in caplog.text


def test_what_is_not_finite_is_null_and_an_error_is_no_polite_end(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, member="aa")
    metrics.inner(1, loss=float("nan"), tokens=1)
    metrics.__exit__(RuntimeError, RuntimeError(), None)
    (row,) = [json.loads(line) for line in (tmp_path / "member-aa.jsonl").read_text().splitlines()]
    assert (row["kind"], row["loss"]) == ("inner", None)


def test_the_bar_shows_loss_speed_utilisation_and_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    with Metrics(None, steps=10, progress=True) as metrics:
        metrics.inner(5, loss=2.5, tokens=100)
        metrics.outer(
            OuterStep(
                round=1,
                step=5,
                members=MEMBERS,
                contributors=MEMBERS,
                tokens=300,
                bytes_sent=2_500_000,
                sync_seconds=0.0,
            )
        )
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("step 5/10  loss 2.500  ")
    assert first.endswith("tokens/s  100% computing  2.50 MB an outer step  3 members")


def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Metrics(tmp_path, member="aa", tensorboard=True) as metrics:
        metrics.start(parameters=1, settings={})
        for step in (1, 2):
            metrics.inner(step, loss=4.0 / step, tokens=10)
    events = reading.EventAccumulator(str(tmp_path / "tensorboard" / "aa"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("inner/loss")] == [(1, 4.0), (2, 2.0)]
