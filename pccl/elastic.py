"""Elastic runs: members come, die and go, and no operation is lost. Start with `join`."""

from __future__ import annotations

import atexit
import errno
import logging
import socket
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np
import numpy.typing as npt

from pccl import _arrays, _core
from pccl._core import Run, Work
from pccl._gossip import Gossip
from pccl._group import Array
from pccl._logs import EventLog, set_log_level
from pccl._moves import Moves
from pccl._reductions import Reductions, feedback_memory, reduce_op
from pccl.address import RunAddress
from pccl.codecs import ErrorFeedback
from pccl.config import Config
from pccl.coordinator import Coordinator, CoordinatorOptions
from pccl.state import StateSync

__all__ = ["ElasticCommunicator", "Member", "join"]

_logger = logging.getLogger("pccl")

_WHY_NOT_YET = (
    "the coordinator answers, but has not let it in. It waits for more members (its --min), for "
    "a sync_state() of those that are in, or for members of the last quorum that it has not seen "
    "end: its log and pccl status say which. If they are gone for good: "
    "pccl coordinator --abandon {run}"
)

# How long one that lost the database to another process waits for that one to listen.
_HOST_RACE_SECONDS = 2.0


@dataclass(frozen=True)
class Member:
    """A process in the run."""

    member_id: str  # 8 hex digits
    address: str  # "10.0.0.7:4123"
    joined_at: int  # the number of the first operation that it takes part in


def join(
    address: str = "",
    *,
    world_size_min: int | None = None,
    timeout_seconds: float | None = None,
    host_coordinator: bool = False,
    insecure: bool = False,
    config: Config | None = None,
) -> ElasticCommunicator:
    """Join a run and return its communicator; no rank and no world size need be known beforehand.

    Args:
        address: "pccl://host:port/run#key.token", as `pccl coordinator` prints it. What follows
            '#' may be missing on the coordinator's own machine (loopback). Empty: PCCL_RUN.
        world_size_min: wait until so many members are in. None: what the configuration says (1).
        timeout_seconds: default of every operation. None: what the configuration says (1800).
        host_coordinator: if nobody listens at the address's port of this machine, run the
            coordinator in this process; it ends with it. Its key is the one that `pccl invite`
            uses on this machine.
        insecure: speak plainly, without keys: whoever reaches a port can read, write and take
            part. The coordinator (--insecure) and all members must do the same.
        config: None reads the PCCL_* variables.

    Raises:
        ConnectError: not in, or not enough members, within `config.connect_timeout_seconds`; the
            message says what the coordinator's connection said last.
        DatabaseError: with `host_coordinator`, where nobody listens: the database can't be used;
            the message says why, and the way out.
        ValueError: the address, a variable or the key file cannot be understood, or the address
            names no key and is not on this machine.
    """
    config = config or Config.from_environment()
    set_log_level(config.log)
    config = replace(config, insecure=insecure or config.insecure)
    if not address and not config.run:
        raise ValueError("address: expected pccl://host:port/run#key.token, here or in PCCL_RUN")
    world_size_min = world_size_min or config.world_size_min
    place = RunAddress.parse(address or config.run)
    if config.insecure and place.fingerprint:
        raise ValueError(f"insecure=True contradicts the key in the address of {place.shown}")
    coordinator = _host(place, config) if host_coordinator else None
    core: _core.Run | None = None
    try:
        core = _open(place, config, timeout_seconds)
        deadline = time.monotonic() + config.connect_timeout_seconds
        if not core.wait_until_joined(config.connect_timeout_seconds):
            why = core.trouble or _WHY_NOT_YET.format(run=place.run)
            raise _core.ConnectError(
                f"join {place.shown}: not in the run after {config.connect_timeout_seconds:g} s: "
                f"{why}"
            )
        if not core.wait_for_members(world_size_min, max(0.0, deadline - time.monotonic())):
            raise _core.ConnectError(
                f"join {place.shown}: {core.world_size} members are in after "
                f"{config.connect_timeout_seconds:g} s, {world_size_min} are wanted"
            )
    except BaseException:
        if core is not None:
            core.leave()
        if coordinator is not None:
            coordinator.close()
        raise
    return ElasticCommunicator(core, place, coordinator)


def _is_taken(port: int) -> bool:
    """Whether somebody listens at this port of this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _host(place: RunAddress, config: Config) -> Coordinator | None:
    options = CoordinatorOptions(port=place.port, insecure=config.insecure, tls=config.tls)
    if _is_taken(place.port):
        return None
    try:
        coordinator = Coordinator(options)
    except _core.DatabaseError:
        # Of two that begin at once, one gets the database, and listens a moment later.
        deadline = time.monotonic() + _HOST_RACE_SECONDS
        while not _is_taken(place.port):
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.05)
        return None
    except (_core.ConnectError, ValueError) as error:
        _logger.info("no coordinator in this process: %s", error)
        return None
    if place.fingerprint and place.fingerprint != coordinator.fingerprint:
        coordinator.close()
        _logger.info("no coordinator in this process: the address names a key of another machine")
        return None
    return coordinator


def _open(place: RunAddress, config: Config, timeout_seconds: float | None) -> _core.Run:
    last: Exception | None = None
    options = config.endpoint_options()
    for port in config.ports:
        try:
            return _core.Run(
                place.run,
                place.host,
                place.port,
                port=port,
                timeout_seconds=timeout_seconds or config.timeout_seconds,
                algorithm=config.algorithm,
                deterministic=config.deterministic,
                probes=config.probes,
                key_file=config.key,
                coordinator_key=place.fingerprint,
                token=place.token,
                **options,
            )
        except _core.ConnectError as error:
            last = error
    assert last is not None
    raise last


class ElasticCommunicator(Reductions, Moves, Gossip):
    """The members of a run: collectives go on although members die, and newcomers come in.

    Every member calls the same operations in the same order. A newcomer's first call is the first
    one after it came in, so a program that keeps a state calls sync_state() at the top of each
    step: from the first call on, newcomers enter only there.

    When members are lost:
        all_reduce and barrier complete at every survivor; nobody sees an error, and the result says
        who is in it (`Work.contributors` and `weight`, element by element `contributions`). Parts
        that were final at a survivor are kept, the rest is reduced again over the survivors.
        broadcast completes unless its root is lost and no survivor has all of it.
        Every other collective, whose shape depends on the world size, and messages end in
        MemberLost on every survivor; the run goes on, with `rank` and `world_size` as they are now.

    CollectiveTimeout, CallMismatch and abort() end the run's operations on every member: join
    again. A member that was taken for dead (it stood still for too long) gets MemberLost from then
    on.
    """

    _core: Run

    def __init__(
        self, core: Run, address: RunAddress, coordinator: Coordinator | None = None
    ) -> None:
        """For join()."""
        self._core = core
        self._address = address
        self._coordinator = coordinator
        self._events = EventLog(core)
        self._sync = StateSync(core, address.run)
        _open_runs.add(self)

    def __enter__(self) -> ElasticCommunicator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()

    def __repr__(self) -> str:
        rank, world_size, quorum_id = self._core.place
        return (
            f"<pccl.ElasticCommunicator {self._address.shown} rank {rank} of {world_size}, "
            f"quorum {quorum_id}>"
        )

    # --- who is in --------------------------------------------------------------------------------

    @property
    def quorum_id(self) -> int:
        """Grows with every change of the members."""
        return self._core.place[2]

    @property
    def member_id(self) -> str:
        """This member's id, 8 hex digits: another one after every join()."""
        return self._core.member_id

    @property
    def members(self) -> list[Member]:
        """Who is in, by rank."""
        return [Member(*entry) for entry in self._core.members]

    @property
    def trouble(self) -> str:
        """Why members can't be replaced or come in at this moment; "": they can.

        On the side of a cut network that may not go on: what it waits for.
        """
        return self._core.trouble

    def wait_for_members(self, count: int, timeout_seconds: float = 60) -> None:
        """Return when at least `count` members are in.

        Raises:
            CollectiveTimeout: not within `timeout_seconds`.
        """
        if not self._core.wait_for_members(count, timeout_seconds):
            raise _core.CollectiveTimeout(
                f"wait_for_members: {self.world_size} members are in after {timeout_seconds:g} s, "
                f"{count} are wanted"
            )

    # --- operations -------------------------------------------------------------------------------

    def all_reduce(  # type: ignore[override]  # a Difference is for members that don't change
        self,
        tensor: Array,
        op: str = "sum",
        *,
        factor: float = 1.0,
        weight: float | None = None,
        uniform: bool = False,
        finite: bool = False,
        codec: str = "",
        error_feedback: ErrorFeedback | None = None,
        async_op: bool = False,
        timeout_seconds: float = 0,
    ) -> Work | None:
        """Reduce `tensor` over the members, in place; every survivor ends with the same bytes.

        A member that dies costs its part of the tensor that was not final yet: the survivors reduce
        that again. 2 (P - 1) / P * S bytes sent a member without a fault.

        Args:
            tensor: shape [...], contiguous; same shape and dtype on every member.
            op: as in Communicator.all_reduce. "avg" divides each element by the number of members
                that are in it.
            weight: with op="avg": of this member's contribution; all members pass one, or none.
            uniform: one set of contributors for the whole tensor; after an error it holds its input
                again, or all of the result. It keeps a copy of the input, S bytes.

            finite: look for NaN and infinity in this member's contribution first, one pass over S
                bytes. Who has one is named on every member, and nothing is mixed in.
            codec: as in Communicator.all_reduce. It looks for NaN and infinity, as `finite` does.
            error_feedback: this member's own ErrorFeedback, zeros for a newcomer. What a member
                that dies had not sent yet is lost with it.

        Raises:
            ValueError: not contiguous, read-only, or a dtype that `op` cannot reduce.
            NonFiniteContribution: see `finite`; every `tensor` holds its input, the run goes on.
            PcclError: see the class. Each element of `tensor` then holds its input or the result;
                the message and `Work.contributions` say which. With `uniform` all hold one of both.
        """
        if weight is not None:
            if op not in ("avg", "mean"):
                raise ValueError(f"weight: only with op='avg', got op={op!r}")
            op, factor = "weighted_avg", weight
        buffer = _arrays.target(tensor, "tensor")
        code = reduce_op(op, buffer, factor)
        residual, lost = feedback_memory(error_feedback, codec, buffer.count)
        work = self._core.all_reduce(
            buffer.pointer,
            buffer.pointer,
            buffer.count,
            buffer.dtype,
            code,
            factor,
            timeout_seconds,
            not async_op,
            (buffer, error_feedback),
            uniform,
            finite,
            codec,
            residual,
            lost,
        )
        if error_feedback is not None:
            error_feedback.end(work)
        return work if async_op else None

    def barrier(self, *, async_op: bool = False, timeout_seconds: float = 0) -> Work | None:
        """Return when every member has called it, or is lost. log2 P steps."""
        work = self._core.barrier(timeout_seconds, not async_op)
        return work if async_op else None

    def gather_rows(self, row: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Everybody's row of bytes, by rank: shape [members, bytes], uint8.

        Unlike all_gather it needs no world size beforehand, and goes on with those that are left
        where members are lost.

        Args:
            row: shape [bytes], equally long on every member.

        Raises:
            PcclError: see the class.
        """
        while True:  # a lost member each time, or the run's own error
            _, world_size, _ = self._core.pin()
            try:
                rows = np.zeros((world_size, row.size), np.uint8)
                self.all_gather_into_tensor(rows, row)
                return rows
            except _core.MemberLost:
                if self._core.error():
                    raise
            finally:
                self._core.unpin()

    def sync_state(self, state: Mapping[str, Array], *, revision: int | None = None) -> int:
        """Give every member the same bytes of `state`; let newcomers in. Returns its revision.

        Members compare digests (SHA-256 by pieces of 1 MiB). Those that differ from the state of
        the highest revision - the most frequent one, of equal ones the one at the lowest rank -
        fetch the pieces that differ, each verified, from all members that have the whole; a source
        that dies is replaced, and what came is not fetched again.

        It returns at once where nothing is fetched: the others compute while a newcomer downloads.
        The next operation that all take part in waits for it, by its own deadline, so it costs the
        others only what the download takes longer than their computing until then. What changes in
        every step, and is reduced in every step, is waited for; a state that is synced every so
        many steps mostly is not.

        Without differences it costs a digest of S bytes and one all_gather of 112 bytes. Where
        somebody fetches: one more, of 32 bytes a piece; a copy of the pieces that somebody lacks, S
        bytes for a newcomer, until all have them or are gone; and each that fetches gets S bytes.
        Of those that have the state the first waits in leave() until the others have it, or have
        not asked for 10 s.

        Args:
            state: arrays by name, the same names, dtypes and shapes on every member; written where
                this member fetches.
            revision: how far this member's state is (steps, say). None: one more than at the last
                call, and 0 before this member's first, so that a newcomer gets the others' state.

        Raises:
            ValueError: not contiguous or read-only.
            CallMismatch: names, dtypes or shapes differ; on every member.
            MemberLost: nobody is left that has the last committed revision, and `state` is
                unchanged; or the last one that had it died before all of it had come here, and
                `state` is partly overwritten: the message says so.
        """
        return self._sync.run(state, revision)

    # --- the end ----------------------------------------------------------------------------------

    def abort(self, reason: str = "") -> None:
        """Fail every operation of the run, here and at the others; they read `reason`."""
        self._core.abort(reason or f"rank {self.rank} called abort()")

    def leave(self) -> None:
        """Leave politely: the others go on at once. Idempotent."""
        _open_runs.discard(self)
        self._sync.leave()
        self._core.leave()
        self._events.close()
        if self._coordinator is not None:
            self._coordinator.close()

    close = leave

    def statistics(self) -> dict[str, int]:
        """Counters of this process, as those of Communicator.statistics, and of recovery.

        `recovered_operations` were finished here after members were lost; that took
        `recovery_microseconds`, summed up, each from standing still to its result.
        """
        return self._core.statistics()

    def flight_record(self) -> str:
        """What this member did and saw last, as JSON lines for `pccl trace`: a header, then events.

        The last 4096 beginnings and ends of operations, the last 512 other events. Also after the
        end of the run. PCCL_TRACE_DIR has it written to a file when an operation ends in an error.
        """
        return self._core.flight_record()


_open_runs: weakref.WeakSet[ElasticCommunicator] = weakref.WeakSet()


@atexit.register
def _leave_open_runs() -> None:
    # Leaving without a word would look like a crash to the others.
    for comm in list(_open_runs):
        with suppress(Exception):
            comm.leave()
