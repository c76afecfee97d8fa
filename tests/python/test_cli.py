"""The `pccl` command, and the launcher beneath it."""

import os
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from pccl import _core
from pccl.launch import launch

pytest.importorskip("typer")


def run_pccl(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pccl", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until_dead(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still alive: {[p for p in pids if is_alive(p)]}"
        time.sleep(0.01)  # another process's end can only be polled


# --- commands ---


def test_help_names_the_commands() -> None:
    done = run_pccl("--help")
    assert done.returncode == 0
    assert "bench" in done.stdout
    assert "info" in done.stdout


def test_info_tells_versions_and_addresses() -> None:
    done = run_pccl("info")
    assert done.returncode == 0, done.stderr
    values = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert values["pccl"] == metadata.version("pccl-collectives")
    assert values["torch"].startswith(metadata.version("torch"))
    assert values["protocol"] == str(_core.PROTOCOL_VERSION)
    for name in ("simd", "host", "addresses"):
        assert values[name]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("4", "sockets=4"),
        ("many", "WRONG: PCCL_SOCKETS='many': expected a whole number"),
        ("", "all at their defaults"),
    ],
)
def test_info_tells_what_the_environment_changes(value: str, shown: str) -> None:
    done = run_pccl("info", PCCL_SOCKETS=value)
    assert done.returncode == 0, done.stderr
    (settings,) = [line for line in done.stdout.splitlines() if line.startswith("settings")]
    assert settings.split(maxsplit=1)[1].startswith(shown)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--op", "mean"], "op must be one of"),
        (["--min-bytes", "4Q"], "not a size: '4Q'"),
        (["--factor", "1"], "factor must be at least 2"),
        (["--processes", "0"], "processes must be at least 1"),
        (["--root", "9"], "root 9 is no rank of 4"),
        (["--backend", "pigeon"], "no backend 'pigeon'"),
        (["--compare", "pigeon"], "no backend 'pigeon'"),
        (["--nonsense"], "No such option: --nonsense"),
    ],
)
def test_a_wrong_option_is_a_sentence_and_exit_code_2(arguments: list[str], sentence: str) -> None:
    done = run_pccl("bench", *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert sentence in done.stderr


# --- the launcher ---


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_every_rank_gets_the_environment_of_torchrun(tmp_path: Path) -> None:
    code = (
        "import os, pathlib\n"
        "names = ('WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'EXTRA')\n"
        f"path = pathlib.Path({str(tmp_path)!r}) / os.environ['RANK']\n"
        "path.write_text(' '.join(os.environ[name] for name in names))\n"
    )
    assert launch(python(code), 3, environment={"EXTRA": "yes"}) == 0
    told = [(tmp_path / str(rank)).read_text() for rank in range(3)]
    assert told == [f"3 {rank} 127.0.0.1 yes" for rank in range(3)]


def test_the_first_error_is_shown_and_ends_the_other_ranks(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import os, pathlib, time\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "rank = os.environ['RANK']\n"
        "(folder / 'new').with_suffix('.' + rank).write_text(str(os.getpid()))\n"
        "(folder / 'new').with_suffix('.' + rank).rename(folder / rank)\n"
        "if rank == '1':\n"
        "    while len(list(folder.glob('[0-9]'))) < 3: time.sleep(0.01)\n"
        "    raise SystemExit('it was me')\n"
        "time.sleep(60)\n"
    )
    began = time.monotonic()
    assert launch(python(code), 3) == 1
    assert time.monotonic() - began < 30
    error = capfd.readouterr().err
    assert "it was me" in error
    assert "rank 1 failed first (exit code 1)" in error
    wait_until_dead([int((tmp_path / str(rank)).read_text()) for rank in range(3)])


def test_a_rank_killed_by_a_signal_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert launch(python(code), 1) == 128 + signal.SIGKILL
    assert "signal 9 (SIGKILL)" in capfd.readouterr().err


def test_a_command_that_does_not_exist_is_an_error() -> None:
    assert launch(["/does/not/exist"], 2) == 127


@pytest.mark.skipif(sys.platform != "linux", reason="uses prctl(2)")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_no_rank_outlives_the_launcher(tmp_path: Path, how: signal.Signals) -> None:
    rank_code = (
        "import os, pathlib, time\n"
        f"path = pathlib.Path({str(tmp_path)!r})\n"
        "(path / ('new' + os.environ['RANK'])).write_text(str(os.getpid()))\n"
        "(path / ('new' + os.environ['RANK'])).rename(path / os.environ['RANK'])\n"
        "time.sleep(60)\n"
    )
    code = f"from pccl.launch import launch; launch({python(rank_code)!r}, 2)"
    with subprocess.Popen(python(code), stderr=subprocess.PIPE, text=True) as launcher:
        files = [tmp_path / "0", tmp_path / "1"]
        deadline = time.monotonic() + 20
        while not all(path.exists() for path in files):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        pids = [int(path.read_text()) for path in files]
        os.kill(launcher.pid, how)
        _, error = launcher.communicate(timeout=20)
    wait_until_dead(pids)
    assert (error == "pccl: interrupted; all ranks were ended.\n") == (how == signal.SIGINT)
