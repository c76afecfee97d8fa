"""`pccl doctor`: can this machine take part in that run? Each failure comes with its fix."""

from __future__ import annotations

import email.utils
import errno
import ipaddress
import resource
import shutil
import socket
import statistics
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from pccl import _core
from pccl.address import RunAddress, bracketed, decode_key
from pccl.config import Config, variables_set
from pccl.doctor_check import Check
from pccl.doctor_reach import Way, look_from_there
from pccl.status_command import RunUnknown, StatusUnknown, fetch_status

__all__ = ["Check", "examine", "judge_own_address"]

_TIMEOUT_SECONDS = 5.0
_ROUNDS = 5
_ALIVE, _STRANGER, _NOT_YET = 3, 5, 6  # answers of docs/wire_format.md
# Sockets of a member in a large run, listeners and files.
_DESCRIPTORS_WANTED = 4096
# One long fat link: 100 ms at 300 Mbit/s.
_SOCKET_BUFFER_WANTED = 4 << 20
# Two rings for each member on this host; see csrc/transport/memory_link.h.
_SHARED_MEMORY_WANTED = 64 << 20
_CLOCK_SECONDS_MAX = 2.0  # an HTTP date has whole seconds
_SLOW_SECONDS = 0.5


def examine(address: RunAddress | None, host: str, port: int, status_port: int) -> Iterator[Check]:
    """Yield one check after the other; `address` is None where only a place is known.

    Opens a few connections to the coordinator and to the run's members, which change nothing there.
    """
    yield from _versions()
    config, check = _settings()
    yield check
    yield from _limits()
    addresses: list[tuple[socket.AddressFamily, tuple[str, int]]] = []
    yield _resolve(host, port, addresses)
    if not addresses:
        return
    connected = None
    for family, place in addresses:
        check = _connect(family, place)
        yield check
        if check.state != "FAILED" and connected is None:
            connected = (family, place)
    if connected is None:
        return
    way = Way(*connected, address, config)
    handshake = _handshake(way)
    yield handshake
    if handshake.state == "ok":
        yield from look_from_there(way)
    else:
        yield judge_own_address(way.own_host(), way.place[0], config.hosts)
    if address is not None:
        yield from _run_of(address, status_port)
    yield _clock(host, status_port)


# --- this machine ---------------------------------------------------------------------------------


def _versions() -> Iterator[Check]:
    try:
        package = metadata.version("pccl-collectives")
    except metadata.PackageNotFoundError:
        package = "not installed as a package"
    yield Check("version", "ok", f"pccl {package}, protocol {_core.PROTOCOL_VERSION}")


def _settings() -> tuple[Config, Check]:
    try:
        config = Config.from_environment()
    except ValueError as error:
        fix = "correct or unset that variable"
        return Config(), Check("variables", "FAILED", str(error), fix)
    names, unknown = variables_set()
    value, fix = ", ".join(names) or "all PCCL_* at their defaults", ""
    if unknown:
        value, fix = f"unknown: {', '.join(unknown)}", "they have no effect: unset"
    return config, Check("variables", "warning" if unknown else "ok", value, fix)


def _limits() -> Iterator[Check]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft == resource.RLIM_INFINITY or soft >= _DESCRIPTORS_WANTED
    yield Check(
        "file descriptors",
        "ok" if enough else "warning",
        f"{soft} of at most {hard}",
        "" if enough else f"ulimit -n {_DESCRIPTORS_WANTED}: each member costs some",
    )
    for name, which in (("receive", "rmem_max"), ("send", "wmem_max")):
        tcp = Path("/proc/sys/net/ipv4/tcp_" + which[:4])
        try:
            most = int(tcp.read_text().split()[2])
        except (OSError, ValueError, IndexError):
            continue
        fits = most >= _SOCKET_BUFFER_WANTED
        yield Check(
            f"{name} buffer",
            "ok" if fits else "warning",
            f"at most {most / 2**20:.1f} MiB a TCP socket",
            ""
            if fits
            else f"sysctl -w net.ipv4.tcp_{which[:4]}='4096 131072 16777216', or "
            "PCCL_SOCKETS=4: long links need it",
        )
    try:
        free = shutil.disk_usage("/dev/shm").free
        fits = free >= _SHARED_MEMORY_WANTED
        yield Check(
            "shared memory",
            "ok" if fits else "warning",
            f"{free / 2**20:.0f} MiB free in /dev/shm",
            ""
            if fits
            else "mount -o remount,size=1G /dev/shm (docker run --shm-size=1g): torch's "
            "data loaders need it",
        )
    except OSError:
        pass
    try:
        control = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
        yield Check("congestion control", "ok", control)
    except OSError:
        pass


# --- the way there --------------------------------------------------------------------------------


def _resolve(
    host: str, port: int, found: list[tuple[socket.AddressFamily, tuple[str, int]]]
) -> Check:
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return Check(
            "name", "FAILED", f"{host}: {error}", "check the name, or use a number as the host"
        )
    for family, _, _, _, place in entries:
        found.append((family, (str(place[0]), int(place[1]))))
    return Check("name", "ok", f"{host} is {', '.join(place[0] for _, place in found)}")


def _connect(family: socket.AddressFamily, place: tuple[str, int]) -> Check:
    name, where = "connect", f"{bracketed(place[0])}:{place[1]}"
    seconds = []
    for _ in range(_ROUNDS):
        begin = time.monotonic()
        try:
            with socket.create_connection(place, _TIMEOUT_SECONDS):
                seconds.append(time.monotonic() - begin)
        except OSError as error:
            return Check(name, "FAILED", f"{where}: {error}", _fix_of(error, place[1]))
    best = min(seconds)
    spread = f"{1000 * best:.2f} ms, at most {1000 * max(seconds):.2f}"
    slow = best > _SLOW_SECONDS
    return Check(
        name,
        "warning" if slow else "ok",
        f"{where}: round trip {spread}",
        "a slow link: see PCCL_SOCKETS" if slow else "",
    )


def _fix_of(error: OSError, port: int) -> str:
    if isinstance(error, ConnectionRefusedError):
        return f"nobody listens there: start `pccl coordinator --port {port}`, or check the port"
    if isinstance(error, TimeoutError):
        return f"nothing answers: open TCP port {port} in the firewall or router of that host"
    if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        return "no route: check this machine's network, or use its other address (IPv4, IPv6)"
    return "check the network between the two machines"


def _handshake(way: Way) -> Check:
    run = way.address.run if way.address else "doctor"
    key = way.address.fingerprint if way.address else b""
    seconds = []
    for _ in range(_ROUNDS):
        begin = time.monotonic()
        try:
            version, answer, words = _core.probe(
                *way.place,
                run,
                fingerprint=key,
                token=way.address.token if way.address else b"",
                key_file=way.config.key,
                timeout_seconds=_TIMEOUT_SECONDS,
            )
        except (_core.ConnectError, ValueError) as error:
            return _no_handshake(str(error))
        seconds.append(time.monotonic() - begin)
        if version != _core.PROTOCOL_VERSION or answer != _ALIVE:
            return _refusal(version, answer, words)
    return Check(
        "handshake",
        "ok",
        f"a coordinator of protocol {version}"
        + (", with the key that the address names" if key else ", without TLS")
        + "; connect and answer in "
        f"{1000 * statistics.median(seconds):.2f} ms (median of {_ROUNDS})",
    )


def _no_handshake(error: str) -> Check:
    fix = "something else listens on that port, or a proxy cuts the connection"
    if "wrong key" in error:
        fix = "ask the run's owner for the address again: that is another coordinator, or somebody "
        fix += "between you and it"
    return Check("handshake", "FAILED", f"no answer to a pccl handshake: {error}", fix)


def _refusal(version: int, answer: int, words: str) -> Check:
    if version == -1:
        fix = "something else listens on that port: use the one that `pccl coordinator` prints"
        return Check("handshake", "FAILED", f"no pccl: it says {words or 'nothing'}", fix)
    if version != _core.PROTOCOL_VERSION:
        value = f"protocol {version} there, {_core.PROTOCOL_VERSION} here"
        return Check("handshake", "FAILED", value, "install the same pccl on every machine")
    fix = "start again with the address that `pccl coordinator` prints"
    if "plain TCP meets" in words:
        fix = "paste the whole address, with what follows '#'"
    elif " token" in words or " key" in words:
        fix = "ask the run's owner for an address with a new token (pccl invite)"
    if answer == _STRANGER:
        fix = "that is a member and no coordinator: " + fix
    return Check("handshake", "FAILED", words or f"answer {answer}", fix)


def judge_own_address(own: str, there: str, hosts: Sequence[str]) -> Check:
    """Say it as far as addresses tell, where nobody there can be asked; `hosts`: of PCCL_HOST."""
    if hosts:
        return Check("own address", "ok", ", ".join(hosts))
    here, coordinator = (ipaddress.ip_address(text.partition("%")[0]) for text in (own, there))
    if here.is_private and coordinator.is_global:
        return Check(
            "own address",
            "warning",
            f"{own} is private and the coordinator's public: this machine is behind NAT",
            "others can't call it, unless you forward a TCP port and set PCCL_HOST to the public "
            "address and PCCL_PORT to that port; it can call those that can be called",
        )
    return Check("own address", "ok", f"{own}, as the route there says")


# --- the run --------------------------------------------------------------------------------------


def _run_of(address: RunAddress, status_port: int) -> Iterator[Check]:
    try:
        status = fetch_status(address, status_port)
    except StatusUnknown as unknown:
        knows = isinstance(unknown, RunUnknown)
        yield Check(
            "run",
            "warning",
            str(unknown) if knows else f"not known: {str(unknown).partition('. ')[0]}",
            "check the run's name, unless you are the first"
            if knows
            else "its status page is on its own machine only: run this there, or --status-host",
        )
        return
    (run,) = status["runs"]
    if status["failure"]:
        yield Check("coordinator", "FAILED", status["failure"], "mend its disk and restart it")
    size = sum(member["rank"] is not None for member in run["members"])
    short = size < run["world_size_min"]
    yield Check(
        "run",
        "warning" if short else "ok",
        f"{size} members in quorum {run['quorum_id']}, at least {run['world_size_min']} wanted",
        "it waits for more" if short else "",
    )
    for member in run["members"]:
        yield _member(member["address"], address.run, member["key"])


def _member(address: str, run: str, key: str) -> Check:
    host, _, port = address.rpartition(":")
    name = f"member {address}"
    begin = time.monotonic()
    try:
        place = (host.strip("[]"), int(port))
        version, answer, words = _core.probe(
            *place,
            run,
            fingerprint=decode_key(key) if key else b"",
            timeout_seconds=_TIMEOUT_SECONDS,
        )
    except (_core.ConnectError, ValueError) as error:
        fix = "open that port there, or see PCCL_HOST: one of each two members must reach the other"
        return Check(name, "warning", f"can't be reached from here: {error}", fix)
    # Through TLS it says no more than that it does not know us.
    is_there = answer == _NOT_YET if key else words.startswith("wrong member")
    if version != _core.PROTOCOL_VERSION or not is_there:
        return Check(name, "FAILED", words, "another process listens where it did")
    return Check(name, "ok", f"answers in {1000 * (time.monotonic() - begin):.2f} ms")


def _clock(host: str, status_port: int) -> Check:
    url = f"http://{bracketed(host)}:{status_port}/status.json"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_TIMEOUT_SECONDS) as answer:
            there = email.utils.parsedate_to_datetime(answer.headers["Date"]).timestamp()
    except (OSError, ValueError, TypeError, urllib.error.URLError):
        return Check("clock", "ok", "not compared: the status page is not reached from here")
    difference = time.time() - there - 0.5
    apart = abs(difference) > _CLOCK_SECONDS_MAX
    return Check(
        "clock",
        "warning" if apart else "ok",
        f"{difference:+.1f} s against the coordinator's",
        "only logs and traces suffer: timedatectl set-ntp true" if apart else "",
    )
