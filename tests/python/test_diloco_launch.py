"""`diloco launch` and `diloco demo`: real processes, killed and joining."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from coordinator_processes import environment

# On a machine that does much else meanwhile.
PATIENCE_SECONDS = 240
COMMAND = (sys.executable, "-c", "from diloco.cli import main; main()")

# Says who is in, waits for a third one where it is asked to, and ends as it is told.
PROGRAM = """
import sys
import pccl
with pccl.join() as comm:
    if "--three" in sys.argv:
        comm.wait_for_members(3, timeout_seconds=60)
    print("rank", comm.rank, "of", comm.world_size, sys.argv[1:], flush=True)
    comm.barrier()
    code = 3 if "--fail" in sys.argv and comm.rank == 1 else 0
print("left", file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def start(program: Path, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(*COMMAND, "launch", "--members", "2", "--host", "127.0.0.1", *options),
            *(str(program), *arguments),
        ],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_another_member_joins_with_the_command_that_is_printed(program: Path) -> None:
    with start(program, "--three") as launched:
        assert launched.stdout is not None
        for line in launched.stdout:
            if line.startswith("  PCCL_RUN="):
                break
        assignment, python, *words = shlex.split(line)
        assert (python, words) == ("python", [str(program), "--three"])
        local = {"PCCL_HOST": "127.0.0.1", "PCCL_BIND": "127.0.0.1"}
        name, _, address = assignment.partition("=")
        guest = subprocess.run(
            [sys.executable, *words],
            env=environment(**local, **{name: address}),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        rest, _ = launched.communicate(timeout=PATIENCE_SECONDS)
    assert guest.returncode == 0, guest.stderr
    assert re.search(r"rank \d of 3 \['--three'\]", guest.stdout)
    assert launched.returncode == 0, rest
    assert "of 3" in rest  # the first member has the terminal


def test_a_member_that_fails_is_shown_and_started_again(program: Path) -> None:
    with start(program, "--fail") as launched:
        text, _ = launched.communicate(timeout=PATIENCE_SECONDS)
    assert launched.returncode == 3
    assert re.search(r"member [12] ended: exit code 3", text)
    with start(program, "--fail", options=("--restarts", "1")) as launched:
        text, _ = launched.communicate(timeout=PATIENCE_SECONDS)
    assert launched.returncode == 0, text
    assert "it is started again as member 3" in text


def test_ctrl_c_ends_all(program: Path) -> None:
    with start(program, "--three") as launched:
        assert launched.stdout is not None
        for line in launched.stdout:
            if line.startswith("  PCCL_RUN="):
                break
        os.killpg(launched.pid, signal.SIGINT)
        text, _ = launched.communicate(timeout=PATIENCE_SECONDS)
    assert launched.returncode == 130, text
    assert "all processes were ended" in text


def test_what_can_not_be_launched_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "launch", "--members", "0", "train.py"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 2
    assert "expected 1 or more members" in done.stderr


def test_a_member_is_killed_a_fresh_one_joins_and_all_hashes_are_equal(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(*COMMAND, "demo", "--members", "3", "--kill", "1", "--steps", "60"),
            *("--sync-every", "5", "--warmup", "10", "--out", str(tmp_path)),
            *("--batch", "2", "--channels", "32"),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    assert re.search(r"step +\d+  kill -9 member [0-9a-f]{8}, a fresh one starts", text)
    assert re.search(r"step +\d+  member [0-9a-f]{8} has joined", text)
    assert re.search(r"members  2 to 3: 1 died, 1 joined on the way, 0 left", text)
    assert re.search(r"hashes   equal in (\d+) of \1 outer steps", text)
    assert text.splitlines()[-1].startswith("ok: ")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
