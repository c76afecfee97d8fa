"""TLS and keys with real processes: TLS is forced on loopback; test_wan.py has it by default."""

import random
import signal
import socket
import ssl
from contextlib import suppress

import pytest
import wire_format as wire
from rank_processes import Ranks

import pccl
from pccl import _core


def call_up(ranks: Ranks) -> socket.socket:
    port = int(ranks.members[0].rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def speak_tls(stranger: socket.socket, version: ssl.TLSVersion, said: bytes) -> None:
    """Says it without a key; ends in an error."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = version
    with context.wrap_socket(stranger) as secure:
        secure.sendall(said)
        assert secure.recv(1) == b""
    raise ConnectionError("closed without a word")


@pytest.mark.parametrize("sockets", [1, 3])
def test_results_are_right_and_the_same_through_tls(sockets: int) -> None:
    with Ranks(3) as ranks:
        ranks.open(tls="always", sockets=sockets)
        ranks.join()
        seed = random.randrange(1 << 30)
        for count in (1, 5003, 700_001):
            results = ranks.ask("call_random", count=count, seed=seed)
            assert len({result["digest"] for result in results}) == 1, results
            assert max(result["deviation"] for result in results) < 1e-5, results
        for statistics in ranks.ask("statistics"):
            assert statistics["secure_sockets"] >= 1
            assert statistics["refused_keys"] == statistics["refused_plain"] == 0


def test_strangers_without_a_key_are_told_why_and_change_nothing() -> None:
    with Ranks(2) as ranks:
        ranks.open(tls="always")
        ranks.join()
        ranks.tell("loop", count=10_000, timeout_seconds=20)
        ranks.hear("looping")
        wanted = wire.member_of(bytes.fromhex(ranks.addresses[0]))
        # Plain TCP, however right the rest is: a member's own id, and its own fingerprint.
        address = bytes.fromhex(ranks.addresses[1])
        member = wire.Address(member=wire.member_of(address), fingerprint=address[22:54])
        with call_up(ranks) as stranger:
            stranger.sendall(wire.hello(member, wanted))
            answer, reason = wire.read_reply(stranger)
        assert answer == 1
        assert "plain TCP meets a member that wants TLS" in reason
        # TLS without a key, and an older TLS.
        for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
            with call_up(ranks) as stranger, pytest.raises((ssl.SSLError, ConnectionError)):
                speak_tls(stranger, version, wire.hello(member, wanted))
        # What looks like TLS, and is none; more than any handshake has.
        for garbage in (
            b"\x16\x03\x01\x02\x00" + random.Random(1).randbytes(600),
            b"\x16" * 99_999,
        ):
            with call_up(ranks) as stranger, suppress(ConnectionError):
                stranger.sendall(garbage)
                while stranger.recv(4096):
                    pass
        ranks[0].tell("usage")  # ends the loop
        for event in ranks.hear("done"):
            assert event["wrong"] == 0, event
            assert event["rounds"] > 1, event
        ranks[0].hear("done")
        counted = ranks[0].ask("statistics")
        assert counted["refused_plain"] == 1
        assert counted["refused_connections"] == 5
        assert counted["connections"] == 1


def test_a_killed_member_is_noticed_through_tls() -> None:
    with Ranks(3) as ranks:
        ranks.open(tls="always")
        ranks.join()
        ranks.tell("loop", count=10_000, timeout_seconds=20)
        ranks.hear("looping")
        since = ranks[1].signal(signal.SIGKILL)
        for rank in ranks.but(1):
            event = rank.hear("error")
            assert event["kind"] == "MemberLost", event
            assert event["time"] - since < 2, event


def test_insecure_and_secure_members_refuse_each_other_in_words() -> None:
    with Ranks(2) as ranks:
        ranks.open([{"tls": "always"}, {"tls": "never"}], connect_timeout_seconds=3)
        for rank in ranks:
            rank.tell("join", rank=rank.number, addresses=ranks.addresses)
        ranks.hear("done")
        ranks.tell("call", spec={"collective": "all_reduce"})
        texts = [rank.hear("error")["text"] for rank in ranks]
        assert any("insecure=True" in text for text in texts), texts


def test_insecure_is_written_in_code_and_nowhere_else() -> None:
    assert pccl.Config().tls_use == "remote"
    assert pccl.Config(insecure=True).tls_use == "never"
    assert pccl.Config.from_environment({"PCCL_TLS": "always"}).tls_use == "always"
    with pytest.raises(ValueError, match="PCCL_TLS"):
        pccl.Config.from_environment({"PCCL_TLS": "never"})
    with pytest.raises(ValueError, match="contradicts"):
        pccl.Config(insecure=True, tls="always")
    with pytest.raises(ValueError, match="tls"):
        _core.Context("run", tls="no")
