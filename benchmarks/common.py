"""Shared by the programs here: start ranks, take what rank 0 measured, write results."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pccl.bench.machine import machine_line
from pccl.launch import launch

__all__ = ["RESULTS", "TRANSPORTS", "collect", "head", "pccl_bench", "ratio_text", "write"]

RESULTS = Path(__file__).resolve().parent / "results"
TRANSPORTS = {"tcp": "0", "memory": "1"}  # -> PCCL_SHARED_MEMORY


def collect(arguments: Sequence[str], processes: int, transport: str) -> dict[str, Any]:
    """Run this same program as ranks, with `arguments`; return what its rank 0 wrote to --part.

    Raises:
        SystemExit: a rank failed; its error has been shown.
    """
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part.json"
        code = launch(
            [sys.executable, sys.argv[0], *arguments, "--part", str(part)],
            processes,
            environment={"OMP_NUM_THREADS": "1", "PCCL_SHARED_MEMORY": TRANSPORTS[transport]},
        )
        if code != 0:
            raise SystemExit(code)
        document: dict[str, Any] = json.loads(part.read_text())
        return document


def pccl_bench(arguments: Sequence[str]) -> dict[str, Any]:
    """Run one `pccl bench`, shown as it goes; return its JSON document.

    Raises:
        CalledProcessError: a result was wrong, or a rank failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part.json"
        command = [sys.executable, "-m", "pccl", "bench", *arguments, "--json", str(part)]
        subprocess.run(command, check=True)
        document: dict[str, Any] = json.loads(part.read_text())
        return document


def head(title: str, machine: dict[str, Any]) -> list[str]:
    """Return the first lines of a report: what, when, on which machine, by which command."""
    command = ["python", f"benchmarks/{Path(sys.argv[0]).name}", *shown_arguments()]
    memory = f"{machine['memory_bytes'] / 2**30:.0f} GB, {machine['kernel']}"
    return [
        f"# {title}",
        "",
        f"{machine_line(machine)}; {memory}; {machine['time'][:10]}.",
        f"`{' '.join(command)}`",
        "",
    ]


def shown_arguments() -> list[str]:
    """Return this program's arguments without those that name files of one machine."""
    return [word for word in sys.argv[1:] if not Path(word).is_absolute() and word != "--results"]


def ratio_text(ratio: dict[str, float]) -> str:
    """Return a ratio with its spread, as it stands in a table."""
    return f"**{ratio['p50']:.2f}x** ({ratio['p10']:.2f} .. {ratio['p90']:.2f})"


def write(folder: Path, name: str, document: dict[str, Any], markdown: Sequence[str]) -> None:
    """Write NAME.json and NAME.md, and print the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    text = "\n".join(markdown).rstrip() + "\n"
    (folder / f"{name}.md").write_text(text)
    print(f"\n{text}\nwritten: {name}.json, {name}.md in {folder.name}/", flush=True)
