"""The shared state in pieces, and the thread that gives them to members which lack some.

Pieces travel in messages that belong to the quorum and not to the sequence of operations, so that
who has the state computes, and calls operations, while another one fetches it.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pccl import _arrays, _core
from pccl._group import Array

__all__: list[str] = []

PIECE_BYTES = 1 << 20
# What one member may have asked of another one and not yet got: 16 MiB, enough for 1 Gbit/s and
# 100 ms.
WINDOW_PIECES = 16

# Tags: a piece's is its index.
REQUEST_TAG = 0x7FFFFFFF
ANSWER_TAG = 0x7FFFFFFE

PIECE, IS_WHOLE, DONE = range(3)
# One member to another; `digest` says which state is meant.
REQUEST = np.dtype([("digest", "V32"), ("member", "S8"), ("kind", "u1"), ("index", "<u4")])

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

# How late the server sees that nobody needs it any more.
_SLICE_SECONDS = 0.1
_EARLY_MAX = 1024
# No request for so long is no reason to end.
_IDLE_SECONDS = 1e8


@dataclass
class Piece:
    buffer: _arrays.Buffer
    offset: int  # bytes
    count: int  # bytes


class StatePieces:
    """The caller's arrays as pieces, with their digests."""

    def __init__(self, state: Mapping[str, Array]) -> None:
        layout = hashlib.sha256()
        self.pieces: list[Piece] = []
        self._views: list[memoryview] = []
        for name in sorted(state):
            buffer = _arrays.target(state[name], f"state[{name!r}]")
            layout.update(f"{name}\0{buffer.dtype_name}\0{buffer.shape}\0".encode())
            size = buffer.count * _arrays.ELEMENT_BYTES[buffer.dtype_name]
            for offset in range(0, size, PIECE_BYTES):
                piece = Piece(buffer, offset, min(PIECE_BYTES, size - offset))
                self.pieces.append(piece)
                self._views.append(_arrays.bytes_at(buffer, piece.offset, piece.count))
        self.layout = layout.digest()[:16]
        self.digests = [hashlib.sha256(view).digest() for view in self._views]

    def digest(self) -> bytes:
        return hashlib.sha256(b"".join(self.digests)).digest()

    def look_at(self, index: int) -> bytes:
        """The digest of a piece, after it may have come."""
        self.digests[index] = hashlib.sha256(self._views[index]).digest()
        return self.digests[index]

    def copy(self, indices: Iterable[int]) -> dict[int, Bytes]:
        return {index: np.frombuffer(self._views[index], np.uint8).copy() for index in indices}


def ranks_now(core: _core.Run) -> tuple[int, dict[str, int]]:
    """The quorum in force and its members' ranks, of one moment."""
    while True:
        quorum_id = core.in_force[2]
        ranks = {member: rank for rank, (member, _, _) in enumerate(core.members)}
        if core.in_force[2] == quorum_id:
            return quorum_id, ranks


def send_request(
    core: _core.Run, quorum_id: int, rank: int, digest: bytes, kind: int, index: int = 0
) -> _core.Work:
    request = np.zeros(1, REQUEST)
    request["digest"] = np.void(digest)
    request["member"] = core.member_id.encode()
    request["kind"] = kind
    request["index"] = index
    pointer = request.ctypes.data
    return core.send_state(quorum_id, rank, REQUEST_TAG, pointer, request.nbytes, 0, request)


class _Request(NamedTuple):
    quorum_id: int
    rank: int
    digest: bytes
    member: str
    kind: int
    piece: int  # its index


@dataclass
class Offer:
    """What a sync_state() leaves to be done: somebody lacks pieces of this state."""

    digest: bytes
    indices: list[int]  # of the pieces that somebody lacks
    holders: set[str]  # members that have them all
    needy: set[str]  # members that lacked some at first
    done: set[str] = field(default_factory=set)  # those of them that have said that they have all
    # A copy, because the caller's arrays change meanwhile; None: this member fetches them itself.
    copies: dict[int, Bytes] | None = None
    has_no_source: bool = False  # it fetches, and nobody is left that it could ask
    # Those that wait for this member to have the state, or to know that it won't.
    waiting: list[_Request] = field(default_factory=list)
    sending: dict[str, list[_core.Work]] = field(default_factory=dict)


class PieceServer:
    """Answers the requests of other members, in a thread that lives while somebody lacks pieces."""

    def __init__(self, core: _core.Run) -> None:
        self._core = core
        self._lock = threading.Lock()
        # Guarded by _lock.
        self._offer: Offer | None = None
        self._thread: threading.Thread | None = None
        # Of the thread alone; it outlives it, so that a later thread gets what came for an earlier.
        self._posted: tuple[int, Bytes, _core.Work] | None = None
        # Of other offers than the one in force, mostly of the next one.
        self._early: deque[_Request] = deque(maxlen=_EARLY_MAX)
        self._served_at = 0.0

    @property
    def held_bytes(self) -> int:
        """Of the copy that is kept for others."""
        with self._lock:
            copies = self._offer.copies if self._offer else None
            return sum(piece.nbytes for piece in (copies or {}).values())

    def open(self, offer: Offer) -> None:
        with self._lock:
            self._offer = offer
            self._served_at = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pccl state", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Nobody needs it any more."""
        with self._lock:
            self._offer = None

    def leave(self, patience_seconds: float) -> None:
        """End, but not while others make progress with what this member has.

        Several may leave at once: the holder with the lowest rank stays, the others go.
        """
        while time.monotonic() - self._served_at < patience_seconds:
            with self._lock:
                offer = self._offer
            if offer is None or offer.copies is None or self._core.error():
                break
            ranks = ranks_now(self._core)[1]
            own = ranks.get(self._core.member_id, -1)
            if any(ranks[member] < own for member in offer.holders & set(ranks)):
                break
            time.sleep(_SLICE_SECONDS / 10)
        self.close()
        thread = self._thread
        if thread is not None:
            thread.join(10 * _SLICE_SECONDS)

    # --- the thread ---

    def _run(self) -> None:
        while True:
            with self._lock:
                offer = self._offer
                members = set() if self._core.error() else set(ranks_now(self._core)[1])
                if offer is None or not (offer.needy - offer.done) & members:
                    self._offer = None
                    self._thread = None
                    return
            try:
                self._turn(offer)
            except _core.PcclError:
                # The quorum changes; who still wants something asks again in the next one.
                time.sleep(_SLICE_SECONDS / 10)

    def _turn(self, offer: Offer) -> None:
        request = self._receive()
        if request is not None:
            self._early.append(request)
            self._served_at = time.monotonic()
        for _ in range(len(self._early)):
            request = self._early.popleft()
            if request.digest != offer.digest:
                self._early.append(request)
            elif request.kind == DONE:
                offer.done.add(request.member)
            else:
                offer.waiting.append(request)
        if offer.copies is None and not offer.has_no_source:
            return
        waiting, offer.waiting = offer.waiting, []
        for request in waiting:
            self._answer(offer, request)

    def _receive(self) -> _Request | None:
        if self._posted is None:
            quorum_id = self._core.in_force[2]
            message = np.zeros(REQUEST.itemsize, np.uint8)
            pointer, size = message.ctypes.data, message.nbytes
            work = self._core.receive_state(
                quorum_id, -1, REQUEST_TAG, pointer, size, _IDLE_SECONDS, message
            )
            self._posted = (quorum_id, message, work)
        quorum_id, message, work = self._posted
        try:
            work.wait(_SLICE_SECONDS)
        except _core.CollectiveTimeout:
            return None
        except _core.PcclError:
            self._posted = None
            raise
        self._posted = None
        found = message.view(REQUEST)[0]
        return _Request(
            quorum_id,
            work.source_rank,
            found["digest"].tobytes(),
            found["member"].decode("ascii", "replace"),
            int(found["kind"]),
            int(found["index"]),
        )

    def _answer(self, offer: Offer, request: _Request) -> None:
        if request.kind == IS_WHOLE:
            self._send(offer, request, ANSWER_TAG, np.array([offer.copies is not None], np.uint8))
        elif request.kind == PIECE and offer.copies and request.piece in offer.copies:
            self._send(offer, request, request.piece, offer.copies[request.piece])

    def _send(self, offer: Offer, request: _Request, tag: int, data: Bytes) -> None:
        sending = offer.sending.setdefault(request.member, [])
        sending[:] = [work for work in sending if not work.is_completed()]
        # Nobody that keeps to the rules has asked for more.
        if len(sending) > 2 * WINDOW_PIECES:
            return
        pointer, size = data.ctypes.data, data.nbytes
        sending.append(
            self._core.send_state(request.quorum_id, request.rank, tag, pointer, size, 0, data)
        )
