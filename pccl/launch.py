"""Starts N ranks of one program on this machine and ends them together.

The environment of a rank is torchrun's (RANK, WORLD_SIZE, MASTER_ADDR, ...), so that the same
program runs under both. Against torchrun: nothing to install, rank 0 owns the terminal (progress
bars work), and the error that is shown is the one of the rank that failed first.
"""

import ctypes
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, NoReturn

__all__ = ["die_with_parent", "launch", "run_rank"]

# A rank that ignores SIGTERM (it is in C code that blocks it) is killed after this time.
TERMINATE_GRACE_SECONDS = 3.0
# What is shown of a failing rank's output: one traceback through torch has about 30 lines.
ERROR_LINES_MAX = 60
_PR_SET_PDEATHSIG = 1  # prctl(2)


def launch(
    command: Sequence[str], processes: int, *, environment: Mapping[str, str] | None = None
) -> int:
    """Run `command` as ranks 0..processes-1 here; return the first failing rank's exit code, or 0.

    Rank 0 writes to this terminal. What the others write is kept, and shown only for the rank that
    failed first; all ranks are then ended. No rank outlives this call, nor (on Linux) this process,
    however that ends.

    Args:
        command: program and arguments, the same for every rank.
        processes: how many ranks, at least 1.
        environment: variables set for every rank, beside the inherited ones.

    Returns:
        0, the failing rank's exit code, or 128 + the number of the signal that killed it; Ctrl+C
        ends all ranks and is 128 + SIGINT.

    Raises:
        ValueError: `processes` is below 1.
        OSError: no process can be started; no rank is left. (A command that does not exist is exit
            code 127.)
    """
    if processes < 1:
        raise ValueError(f"launch: processes must be at least 1, not {processes}")
    shared = {**_rendezvous(processes), **(environment or {})}
    ranks: list[subprocess.Popen[bytes]] = []
    outputs: list[IO[bytes] | None] = []
    with _terminated_politely(), ExitStack() as files:
        try:
            for rank in range(processes):
                output = None if rank == 0 else files.enter_context(tempfile.TemporaryFile())
                outputs.append(output)
                ranks.append(_start(command, rank, shared, output))
            failed_rank, code = _wait_for_first_failure(ranks)
        except KeyboardInterrupt:  # the ranks got it too, if it came from the terminal
            code = -signal.SIGINT
        finally:
            _end(ranks)
        if code != 0:
            _restore_cursor()
        if code in (-signal.SIGINT, 128 + signal.SIGINT):
            print("pccl: interrupted; all ranks were ended.", file=sys.stderr)
        elif code != 0:
            _report(failed_rank, code, outputs[failed_rank])
    return code if code >= 0 else 128 - code


def run_rank(main: Callable[[], int]) -> NoReturn:
    """Run one rank's `main` and exit with its result, without any clean-up when that is an error.

    Clean-up closes connections, at which the other ranks fail too, and may take longer than their
    failing. Exiting at once makes the rank at fault the first to exit, which is how `launch` (and
    torchrun) know it.
    """
    code = 1
    try:
        code = main()
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:  # One place per process: whatever it is, it is shown and ends the rank.
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    if code != 0:
        os._exit(code)
    sys.exit(0)


def _rendezvous(processes: int) -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }


def _start(
    command: Sequence[str], rank: int, shared: Mapping[str, str], output: IO[bytes] | None
) -> subprocess.Popen[bytes]:
    variables = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
    return subprocess.Popen(
        # env(1) adds to what is inherited, and becomes the command.
        ["env", *(f"{name}={value}" for name, value in variables.items()), *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output is not None else None,
        preexec_fn=die_with_parent,
    )


# Loaded before the fork: between fork and exec a child may not take locks, and dlopen does.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """For `preexec_fn`: the process is killed when the thread that starts it ends (on Linux)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_for_first_failure(ranks: Sequence[subprocess.Popen[bytes]]) -> tuple[int, int]:
    """Return (rank, exit code) of the first rank that failed, or (0, 0) if none did."""
    ended: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()

    def wait(rank: int, process: subprocess.Popen[bytes]) -> None:
        ended.put((rank, process.wait()))

    for rank, process in enumerate(ranks):
        threading.Thread(target=wait, args=(rank, process), daemon=True).start()
    for _ in ranks:
        rank, code = ended.get()
        if code != 0:
            return rank, code
    return 0, 0


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in ranks:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + TERMINATE_GRACE_SECONDS
    for process in ranks:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _report(rank: int, code: int, output: IO[bytes] | None) -> None:
    if output is not None:
        output.seek(0)
        lines = output.read().decode(errors="replace").splitlines()
        print("\n".join(lines[-ERROR_LINES_MAX:]), file=sys.stderr)
    how = f"exit code {code}" if code > 0 else f"signal {-code} ({signal.Signals(-code).name})"
    print(f"pccl: rank {rank} failed first ({how}); the other ranks were ended.", file=sys.stderr)


def _restore_cursor() -> None:
    # Rank 0 may have been ended inside a progress bar, which hides the cursor.
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h\n")


@contextmanager
def _terminated_politely() -> Iterator[None]:
    """Turn SIGTERM into SystemExit for the duration, so that `finally` blocks run."""

    def stop(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
