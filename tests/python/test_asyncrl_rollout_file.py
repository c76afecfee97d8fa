"""The file of rollouts: what is signed is what is read, and any bytes are read or refused."""

import contextlib
import dataclasses
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asyncrl.protocol.keys import Key
from asyncrl.validation.rollout_file import (
    ClaimedRollout,
    FileLimits,
    FileRefused,
    RolloutFile,
    Signed,
)

KEY, OTHER = Key.from_seed(b"\1" * 32), Key.from_seed(b"\2" * 32)
LIMITS = FileLimits(file_bytes=4096, rollout_count=4, token_count=16)
FILE = RolloutFile(
    run_id="run",
    step=7,
    submission_index=1,
    weights_version=5,
    weights_sha256="ab" * 32,
    rollouts=(
        ClaimedRollout(3, (5, 6, 1), b"proof", 0.5),
        ClaimedRollout(2**40, (2**32 - 1,), b"", float("nan")),
    ),
)


def refused(data: bytes, limits: FileLimits = LIMITS) -> str:
    with pytest.raises(FileRefused) as caught:
        Signed.from_bytes(data, limits).parse(limits)
    return caught.value.reason


def body() -> dict[str, Any]:
    found: dict[str, Any] = msgpack.unpackb(Signed.from_bytes(FILE.sign(KEY), LIMITS).body)
    return found


def signed(changed: object) -> bytes:
    return Signed.sign(KEY, msgpack.packb(changed)).to_bytes()


def test_a_file_comes_back_as_it_was_signed() -> None:
    read = Signed.from_bytes(FILE.sign(KEY), LIMITS)
    assert read.address == KEY.address
    found = read.parse(LIMITS)
    assert repr(found.rollouts) == repr(FILE.rollouts)  # NaN is not equal to itself
    assert dataclasses.replace(found, rollouts=()) == dataclasses.replace(FILE, rollouts=())


def test_whoever_signs_it_again_has_the_same_content() -> None:
    mine, stolen = (Signed.from_bytes(FILE.sign(key), LIMITS) for key in (KEY, OTHER))
    assert mine.address != stolen.address
    assert mine.content_sha256 == stolen.content_sha256


def test_a_changed_byte_is_not_signed() -> None:
    data = bytearray(FILE.sign(KEY))
    for index in range(len(data)):
        data[index] ^= 1
        assert refused(bytes(data)) == "signature", index
        data[index] ^= 1


def test_a_signature_of_another_key_or_purpose_is_refused() -> None:
    read = Signed.from_bytes(FILE.sign(KEY), LIMITS)
    assert refused(dataclasses.replace(read, public_key=OTHER.public_key).to_bytes()) == "signature"
    other_purpose = KEY.sign("verdict", read.body)
    assert refused(dataclasses.replace(read, signature=other_purpose).to_bytes()) == "signature"


def test_a_file_that_is_too_long_is_not_parsed() -> None:
    data = FILE.sign(KEY)
    assert refused(data, dataclasses.replace(LIMITS, file_bytes=len(data) - 1)) == "size"
    Signed.from_bytes(data, dataclasses.replace(LIMITS, file_bytes=len(data)))
    assert refused(bytes(100 << 20)) == "size"


@pytest.mark.parametrize("name", sorted(body()))
@pytest.mark.parametrize(
    "value", [None, True, -1, 2**63, 1.5, "text", b"bytes", [[]], {}, [1] * 5], ids=repr
)
def test_a_field_of_another_kind_is_refused(name: str, value: object) -> None:
    changed = body()
    if type(changed[name]) is type(value) and value not in (-1, 2**63, [[]], [1] * 5):
        return  # another text is a text
    changed[name] = value
    assert refused(signed(changed)) == "schema"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt_index", -1),
        ("prompt_index", 1.0),
        ("tokens", b"123"),
        ("tokens", bytes(4 * 17)),
        ("tokens", [1, 2]),
        ("proof", "text"),
        ("reward", 1),
        ("reward", True),
    ],
)
def test_a_rollout_of_another_shape_is_refused(name: str, value: object) -> None:
    changed = body()
    changed["rollouts"][1][name] = value
    assert refused(signed(changed)) == "schema"


def test_missing_and_surplus_fields_are_refused() -> None:
    for name in body():
        changed = body()
        del changed[name]
        assert refused(signed(changed)) == "schema"
    assert refused(signed({**body(), "more": 1})) == "schema"
    assert refused(signed([1])) == "schema"
    changed = body()
    changed["rollouts"][0]["more"] = 1
    assert refused(signed(changed)) == "schema"
    assert refused(signed({**body(), "rollouts": body()["rollouts"] * 3})) == "schema"


def test_deep_and_wide_bodies_are_refused() -> None:
    assert refused(Signed.sign(KEY, b"\x91" * 3900).to_bytes()) == "schema"
    assert refused(Signed.sign(KEY, b"\xdd\xff\xff\xff\xff").to_bytes()) == "schema"
    assert refused(Signed.sign(KEY, b"\xdf\xff\xff\xff\xff").to_bytes()) == "schema"
    assert refused(Signed.sign(KEY, b"\xc6\xff\xff\xff\xff").to_bytes()) == "schema"


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200))
@example(data=b"")
@example(data=b"\xc1")
def test_any_bytes_are_refused(data: bytes) -> None:
    assert refused(data) == "signature"
    assert refused(Signed.sign(KEY, data).to_bytes()) == "schema"


@settings(max_examples=300, deadline=None)
@given(
    changed=st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    name=st.sampled_from(sorted(body())),
)
def test_any_value_of_a_field_is_read_or_refused(changed: Any, name: str) -> None:
    # Anything else would be a crash.
    with contextlib.suppress(FileRefused):
        Signed.from_bytes(signed({**body(), name: changed}), LIMITS).parse(LIMITS)
