"""What the environment says. The only file in pccl/ that reads it."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pccl._graphs import GraphLike, graph_text
from pccl.address import RunAddress

Value = TypeVar("Value")

_logger = logging.getLogger("pccl")

_LOG_LEVELS = ("debug", "info", "warning", "error", "off")
_TLS_USES = ("auto", "always")
_SIMD_LEVELS = ("auto", "baseline", "v2", "v3", "v4")
# Of the core: csrc/transport stripes one connection over at most this many sockets.
_SOCKETS_MAX = 64
# A range is tried port by port; more than this is a typing error rather than a firewall rule.
_PORTS_MAX = 1024


@dataclass(frozen=True, kw_only=True)
class Config:
    """How this process takes part in a run. Each field can be set by the variable that it names."""

    sockets: int = 0
    """PCCL_SOCKETS: TCP sockets of one connection, 1 to 64. 0: one, and up to 8 on long links where
    full buffers or lost packets hold one up, as long as each doubling is measured to help."""

    congestion_control: str = "auto"
    """PCCL_CONGESTION_CONTROL: of the TCP sockets to other members. "auto": the kernel's, and BBR
    on long links where packets are lost and it is measured to be faster by a tenth; "kernel": the
    kernel's; or a name that it has ("bbr", "cubic"; where it has not, its own is used, and a
    warning says so)."""

    shared_memory: bool = True
    """PCCL_SHARED_MEMORY: "0" makes the ranks of one host talk over TCP instead of memory."""

    hosts: tuple[str, ...] = ()
    """PCCL_HOST: names or addresses, separated by commas, under which others reach this process.

    Empty: found by itself, from the network interfaces.
    """

    bind: str = ""
    """PCCL_BIND: the local address to listen on. Empty: all interfaces, IPv4 and IPv6."""

    ports: tuple[int, ...] = (0,)
    """PCCL_PORT: the port to listen on, or a range "29600-29631" of which the first free one is
    taken; 0 is any free port. Several processes of one host need a range."""

    algorithm: str = "auto"
    """PCCL_ALGORITHM: "auto" leaves the choice to the cost model; else the name of one ("ring")."""

    graph: GraphLike = ""
    """PCCL_GRAPH: the only pairs of members that talk, whatever is called (docs/topology.md):
    "ring", "star", "exponential", "hypercube", "grid", "torus", "small_world:4" and "regular:4"
    (degree, then perhaps a seed), or edges between ranks, "0-1,1-2,2-3"; in code also pairs,
    [(0, 1), (1, 2)], or a networkx.Graph of ranks. Kept as text. Empty: every pair. Alike on all
    members."""

    outward: bool = False
    """PCCL_OUTWARD: "1": this member accepts no connections (a firewall, address translation) and
    calls the others itself; two such members don't talk to each other."""

    codec: str = ""
    """PCCL_CODEC: of all_reduces of torch groups by sum or average of floating point: "int8",
    "int4", ... (docs/codecs.md). Empty: elements travel as they are. pccl.quantized() overrides it
    for a block. Alike on all members."""

    deterministic: bool = False
    """PCCL_DETERMINISTIC: "1" keeps the way of every call as it is: the same inputs on the same
    members give the same bytes in every run. Else large all_reduces of several hosts follow the
    measured links, and sums may be rounded in another order next time. Alike on all members."""

    probes: bool = False
    """PCCL_PROBES: "1" has the ranks of several hosts try links that nobody has measured, before
    their first all_reduce of 4 MiB or more, which waits for it: at most 20 s, and 4 MiB a link.
    Plans are then good from the first call on; else from about the third. If a member says no,
    nobody does it."""

    timeout_seconds: float = 1800.0
    """PCCL_TIMEOUT: seconds that one operation may take. torch's own timeouts come first there."""

    connect_timeout_seconds: float = 30.0
    """PCCL_CONNECT_TIMEOUT: seconds to find all members, and to connect to one of them."""

    tls: str = "auto"
    """PCCL_TLS: "always" has TLS also where bytes stay on this host's loopback; for tests."""

    insecure: bool = False
    """No TLS and no keys at all, on every member alike: whoever reaches a port can read, write and
    take part. No variable sets it; it stands in code."""

    run: str = dataclasses.field(default="", repr=False)
    """PCCL_RUN: the address of an elastic run, "pccl://host:port/run#key.token", for join()."""

    world_size_min: int = 1
    """PCCL_WORLD_SIZE_MIN: of an elastic run: join() waits until so many members are in, unless it
    is told another number."""

    key: str = ""
    """PCCL_KEY: the file with this member's own key, of `pccl keygen`, by which a run knows it when
    it comes again. Empty: a new key each time. For join()."""

    simd: str = ""
    """PCCL_SIMD: "baseline", "v2" (SSE4), "v3" (AVX2) or "v4" (AVX-512). Empty or "auto": this
    CPU's best."""

    log: str = "warning"
    """PCCL_LOG: from which level on the logger "pccl" speaks: debug, info, warning, error, off."""

    trace_dir: str = ""
    """PCCL_TRACE_DIR: the folder to which a member writes its flight record when an operation ends
    in an error, for `pccl trace`. Empty: no file is written."""

    def __post_init__(self) -> None:
        if self.trace_dir and not Path(self.trace_dir).is_dir():
            raise ValueError(f"trace_dir: expected a folder that exists, got {self.trace_dir!r}")
        if self.run:
            _parse_run(self.run)
        if self.world_size_min < 1:
            raise ValueError(f"world_size_min: expected 1 or more, got {self.world_size_min}")
        if not 0 <= self.sockets <= _SOCKETS_MAX:
            raise ValueError(f"sockets: expected 0 to {_SOCKETS_MAX}, got {self.sockets}")
        if not re.fullmatch(r"[a-z0-9_]{1,15}", self.congestion_control):
            raise ValueError(
                "congestion_control: expected 'auto', 'kernel' or a name like 'bbr', got "
                f"{self.congestion_control!r}"
            )
        if not self.ports or not all(0 <= port <= 65535 for port in self.ports):
            raise ValueError(f"ports: expected 0 to 65535 each, got {self.ports}")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.algorithm):
            raise ValueError(f"algorithm: expected a name like 'ring', got {self.algorithm!r}")
        if self.codec:
            _check_codec(self.codec)
        if not isinstance(self.graph, str) or self.graph:
            from pccl._core import canonical_graph  # most settings do without the core

            object.__setattr__(self, "graph", canonical_graph(graph_text(self.graph)))
        for name in ("timeout_seconds", "connect_timeout_seconds"):
            seconds = getattr(self, name)
            if not 0 < seconds < float("inf"):
                raise ValueError(f"{name}: expected a positive number of seconds, got {seconds}")
        if self.simd and self.simd not in _SIMD_LEVELS:
            raise ValueError(f"simd: expected one of {_SIMD_LEVELS}, got {self.simd!r}")
        if self.tls not in _TLS_USES:
            raise ValueError(f"tls: expected one of {_TLS_USES}, got {self.tls!r}")
        if self.insecure and self.tls == "always":
            raise ValueError("tls: 'always' contradicts insecure=True")
        if self.log not in _LOG_LEVELS:
            raise ValueError(f"log: expected one of {_LOG_LEVELS}, got {self.log!r}")

    def endpoint_options(self) -> dict[str, Any]:
        """What the core is told of this process's place on the network, but the port."""
        return {
            "bind_host": self.bind,
            "advertise_hosts": self.hosts,
            "sockets": self.sockets,
            "congestion_control": _usable_control(self.congestion_control),
            "shared_memory": self.shared_memory,
            "connect_timeout_seconds": self.connect_timeout_seconds,
            "trace_folder": self.trace_dir,
            "tls": self.tls_use,
            "outward": self.outward,
            "graph": self.graph,
        }

    @property
    def tls_use(self) -> str:
        """As the core names it."""
        return "never" if self.insecure else "always" if self.tls == "always" else "remote"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Config:
        """Read every PCCL_* variable; one that is unset or empty leaves its default.

        A name that begins with PCCL_ and is none of ours gets a warning: it is a typing error, or
        belongs to another library.

        Raises:
            ValueError: a variable cannot be understood; the message names it and what is expected.
        """
        for name in sorted(environment):
            if name.startswith("PCCL_") and name not in _VARIABLES:
                _logger.warning("%s: not a variable of pccl; it has no effect", name)
        fields: dict[str, object] = {}
        for variable, (field, parse) in _VARIABLES.items():
            text = environment.get(variable, "").strip()
            if text and field:
                fields[field] = _parse(variable, text, parse)
        try:
            return cls(**fields)  # type: ignore[arg-type]  # each parser returns its field's type
        except ValueError as error:
            field = str(error).partition(":")[0]
            variable = next(name for name, entry in _VARIABLES.items() if entry[0] == field)
            raise ValueError(
                f"{variable}={without_secrets(environment[variable])!r}: {error}"
            ) from None


def without_secrets(text: str) -> str:
    """For messages: the address of a run holds a token behind its '#'."""
    address, hash_sign, _ = text.partition("#")
    return address + "#..." if hash_sign else text


def variables_set(environment: Mapping[str, str] = os.environ) -> tuple[list[str], list[str]]:
    """The PCCL_* variables that are set, "NAME=value"; and names that are none of ours."""
    names = [name for name in sorted(environment) if name.startswith("PCCL_")]
    ours = [f"{name}={without_secrets(environment[name])}" for name in names if name in _VARIABLES]
    return ours, [name for name in names if name not in _VARIABLES]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a launcher (torchrun, a batch system, a shell script) says about this process."""

    rank: int
    """RANK"""

    world_size: int
    """WORLD_SIZE"""

    host: str
    """MASTER_ADDR: where rank 0 runs."""

    port: int
    """MASTER_PORT: where rank 0 listens, unless the launcher itself does (`port_is_taken`)."""

    port_is_taken: bool
    """TORCHELASTIC_USE_AGENT_STORE: torchrun's own store listens on MASTER_PORT."""

    run: str
    """TORCHELASTIC_RUN_ID and TORCHELASTIC_RESTART_COUNT: tells this start from all others."""

    @classmethod
    def from_environment(
        cls,
        environment: Mapping[str, str] = os.environ,
        *,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> Launch:
        """Read the launcher's variables; `rank` and `world_size`, where given, go before them.

        Raises:
            ValueError: a variable is missing or cannot be understood; it is named.
        """

        def read(variable: str, parse: Callable[[str], Value]) -> Value:
            text = environment.get(variable, "").strip()
            if not text:
                raise ValueError(
                    f"init_method='env://' needs the environment variable {variable}, which is not "
                    f"set. Start with torchrun, set it, or use 'tcp://host:port' with rank= and "
                    f"world_size="
                )
            return _parse(variable, text, parse)

        run = environment.get("TORCHELASTIC_RUN_ID", "")
        restart = environment.get("TORCHELASTIC_RESTART_COUNT", "")
        return cls(
            rank=read("RANK", int) if rank is None else rank,
            world_size=read("WORLD_SIZE", int) if world_size is None else world_size,
            host=read("MASTER_ADDR", str),
            port=read("MASTER_PORT", _parse_port),
            port_is_taken=environment.get("TORCHELASTIC_USE_AGENT_STORE", "") == "True",
            run=f"{run}/{restart}" if run or restart else "",
        )


def names_elastic_run(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether PCCL_RUN says what to join, and no launcher gave this process a rank."""
    return bool(environment.get("PCCL_RUN", "").strip()) and not environment.get("RANK")


def wanlab_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where wanlab.py lies, for `pccl bench --lab`: WANLAB, else beside the working folder."""
    return Path(environment.get("WANLAB", "") or "../shared/wanlab")


def state_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Where a coordinator keeps what it must not forget, by the XDG base directory specification.

    Raises:
        ValueError: neither XDG_STATE_HOME nor HOME says where.
    """
    state = environment.get("XDG_STATE_HOME", "")
    if os.path.isabs(state):  # the specification has relative ones ignored
        return Path(state) / "pccl"
    home = environment.get("HOME", "")
    if not home:
        raise ValueError("neither XDG_STATE_HOME nor HOME is set: say where with --database PATH")
    return Path(home) / ".local" / "state" / "pccl"


def _usable_control(name: str) -> str:
    """The congestion control of that name, or, in words, the kernel's."""
    option = getattr(socket, "TCP_CONGESTION", None)
    if name in ("auto", "kernel") or option is None:
        return name
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.IPPROTO_TCP, option, name.encode())
        except OSError as error:
            _logger.warning(
                "congestion_control: this kernel has no %r for this process (%s); its own is used. "
                "Linux: the module tcp_%s, and net.ipv4.tcp_allowed_congestion_control",
                name, error.strerror, name,
            )  # fmt: skip
            return "kernel"
    return name


def _parse(variable: str, text: str, parse: Callable[[str], Value]) -> Value:
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{variable}={without_secrets(text)!r}: {error}") from None


def _parse_integer(text: str) -> int:
    if not re.fullmatch(r"[0-9]+", text):
        raise ValueError("expected a whole number")
    return int(text)


def _parse_seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("expected a number of seconds") from None


def _parse_switch(text: str) -> bool:
    if text.lower() not in ("0", "1", "false", "true"):
        raise ValueError("expected 0 or 1")
    return text.lower() in ("1", "true")


def _parse_hosts(text: str) -> tuple[str, ...]:
    return tuple(host.strip() for host in text.split(",") if host.strip())


def _parse_port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) <= 65535:
        raise ValueError("expected a port, 1 to 65535")
    return int(text)


def _parse_ports(text: str) -> tuple[int, ...]:
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text)
    if not match:
        raise ValueError('expected a port or a range like "29600-29631"')
    first = int(match[1])
    last = int(match[2]) if match[2] else first
    if not first <= last < first + _PORTS_MAX:
        raise ValueError(f"expected an ascending range of at most {_PORTS_MAX} ports")
    return tuple(range(first, last + 1))


def _parse_run(text: str) -> str:
    return str(RunAddress.parse(text))


def _check_codec(name: str) -> None:
    from pccl._quantized import check_codec  # the core, which most settings do without

    try:
        check_codec(name)
    except ValueError as error:
        raise ValueError(f"codec: {error}") from None


def _parse_lower(text: str) -> str:
    return text.lower()


# Variable -> (field of Config, how to read it).
_VARIABLES: dict[str, tuple[str, Callable[[str], object]]] = {
    "PCCL_ALGORITHM": ("algorithm", _parse_lower),
    "PCCL_CODEC": ("codec", _parse_lower),
    "PCCL_DETERMINISTIC": ("deterministic", _parse_switch),
    "PCCL_BIND": ("bind", str),
    "PCCL_CONGESTION_CONTROL": ("congestion_control", _parse_lower),
    "PCCL_CONNECT_TIMEOUT": ("connect_timeout_seconds", _parse_seconds),
    "PCCL_KEY": ("key", str),
    "PCCL_GRAPH": ("graph", _parse_lower),
    "PCCL_HOST": ("hosts", _parse_hosts),
    "PCCL_LOG": ("log", _parse_lower),
    "PCCL_OUTWARD": ("outward", _parse_switch),
    "PCCL_PORT": ("ports", _parse_ports),
    "PCCL_PROBES": ("probes", _parse_switch),
    "PCCL_RUN": ("run", _parse_run),
    "PCCL_SHARED_MEMORY": ("shared_memory", _parse_switch),
    "PCCL_SIMD": ("simd", _parse_lower),
    "PCCL_SOCKETS": ("sockets", _parse_integer),
    "PCCL_TRACE_DIR": ("trace_dir", str),
    "PCCL_TLS": ("tls", _parse_lower),
    "PCCL_TIMEOUT": ("timeout_seconds", _parse_seconds),
    "PCCL_WORLD_SIZE_MIN": ("world_size_min", _parse_integer),
}
