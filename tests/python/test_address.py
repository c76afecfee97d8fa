"""Run addresses: what is written can be read; what can't be read is refused in words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pccl.address import RunAddress

KEY = "A" * 42 + "Q"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pccl://203.0.113.7:29400/my-run", RunAddress("203.0.113.7", 29400, "my-run")),
        ("pccl://localhost/a", RunAddress("localhost", 29400, "a")),
        (" pccl://a.example.org:1/2026_run.b\n", RunAddress("a.example.org", 1, "2026_run.b")),
        ("pccl://[2001:db8::7]:65535/r", RunAddress("2001:db8::7", 65535, "r")),
        ("pccl://[::1]/r", RunAddress("::1", 29400, "r")),
        ("pccl://a:1/r#" + KEY, RunAddress("a", 1, "r", bytes(31) + b"\x04")),
        (
            "pccl://a:1/r#" + KEY + ".AAAAAAAAAAAAAAAAAAAABw",
            RunAddress("a", 1, "r", bytes(31) + b"\x04", bytes(15) + b"\x07"),
        ),
    ],
)
def test_an_address_is_understood(text: str, expected: RunAddress) -> None:
    assert RunAddress.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "does not begin with pccl://"),
        ("localhost:29400/run", "does not begin with pccl://"),
        ("http://localhost:29400/run", "does not begin with pccl://"),
        ("pccl://localhost:29400", "the name of the run is missing"),
        ("pccl://localhost:29400/", "the name of the run is missing"),
        ("pccl:///run", "host: expected a name or an IP address"),
        ("pccl://:29400/run", "host: expected a name or an IP address"),
        ("pccl://-a/run", "host: expected a name or an IP address"),
        ("pccl://a b/run", "host: expected a name or an IP address"),
        ("pccl://a:0/run", "port: expected 1 to 65535"),
        ("pccl://a:65536/run", "port: expected 1 to 65535"),
        ("pccl://a:port/run", "is no host and port"),
        ("pccl://::1/run", "an IPv6 address stands in brackets"),
        ("pccl://[localhost]:1/run", "expected an IPv6 address in brackets"),
        ("pccl://user@host:1/run", "host: expected a name or an IP address"),
        ("pccl://a/run/more", "run: expected 1 to 255"),
        ("pccl://a/-run", "run: expected 1 to 255"),
        ("pccl://a/" + "r" * 256, "run: expected 1 to 255"),
        ("pccl://a/run#", "the fingerprint of a key has 43 letters"),
        ("pccl://a/run#K7Q", "the fingerprint of a key has 43 letters, digits, '-' and '_', got 3"),
        ("pccl://a/run#" + "A" * 42 + "B", "the fingerprint of a key has 43"),
        ("pccl://a/run#" + KEY + ".", "a token has 22 letters"),
        ("pccl://a/run#" + KEY + "." + "A" * 21 + "+", "a token has 22 letters"),
    ],
)
def test_what_is_no_address_is_refused_in_words(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match="expected pccl://host:port/run") as caught:
        RunAddress.parse(text)
    assert reason in str(caught.value)
    assert repr(text.partition("#")[0]) in str(caught.value)


@given(
    st.one_of(
        st.ip_addresses().map(str),
        st.from_regex(r"[a-z][a-z0-9]{0,20}(\.[a-z]{2,5}){0,3}", fullmatch=True),
    ),
    st.integers(1, 65535),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}", fullmatch=True),
    st.one_of(st.just(b""), st.binary(min_size=48, max_size=48)),
)
def test_what_is_written_can_be_read(host: str, port: int, run: str, secrets: bytes) -> None:
    address = RunAddress(host, port, run, secrets[:32], secrets[32:])
    # What is shown to people holds neither.
    assert "#" not in address.shown
    assert not address.token or repr(address.token) not in repr(address)
    assert RunAddress.parse(str(address)) == address


@given(st.text(max_size=60))
def test_any_other_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        RunAddress.parse("pccl://" + text)
    except ValueError as error:
        assert "run address" in str(error)  # noqa: PT017
