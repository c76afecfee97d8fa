"""The bytes of docs/wire_format.md, written a second time: what a stranger can send."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass, field, replace

VERSION = 15
HELLO, REPLY, ADDRESS, FRAME = b"PCCH", b"PCCW", b"PCCA", 0x46434350
DATA, MESSAGE, GRANT, CREDIT, MATCHED, ABORT, GOODBYE = range(1, 8)
LAST_TYPE = 16
ALL_REDUCE, SEND_RECV = 1, 10
UNGRANTED = 1
_HEADER = struct.Struct("<IBBBBQQQQIIIiiHHIId")


def text(value: str | bytes) -> bytes:
    encoded = value.encode() if isinstance(value, str) else value
    return struct.pack("<H", len(encoded)) + encoded


@dataclass(frozen=True)
class Address:
    member: bytes = field(default_factory=lambda: os.urandom(16))
    run: str = "test"
    host_key: str = ""
    memory_name: str = ""
    port: int = 1
    hosts: tuple[str, ...] = ("127.0.0.1",)
    fingerprint: bytes = bytes(32)

    def encode(self) -> bytes:
        return self.encode_with("")

    def encode_with(self, graph: str) -> bytes:
        parts = [text(self.run), text(self.host_key), text(self.memory_name)]
        tail = struct.pack("<HB", self.port, len(self.hosts)) + b"".join(map(text, self.hosts))
        tail += text(graph)
        return (
            ADDRESS
            + struct.pack("<H", VERSION)
            + self.member
            + self.fingerprint
            + b"".join(parts)
            + tail
        )


def member_of(address: bytes) -> bytes:
    return address[6:22]


def hello(caller: Address, wanted: bytes, *, nonce: int = 7, version: int = VERSION) -> bytes:
    # Socket 0 over TCP; a new connection that its caller would not resume.
    body = text(caller.encode()) + wanted + struct.pack("<QHBBBII", nonce, 0, 0, 0, 0, 0, 0)
    body += bytes(8 + 64)  # no token
    return HELLO + struct.pack("<HH", version, len(body)) + body


@dataclass(frozen=True)
class Frame:
    type: int = DATA
    collective: int = ALL_REDUCE
    dtype: int = 0
    op: int = 0
    group: int = 0
    operation: int = 0
    count: int = 0
    transfer_bytes: int = 0
    chunk: int = 0
    segment: int = 0
    length: int = 0
    root: int = -1
    source_rank: int = 1
    stage: int = 0
    flags: int = UNGRANTED
    segment_bytes: int = 512 << 10
    sequence: int = 0
    weight: float = 0.0
    magic: int = FRAME

    def encode(self, payload: bytes = b"") -> bytes:
        return (
            _HEADER.pack(
                self.magic, self.type, self.collective, self.dtype, self.op, self.group,
                self.operation, self.count, self.transfer_bytes, self.chunk, self.segment,
                self.length, self.root, self.source_rank, self.stage, self.flags,
                self.segment_bytes, self.sequence, self.weight,
            )
            + payload
        )  # fmt: skip


def whole(payload: bytes, frame: Frame) -> bytes:
    """A transfer of one segment."""
    return replace(frame, transfer_bytes=len(payload), length=len(payload)).encode(payload)


def group_id(run: str, name: str) -> int:
    value = 0xCBF29CE484222325  # FNV-1a
    for byte in f"{run}/{name}".encode():
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return value


def read_reply(connection: socket.socket) -> tuple[int, str]:
    """Answer and reason; (-1, "") if the other side closed without one."""
    prefix = read_exactly(connection, 8)
    if len(prefix) < 8 or prefix[:4] != REPLY:
        return -1, ""
    body = read_exactly(connection, struct.unpack("<H", prefix[6:])[0])
    length = struct.unpack("<H", body[1:3])[0]
    return body[0], body[3 : 3 + length].decode()


def read_exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        try:
            more = connection.recv(count - len(data))
        except ConnectionError:
            break
        if not more:
            break
        data += more
    return data
