"""What `pccl info` shows: what is installed here, and how others can reach this host."""

import platform
import socket
from importlib import metadata

__all__ = ["collect_info"]


def collect_info() -> dict[str, str]:
    """Return name -> value, in the order in which it is shown; never raises."""
    return {
        "pccl": _package_version("pccl-collectives"),
        **_core_info(),
        "torch": _package_version("torch"),
        "backend": _backend_state(),
        "python": f"{platform.python_version()} on {platform.machine()}",
        "host": socket.gethostname(),
        "addresses": ", ".join(_host_addresses()) or "none but loopback",
    }


def _package_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _core_info() -> dict[str, str]:
    try:
        from pccl import _core
    except ImportError as error:
        return {"core": f"not built ({error})"}
    target = getattr(_core, "simd_target", None)
    return {
        "protocol version": str(_core.PROTOCOL_VERSION),
        "simd target": str(target()) if callable(target) else "unknown",
    }


def _backend_state() -> str:
    entry_points = metadata.entry_points(group="torch.backends")
    if any(entry.name == "pccl" for entry in entry_points):
        return 'init_process_group("pccl") works without import pccl'
    return 'import pccl, then init_process_group("pccl")'


def _host_addresses() -> list[str]:
    """Return the addresses from which this host would send, one per family; sends nothing."""
    found = []
    # Documentation addresses (RFC 5737, RFC 3849): connect() of UDP only looks up the route.
    for family, remote in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((remote, 9))
                found.append(str(probe.getsockname()[0]))
        except OSError:
            continue  # no route in this family
    return found
