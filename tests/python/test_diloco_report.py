"""diloco/metrics.py writes it, diloco/report.py judges it: each planted fault is found."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import diloco
from diloco.cli import app
from diloco.metrics import Metrics
from diloco.report import make_report, read_run

PARAMETERS = 1000
ROUNDS, STEPS, TOKENS = 6, 5, 64


def write_line(folder: Path, name: str, kind: str, **values: Any) -> None:
    with (folder / f"member-{name}.jsonl").open("a") as file:
        file.write(json.dumps({"kind": kind, "at": float(values.pop("at", 0)), **values}) + "\n")


def write_run(folder: Path) -> None:
    """Three members; bb dies after the first two rounds, dd joins in the fifth."""
    members: list[str] = []
    for number in range(ROUNDS):
        at, step = 10.0 * number, STEPS * (number + 1)
        for member in {0: ["aa", "bb", "cc"], 4: ["dd"]}.get(number, []):
            members.append(member)
            begin = {"member": member, "process": 1, "parameters": PARAMETERS, "settings": {}}
            write_line(folder, member, "start", at=at, **begin)
        if number == 2:
            members.remove("bb")
        for member in members:
            info = {
                "round": number,
                "step": step,
                "fragment": 0,
                "hash": f"{number:064x}",
                "members": members,
                "contributors": members,
                "weights": dict.fromkeys(members, 1 / len(members)),
                "excluded": {},
                "total_tokens": step * TOKENS,
                "losses": dict.fromkeys(members, 4 / (number + 1)),
                "own_bytes_sent": PARAMETERS * 4,
                "own_compute_seconds": 9.0,
                "own_sync_seconds": 1.0,
                "utilization": 0.9,
                "seconds": at + 10,
            }
            write_line(folder, member, "outer", at=at + 10, **info)
    for member in members:
        write_line(folder, member, "result", at=at + 10, held_out=1.5)
        write_line(folder, member, "end", at=at + 10, step=step)


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
    assert [found.step for found in report.merges] == [STEPS * n for n in range(1, ROUNDS + 1)]
    assert [found.seconds for found in report.merges] == [10.0 * n for n in range(1, ROUNDS + 1)]
    assert [found.members for found in report.merges] == [3, 3, 2, 2, 3, 3]
    assert report.deaths == [(20.0, "bb")]
    assert report.joins == [(40.0, "dd")]
    assert report.leaves == []
    assert (report.loss_first, report.loss_last) == (4.0, 4 / ROUNDS)
    assert report.results == {"held_out": 1.5}
    assert report.utilization == pytest.approx(0.9)
    assert report.bytes_sent == ROUNDS * PARAMETERS * 4
    ring = sum(STEPS * 2 * (found.members - 1) / found.members for found in report.merges)
    assert report.bytes_of_ddp == pytest.approx(ring * PARAMETERS * 4)
    assert (report.merges_identical, report.hash) == (ROUNDS, f"{ROUNDS - 1:064x}")


@pytest.mark.parametrize(
    ("member", "changes", "fault"),
    [
        ("aa", {"hash": "other"}, "round 4: the members differ in 'hash'"),
        ("cc", {"contributors": ["cc"]}, "round 4: the members differ in 'contributors'"),
        ("cc", {"round": 3}, "member cc left rounds out or did some twice"),
        ("aa", {"excluded": {"cc": "9 elements are NaN"}}, "round 4: cc was excluded"),
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
        rewrite(tmp_path / f"member-{member}.jsonl", 3, kind="other")
    assert "round 3 was done by nobody" in make_report(read_run(tmp_path)).faults


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


def train(folder: Path | None, steps: int, **options: Any) -> None:
    """A run of one member that takes 3 steps a round."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = diloco.DiLoCo(None, model, optimizer, sync_every=3, warmup_sync_steps=0)
    with run, Metrics(run, folder, steps=steps, **options) as metrics:
        for step in range(steps):
            loss = model(torch.ones(2, 4)).square().mean()
            metrics.log(loss=float("nan") if step == 1 else loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        metrics.result(held_out=2.0)


def test_what_a_run_writes_is_what_it_did(tmp_path: Path) -> None:
    train(tmp_path, 7)
    rows = [json.loads(line) for line in (tmp_path / "member-alone.jsonl").read_text().splitlines()]
    kinds = [row["kind"] for row in rows]
    inner, outer = ["inner"] * 3, ["outer"]
    assert kinds == ["start", *inner, *outer, *inner, *outer, "inner", "result", "end"]
    assert rows[0]["parameters"] == 5
    assert rows[0]["settings"]["sync_every"] == 3
    steps = [row for row in rows if row["kind"] == "inner"]
    assert [row["step"] for row in steps] == list(range(1, 8))
    assert steps[1]["loss"] is None  # what is not finite
    assert steps[0]["loss"] > steps[6]["loss"]
    assert {row["tokens"] for row in steps} == {2}
    assert [(row["step"], row["contributors"]) for row in rows if row["kind"] == "outer"] == [
        (3, ["alone"]),
        (6, ["alone"]),
    ]
    report = make_report(read_run(tmp_path))
    assert report.faults == []
    assert report.results == {"held_out": 2.0}


def test_an_error_is_no_polite_end(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        train(tmp_path, 0.5)  # type: ignore[arg-type]  # range() takes no such number
    assert '"end"' not in (tmp_path / "member-alone.jsonl").read_text()


def test_a_full_disk_ends_the_file_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "member-alone.jsonl").symlink_to("/dev/full")
    train(tmp_path, 4)
    assert caplog.text.count("No space left on device") == 1
    assert "the run goes on" in caplog.text


def test_the_bar_shows_loss_speed_utilization_and_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    train(None, 3, progress=True)
    first = capsys.readouterr().out.splitlines()[0]
    assert re.fullmatch(
        r"step 3/3  loss [0-9.]+  [0-9,]+ tokens/s  [0-9]+% computing  "
        r"0\.00 MB an outer step  1 members",
        first,
    )


def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tmp_path, 4, tensorboard=True)
    events = reading.EventAccumulator(str(tmp_path / "tensorboard" / "alone"))
    events.Reload()
    assert [event.step for event in events.Scalars("inner/loss")] == [1, 2, 3, 4]
    assert [(event.step, event.value) for event in events.Scalars("outer/members")] == [(3, 1.0)]
