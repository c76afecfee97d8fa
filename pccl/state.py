"""sync_state: one state on every member, compared by digests, fetched in verified pieces.

What the state is, and who lacks pieces of it, is agreed by operations of the run that end alike on
every survivor, so that the members go through the same attempts: when somebody is lost on the way,
all begin another one. Then who has it goes on, and the others fetch theirs (_piece_fetch.py).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pccl import _arrays, _core
from pccl._group import Array
from pccl._logs import log_fields
from pccl._piece_fetch import Fetch, NoHolder
from pccl._pieces import Offer, PieceServer, StatePieces

__all__ = ["StateSync"]

_logger = logging.getLogger("pccl")

_DIGEST_BYTES = 32
# Attempts that failed because members were lost; more than a run loses in one sync.
_ATTEMPTS_MAX = 1000
# How long newcomers may take from being admitted to being in.
_ADMISSION_SECONDS = 60.0
# Who leaves with a state that others lack, as the first of its holders, goes when nobody has asked
# for so long.
_LEAVE_SECONDS = 10.0

Table = np.ndarray[Any, np.dtype[np.uint8]]  # [members, pieces, 32]

# What members tell each other first.
_GREETING = np.dtype(
    [
        ("pending_quorum_id", "<u8"),
        ("revision", "<u8"),  # plus 1; 0: what it holds is no whole state
        ("member", "S8"),
        ("layout", "V16"),
        ("digest", "V32"),
        ("committed", "<u8"),  # revision, as far as the member knows; 0: none
        ("committed_digest", "V32"),
    ]
)


@dataclass
class _Agreed:
    """What a sync is about, the same on every member."""

    revision: int
    digest: bytes
    members: list[str]  # by rank
    holders: list[int]  # ranks
    lacking: list[int]

    def named(self, ranks: list[int]) -> set[str]:
        return {self.members[rank] for rank in ranks}


class StateSync:
    """One member's side of sync_state()."""

    def __init__(self, core: _core.Run, run: str) -> None:
        self._core = core
        self._run = run
        self._revision = -1  # before the first sync
        self._is_partial = False  # pieces of the state have been overwritten, and not all came
        self._server = PieceServer(core)

    def run(self, state: Mapping[str, Array], revision: int | None) -> int:
        if self._revision < 0:
            self._core.gate_newcomers()
        own = self._revision + 1 if revision is None else revision
        if own < 0:
            raise ValueError(f"revision: expected 0 or more, got {own}")
        pieces = StatePieces(state)
        try:
            agreed, right = self._agree(pieces, own)
        finally:
            self._core.unpin()
        if right is not None:
            self._bring(pieces, agreed, right)
        self._revision = agreed.revision
        self._core.set_revision(agreed.revision, agreed.digest)
        return agreed.revision

    @property
    def held_bytes(self) -> int:
        """What is kept of the last state for members that still fetch it."""
        return self._server.held_bytes

    def leave(self) -> None:
        self._server.leave(_LEAVE_SECONDS)

    def _log(self, level: int, text: str, *values: object) -> None:
        known = {"run": self._run, "member": self._core.member_id, "quorum": self._core.place[2]}
        _logger.log(level, text, *values, extra=log_fields("sync_state", **known))

    def _agree(self, state: StatePieces, own: int) -> tuple[_Agreed, Table | None]:
        """What the state is, and everybody's digests by piece where somebody lacks some."""
        for _ in range(_ATTEMPTS_MAX):
            place = self._core.pin()
            try:
                agreed = self._greet(state, own, place)
                if agreed is None:
                    continue
                # Whoever greets has what an earlier sync was to bring it.
                self._server.close()
                return agreed, self._compare(state, agreed) if agreed.lacking else None
            except _core.MemberLost as error:
                if self._core.error() or isinstance(error, NoHolder):
                    raise
                self._log(logging.INFO, "sync_state begins again: %s", error)
        raise _core.MemberLost(f"sync_state: it failed in each of {_ATTEMPTS_MAX} attempts")

    def _greet(self, state: StatePieces, own: int, place: tuple[int, int, int]) -> _Agreed | None:
        """Everybody's revision, digest and pending newcomers; None: begin again."""
        _, world_size, quorum_id = place
        greeting = np.zeros(1, _GREETING)
        greeting["pending_quorum_id"] = self._core.pending_quorum_id
        greeting["revision"] = 0 if self._is_partial else own + 1
        greeting["member"] = self._core.member_id.encode()
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
        if newest < 0:
            raise NoHolder(f"sync_state: no member of quorum {quorum_id} holds a whole state")
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
        members = [entry["member"].decode("ascii") for entry in told]
        return _Agreed(newest, reference, members, holders, lacking)

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

    def _compare(self, state: StatePieces, agreed: _Agreed) -> Table:
        own = np.frombuffer(b"".join(state.digests), np.uint8)
        world_size = len(agreed.members)
        return self._gather(own, world_size).reshape(world_size, -1, _DIGEST_BYTES)

    def _bring(self, state: StatePieces, agreed: _Agreed, table: Table) -> None:
        """Let the others fetch what they lack from here; or fetch it, and then let them."""
        right = table[agreed.holders[0]]
        indices = np.flatnonzero((table != right).any(axis=(0, 2))).tolist()
        offer = Offer(
            agreed.digest, indices, agreed.named(agreed.holders), agreed.named(agreed.lacking)
        )
        if self._core.member_id in offer.holders:
            offer.copies = state.copy(indices)
            self._server.open(offer)
            return
        self._is_partial = True
        self._server.open(offer)
        Fetch(self._core, state, offer, [row.tobytes() for row in right], self._log).run()
        self._is_partial = False
        if offer.needy - offer.done - {self._core.member_id}:
            offer.copies = state.copy(indices)
        offer.done.add(self._core.member_id)
