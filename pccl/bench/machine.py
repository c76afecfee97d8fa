"""What a number was measured on; a number without it says nothing."""

import datetime
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

__all__ = ["describe_machine", "is_busy", "machine_line"]

# Backends that hand work from thread to thread (gloo) become 5 times slower at a load of 2.
BUSY_LOAD = 0.3


def describe_machine() -> dict[str, object]:
    """Return processor, cores, memory, kernel, load, versions and the command line."""
    return {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": _command(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": f"{platform.system()} {platform.release()}",
        "load_average": list(os.getloadavg()),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "pccl": _version("pccl-collectives"),
    }


def machine_line(machine: dict[str, object]) -> str:
    """Return the description in one line for the head of a table."""
    load = machine["load_average"]
    assert isinstance(load, list)
    return (
        f"{machine['processor']}, {machine['cores']} cores, load {load[0]:.1f}, "
        f"torch {machine['torch']}, pccl {machine['pccl']}"
    )


def is_busy(machine: dict[str, object]) -> bool:
    """Return whether other programs had a third of a core or more, over the last minute."""
    load = machine["load_average"]
    assert isinstance(load, list)
    return bool(load[0] >= BUSY_LOAD)


def _command() -> list[str]:
    """Return the command line, files without their folders: those belong to one machine only."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv]
    return ["pccl" if words[0] == "__main__.py" else words[0], *words[1:]]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
