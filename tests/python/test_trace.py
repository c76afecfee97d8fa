"""Flight records of real processes, and what `pccl trace` reads out of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from coordinator_processes import CoordinatorProcess, environment
from member_processes import members

from pccl.trace import TraceError, absent_members, align, read_record, summarize

RANKS = """
import sys, time, numpy as np, pccl
rank, folder, second = int(sys.argv[1]), sys.argv[2], sys.argv[3]
comm = pccl.init(f"file://{folder}", rank=rank, world_size=2)
comm.all_reduce(np.ones(10, np.float32))
try:
    if rank == 0:
        comm.all_reduce(np.ones(5, np.float32), timeout_seconds=1)
    elif second == "other":
        comm.all_reduce(np.ones(6, np.float32))
    else:
        time.sleep(2)
except pccl.PcclError as error:
    print(type(error).__name__, flush=True)
comm.close()
"""


def trace(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pccl", "trace", *map(str, arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def two_ranks(folder: Path, second: str) -> list[Path]:
    """A fixed group whose second collective goes wrong; the files that its ranks write."""
    traces = folder / "traces"
    traces.mkdir()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RANKS, str(rank), str(folder / "meet"), second],
            env=environment(PCCL_TRACE_DIR=str(traces), PCCL_HOST="127.0.0.1"),
        )
        for rank in range(2)
    ]
    for process in started:
        assert process.wait(60) == 0
    return sorted(traces.glob("*.jsonl"))


def test_a_record_says_who_was_waited_for_and_in_which_phase(tmp_path: Path) -> None:
    # Rank 1 has no failed operation, so it writes nothing.
    [file] = two_ranks(tmp_path, "silent")
    done = trace(file)
    assert done.returncode == 0, done.stderr
    assert re.search(r"operation 1 of world#0, all_reduce.*failed after [12]\.", done.stdout)
    assert re.search(r"0 of 1 segments done, waiting for rank 1 \(127.0.0.1:\d+\)", done.stdout)


def test_a_trace_shows_the_first_operation_that_members_called_differently(tmp_path: Path) -> None:
    files = two_ranks(tmp_path, "other")
    picture = tmp_path / "timeline.png"
    done = trace(*files, "--out", picture)
    assert done.returncode == 0, done.stderr
    assert len(files) == 2
    found = re.search(r"Members disagree first at operation 1 of world#0: (.*)", done.stdout)
    assert found is not None, done.stdout
    assert "20 bytes) on rank 0" in found[1]
    assert "24 bytes) on rank 1" in found[1]
    assert "CallMismatch" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def record_of(comm_says: dict[str, object], path: Path) -> Path:
    path.write_text(str(comm_says["record"]))
    return path


def test_survivors_records_tell_the_death_the_next_quorum_and_the_recovery(tmp_path: Path) -> None:
    with (
        CoordinatorProcess(tmp_path, status=False) as coordinator,
        members(3, coordinator.address, "sum", 400, 200_003) as started,
    ):
        for member in started:
            member.wait_for("step", 20)
        victim = started[0]
        victim_id = str(next(said["member"] for said in victim.said if "member" in said))
        victim.kill()
        files = [
            record_of(survivor.wait_for("record"), tmp_path / f"{index}.jsonl")
            for index, survivor in enumerate(started[1:])
        ]
    records = [read_record(file) for file in files]
    text = "\n".join(summarize(records, align(records)))
    assert text.count(f" of 2, without {victim_id}") == 2, text
    assert "connection_lost " + victim_id in text
    assert "the process is gone" in text
    assert "recovery_ended" in text
    assert "Members agree" in text
    assert all(record.coordinator_offset is not None for record in records)
    # The killed one left nothing, but the others saw it.
    picture = tmp_path / "timeline.png"
    done = trace(*files, "--out", picture)
    assert done.returncode == 0, done.stderr
    assert re.search(
        rf"{victim_id} \(127\.0\.0\.1:\d+\): no record; killed at [\d.]+, as the others saw it",
        done.stdout,
    ), done.stdout
    assert re.search(rf"{victim_id}  killed.*: .*the process is gone", done.stdout), done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_nobody_is_killed_who_said_goodbye(tmp_path: Path) -> None:
    with (
        CoordinatorProcess(tmp_path, status=False) as coordinator,
        members(2, coordinator.address, "sum", 20, 1000) as started,
    ):
        file = record_of(started[0].wait_for("record"), tmp_path / "one.jsonl")
    assert absent_members([read_record(file)]) == []


def test_clocks_are_compared_through_the_coordinator(tmp_path: Path) -> None:
    files = []
    for index, (offset, at) in enumerate([(5.0, 100.0), (-3.0, 108.0)]):
        head = {
            "flight_record": 1, "member": f"{index}", "address": "a", "run": "r",
            "clock": str(index), "monotonic_seconds": at, "unix_seconds": 1e9,
            "lost_operations": 0, "coordinator_clock_offset_seconds": offset,
        }  # fmt: skip
        event = {"monotonic_seconds": at, "event": "left", "number": 0, "text": ""}
        files.append(tmp_path / f"{index}.jsonl")
        files[-1].write_text(json.dumps(head) + "\n" + json.dumps(event) + "\n")
    records = [read_record(file) for file in files]
    assert "coordinator" in align(records)
    assert records[0].at(100.0) == records[1].at(108.0)


def test_a_file_that_is_no_flight_record_is_named(tmp_path: Path) -> None:
    for text in ("", "garbage\n", "{}\n", '{"flight_record": 9}\n', "[1]\n"):
        path = tmp_path / "some.jsonl"
        path.write_text(text)
        with pytest.raises(TraceError, match=r"some\.jsonl"):
            read_record(path)
    done = trace(tmp_path / "absent.jsonl")
    assert done.returncode == 1
    assert "absent.jsonl" in done.stderr
    assert "Traceback" not in done.stderr
