"""How a member gets the pieces of the shared state that it lacks, from sources that may die."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from pccl import _core
from pccl._pieces import (
    ANSWER_TAG,
    DONE,
    IS_WHOLE,
    PIECE,
    WINDOW_PIECES,
    Offer,
    StatePieces,
    ranks_now,
    send_request,
)

__all__: list[str] = []

# Between looks at what has come.
_LOOK_SECONDS = 0.01
# Quorums in which it is tried to say that everything has come; the next sync says it, too.
_TELL_MAX = 10


class NoHolder(_core.MemberLost):
    """Nobody is left that holds what was agreed on."""


class Fetch:
    """Brings the pieces of `offer` that are not right here, each verified by its digest.

    Sources are the members that had the whole state when it was agreed on; where none of them is
    left, those that have fetched it since.
    """

    def __init__(
        self,
        core: _core.Run,
        state: StatePieces,
        offer: Offer,
        right: list[bytes],
        log: Callable[..., None],
    ) -> None:
        self._core = core
        self._state = state
        self._offer = offer
        self._right = right  # digests by piece
        self._log = log
        self._wanted = deque(i for i in offer.indices if state.digests[i] != right[i])
        self._sources = set(offer.holders)
        self._liars: set[str] = set()
        # By source: index and work, in the order of the requests.
        self._running: dict[str, deque[tuple[int, _core.Work]]] = {}

    def run(self) -> None:
        """Return when all pieces are right.

        Raises:
            NoHolder: nobody is left that has them.
            PcclError: as for any message.
        """
        while self._wanted:
            quorum_id, ranks = ranks_now(self._core)
            try:
                self._fetch_in(quorum_id, ranks)
            except _core.MemberLost as error:
                if self._core.error() or isinstance(error, NoHolder):
                    raise
                self._log(logging.INFO, "sync_state asks again: %s", error)
        self._tell_done()

    def _fetch_in(self, quorum_id: int, ranks: dict[str, int]) -> None:
        """One quorum's part of it; what had not come is wanted again when it ends."""
        sources = (self._sources - self._liars) & set(ranks)
        sources, nearer = self._beside(quorum_id, ranks, sources)
        if nearer:
            sources = self._ask_whole(quorum_id, ranks, nearer)
        elif not sources:
            sources = self._find_whole(quorum_id, ranks)
            self._sources |= sources
        self._running = {source: deque() for source in sources}
        lost: BaseException | None = None
        while self._running and (self._wanted or any(self._running.values())):
            if lost is None:
                for source in self._running.keys() - self._liars:
                    self._ask(quorum_id, source, ranks[source])
            oldest = [works[0][1] for works in self._running.values() if works]
            if not oldest:
                break
            with suppress(_core.PcclError):
                oldest[0].wait(_LOOK_SECONDS)
            # Not where only this wait is over. No other one may write into the state later.
            if lost is None and oldest[0].is_completed():
                lost = oldest[0].exception()
            for source in list(self._running):
                self._take(source)
        if lost is not None:
            raise lost

    def _edges(self, quorum_id: int) -> list[tuple[int, int]] | None:
        edges = self._core.edges
        if self._core.in_force[2] != quorum_id:
            raise _core.MemberLost(f"quorum {quorum_id} is over")
        return edges

    def _beside(
        self, quorum_id: int, ranks: dict[str, int], sources: set[str]
    ) -> tuple[set[str], set[str]]:
        """On a graph the sources beside this member; if there are none, who is nearer to one.

        Those have or get the state before this member, so nobody waits in a circle.
        """
        edges = self._edges(quorum_id)
        if edges is None or not sources:
            return sources, set()
        members = {rank: member for member, rank in ranks.items()}
        beside: dict[int, set[int]] = {rank: set() for rank in members}
        for left, right in edges:
            beside[left].add(right)
            beside[right].add(left)
        steps = {ranks[source]: 0 for source in sources}
        queue = deque(steps)
        while queue:
            rank = queue.popleft()
            for other in beside[rank] - steps.keys():
                steps[other] = steps[rank] + 1
                queue.append(other)
        own = ranks[self._core.member_id]
        nearer = {members[rank] for rank in beside[own] if steps[rank] < steps[own]}
        return nearer & sources, set() if nearer & sources else nearer

    def _ask(self, quorum_id: int, source: str, rank: int) -> None:
        works = self._running[source]
        while self._wanted and len(works) < WINDOW_PIECES:
            index = self._wanted.popleft()
            piece = self._state.pieces[index]
            pointer = piece.buffer.pointer + piece.offset
            work = self._core.receive_state(
                quorum_id, rank, index, pointer, piece.count, 0, piece.buffer
            )
            works.append((index, work))
            send_request(self._core, quorum_id, rank, self._offer.digest, PIECE, index)

    def _take(self, source: str) -> None:
        """Look at what has come from `source`."""
        waiting: deque[tuple[int, _core.Work]] = deque()
        for index, work in self._running[source]:
            if not work.is_completed():
                waiting.append((index, work))
            elif work.exception() is not None:
                self._wanted.append(index)
            elif self.take_piece(index) != self._right[index]:
                self._log(logging.WARNING, "sync_state: piece %d came wrong from %s", index, source)
                self._wanted.append(index)
                self._liars.add(source)
        self._running[source] = waiting
        if source in self._liars and not waiting:
            del self._running[source]

    def take_piece(self, index: int) -> bytes:
        """The digest of a piece that has just come."""
        return self._state.look_at(index)

    def _find_whole(self, quorum_id: int, ranks: dict[str, int]) -> set[str]:
        """Those that lacked pieces themselves, and have all of them now."""
        self._offer.has_no_source = True
        others = (self._offer.needy & set(ranks)) - self._liars - {self._core.member_id}
        return self._ask_whole(quorum_id, ranks, self._reachable(quorum_id, ranks, others))

    def _reachable(self, quorum_id: int, ranks: dict[str, int], others: set[str]) -> set[str]:
        """Those of `others` that this member may talk with."""
        edges = self._edges(quorum_id)
        if edges is None:
            return others
        own = ranks[self._core.member_id]
        beside = {rank for edge in edges if own in edge for rank in edge}
        return {member for member in others if ranks[member] in beside}

    def _ask_whole(self, quorum_id: int, ranks: dict[str, int], others: set[str]) -> set[str]:
        """Those of `others` that have the whole state, once they do or know that they won't."""
        whole = set()
        asked = []
        for member in others:
            answer = np.zeros(1, np.uint8)
            work = self._core.receive_state(
                quorum_id, ranks[member], ANSWER_TAG, answer.ctypes.data, 1, 0, answer
            )
            send_request(self._core, quorum_id, ranks[member], self._offer.digest, IS_WHOLE)
            asked.append((member, answer, work))
        for member, answer, work in asked:
            work.wait()
            if answer[0]:
                whole.add(member)
        if not whole:
            raise NoHolder(
                f"sync_state: no member of quorum {quorum_id} is left that holds the state which "
                "was agreed on; this member's is partly overwritten"
            )
        return whole

    def _tell_done(self) -> None:
        for _ in range(_TELL_MAX):
            quorum_id, ranks = ranks_now(self._core)
            others = (self._offer.holders | self._offer.needy) & set(ranks)
            try:
                # On a graph the others hear of it at the next sync.
                others = self._reachable(quorum_id, ranks, others)
                for member in others - {self._core.member_id}:
                    send_request(
                        self._core, quorum_id, ranks[member], self._offer.digest, DONE
                    ).wait()
            except _core.MemberLost:
                continue
            return
