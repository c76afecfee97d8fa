"""sync_state: one state on every member, compared by digests, fetched in verified pieces.

Everything is done by operations of the run that end alike on every survivor, so that the members go
through the same attempts: when somebody is lost on the way, all begin another one, in which what
was fetched already no longer differs.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pccl import _arrays, _core
from pccl._group import Array
from pccl._logs import log_fields

__all__ = ["PIECE_BYTES", "StateSync"]

_logger = logging.getLogger("pccl")

PIECE_BYTES = 1 << 20
_DIGEST_BYTES = 32
# Attempts that failed because members were lost; more than a run loses in one sync.
_ATTEMPTS_MAX = 1000
# How long newcomers may take from being admitted to being in.
_ADMISSION_SECONDS = 60.0

# What members tell each other first.
_GREETING = np.dtype(
    [
        ("pending_quorum_id", "<u8"),
        ("revision", "<u8"),  # plus 1; 0: what it holds is no whole state
        ("attempt", "<u8"),
        ("layout", "V16"),
        ("digest", "V32"),
        ("committed", "<u8"),  # revision, as far as the member knows; 0: none
        ("committed_digest", "V32"),
    ]
)


@dataclass
class _Piece:
    buffer: _arrays.Buffer
    offset: int  # bytes
    count: int  # bytes


class NoHolder(_core.MemberLost):
    """No member holds what was committed."""


class _State:
    """The caller's arrays as pieces, with their digests."""

    def __init__(self, state: Mapping[str, Array]) -> None:
        layout = hashlib.sha256()
        self.pieces: list[_Piece] = []
        self._views: list[memoryview] = []
        for name in sorted(state):
            buffer = _arrays.target(state[name], f"state[{name!r}]")
            layout.update(f"{name}\0{buffer.dtype_name}\0{buffer.shape}\0".encode())
            size = buffer.count * _arrays.ELEMENT_BYTES[buffer.dtype_name]
            for offset in range(0, size, PIECE_BYTES):
                piece = _Piece(buffer, offset, min(PIECE_BYTES, size - offset))
                self.pieces.append(piece)
                self._views.append(_arrays.bytes_at(buffer, piece.offset, piece.count))
        self.layout = layout.digest()[:16]
        self.digests = [hashlib.sha256(view).digest() for view in self._views]

    def digest(self) -> bytes:
        return hashlib.sha256(b"".join(self.digests)).digest()

    def look_again(self) -> None:
        """Take the digests anew, after pieces may have come."""
        self.digests = [hashlib.sha256(view).digest() for view in self._views]


class StateSync:
    """One member's side of sync_state()."""

    def __init__(self, core: _core.Run, run: str) -> None:
        self._core = core
        self._run = run
        self._revision = -1  # before the first sync

    def run(self, state: Mapping[str, Array], revision: int | None) -> int:
        if self._revision < 0:
            self._core.gate_newcomers()
        own = self._revision + 1 if revision is None else revision
        if own < 0:
            raise ValueError(f"revision: expected 0 or more, got {own}")
        pieces = _State(state)
        try:
            return self._repeat(pieces, own)
        finally:
            self._core.unpin()

    def _log(self, level: int, text: str, *values: object) -> None:
        known = {"run": self._run, "member": self._core.member_id, "quorum": self._core.place[2]}
        _logger.log(level, text, *values, extra=log_fields("sync_state", **known))

    def _repeat(self, state: _State, own: int) -> int:
        held: int | None = own  # None: pieces are being fetched, so it is no whole state
        for attempt in range(_ATTEMPTS_MAX):
            place = self._core.pin()
            try:
                told = self._greet(state, held, attempt, place)
                if told is None:
                    continue
                newest, reference, attempt_of_all = told
                holders, lacking = reference
                if lacking:
                    if place[0] in lacking:
                        held = None
                    if not self._fetch(state, place, holders, lacking, attempt_of_all):
                        continue
            except _core.MemberLost as error:
                if self._core.error() or isinstance(error, NoHolder):
                    raise
                self._log(logging.INFO, "sync_state begins again: %s", error)
                state.look_again()
                continue
            self._revision = newest
            self._core.set_revision(newest, state.digest())
            return newest
        raise _core.MemberLost(f"sync_state: it failed in each of {_ATTEMPTS_MAX} attempts")

    def _greet(
        self, state: _State, held: int | None, attempt: int, place: tuple[int, int, int]
    ) -> tuple[int, tuple[list[int], list[int]], int] | None:
        """Return the newest revision, its holders and the others, and the attempt; None: again."""
        _, world_size, quorum_id = place
        greeting = np.zeros(1, _GREETING)
        greeting["pending_quorum_id"] = self._core.pending_quorum_id
        greeting["revision"] = 0 if held is None else held + 1
        greeting["attempt"] = attempt
        greeting["layout"] = np.void(state.layout)
        greeting["digest"] = np.void(state.digest())
        committed, committed_digest = self._core.committed_revision
        greeting["committed"] = committed
        greeting["committed_digest"] = np.void(committed_digest)
        told = self._gather(greeting.view(np.uint8), world_size).view(_GREETING).reshape(-1)
        if len({entry["layout"].tobytes() for entry in told}) > 1:
            raise _core.CallMismatch(
                "sync_state: the states of the members have different names, dtypes or shapes"
            )
        # Newcomers enter here, where everybody knows of them.
        pending = int(told["pending_quorum_id"].min())
        if pending > 0:
            self._core.admit(pending)
            self._core.wait_for_change(quorum_id, _ADMISSION_SECONDS)
            return None
        newest = int(told["revision"].max()) - 1
        digests = [entry["digest"].tobytes() for entry in told]
        candidates = [
            digests[r] for r in range(world_size) if int(told["revision"][r]) - 1 == newest
        ]
        # Members hear of a commitment at different times; all must decide alike.
        known = told[int(told["committed"].argmax())]
        committed = int(known["committed"])
        if newest == committed > 0:
            candidates = [
                digest for digest in candidates if digest == known["committed_digest"].tobytes()
            ]
        if newest < committed or not candidates:
            raise NoHolder(
                f"sync_state: revision {committed} was committed, and no member of quorum "
                f"{quorum_id} holds its bytes: the newest here is {newest}. Restart a member from "
                "a checkpoint of that revision"
            )
        reference = Counter(candidates).most_common(1)[0][0]
        holders = [r for r in range(world_size) if digests[r] == reference]
        lacking = [r for r in range(world_size) if digests[r] != reference]
        if lacking:
            self._log(
                logging.INFO,
                "sync_state: ranks %s fetch revision %d from ranks %s",
                lacking,
                newest,
                holders,
            )
        return newest, (holders, lacking), int(told["attempt"].max())

    def _gather(
        self, own: np.ndarray[tuple[int], np.dtype[np.uint8]], world_size: int
    ) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
        everyone = np.zeros((world_size, own.size), np.uint8)
        source = _arrays.source(np.ascontiguousarray(own), "own")
        targets = [_arrays.target(row, "row") for row in everyone]
        self._core.all_gather(
            (source.pointer, source.count),
            [(target.pointer, target.count) for target in targets],
            _core.DATA_TYPES["uint8"],
            0,
            True,
            (source, targets),
        )
        return everyone

    def _fetch(
        self,
        state: _State,
        place: tuple[int, int, int],
        holders: list[int],
        lacking: list[int],
        attempt: int,
    ) -> bool:
        """Bring the pieces that differ to every rank of `lacking`; False: begin again."""
        rank, world_size, _ = place
        own = np.frombuffer(b"".join(state.digests), np.uint8)
        table = self._gather(own, world_size).reshape(world_size, -1, _DIGEST_BYTES)
        right = table[holders[0]]
        works = []
        for index in range(len(state.pieces)):
            has_piece = [bool((table[r, index] == right[index]).all()) for r in range(world_size)]
            # Whoever holds this piece, also of those that lack others.
            sources = [r for r in range(world_size) if has_piece[r]]
            for needy in lacking:
                if has_piece[needy]:
                    continue
                source = sources[(index + needy + attempt) % len(sources)]
                if rank == source:
                    works.append(self._move(state.pieces[index], needy, index, is_send=True))
                elif rank == needy:
                    works.append(self._move(state.pieces[index], source, index, is_send=False))
        # All of them: none may write into the state later.
        errors = []
        for work in works:
            try:
                work.wait()
            except _core.PcclError as error:
                errors.append(error)
        if errors and not isinstance(errors[0], _core.MemberLost):
            raise errors[0]
        state.look_again()
        is_right = not errors and b"".join(state.digests) == right.tobytes()
        if not is_right:
            self._log(
                logging.WARNING, "sync_state: pieces came wrong or not at all; it begins again"
            )
        # Everybody has everything, or everybody begins again.
        return bool(self._gather(np.full(1, is_right, np.uint8), world_size).all())

    def _move(self, piece: _Piece, peer: int, tag: int, *, is_send: bool) -> _core.Work:
        call = self._core.send if is_send else self._core.recv
        return call(
            piece.buffer.pointer + piece.offset,
            piece.count,
            _core.DATA_TYPES["uint8"],
            peer,
            tag,
            0,
            False,
            piece.buffer,
        )
