"""Whoever else knocks: garbage, other runs, the slow, the many, members that break the rules."""

import random
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields, replace

import pytest
import wire_format as wire
from rank_processes import Event, Ranks

ALL_REDUCE = {"collective": "all_reduce"}
MIB_IN_KIB = 1024


def port_of(ranks: Ranks, number: int) -> int:
    return int(ranks.members[number].rpartition(":")[2])


def call_up(ranks: Ranks, number: int = 0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(ranks, number)), timeout=20)


@contextmanager
def running(world_size: int = 2) -> Iterator[Ranks]:
    """Ranks that do one all_reduce after the other; at the end every result was right."""
    with Ranks(world_size) as ranks:
        ranks.open()
        ranks.join()
        ranks.tell("loop", count=10_000, timeout_seconds=20)
        ranks.hear("looping")
        yield ranks
        ranks[0].tell("usage")
        for event in ranks.hear("done"):
            assert event["wrong"] == 0, event
            assert event["rounds"] > 1, event
        ranks[0].hear("done")


def refused(ranks: Ranks) -> int:
    return int(ranks[0].ask("statistics")["refused_connections"])


# --- strangers ------------------------------------------------------------------------------------


def greetings(ranks: Ranks) -> dict[str, tuple[bytes, str]]:
    """What a stranger says, and a word of the answer."""
    stranger = wire.Address()
    wanted = wire.member_of(bytes.fromhex(ranks.addresses[0]))
    good = wire.hello(stranger, wanted)
    return {
        "http": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + b"x" * 5000, "no pccl handshake"),
        "garbage": (random.Random(1).randbytes(3000), "no pccl handshake"),
        "zeros": (bytes(100), "no pccl handshake"),
        "other version": (wire.hello(stranger, wanted, version=99), "protocol version 99 meets"),
        "other run": (wire.hello(replace(stranger, run="other"), wanted), "wrong run"),
        "other member": (wire.hello(stranger, bytes(16)), "wrong member"),
        "itself": (wire.hello(replace(stranger, member=wanted), wanted), "connect to itself"),
        "too long": (wire.HELLO + struct.pack("<HH", wire.VERSION, 65535), "the limit is"),
        "cut off inside": (
            good[:6] + struct.pack("<H", len(good) - 20) + good[8:-12],
            "malformed handshake",
        ),
    }


def test_strangers_are_refused_in_words_and_counted_while_the_run_goes_on() -> None:
    with running() as ranks:
        said = greetings(ranks)
        for name, (greeting, word) in said.items():
            with call_up(ranks) as connection:
                connection.sendall(greeting)
                answer, reason = wire.read_reply(connection)
                assert answer == 1, name
                assert word in reason, (name, reason)
                assert wire.read_exactly(connection, 1) == b"", name
    with Ranks(1) as ranks:
        ranks.open()
        said = greetings(ranks)
        for greeting, _ in said.values():
            with call_up(ranks) as connection:
                connection.sendall(greeting)
                wire.read_reply(connection)
        assert refused(ranks) == len(said)


def test_a_stranger_that_goes_silent_is_dropped_after_five_seconds() -> None:
    beginnings = [b"", wire.HELLO, wire.HELLO + struct.pack("<HH", wire.VERSION, 300)]
    with running() as ranks, ExitStack() as stack:
        begin = time.monotonic()
        connections = [stack.enter_context(call_up(ranks)) for _ in beginnings]
        for connection, beginning in zip(connections, beginnings, strict=True):
            connection.sendall(beginning)
        for connection in connections:
            assert wire.read_reply(connection) == (1, "no handshake came in time")
        assert 4 < time.monotonic() - begin < 9


def test_thousands_of_callers_cost_little_and_keep_no_member_out() -> None:
    with ExitStack() as stack, Ranks(2) as ranks:
        ranks.open()
        ranks.join()
        before = ranks[0].ask("usage")
        for _ in range(900):
            stack.enter_context(call_up(ranks))  # they stay, and say nothing
        for _ in range(2000):
            call_up(ranks).close()
        usage = ranks[0].ask("usage")
        assert usage["descriptors"] - before["descriptors"] < 300, usage
        assert usage["rss_kib"] - before["rss_kib"] < 8 * MIB_IN_KIB, usage
        # The ranks have no connection yet, and the silent ones hold every place.
        begin = time.monotonic()
        ranks.tell("call", spec=ALL_REDUCE, timeout_seconds=20)
        ranks.hear("done")
        assert time.monotonic() - begin < 4
        assert refused(ranks) > 600


def test_mutated_handshakes_neither_crash_a_rank_nor_grow_it() -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    generator = random.Random(seed)
    with running() as ranks:
        wanted = wire.member_of(bytes.fromhex(ranks.addresses[0]))
        for _ in range(600):
            address = wire.Address(
                run=generator.choice(["test", "x", "\u00e9" * 100]),
                hosts=tuple(["h"] * generator.choice([0, 1, 16, 255])),
            )
            message = bytearray(wire.hello(address, wanted))
            # Without one, the caller would be a member: see below for those.
            for _ in range(generator.randrange(1, 6)):
                index = generator.randrange(len(message))
                message[index] ^= 1 << generator.randrange(8)
            if generator.random() < 0.3:
                message = message[: generator.randrange(len(message))]
            if generator.random() < 0.2:
                message += generator.randbytes(100)
            with call_up(ranks) as connection, suppress(ConnectionError):
                connection.sendall(message)
                if generator.random() < 0.2:
                    connection.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
    with Ranks(1) as ranks:
        ranks.open()
        wanted = wire.member_of(bytes.fromhex(ranks.addresses[0]))
        usages = []
        for _ in range(6):  # 1024 callers that nobody knows are kept, then the oldest make way
            for _ in range(2500):
                message = bytearray(wire.hello(wire.Address(), wanted))
                message[generator.randrange(8, len(message))] ^= 1 << generator.randrange(8)
                with call_up(ranks) as connection, suppress(ConnectionError):
                    connection.sendall(message)
            usages.append(ranks[0].usage_at_rest())
        assert usages[-1]["rss_kib"] - usages[1]["rss_kib"] < 5 * MIB_IN_KIB, usages


# --- members that break the rules -----------------------------------------------------------------


class Impostor:
    """This test as rank 1 of a group of two, at the level of bytes."""

    def __init__(self, ranks: Ranks, name: str) -> None:
        self.address = wire.Address()
        self.group = wire.group_id("test", name)
        addresses = [ranks.addresses[0], self.address.encode().hex()]
        ranks[0].ask("join", rank=0, addresses=addresses, name=name)
        self.connection = call_up(ranks)
        wanted = wire.member_of(bytes.fromhex(ranks.addresses[0]))
        self.connection.sendall(wire.hello(self.address, wanted))
        assert wire.read_reply(self.connection) == (0, "")

    def __enter__(self) -> "Impostor":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def send(self, data: bytes) -> None:
        """A rank that has had enough hangs up."""
        with suppress(ConnectionError):
            self.connection.sendall(data)

    def frame(self, **values: int) -> wire.Frame:
        return replace(wire.Frame(group=self.group, dtype=1, count=1000), **values)

    def part(self, **values: int) -> bytes:
        """A good piece of all_reduce(float32[1000])."""
        return wire.whole(bytes(4000), self.frame(segment_bytes=512 << 10, **values))


@contextmanager
def victim() -> Iterator[Ranks]:
    """A rank that is still well at the end."""
    with Ranks(1) as ranks:
        ranks.open()
        yield ranks
        ranks[0].ask("join", rank=0, addresses=ranks.addresses, name="alone")
        assert ranks[0].ask("call", spec=ALL_REDUCE)["firsts"] == [1.0]
        ranks[0].ask("close")
        ranks[0].finish(seconds=10)


def failure(ranks: Ranks, seconds: float = 20.0) -> Event:
    return ranks[0].hear("error", seconds=seconds)


def test_the_impostor_of_these_tests_can_do_it_right() -> None:
    with victim() as ranks, Impostor(ranks, "g") as member:
        ranks[0].tell("start", spec=ALL_REDUCE, timeout_seconds=20)
        ranks[0].hear("started")
        member.send(member.part(stage=2))
        ranks[0].hear("done")


MUTATIONS = {
    "magic": ({"magic": 5}, "no frame magic"),
    "type": ({"type": 99}, "unknown frame type"),
    "dtype": ({"dtype": 200}, "unknown dtype"),
    "op": ({"op": 200}, "unknown reduce op"),
    "length": ({"length": 1 << 31}, "the limit is"),
    "segment": ({"segment": 1 << 31}, "segment"),
    "rank -1": ({"source_rank": -1}, "-1"),
    "rank 0": ({"source_rank": 0}, "not that rank"),
    "rank of nobody": ({"source_rank": 1 << 30}, "not that rank"),
    "a long reason": ({"type": wire.ABORT, "length": 1 << 19}, "reason of"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_frame_that_no_member_may_send_breaks_the_group_by_name(name: str) -> None:
    changes, word = MUTATIONS[name]
    with victim() as ranks, Impostor(ranks, "g") as member:
        ranks[0].tell("start", spec=ALL_REDUCE, timeout_seconds=10)
        ranks[0].hear("started")
        frame = replace(
            member.frame(transfer_bytes=4000, length=4000, segment_bytes=512 << 10, stage=2),
            **changes,
        )
        member.send(frame.encode(bytes(4000)))
        event = failure(ranks)
        assert event["kind"] in ("RemoteProtocolError", "MemberLost"), event
        assert word in event["text"], event
        assert "rank 1" in event["text"] or "127.0.0.1:1" in event["text"], event


def test_a_reason_that_is_no_text_is_still_the_right_error() -> None:
    with victim() as ranks, Impostor(ranks, "g") as member:
        ranks[0].tell("start", spec=ALL_REDUCE, timeout_seconds=10)
        ranks[0].hear("started")
        reason = b"gone \xff\xfe away"
        frame = member.frame(type=wire.ABORT, stage=6, length=len(reason))
        member.send(frame.encode(reason))
        event = failure(ranks)
        assert event["kind"] == "Aborted", event
        assert "gone" in event["text"], event
        assert "away" in event["text"], event


@pytest.mark.parametrize("flags", [wire.UNGRANTED, 0])
@pytest.mark.parametrize("length", [0, 100_000])
@pytest.mark.parametrize("kind", ["unasked messages", "early calls", "unknown groups"])
def test_a_member_that_ignores_its_credit_costs_no_memory_and_is_named(
    kind: str, length: int, flags: int
) -> None:
    with victim() as ranks, Impostor(ranks, "g") as member:
        before = ranks[0].ask("usage")["rss_kib"]
        payload = bytes(length)
        batch = b""
        for number in range(1, 40_000 if length == 0 else (48 << 20) // length):
            if kind == "unasked messages":
                frame = member.frame(type=wire.MESSAGE, collective=wire.SEND_RECV, chunk=number)
            elif kind == "early calls":
                frame = member.frame(operation=number)
            else:
                frame = member.frame(group=number)
            batch += wire.whole(payload, replace(frame, flags=flags))
            if len(batch) > 1 << 20:
                member.send(batch)
                batch = b""
        member.send(batch)
        # Behind all of it on the same connection, so that all of it was taken when this fails.
        ranks[0].tell("call", spec=ALL_REDUCE, timeout_seconds=10)
        member.send(member.part(stage=2))
        grown = 0
        if kind == "unknown groups":
            ranks[0].hear("done")
        else:
            event = failure(ranks)
            assert event["kind"] == "RemoteProtocolError", event
            assert "rank 1 (127.0.0.1:1) sent more than a member may" in event["text"], event
        grown = ranks[0].ask("usage")["rss_kib"] - before
        assert grown < 48 * MIB_IN_KIB, grown


def test_a_caller_that_is_in_no_group_cannot_speak_for_anybody() -> None:
    with victim() as ranks, Impostor(ranks, "g") as member, call_up(ranks) as connection:
        wanted = wire.member_of(bytes.fromhex(ranks.addresses[0]))
        connection.sendall(wire.hello(wire.Address(), wanted))
        assert wire.read_reply(connection) == (0, "")
        ranks[0].tell("start", spec=ALL_REDUCE, timeout_seconds=10)
        ranks[0].hear("started")
        frame = member.frame(source_rank=-1, segment_bytes=512 << 10)
        connection.sendall(wire.whole(bytes(4000), frame) + wire.whole(bytes(400_000), frame))
        event = failure(ranks)
        assert event["kind"] == "RemoteProtocolError", event
        assert "which is not that rank" in event["text"], event


def mutated(generator: random.Random, frame: wire.Frame) -> bytes:
    """A frame with one to three fields changed; sometimes a bit of the bytes."""
    names = [entry.name for entry in fields(wire.Frame) if entry.name != "magic"]
    widths = dict.fromkeys(("type", "collective", "dtype", "op"), 8) | {
        "stage": 16, "flags": 16, "group": 64, "operation": 64, "count": 64,
        "transfer_bytes": 64, "weight": 52,
    }  # fmt: skip
    for name in generator.sample(names, generator.randrange(1, 4)):
        width = widths.get(name, 32)
        value = generator.choice([0, 1, 2, 7, 511, 1 << 20, (1 << width) - 1, 1 << (width - 1)])
        value = (value if generator.random() < 0.8 else generator.getrandbits(width)) % (1 << width)
        if name in ("root", "source_rank"):
            value -= (value >= 1 << 31) << 32
        frame = replace(frame, **{name: value})
    data = bytearray(frame.encode(generator.randbytes(min(frame.length, 1 << 16))))
    if generator.random() < 0.2:
        data[generator.randrange(80)] ^= 1 << generator.randrange(8)
    return bytes(data)


def test_mutated_frames_of_a_member_neither_crash_a_rank_nor_hang_it() -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    generator = random.Random(seed)
    specs = [
        ALL_REDUCE,
        {"collective": "all_reduce", "count": 300_000},
        {"collective": "broadcast", "root": 1},
        {"collective": "reduce", "root": 0},
        {"collective": "all_gather"},
        {"collective": "reduce_scatter"},
        {"collective": "all_to_all"},
        {"collective": "recv", "peer": 1, "count": 300_000},
        {"collective": "send", "peer": 1, "count": 700_000},
        {"collective": "barrier"},
    ]
    usages = []
    with victim() as ranks:
        for index in range(300):
            with Impostor(ranks, f"g{index}") as member:
                spec = generator.choice(specs)
                ranks[0].tell("start", spec=spec, timeout_seconds=0.3)
                ranks[0].hear("started")
                for _ in range(generator.randrange(1, 12)):
                    good = member.frame(
                        type=generator.choice([1, 1, 1, 2, 2, 3, 4, 5, 6]),
                        collective=generator.choice([1, 1, 2, 3, 4, 5, 8, 9, 10]),
                        stage=generator.choice([0, 1, 2]),
                        count=int(spec.get("count", 1000)),
                        transfer_bytes=4000,
                        length=4000,
                        segment_bytes=512 << 10,
                    )
                    member.send(mutated(generator, good))
                if generator.random() < 0.5:
                    member.connection.close()
                ranks[0].hear("error", "done", seconds=20)
                ranks[0].ask("close_group")
            if index in (100, 299):
                # A small call lets go of the arrays of the last one.
                ranks[0].ask("join", rank=0, addresses=ranks.addresses, name=f"alone {index}")
                ranks[0].ask("call", spec=ALL_REDUCE)
                usages.append(ranks[0].ask("usage"))
    assert usages[1]["rss_kib"] - usages[0]["rss_kib"] < 24 * MIB_IN_KIB, usages
    assert usages[1]["descriptors"] - usages[0]["descriptors"] < 8, usages


def test_a_listener_that_answers_rubbish_is_an_error_in_words() -> None:
    answers = [
        b"HTTP/1.0 400 Bad Request\r\n\r\n",
        b"",
        bytes(8),
        b"PCCW\x01\x00\x04\x00\x01\x01\x00\xff",
    ]
    for answer in answers:
        with socket.create_server(("127.0.0.1", 0)) as listener, victim() as ranks:
            fake = wire.Address(port=listener.getsockname()[1])
            addresses = [ranks.addresses[0], fake.encode().hex()]
            ranks[0].ask("close")
            ranks.open(connect_timeout_seconds=1)
            addresses[0] = ranks.addresses[0]
            ranks[0].ask("join", rank=0, addresses=addresses)
            ranks[0].tell("call", spec=ALL_REDUCE, timeout_seconds=20)
            listener.settimeout(10)
            connection, _ = listener.accept()
            with connection:
                connection.sendall(answer)
            event = failure(ranks)
            assert event["kind"] == "ConnectError", event
            assert f"127.0.0.1:{fake.port}" in event["text"], event


# --- members that only send too much --------------------------------------------------------------


@pytest.mark.parametrize("road", ["tcp", "memory"])
@pytest.mark.parametrize(("count", "messages"), [(1_000_000, 30), (0, 20_000)])
def test_messages_that_nobody_asked_for_wait_at_their_sender(
    road: str, count: int, messages: int
) -> None:
    with Ranks(2) as ranks:
        ranks.open(shared_memory=road == "memory")
        ranks.join()
        ranks.ask("call", spec=ALL_REDUCE)
        before = ranks[0].ask("usage")["rss_kib"]
        ranks[1].tell("flood", peer=0, count=count, messages=messages, timeout_seconds=1.5)
        ranks[1].hear("flooding")
        event = ranks[1].hear("done", seconds=60)
        assert 0 < event["sent"] < messages, event
        for error in event["errors"]:
            assert error["kind"] == "CollectiveTimeout", error
            assert ranks.name(0) in error["text"], error
            assert "no recv there?" in error["text"], error
        grown = ranks[0].ask("usage")["rss_kib"] - before
        assert grown < 40 * MIB_IN_KIB, grown
        # What did leave has arrived; the group is as good as ever.
        assert (
            ranks[0].ask("drain", peer=1, count=count, messages=event["sent"])["right"]
            == event["sent"]
        )
        ranks.ask("call", spec=ALL_REDUCE)


@pytest.mark.parametrize("road", ["tcp", "memory"])
def test_a_closed_group_gives_back_the_credit_of_what_it_never_took(road: str) -> None:
    with Ranks(2) as ranks:
        ranks.open(shared_memory=road == "memory")
        for name in ("first", "second", "third"):
            ranks.join(name=name)
            ranks.ask("call", spec={"collective": "barrier"})
            # 7 of the 8 MiB that a connection may have under way unasked.
            ranks[1].tell("flood", peer=0, count=1 << 20, messages=7, timeout_seconds=10)
            ranks[1].hear("flooding")
            assert ranks[1].hear("done")["sent"] == 7
            ranks.ask("close_group")
