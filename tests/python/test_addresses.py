"""Where ranks listen and how they are reached: families, names, ports, stripes."""

import os
import random
import socket
import time
from pathlib import Path

import pytest
from rank_processes import Ranks, free_ports

ALL_REDUCE = {"collective": "all_reduce", "count": 300_007}


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")


def port() -> int:
    seed = os.getpid() ^ random.randrange(1 << 20)
    return free_ports(1, random.Random(seed))[0]


def all_right(ranks: Ranks) -> None:
    total = len(ranks.all) * (len(ranks.all) + 1) / 2
    for result in ranks.ask("call", spec=ALL_REDUCE):
        assert (result["firsts"], result["uniform"]) == ([total], True)


@needs_ipv6
def test_ranks_talk_over_ipv6_and_errors_write_it_in_brackets() -> None:
    with Ranks(3) as ranks:
        ranks.open(bind_host="::1")
        ranks.join(timeout_seconds=1)
        assert all(member.startswith("[::1]:") for member in ranks.members)
        all_right(ranks)
        ranks[0].tell("call", spec={"collective": "barrier"})
        assert "([::1]:" in ranks[0].hear("error")["text"]


@needs_ipv6
def test_one_rank_on_ipv4_and_one_on_ipv6_reach_each_other() -> None:
    with Ranks(2) as ranks:
        ranks.open([{"bind_host": "127.0.0.1"}, {"bind_host": "::1"}])
        ranks.join()
        all_right(ranks)


@pytest.mark.parametrize("shared_memory", [False, True])
def test_without_any_setting_ranks_find_their_addresses_themselves(shared_memory: bool) -> None:
    with Ranks(3) as ranks:
        ranks.open(bind_host="", shared_memory=shared_memory)
        ranks.join()
        all_right(ranks)
        sent = ranks[0].ask("statistics")
        assert (sent["bytes_sent_memory"] > 0) == shared_memory
        assert (sent["bytes_sent_tcp"] > 0) != shared_memory


def test_names_are_resolved_by_whoever_dials() -> None:
    with Ranks(2) as ranks:
        ranks.open(bind_host="127.0.0.1", advertise_hosts=["localhost"])
        ranks.join()
        assert all(member.startswith("localhost:") for member in ranks.members)
        all_right(ranks)


def test_of_several_advertised_addresses_one_that_works_is_enough() -> None:
    with Ranks(2) as ranks:
        hosts = ["no-such-host.invalid", "192.0.2.1", "127.0.0.1"]
        ranks.open(bind_host="", advertise_hosts=hosts, connect_timeout_seconds=15)
        ranks.join()
        all_right(ranks)


@pytest.mark.parametrize(
    "place", ["127.0.0.1", "localhost", pytest.param("[::1]", marks=needs_ipv6)]
)
def test_the_rendezvous_takes_addresses_and_names(place: str) -> None:
    method = f"tcp://{place}:{port()}"
    with Ranks(3) as ranks:
        for rank in ranks:
            rank.tell("init", method=method, rank=rank.number, world_size=3, bind=place.strip("[]"))
        ranks.hear("done")
        ranks.ask("world_call", spec=ALL_REDUCE)
        ranks.ask("close_world")


def test_a_range_of_ports_gives_each_rank_of_a_host_its_own() -> None:
    first = port()
    method = f"tcp://127.0.0.1:{port()}"
    with Ranks(3) as ranks:
        for rank in ranks:
            rank.tell(
                "init", method=method, rank=rank.number, world_size=3, bind="127.0.0.1",
                hosts=["127.0.0.1"], ports=list(range(first, first + 8)), shared_memory=False,
            )  # fmt: skip
        ranks.hear("done")
        ranks.ask("world_call", spec=ALL_REDUCE)
        taken = [event["address"] for event in ranks.ask("world_address")]
        assert len(set(taken)) == 3, taken
        for address in taken:
            assert first <= int(address.rpartition(":")[2]) < first + 8, taken


def test_a_range_that_is_full_is_an_error_that_names_its_last_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, Ranks(1) as ranks:
        number = taken.getsockname()[1]
        ranks[0].tell(
            "init", method=f"tcp://127.0.0.1:{port()}", rank=0, world_size=1, bind="127.0.0.1",
            ports=[number],
        )  # fmt: skip
        event = ranks[0].hear("error")
        assert event["kind"] == "ConnectError", event
        assert f"port {number}" in event["text"], event


def sockets_at(number: int) -> int:
    """Established TCP connections that came in at a listening port."""
    found = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        found += fields[3] == "01" and int(fields[1].rpartition(":")[2], 16) == number
    return found


@pytest.mark.parametrize("sockets", [1, 4, 64])
def test_a_connection_uses_as_many_sockets_as_asked_for(sockets: int) -> None:
    with Ranks(2) as ranks:
        ranks.open(sockets=sockets)
        ranks.join()
        all_right(ranks)
        all_right(ranks)
        ranks.ask("call", spec={"collective": "all_reduce", "count": 8_000_000})
        ports = [int(member.rpartition(":")[2]) for member in ranks.members]
        # Where both have dialed, one of the two dials goes a moment later.
        deadline = time.monotonic() + 10
        while sum(map(sockets_at, ports)) != sockets and time.monotonic() < deadline:
            time.sleep(0.01)
        assert sum(map(sockets_at, ports)) == sockets
        before = ranks[0].ask("statistics")
        assert before["connections"] == 1
        # Striped or not, a death is noticed, and a goodbye is none.
        ranks.tell("loop", count=1_000_000)
        ranks.hear("looping")
        ranks[1].process.kill()
        event = ranks[0].hear("error")
        assert event["kind"] == "MemberLost", event


@pytest.mark.parametrize("sockets", [2, 5])
def test_ranks_may_stripe_differently_and_leave_politely(sockets: int) -> None:
    with Ranks(3) as ranks:
        ranks.open([{"sockets": 1}, {"sockets": sockets}, {"sockets": 3}])
        ranks.join()
        for _ in range(3):
            all_right(ranks)
        ranks.tell("close")
        assert all(event["seconds"] < 2.5 for event in ranks.hear("done"))
        for rank in ranks:
            rank.finish(10)
