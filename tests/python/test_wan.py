"""Four hosts that are far apart: the same results, and an error in time when one is out of reach.

Needs wanlab: see wide_area.py.
"""

import itertools
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from rank_processes import Ranks
from wide_area import REASON, WANLAB

pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)

WORLD_SIZE = 4
SUM = float(sum(range(1, WORLD_SIZE + 1)))
# For what takes a few round trips of at most 200 ms on an idle machine.
NOTICE_SECONDS = 3.0
ALL_REDUCE = {"collective": "all_reduce", "count": 200_003}


class Lab:
    def __init__(self, lab: Any, hosts: list[Any], ranks: Ranks) -> None:
        self.lab = lab
        self.hosts = hosts
        self.ranks = ranks

    def same_everywhere(self) -> None:
        """One all_reduce of random numbers: right, and the same bytes on every rank."""
        seed = random.randrange(1 << 30)
        print(f"seed {seed}")
        results = self.ranks.ask("call_random", count=200_003, seed=seed)
        assert len({result["digest"] for result in results}) == 1, results
        assert max(result["deviation"] for result in results) < 1e-5, results


@contextmanager
def wide_area(
    links: dict[str, object],
    *,
    rate: str = "100mbit",
    sockets: int = 1,
    timeout_seconds: float = 30,
    kernel_control: str = "",
    control: str = "kernel",
) -> Iterator[Lab]:
    """Four ranks on four hosts; every pair is linked alike.

    control: the ranks' congestion control; kernel_control: what "kernel" is.
    """
    assert WANLAB is not None
    seed = random.randrange(1 << 30)
    print(f"lab seed {seed}")
    with WANLAB.Lab(seed=seed) as lab:
        hosts = [lab.add_host(f"h{i}", up=rate, down=rate) for i in range(WORLD_SIZE)]
        for first in range(WORLD_SIZE):
            for second in range(first):
                lab.link(hosts[first], hosts[second], **links)
        if kernel_control:
            for host in hosts:
                host.congestion_control(kernel_control)
        more = {"sockets": sockets, "congestion_control": control}
        with Ranks([host.popen for host in hosts]) as ranks:
            ranks.open([{"bind_host": host.addr, **more} for host in hosts])
            ranks.join(timeout_seconds=timeout_seconds)
            yield Lab(lab, hosts, ranks)


COLLECTIVES: list[tuple[dict[str, object], list[list[float]]]] = [
    ({"collective": "all_reduce", "count": 1}, [[SUM]] * WORLD_SIZE),
    ({"collective": "all_reduce", "count": 500_003}, [[SUM]] * WORLD_SIZE),
    ({"collective": "all_reduce", "op": "max", "dtype": "int64"}, [[4.0]] * WORLD_SIZE),
    ({"collective": "broadcast", "count": 400_001, "root": 2}, [[3.0]] * WORLD_SIZE),
    ({"collective": "reduce", "count": 300_001, "root": 1}, [[], [SUM], [], []]),
    ({"collective": "all_gather", "count": 100_001}, [[1.0, 2.0, 3.0, 4.0]] * WORLD_SIZE),
    ({"collective": "all_gather", "counts": [5, 0, 70_001, 1]}, [[1.0, 3.0, 4.0]] * WORLD_SIZE),
    ({"collective": "reduce_scatter", "count": 100_001}, [[SUM]] * WORLD_SIZE),
    ({"collective": "gather", "count": 50_001, "root": 3}, [[], [], [], [1.0, 2.0, 3.0, 4.0]]),
    ({"collective": "scatter", "count": 50_001, "root": 3}, [[4.0]] * WORLD_SIZE),
    ({"collective": "all_to_all", "count": 50_001}, [[1.0, 2.0, 3.0, 4.0]] * WORLD_SIZE),
    ({"collective": "barrier"}, [[]] * WORLD_SIZE),
]  # fmt: skip


@pytest.mark.parametrize("sockets", [1, 4])
def test_every_collective_is_right_over_delay_loss_and_jitter(sockets: int) -> None:
    links = {"rtt": "40ms", "loss": "0.2%", "jitter": "3ms"}
    with wide_area(links, sockets=sockets) as wide:
        for spec, expected in COLLECTIVES:
            results = wide.ranks.ask("call", spec=spec)
            for rank, (result, firsts) in enumerate(zip(results, expected, strict=True)):
                if firsts:
                    assert result["firsts"] == firsts, (spec, rank, result)
                    assert result["uniform"], (spec, rank)
        wide.same_everywhere()
        # Between hosts everything goes through TLS, without a word of the user.
        assert all(counted["secure_sockets"] >= sockets for counted in wide.ranks.ask("statistics"))


@pytest.mark.skipif(shutil.which("ip") is None, reason="needs the program ip (iproute2)")
@pytest.mark.parametrize("control", ["auto", "kernel"])
def test_a_long_link_that_loses_packets_gets_another_control_or_more_sockets(control: str) -> None:
    """Under CUBIC three lost packets in a thousand leave one socket a twentieth of these links."""
    links = {"rtt": "80ms", "loss": "0.3%"}
    with wide_area(
        links, sockets=0, timeout_seconds=120, kernel_control="cubic", control=control
    ) as wide:
        deadline = time.monotonic() + 60
        name = "changed_controls" if control == "auto" else "added_sockets"
        while not all(counted[name] > 0 for counted in wide.ranks.ask("statistics")):
            assert time.monotonic() < deadline, wide.ranks.ask("statistics")
            seed = random.randrange(1 << 30)
            results = wide.ranks.ask("call_random", count=600_007, seed=seed)
            assert len({result["digest"] for result in results}) == 1, results
        wide.same_everywhere()
        counted = wide.ranks.ask("statistics")
        assert all(one["replaced_sockets"] == 0 for one in counted), counted
        if control == "kernel":
            assert all(one["changed_controls"] == 0 for one in counted), counted


def test_uneven_and_changing_links_change_the_time_and_not_the_result() -> None:
    with wide_area({"rtt": "20ms"}) as wide:
        far, near = wide.hosts[3], wide.hosts[0]
        far.set(up="10mbit", down="30mbit")
        for host in wide.hosts[:3]:
            wide.lab.link(host, far, rtt="160ms", loss="0.5%", dup="0.5%", reorder=1)
        wide.same_everywhere()
        near.set(up="5mbit")
        wide.same_everywhere()
        near.set(up="100mbit")
        far.set(up="100mbit", down="100mbit")
        wide.same_everywhere()


def test_small_operations_that_are_started_together_share_the_latency() -> None:
    with wide_area({"rtt": "100ms"}) as wide:
        results = wide.ranks.ask("burst", count=1024, tensors=20)
        assert len({result["digest"] for result in results}) == 1
        # One by one they take 20 times the way to the others, together that and what TCP needs to
        # get going: a quarter, where nothing else is in the way.
        assert results[0]["one_by_one"] > 20 * 0.05
        assert results[0]["together"] < results[0]["one_by_one"] / 2, results


def test_a_short_outage_is_only_a_pause() -> None:
    with wide_area({"rtt": "20ms"}) as wide:
        wide.ranks.tell("loop", count=100_000, timeout_seconds=30)
        wide.ranks.hear("looping")
        wide.hosts[2].blackhole()
        # Nobody hears anything while it lasts; the kernels repeat what was lost.
        assert all(not rank.has_spoken() for rank in wide.ranks)
        wide.hosts[2].heal()
        wide.ranks[0].tell("usage")
        for event in wide.ranks.hear("done"):
            assert event["wrong"] == 0, event
        wide.ranks[0].hear("done")
        wide.same_everywhere()


FAULTS = ["blackhole", "cut", "unplug"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_host_out_of_reach_is_an_error_everywhere_before_the_deadline(fault: str) -> None:
    with wide_area({"rtt": "40ms"}) as wide:
        wide.ranks.tell("loop", count=200_000, timeout_seconds=3)
        wide.ranks.hear("looping")
        since = time.monotonic()
        getattr(wide.hosts[2], fault)()
        texts = []
        for rank in wide.ranks:
            event = rank.hear("error")
            assert event["kind"] in ("CollectiveTimeout", "MemberLost"), event
            assert event["time"] - since < 3 + NOTICE_SECONDS, event
            if rank.number != 2:
                texts.append(event["text"])
        assert any(wide.ranks.name(2) in text for text in texts), texts
        # Whoever is left goes on without it.
        for index, rank in enumerate(wide.ranks.but(2)):
            addresses = [a for number, a in enumerate(wide.ranks.addresses) if number != 2]
            rank.tell("join", rank=index, addresses=addresses, name="rest", timeout_seconds=20)
            rank.hear("done")
            rank.tell("call", spec=ALL_REDUCE)
        for rank in wide.ranks.but(2):
            assert rank.hear("done")["firsts"] == [6.0]


def test_a_partition_is_an_error_on_both_sides() -> None:
    with wide_area({"rtt": "40ms"}) as wide:
        wide.ranks.tell("loop", count=200_000, timeout_seconds=3)
        wide.ranks.hear("looping")
        since = time.monotonic()
        wide.lab.partition(wide.hosts[:2], wide.hosts[2:])
        for rank in wide.ranks:
            event = rank.hear("error")
            assert event["kind"] in ("CollectiveTimeout", "MemberLost"), event
            assert event["time"] - since < 3 + NOTICE_SECONDS, event


def test_a_killed_process_is_noticed_at_the_speed_of_the_link() -> None:
    with wide_area({"rtt": "100ms"}) as wide:
        wide.ranks.tell("loop", count=200_000, timeout_seconds=30)
        wide.ranks.hear("looping")
        since = wide.ranks[1].signal(signal.SIGKILL)
        for rank in wide.ranks.but(1):
            event = rank.hear("error")
            assert event["kind"] == "MemberLost", event
            assert wide.ranks.name(1) in event["text"], event
            assert event["time"] - since < NOTICE_SECONDS, event


def test_reset_connections_cost_time_and_no_call() -> None:
    with wide_area({"rtt": "40ms"}, sockets=2) as wide:
        wide.ranks.tell("loop", count=200_000, timeout_seconds=30)
        wide.ranks.hear("looping")
        resets = 0
        for host in wide.hosts:
            try:
                resets += host.reset_connections()
            except OSError as error:
                pytest.skip(f"this kernel resets no connections: {error}")
        assert resets > 0
        wide.ranks[0].tell("usage")  # ends the loop, with a call that begins after all of them
        for event in wide.ranks.hear("done"):
            assert event["wrong"] == 0, event
        wide.ranks[0].hear("done")
        wide.same_everywhere()


def test_members_behind_a_router_that_lets_nobody_in_are_reached_by_dialing_out() -> None:
    with wide_area({"rtt": "20ms"}) as wide:
        # Host 3 can call and not be called. Whoever wants it waits for its call.
        wide.hosts[3].set(nat=True)
        wide.same_everywhere()


def test_the_throughput_of_a_large_all_reduce_is_told() -> None:
    count = 4_000_000
    bound = 2 * (WORLD_SIZE - 1) / WORLD_SIZE * 4 * count * 8 / 100e6
    for sockets in (1, 4):
        with wide_area({"rtt": "20ms"}, sockets=sockets) as wide:
            results = wide.ranks.ask("timed", count=count, rounds=1)
            seconds = min(
                max(times) for times in zip(*(r["seconds"] for r in results), strict=True)
            )
            print(
                f"all_reduce of {4 * count / 1e6:.0f} MB, 4 hosts, 100 Mbit/s, 20 ms, "
                f"{sockets} socket(s): {seconds:.2f} s, bound {bound:.2f} s, {bound / seconds:.0%}"
            )


def test_the_first_large_all_reduce_spares_a_host_with_a_narrow_uplink_while_it_runs() -> None:
    """No clock: shared evenly, each host would send 8/5 of the tensor, and nobody knows better."""
    assert WANLAB is not None
    count = 2_200_003
    with WANLAB.Lab(seed=1) as lab:
        rates = ["200mbit"] * 4 + ["20mbit"]
        hosts = [lab.add_host(f"h{i}", up=rate, down="200mbit") for i, rate in enumerate(rates)]
        for first, second in itertools.combinations(hosts, 2):
            lab.link(first, second, rtt="20ms")
        with Ranks([host.popen for host in hosts]) as ranks:
            ranks.open([{"bind_host": host.addr} for host in hosts])
            ranks.join(timeout_seconds=60)
            before = [rank["bytes_sent_tcp"] for rank in ranks.ask("statistics")]
            results = ranks.ask("call_random", count=count, seed=1)
            assert len({result["digest"] for result in results}) == 1, results
            assert max(result["deviation"] for result in results) < 1e-5, results
            now = [rank["bytes_sent_tcp"] for rank in ranks.ask("statistics")]
    sent = [(after - begin) / (4 * count) for after, begin in zip(now, before, strict=True)]
    assert sent[4] < min(1.5, *sent[:4]), sent


def test_large_all_reduces_come_to_spare_a_host_with_a_narrow_uplink() -> None:
    """No clock: the narrow host sends 3/2 of the tensor in the first call, later less."""
    assert WANLAB is not None
    count = 1_100_003
    with WANLAB.Lab(seed=1) as lab:
        rates = ["200mbit"] * (WORLD_SIZE - 1) + ["20mbit"]
        hosts = [lab.add_host(f"h{i}", up=rate, down="200mbit") for i, rate in enumerate(rates)]
        for first in range(WORLD_SIZE):
            for second in range(first):
                lab.link(hosts[first], hosts[second], rtt="20ms")
        with Ranks([host.popen for host in hosts]) as ranks:
            ranks.open([{"bind_host": host.addr} for host in hosts])
            ranks.join(timeout_seconds=60)
            sent = []
            for seed in range(7):
                before = ranks[WORLD_SIZE - 1].ask("statistics")["bytes_sent_tcp"]
                results = ranks.ask("call_random", count=count, seed=seed)
                assert len({result["digest"] for result in results}) == 1, results
                assert max(result["deviation"] for result in results) < 1e-5, results
                now = ranks[WORLD_SIZE - 1].ask("statistics")["bytes_sent_tcp"]
                sent.append((now - before) / (4 * count))
    assert 1.45 < sent[0] < 1.6, "direct exchange, all alike"
    # The first call tells the second one, and the third is planned by it.
    assert sent[2] < 1.42, sent
