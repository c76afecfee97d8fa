"""What `pccl info` shows: what is installed here, and how others can reach this host."""

import dataclasses
import platform
import socket
from importlib import metadata

from pccl.bench.machine import describe_machine
from pccl.config import Config, without_secrets

__all__ = ["collect_info"]


def collect_info() -> dict[str, str]:
    """Return name -> value, in the order in which it is shown; never raises."""
    return {
        "pccl": _package_version("pccl-collectives"),
        **_core_info(),
        "torch": _torch_state(),
        "python": f"{platform.python_version()} on {platform.machine()}",
        "host": _host(),
        "addresses": ", ".join(_host_addresses()) or "none but loopback",
        "settings": _settings(),
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
    return {"protocol": str(_core.PROTOCOL_VERSION), "simd": _core.simd_target()}


def _torch_state() -> str:
    version = _package_version("torch")
    if version == "not installed":
        return f"{version}; pccl.init works without"
    entry_points = metadata.entry_points(group="torch.backends")
    if any(entry.name == "pccl" for entry in entry_points):
        return f'{version}; init_process_group("pccl") works without import pccl'
    return f'{version}; import pccl, then init_process_group("pccl")'


def _host() -> str:
    machine = describe_machine()
    assert isinstance(machine["memory_bytes"], int)
    gigabytes = machine["memory_bytes"] / 2**30
    return (
        f"{socket.gethostname()}: {machine['processor']}, {machine['cores']} cores, "
        f"{gigabytes:.0f} GB"
    )


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


def _shown(value: object) -> object:
    return without_secrets(value) if isinstance(value, str) else value


def _settings() -> str:
    """Return what the environment changes, or what is wrong in it."""
    try:
        config, default = Config.from_environment(), Config()
    except ValueError as error:
        return f"WRONG: {error}"
    changed = [
        f"{field.name}={_shown(getattr(config, field.name))!r}"
        for field in dataclasses.fields(Config)
        if getattr(config, field.name) != getattr(default, field.name)
    ]
    return ", ".join(changed) or "all at their defaults (PCCL_* variables, see pccl/config.py)"
