"""How ranks find each other: every way, and every way in which it fails."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from rank_processes import free_ports
from thread_ranks import ThreadStore, run_threads

import pccl
from pccl.rendezvous import Place, exchange_through_store
from pccl.rendezvous.messages import Opener

PATIENT = pccl.Config(bind="127.0.0.1", connect_timeout_seconds=30)
Exchange = Callable[[int, int, float], list[bytes]]


def free_port() -> int:
    return free_ports(1, random.Random())[0]


def opener(rank: int) -> Opener:
    return lambda run: f"{run}/address of {rank}".encode()


def exchange_by(way: str, folder: Path) -> Exchange:
    """A rendezvous of one kind, without the core: (rank, world_size, seconds) -> addresses."""
    place = Place.parse(f"tcp://127.0.0.1:{free_port()}" if way == "tcp" else f"file://{folder}")
    store = ThreadStore()

    def exchange(rank: int, world_size: int, seconds: float) -> list[bytes]:
        deadline = time.monotonic() + seconds
        if way == "store":
            return exchange_through_store(store, opener(rank), rank, world_size, deadline)
        return place.meet(opener(rank), rank, world_size, deadline)

    return exchange


WAYS = ["tcp", "file", "store"]


def sum_over(init_method: str, world_size: int = 2, config: pccl.Config = PATIENT) -> None:
    """A whole start, one operation, and the end."""

    def run(rank: int) -> float:
        with pccl.init(init_method, rank=rank, world_size=world_size, config=config) as comm:
            array = np.ones(1)
            comm.all_reduce(array)
            return float(array[0])

    assert run_threads(world_size, run) == [float(world_size)] * world_size


# --- every way works ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("world_size", [1, 2, 7])
def test_every_rank_gets_every_address_of_one_run(
    way: str, world_size: int, tmp_path: Path
) -> None:
    exchange = exchange_by(way, tmp_path)
    lists = run_threads(world_size, lambda rank: exchange(rank, world_size, 20))
    assert all(addresses == lists[0] for addresses in lists)
    (run,) = {address.partition(b"/")[0] for address in lists[0]}
    assert lists[0] == [run + f"/address of {rank}".encode() for rank in range(world_size)]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_tcp_takes_addresses_and_names(host: str) -> None:
    if host == "[::1]" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    sum_over(f"tcp://{host}:{free_port()}")


def test_the_run_itself_goes_over_ipv6() -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    config = pccl.Config(
        bind="::1", hosts=("::1",), shared_memory=False, connect_timeout_seconds=30
    )
    sum_over(f"tcp://[::1]:{free_port()}", config=config)


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_env_reads_what_torchrun_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setenv("WORLD_SIZE", "2")

    def run(rank: int) -> int:
        with pccl.init(rank=rank, config=PATIENT) as comm:
            comm.barrier()
            return comm.world_size

    assert run_threads(2, run) == [2, 2]


def test_a_port_that_torchrun_holds_is_not_needed() -> None:
    port = free_ports(1, random.Random())[0]
    # And the next one belongs to a stranger.
    with socket.create_server(("127.0.0.1", port)), impostor([b"220 mail ready\n"], port + 1):
        place = Place.of_launch("127.0.0.1", port, port_is_taken=True, run="job/0")

        def meet(rank: int) -> list[bytes]:
            deadline = time.monotonic() + 25
            return place.meet(opener(rank), rank, 2, deadline)

        first, second = run_threads(2, meet)
    assert first == second


def test_two_runs_on_neighbouring_ports_do_not_mix() -> None:
    port = free_port()
    runs = ["a/0", "b/0"]

    def meet(index: int) -> list[bytes]:
        place = Place.of_launch("127.0.0.1", port, port_is_taken=True, run=runs[index // 3])
        return place.meet(opener(index % 3), index % 3, 3, time.monotonic() + 25)

    lists = run_threads(6, meet)
    assert lists[0] == lists[1] == lists[2] != lists[3]
    assert lists[3] == lists[4] == lists[5]


def test_left_overs_of_another_run_in_a_directory_do_no_harm(tmp_path: Path) -> None:
    exchange = exchange_by("file", tmp_path)
    first = run_threads(3, lambda rank: exchange(rank, 3, 20))
    (tmp_path / "address-2").write_text("{ half a file")
    second = run_threads(3, lambda rank: exchange(rank, 3, 20))
    assert second[0] == second[1] == second[2] != first[0]
    # A smaller world in the same place.
    third = run_threads(2, lambda rank: exchange(rank, 2, 20))
    assert third[0] == third[1]


def test_a_path_may_hold_any_character(tmp_path: Path) -> None:
    folder = tmp_path / "a b%c"
    sum_over(f"file://{str(folder).replace('%', '%25').replace(' ', '%20')}")


def test_rank_0_may_come_last() -> None:
    exchange = exchange_by("tcp", Path())
    others = threading.Event()

    def run(rank: int) -> list[bytes]:
        if rank == 0:
            assert others.wait(10)
        others.set()
        return exchange(rank, 3, 20)

    lists = run_threads(3, run)
    assert lists[0] == lists[1] == lists[2]


# --- who is missing -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_ranks_that_never_come_are_named_on_every_rank(way: str, tmp_path: Path) -> None:
    exchange = exchange_by(way, tmp_path)

    def run(rank: int) -> str:
        with pytest.raises(pccl.ConnectError) as caught:
            exchange(rank, 5, 1.0)
        return str(caught.value)

    for text in run_threads(3, run):
        assert "ranks 3, 4 of 5" in text, text


@pytest.mark.parametrize("way", WAYS)
def test_a_rank_0_that_never_comes_is_named(way: str, tmp_path: Path) -> None:
    exchange = exchange_by(way, tmp_path)
    with pytest.raises(pccl.ConnectError, match=r"rank 0"):
        exchange(1, 2, 0.3)


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(pccl.ConnectError, match=rf"port {port}.*in use"):
            pccl.init(f"tcp://127.0.0.1:{port}", rank=0, world_size=2, config=PATIENT)


def test_a_listening_port_of_the_run_in_use_is_an_error_that_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = pccl.Config(bind="127.0.0.1", ports=(port,))
        with pytest.raises(pccl.ConnectError, match=str(port)):
            pccl.init(rank=0, world_size=1, store=ThreadStore(), config=config)
        # Of a range the first free one is taken.
        free = free_port()
        config = pccl.Config(bind="127.0.0.1", ports=(port, free))
        pccl.init(rank=0, world_size=1, store=ThreadStore(), config=config).close()


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_a_wrong_address_is_named(host: str) -> None:
    port = free_port()
    place = Place.parse(f"tcp://{host}:{port}")
    with pytest.raises(pccl.ConnectError, match=rf"rank 0 of 2 at {host}.*{host}:{port}: "):
        place.meet(opener(1), 1, 2, time.monotonic() + 0.3)


def test_a_directory_that_cannot_be_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(pccl.ConnectError, match="file is not a directory"):
        exchange_by("file", tmp_path / "file")(0, 2, 1)


def test_a_store_that_fails_is_told_at_once() -> None:
    class Broken(ThreadStore):
        def get(self, key: str) -> bytes:
            raise RuntimeError(f"no more {key}")

    started = time.monotonic()
    with pytest.raises(pccl.ConnectError, match="no more"):
        exchange_through_store(Broken(), opener(1), 1, 2, started + 20)
    assert time.monotonic() - started < 10


def test_a_rank_that_comes_twice_and_a_wrong_world_size_are_told() -> None:
    exchange = exchange_by("tcp", Path())
    errors: list[str] = []

    def run(index: int) -> None:
        rank, world_size = [(0, 3), (1, 3), (1, 3), (2, 4)][index]
        with pytest.raises(pccl.ConnectError) as caught:
            exchange(rank, world_size, 1.0)
        errors.append(str(caught.value))

    run_threads(4, run)
    assert any("came twice" in error for error in errors)
    assert any("counts a world size of 4, rank 0 one of 3" in error for error in errors)


# --- strangers ------------------------------------------------------------------------------------

GARBAGE = [
    b"",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00" * 50 + b"\n",
    b"\n" * 1000,
    b"[" * 100_000 + b"\n",
    b'{"protocol": "pccl-rendezvous-1", "rank": "1"}\n',
    b'{"protocol": "pccl-rendezvous-1", "rank": 1e999, "world_size": 2}\n',
    b'{"protocol": "pccl-rendezvous-1", "rank": 7, "world_size": 2, "key": ""}\n',
    b"x" * 1_000_000,
]


@contextmanager
def strangers(port: int, bytes_of_each: list[bytes]) -> Iterator[None]:
    """Connections that send garbage to `port` and then stay open."""
    sockets = []
    try:
        for garbage in bytes_of_each:
            connection = dial(port)
            with suppress(OSError):  # refused in the middle, as it should be
                connection.sendall(garbage)
            sockets.append(connection)
        yield
    finally:
        for connection in sockets:
            connection.close()


def dial(port: int) -> socket.socket:
    deadline = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=1)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_strangers_with_garbage_do_not_disturb_the_meeting() -> None:
    port = free_port()
    place = Place.parse(f"tcp://127.0.0.1:{port}")

    def run(rank: int) -> list[bytes]:
        if rank == 1:  # the strangers are there first
            with strangers(port, GARBAGE):
                return place.meet(opener(1), 1, 2, time.monotonic() + 20)
        return place.meet(opener(0), 0, 2, time.monotonic() + 20)

    first, second = run_threads(2, run)
    assert first == second


@contextmanager
def impostor(answers: list[bytes], port: int = 0) -> Iterator[int]:
    """A service that greets each connection with the next of `answers` and hangs up; its port."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", port)) as server:
        server.settimeout(0.1)

        def serve() -> None:
            turn = 0
            while not stop.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection, suppress(OSError):
                    connection.sendall(answers[turn % len(answers)])
                turn += 1

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            stop.set()
            thread.join()


def test_what_stands_in_for_rank_0_and_speaks_garbage_is_not_believed() -> None:
    answers = [b"220 mail ready\n", b"{}\n", b'{"run": 5}\n', b'{"run": "' + b"x" * 99 + b'"}\n']
    answers += [json.dumps({"run": "r"}).encode() + b'\n{"addresses": ["%%", 3]}\n']
    with impostor(answers) as port:
        place = Place.parse(f"tcp://127.0.0.1:{port}")
        with pytest.raises(pccl.ConnectError):
            place.meet(opener(1), 1, 2, time.monotonic() + 1)
