"""Keys, documents that they sign, signed requests: refused when altered, or when here before."""

from __future__ import annotations

import json
import re
import sqlite3
import stat
from pathlib import Path

import pytest

from asyncrl.protocol.keys import BadSignature, Key, SignedDocument, address_of, is_address, verify
from asyncrl.protocol.requests import (
    NonceStore,
    Request,
    RequestRefused,
    SignedHeader,
    sign_request,
)

KEY = Key.from_seed(b"1" * 32)
OTHER = Key.from_seed(b"2" * 32)
REQUEST = Request("run@coordinator", "GET", "/pending?after=3&limit=5")


def refused(code: str, request: Request, header: str | None) -> None:
    with pytest.raises(RequestRefused) as raised:
        SignedHeader.verify(request, header)
    assert raised.value.code == code


def store(path: Path | str = ":memory:", **options: float) -> NonceStore:
    return NonceStore(sqlite3.connect(path), **options)  # type: ignore[arg-type]


def test_an_address_is_20_bytes_of_the_hash_of_the_public_key() -> None:
    # sha256 of 32 zero bytes, computed elsewhere.
    assert address_of(bytes(32)) == "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925"[:40]  # fmt: skip  # noqa: E501
    assert KEY.address == address_of(KEY.public_key) != OTHER.address
    assert is_address(KEY.address)
    assert not any(map(is_address, (KEY.address[:-1], KEY.address.upper(), "", None, 40 * "g")))


def test_a_key_is_kept_in_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "worker.pem"
    made = Key.load_or_create(path)
    assert Key.load_or_create(path).address == made.address
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        OTHER.save(path)
    path.write_text("no key")
    with pytest.raises(ValueError, match=r"."):
        Key.load(path)


def test_a_signature_holds_for_one_key_purpose_and_message() -> None:
    signature = KEY.sign("verdict", b"message")
    verify(KEY.public_key, "verdict", b"message", signature)
    for arguments in (
        (OTHER.public_key, "verdict", b"message", signature),
        (KEY.public_key, "manifest", b"message", signature),
        (KEY.public_key, "verdict", b"messag", signature),
        (KEY.public_key, "verdict", b"message", signature[:-1]),
        (b"short", "verdict", b"message", signature),
    ):
        with pytest.raises(BadSignature):
            verify(*arguments)


def test_a_document_is_read_as_it_was_signed_and_not_otherwise() -> None:
    document = SignedDocument.sign(KEY, "verdict", {"file": "ä", "accepted": True})
    found = SignedDocument.from_bytes("verdict", document.to_bytes())
    assert found.signer == KEY.address
    assert found.fields() == {"file": "ä", "accepted": True}
    parts = json.loads(document.to_bytes())
    wrong = [
        {**parts, "text": parts["text"].replace("true", "false")},
        {**parts, "public_key": OTHER.public_key.hex()},
        {**parts, "signature": "00" * 64},
        {**parts, "signature": "no hex"},
        {**parts, "text": 5},
        {**parts, "text": "\ud800"},
        {"text": parts["text"]},
        [],
    ]
    for data in (*(json.dumps(part).encode() for part in wrong), b"", b"\xff", b"[" * 100_000):
        with pytest.raises(BadSignature):
            SignedDocument.from_bytes("verdict", data)
    with pytest.raises(BadSignature):
        SignedDocument.from_bytes("manifest", document.to_bytes())
    with pytest.raises(ValueError, match="JSON"):
        SignedDocument.sign(KEY, "verdict", {"reward": float("nan")})


def test_every_part_of_a_request_is_signed_that_of_a_get_too() -> None:
    header = sign_request(KEY, REQUEST, b"body")
    assert SignedHeader.verify(REQUEST, header).address == KEY.address
    for other in (
        Request("run@elsewhere", REQUEST.method, REQUEST.target),
        Request(REQUEST.audience, "POST", REQUEST.target),
        Request(REQUEST.audience, "GET", "/pending?after=3&limit=6"),
        Request(REQUEST.audience, "GET", "/pending"),
        Request(REQUEST.audience, "GET", "/accepted?after=3&limit=5"),
    ):
        refused("signature", other, header)
    fields = header.removeprefix("asyncrl ").split(":")
    for index, field in enumerate(fields):
        last = "1" if field[-1] != "1" else "2"
        altered = [*fields[:index], field[:-1] + last, *fields[index + 1 :]]
        refused("signature", REQUEST, "asyncrl " + ":".join(altered))


@pytest.mark.parametrize(
    "header", ["Bearer x", "asyncrl ", "asyncrl " + ":" * 5, "asyncrl \n", "é"]
)
def test_what_is_no_header_of_ours_is_refused(header: str) -> None:
    refused("malformed", REQUEST, header)
    refused("unsigned", REQUEST, None)


def test_a_line_break_in_a_target_cannot_move_a_part_into_another() -> None:
    with pytest.raises(ValueError, match="line break"):
        sign_request(KEY, Request("run", "GET", "/a\nb"))
    refused("signature", Request("run", "GET", "/a\nb"), sign_request(KEY, REQUEST))


def test_the_body_must_be_the_one_that_was_signed() -> None:
    header = SignedHeader.verify(REQUEST, sign_request(KEY, REQUEST, b"body"))
    header.check_body(4, header.body_sha256)
    for body_bytes, digest in ((5, header.body_sha256), (4, "0" * 64)):
        with pytest.raises(RequestRefused, match="another hash"):
            header.check_body(body_bytes, digest)


def admitted(nonces: NonceStore, key: Key, signed_at: float, now: float) -> SignedHeader:
    header = SignedHeader.verify(REQUEST, sign_request(key, REQUEST, unix_seconds=signed_at))
    nonces.admit(header, unix_seconds=now)
    return header


def test_a_request_counts_once_also_after_a_restart(tmp_path: Path) -> None:
    nonces = store(tmp_path / "nonces.db")
    header = admitted(nonces, KEY, 1000.0, 1000.0)
    for again in (nonces, store(tmp_path / "nonces.db")):
        for now in (1000.0, 1029.9, 971.0):
            with pytest.raises(RequestRefused) as raised:
                again.admit(header, unix_seconds=now)
            assert raised.value.code == "replay"


def test_when_its_nonce_is_forgotten_its_time_is_out_of_bounds() -> None:
    nonces = store()
    header = admitted(nonces, KEY, 1020.0, 1000.0)  # a clock that is ahead
    for now in (1000.0 + step for step in range(1, 120)):
        with pytest.raises(RequestRefused) as raised:
            nonces.admit(header, unix_seconds=now)
        assert raised.value.code == ("replay" if now <= 1050 else "clock"), now
    admitted(nonces, OTHER, 1120.0, 1120.0)
    assert len(nonces) == 1


@pytest.mark.parametrize(("ahead", "word"), [(30.5, "ahead"), (-30.5, "behind")])
def test_a_clock_that_is_off_is_refused_and_named(ahead: float, word: str) -> None:
    with pytest.raises(RequestRefused, match=re.escape(f"30.5 s {word}")) as raised:
        admitted(store(), KEY, 1000.0 + ahead, 1000.0)
    assert raised.value.code == "clock"


def test_whoever_floods_is_refused_and_nobody_else() -> None:
    nonces = store(per_address_max=3, addresses_max=2)
    for _ in range(3):
        admitted(nonces, KEY, 1000.0, 1000.0)
    with pytest.raises(RequestRefused) as raised:
        admitted(nonces, KEY, 1000.0, 1000.0)
    assert (raised.value.code, raised.value.status) == ("rate", 429)
    admitted(nonces, OTHER, 1000.0, 1000.0)
    with pytest.raises(RequestRefused, match="2 callers"):
        admitted(nonces, Key.generate(), 1000.0, 1000.0)
    admitted(nonces, KEY, 1061.0, 1061.0)
