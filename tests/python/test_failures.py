"""Ranks that die, stop, leave or never come: an error for all in time, and nothing left behind."""

import os
import random
import signal
import socket
import time
from pathlib import Path

import pytest
from rank_processes import Event, Rank, Ranks, free_ports

ROADS = ["tcp", "memory"]
# How long the others may take to hear of a death. The machine may be busy; it takes milliseconds.
NOTICE_SECONDS = 2.0
# Longer than any timeout that a test sets, where a call must fail for another reason.
LONG = 60.0
ALL_REDUCE = {"collective": "all_reduce"}


def listening_ports() -> set[int]:
    found = set()
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        if os.path.exists(name):
            for line in Path(name).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A":
                    found.add(int(fields[1].rpartition(":")[2], 16))
    return found


def left_overs(ranks: Ranks) -> set[str]:
    """UNIX sockets and files that carry the name of one of these ranks."""
    found = set(Path("/proc/net/unix").read_text().split())
    for folder in ("/dev/shm", "/tmp"):
        if os.path.isdir(folder):
            found |= set(os.listdir(folder))
    # docs/wire_format.md: the member id follows magic and version.
    own = {bytes.fromhex(address)[6:22].hex() for address in ranks.addresses}
    return {name for name in found if name.rpartition(".")[2] in own}


def killed(rank: Rank) -> float:
    """When it was sent; the process is gone afterwards."""
    when = rank.signal(signal.SIGKILL)
    rank.process.wait(10)
    return when


def assert_lost(event: Event, name: str, since: float, seconds: float = NOTICE_SECONDS) -> None:
    assert event["kind"] == "MemberLost", event
    assert name in event["text"], event
    assert event["time"] - since < seconds, event


# --- death ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_every_survivor_of_a_kill_hears_who_died_and_nothing_is_left(
    world_size: int, road: str
) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    generator = random.Random(seed)
    ports = free_ports(world_size, generator)
    victim = generator.randrange(world_size)
    # The second time proves that the first one stands in nobody's way.
    for _ in range(2):
        with Ranks(world_size) as ranks:
            fresh = [event["descriptors"] for event in ranks.ask("usage")]
            each: list[dict[str, object]] = [{"port": port} for port in ports]
            ranks.open(each, shared_memory=road == "memory")
            assert set(ports) <= listening_ports()
            assert len(left_overs(ranks)) == (world_size if road == "memory" else 0)
            ranks.join(timeout_seconds=LONG)
            ranks.tell("loop", count=4_000_000)
            ranks.hear("looping")
            since = killed(ranks[victim])
            for rank in ranks.but(victim):
                assert_lost(rank.hear("error"), ranks.name(victim), since)
            for rank in ranks.but(victim):
                rank.tell("close_group")
                rank.tell("close")
                rank.hear("done")
                rank.hear("done")
                usage = rank.ask("forget")
                assert usage["descriptors"] <= fresh[rank.number], usage
                assert usage["shared_maps"] == 0, usage
            assert not set(ports) & listening_ports()
            for rank in ranks.but(victim):
                rank.finish()
            assert not left_overs(ranks)


@pytest.mark.parametrize("road", ROADS)
def test_a_rank_killed_before_the_first_call_fails_it_by_name(road: str) -> None:
    with Ranks(3) as ranks:
        ranks.open(shared_memory=road == "memory", connect_timeout_seconds=5)
        ranks.join(timeout_seconds=LONG)
        killed(ranks[2])
        since = time.monotonic()
        for rank in ranks.but(2):
            rank.tell("call", spec={"collective": "all_reduce", "count": 1_000_000})
        for rank in ranks.but(2):
            event = rank.hear("error")
            assert event["kind"] in ("MemberLost", "ConnectError"), event
            assert ranks.name(2) in event["text"], event
            assert event["time"] - since < 5, event


@pytest.mark.parametrize("road", ROADS)
def test_after_a_death_every_later_call_fails_at_once_and_says_why(road: str) -> None:
    with Ranks(3) as ranks:
        ranks.open(shared_memory=road == "memory")
        ranks.join(timeout_seconds=LONG)
        ranks.ask("call", spec=ALL_REDUCE)
        killed(ranks[1])
        for rank in ranks.but(1):
            rank.tell("call", spec=ALL_REDUCE)
            assert rank.hear("error")["kind"] == "MemberLost"
        for rank in ranks.but(1):
            begin = time.monotonic()
            rank.tell("call", spec={"collective": "barrier"})
            assert_lost(rank.hear("error"), ranks.name(1), begin, 1.0)
        # The survivors make a group of their own and go on.
        addresses = [ranks.addresses[0], ranks.addresses[2]]
        for index, rank in enumerate(ranks.but(1)):
            rank.tell("join", rank=index, addresses=addresses, name="survivors")
        for rank in ranks.but(1):
            rank.hear("done")
            rank.tell("call", spec={"collective": "all_reduce", "count": 100_000})
        for rank in ranks.but(1):
            result = rank.hear("done")
            assert (result["firsts"], result["uniform"]) == ([3.0], True)


# --- silence --------------------------------------------------------------------------------------


@pytest.mark.parametrize("road", ROADS)
def test_a_stopped_rank_is_named_by_the_timeout_and_fails_when_it_wakes(road: str) -> None:
    with Ranks(3) as ranks:
        ranks.open(shared_memory=road == "memory")
        ranks.join(timeout_seconds=LONG)
        ranks.tell("loop", count=1_000_000, timeout_seconds=1.5)
        ranks.hear("looping")
        since = ranks[1].signal(signal.SIGSTOP)
        texts = []
        for rank in ranks.but(1):
            event = rank.hear("error")
            assert event["kind"] == "CollectiveTimeout", event
            assert event["time"] - since < 1.5 + NOTICE_SECONDS, event
            texts.append(event["text"])
        # Whoever waits for it directly names it, also when it is told of the timeout by the other.
        assert any(ranks.name(1) in text for text in texts), texts
        ranks[1].signal(signal.SIGCONT)
        event = ranks[1].hear("error", seconds=NOTICE_SECONDS + 1.5)
        assert event["kind"] in ("CollectiveTimeout", "MemberLost"), event


def test_a_rank_that_never_calls_is_named_by_the_timeout() -> None:
    with Ranks(4) as ranks:
        ranks.open()
        ranks.join(timeout_seconds=1)
        ranks.ask("call", spec=ALL_REDUCE, timeout_seconds=20)
        for rank in ranks.but(3):
            rank.tell("call", spec={"collective": "all_reduce", "count": 500_000})
        texts = []
        for rank in ranks.but(3):
            event = rank.hear("error")
            assert event["kind"] == "CollectiveTimeout", event
            texts.append(event["text"])
        assert any(ranks.name(3) in text for text in texts), texts
        # Called late, it hears why at once instead of waiting for its own timeout.
        begin = time.monotonic()
        ranks[3].tell("call", spec={"collective": "all_reduce", "count": 500_000})
        event = ranks[3].hear("error")
        assert event["kind"] == "CollectiveTimeout", event
        assert event["time"] - begin < 0.9, event


def test_a_rank_that_meets_a_broken_group_late_is_told_at_once() -> None:
    with Ranks(3) as ranks:
        ranks.open()
        ranks.join(timeout_seconds=LONG)
        ranks[0].tell("call", spec=ALL_REDUCE, timeout_seconds=1)
        assert ranks[0].hear("error")["kind"] == "CollectiveTimeout"
        # No connection between these two existed when the group broke.
        begin = time.monotonic()
        for rank in ranks.but(0):
            rank.tell("call", spec=ALL_REDUCE)
        for rank in ranks.but(0):
            event = rank.hear("error")
            assert event["kind"] == "CollectiveTimeout", event
            assert event["time"] - begin < NOTICE_SECONDS, event


def test_a_rank_that_never_comes_is_named_to_all_who_came() -> None:
    port = free_ports(1, random.Random(os.getpid()))[0]
    with Ranks(2) as ranks:
        begin = time.monotonic()
        for rank in ranks:
            rank.tell(
                "init", method=f"tcp://127.0.0.1:{port}", rank=rank.number, world_size=4,
                connect_timeout_seconds=4,
            )  # fmt: skip
        for rank in ranks:
            event = rank.hear("error")
            assert event["kind"] == "ConnectError", event
            assert "ranks 2, 3 of 4" in event["text"], event
            assert event["time"] - begin < 4 + 2 * NOTICE_SECONDS, event


# --- leaving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("road", ROADS)
def test_a_rank_that_closes_fails_only_who_still_needs_it(road: str) -> None:
    with Ranks(3) as ranks:
        ranks.open(shared_memory=road == "memory")
        ranks.join(timeout_seconds=LONG)
        ranks.ask("call", spec=ALL_REDUCE)
        ranks[0].tell("start", spec={"collective": "all_reduce", "count": 1_000_000})
        ranks[1].tell("call", spec={"collective": "recv", "peer": 2, "count": 5})
        ranks[0].hear("started")
        since = time.monotonic()
        assert ranks[2].ask("close")["seconds"] < 5
        for rank in ranks.but(2):
            event = rank.hear("error")
            assert_lost(event, ranks.name(2), since, 5)
            assert "has left" in event["text"] or "told by" in event["text"], event


MANNERS = ["thread waits", "os._exit", "exception", "sys.exit"]


@pytest.mark.parametrize("manner", MANNERS)
def test_a_process_that_ends_without_close_neither_hangs_nor_leaves_others_waiting(
    manner: str,
) -> None:
    with Ranks(2) as ranks:
        ranks.open()
        ranks.join(timeout_seconds=LONG)
        ranks.ask("call", spec=ALL_REDUCE)
        ranks[0].tell("loop", count=1_000_000)
        ranks[1].tell("leave", manner=manner)
        ranks[1].hear("leaving")
        since = time.monotonic()
        assert ranks[1].wait(10) != 0
        event = ranks[0].hear("error", "looping")
        if event["event"] == "looping":
            event = ranks[0].hear("error")
        assert event["kind"] in ("MemberLost", "CallMismatch"), event
        assert "rank 1" in event["text"], event
        assert event["time"] - since < 10, event


def test_the_interpreter_ends_with_an_open_world_while_others_wait() -> None:
    port = free_ports(1, random.Random(os.getpid() + 1))[0]
    with Ranks(2) as ranks:
        for rank in ranks:
            rank.tell("init", method=f"tcp://127.0.0.1:{port}", rank=rank.number, world_size=2)
        ranks.hear("done")
        ranks.tell("world_call", spec=ALL_REDUCE)
        ranks.hear("done")
        ranks[0].tell("world_call", spec=ALL_REDUCE)
        ranks[1].finish(seconds=10)
        event = ranks[0].hear("error")
        assert event["kind"] == "MemberLost", event
        assert "rank 1" in event["text"], event
        ranks[0].finish(seconds=10)


def test_abort_from_another_thread_ends_the_wait_here_and_there() -> None:
    with Ranks(3) as ranks:
        ranks.open()
        ranks.join(timeout_seconds=LONG)
        ranks.ask("call", spec=ALL_REDUCE)
        ranks[0].tell("call", spec=ALL_REDUCE)
        ranks[1].tell("abort_while_waiting", reason="the loss is no number: \u221e")
        for rank in ranks.but(2):
            event = rank.hear("error")
            assert event["kind"] == "Aborted", event
            assert "rank 1 aborted: the loss is no number: \u221e" in event["text"], event


def test_an_exception_in_a_with_block_is_read_by_the_others() -> None:
    port = free_ports(1, random.Random(os.getpid() + 2))[0]
    with Ranks(3) as ranks:
        for rank in ranks:
            rank.tell("init", method=f"tcp://127.0.0.1:{port}", rank=rank.number, world_size=3)
        ranks.hear("done")
        ranks.tell("world_call", spec=ALL_REDUCE)
        ranks.hear("done")
        for rank in ranks.but(1):
            rank.tell("world_call", spec=ALL_REDUCE, timeout_seconds=LONG)
        ranks[1].ask("raise_in_with", text="shard 7 is missing")
        for rank in ranks.but(1):
            event = rank.hear("error")
            assert event["kind"] == "Aborted", event
            assert "LookupError: 'shard 7 is missing'" in event["text"] or (
                "LookupError: shard 7 is missing" in event["text"]
            ), event


PLACES = ["all_reduce", "barrier", "monitored_barrier", "wait", "with", "rendezvous"]


@pytest.mark.parametrize("place", PLACES)
def test_ctrl_c_ends_a_waiting_rank_promptly(place: str) -> None:
    port = free_ports(1, random.Random(os.getpid() + 3))[0]
    with Ranks(2) as ranks:
        if place == "with":
            for rank in ranks:
                rank.tell("init", method=f"tcp://127.0.0.1:{port}", rank=rank.number, world_size=2)
            ranks.hear("done")
        else:
            ranks.open()
            ranks.join(timeout_seconds=LONG)
        ranks[0].tell("wait_in", place=place)
        ranks[0].hear("waiting")
        since = ranks[0].signal(signal.SIGINT)
        assert ranks[0].hear("interrupted")["time"] - since < 2
        assert ranks[0].wait(5) != 0


def test_a_closed_group_and_a_closed_context_say_so() -> None:
    with Ranks(2) as ranks:
        ranks.open()
        ranks.join(timeout_seconds=LONG)
        ranks.ask("call", spec=ALL_REDUCE)
        ranks.ask("close_group")
        for what, closing in (("the group is closed", "close"), ("the context is closed", "")):
            for event in ranks.ask("use_closed"):
                assert event["error"], event
                for name, (kind, text) in event["raised"].items():
                    assert kind == "Aborted", (name, kind, text)
                    assert what in text, (name, text)
            if closing:
                ranks.ask(closing)
        ranks.ask("close")  # again: no harm
        for rank in ranks:
            rank.finish()


# --- the buffer after an error --------------------------------------------------------------------


@pytest.mark.parametrize("road", ROADS)
def test_after_an_error_nobody_writes_to_the_output_any_more(road: str) -> None:
    """What it holds is undefined; but it is the caller's again."""
    with Ranks(3) as ranks:
        ranks.open(shared_memory=road == "memory")
        ranks.join(timeout_seconds=LONG)
        ranks.ask("call", spec=ALL_REDUCE)
        spec = {"collective": "all_reduce", "count": 8_000_000}
        ranks.tell("watch", spec=spec)
        ranks.hear("started")
        killed(ranks[1])
        events = [rank.hear("error", "done") for rank in ranks.but(1)]
        for rank, event in zip(ranks.but(1), events, strict=True):
            if event["event"] == "error":
                assert "The tensor holds" in event["text"], event
            state = rank.ask("watched")
            assert state["same"], state


@pytest.mark.parametrize("road", ROADS)
def test_after_an_error_what_was_only_input_is_unchanged(road: str) -> None:
    with Ranks(3) as ranks:
        ranks.open(shared_memory=road == "memory")
        ranks.join(timeout_seconds=LONG)
        ranks.ask("call", spec=ALL_REDUCE)
        ranks[0].tell("watch", spec={"collective": "broadcast", "count": 8_000_000, "root": 0})
        ranks[0].hear("started")
        killed(ranks[1])
        assert ranks[0].hear("error")["kind"] == "MemberLost"
        assert ranks[0].ask("watched")["unchanged"]


@pytest.mark.parametrize("road", ROADS)
def test_a_timeout_leaves_the_buffer_to_the_caller_although_frames_still_come(road: str) -> None:
    with Ranks(2) as ranks:
        ranks.open(shared_memory=road == "memory")
        ranks.join(timeout_seconds=LONG)
        ranks.ask("call", spec=ALL_REDUCE)
        spec = {"collective": "all_reduce", "count": 12_000_000}
        ranks[0].tell("watch", spec=spec, timeout_seconds=0.02)
        ranks[1].tell("watch", spec=spec)
        for rank in ranks:
            rank.hear("started")
        events = ranks.hear("error", "done")
        for event in events:
            assert event["event"] == "done" or event["kind"] == "CollectiveTimeout", event
        for rank in ranks:
            assert rank.ask("watched")["same"]


# --- addresses that lead nowhere ------------------------------------------------------------------


def test_a_port_in_use_is_refused_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, Ranks(1) as ranks:
        port = taken.getsockname()[1]
        ranks[0].tell("open", bind_host="127.0.0.1", port=port)
        event = ranks[0].hear("error")
        assert event["kind"] == "ConnectError", event
        assert f"port {port}" in event["text"], event
        assert "PCCL_PORT" in event["text"], event


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_that_leads_nowhere_fails_in_time_and_is_named(host: str) -> None:
    with Ranks(2) as ranks:
        ranks.open([{}, {"advertise_hosts": [host]}], connect_timeout_seconds=2)
        ranks.join(timeout_seconds=LONG)
        begin = time.monotonic()
        ranks[0].tell("call", spec=ALL_REDUCE)
        event = ranks[0].hear("error")
        assert event["kind"] == "ConnectError", event
        assert f"rank 1 ({host}:" in event["text"], event
        assert event["time"] - begin < 2 + NOTICE_SECONDS, event
