"""The C++ core. Internal: names and arguments may change; use `pccl` or `torch.distributed`.

Memory is passed as `(pointer, count)`: count in elements of `dtype` (the integer values of
`DataType` in csrc/base/types.h). `keep` is any Python object that must live until the operation has
ended (the tensors behind the pointers). Every launch returns at once unless `sync` is true; then it
drives the operation to its end without the GIL and raises on failure. `timeout_seconds` is for the
whole operation; 0 means the communicator's default.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Block = tuple[int, int]  # (pointer, count)

DATA_TYPES: dict[str, int]  # "float32" -> 1, ...
REDUCE_OPS: dict[str, int]  # "sum" -> 0, ...
PROTOCOL_VERSION: int

class PcclError(RuntimeError): ...
class CollectiveTimeout(PcclError): ...
class MemberLost(PcclError): ...
class NonFiniteContribution(PcclError): ...
class CallMismatch(PcclError): ...
class RemoteProtocolError(PcclError): ...
class ConnectError(PcclError): ...
class Aborted(PcclError): ...
class DatabaseError(PcclError): ...

class Work:
    def wait(self, timeout_seconds: float = 0) -> None:
        """Block without the GIL until done, at most until the operation's own deadline (0).

        Raises the operation's error. A `timeout_seconds` that passes first raises CollectiveTimeout
        and leaves the operation running.
        """
    def is_completed(self) -> bool: ...
    def exception(self) -> BaseException | None: ...
    @property
    def contributions(
        self,
    ) -> list[tuple[int, int, list[str], float]]:
        """Of an all_reduce in a run, once it is done: elements from, to; whose sum; their weight.

        Of one that failed: the elements that hold the result nevertheless.
        """
    @property
    def contributors(self) -> list[str]:
        """Ids of the members that are in every element of the result; see `contributions`."""
    @property
    def weight(self) -> float:
        """Of all contributions together (their number, without weights), where it is least."""
    @property
    def source_rank(self) -> int: ...  # recv: who sent; else -1
    @property
    def operation(self) -> str: ...  # "all_reduce"
    def notify(self) -> None:
        """Have Context.wait_completions() hand this work out when it is done, at once if it is."""

class Context:
    """One member of one run: its listening socket, its connections, its progress engine."""

    def __init__(
        self,
        run: str,  # members of different runs refuse each other
        *,
        bind_host: str = "",  # "" = all interfaces, IPv4 and IPv6
        port: int = 0,  # 0 = any free port
        advertise_hosts: Sequence[
            str
        ] = (),  # names or addresses that others shall use; () = found by itself
        sockets: int = 1,  # TCP sockets per connection, 1..64; 0: as measured
        congestion_control: str = "kernel",
        shared_memory: bool = True,  # ranks of one host talk by memory
        connect_timeout_seconds: float = 30,
        simd: str = "",
        trace_folder: str = "",  # a record is written there when an operation fails; "" = nowhere
        tls: str = "remote",  # or "never", "always"; "remote": not on loopback
        outward: bool = False,  # listens nowhere
        graph: str = "",  # for the others: what this member's configuration says
    ) -> None: ...
    @property
    def address(self) -> bytes: ...  # opaque; publish it to the other members
    def describe_address(self) -> str: ...  # "host:port, memory" for people
    def wait_completions(self, timeout_seconds: float) -> list[Work]:
        """Works that are done after their notify(); [] after the timeout or when closed."""
    def statistics(self) -> dict[str, int]: ...
    # bytes_sent_tcp, bytes_received_tcp, bytes_sent_memory, bytes_received_memory, connections,
    # secure_sockets, refused_connections, refused_keys, refused_plain, resumed_connections,
    # replaced_sockets, resent_frames, resent_bytes, added_sockets, changed_controls
    def flight_record(self) -> str: ...  # JSON lines
    # Its events after the first `seen` ones, and how many there are now.
    def flight_events(self, seen: int) -> tuple[str, int]: ...
    def close(self) -> None: ...  # politely; idempotent; releases the GIL

class CollectiveCalls:
    """What a Communicator and a Run have in common."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    # `factor`: of this rank's contribution to "premul_sum", its weight in "weighted_avg", else 1.
    # Of a run: `is_uniform`, one set of contributors for the whole tensor; `checks_finite`: NaN and
    # infinity are refused. `codec`: a name for pccl.codecs; "": none. `residual`, `lost`: with a
    # codec, pointers to a float for each element: what was lost before, and what is lost now.
    def all_reduce(
        self,
        source: int,
        target: int,
        count: int,
        dtype: int,
        op: int,
        factor: float,
        timeout_seconds: float,
        sync: bool,
        keep: object,
        is_uniform: bool = False,
        checks_finite: bool = False,
        codec: str = "",
        residual: int = 0,
        lost: int = 0,
        is_encoded: bool = False,  # source and target are tiles, of `count` elements
    ) -> Work: ...
    def reduce(
        self,
        source: int,
        target: int,
        count: int,
        dtype: int,
        op: int,
        factor: float,
        root: int,
        timeout_seconds: float,
        sync: bool,
        keep: object,
    ) -> Work: ...
    def broadcast(
        self,
        tensor: int,
        count: int,
        dtype: int,
        root: int,
        timeout_seconds: float,
        sync: bool,
        keep: object,
    ) -> Work: ...
    def all_gather(
        self,
        source: Block,
        targets: Sequence[Block],
        dtype: int,
        timeout_seconds: float,
        sync: bool,
        keep: object,
    ) -> Work: ...
    def reduce_scatter(
        self,
        sources: Sequence[Block],
        target: Block,
        dtype: int,
        op: int,
        factor: float,
        timeout_seconds: float,
        sync: bool,
        keep: object,
    ) -> Work: ...
    def gather(
        self,
        source: Block,
        targets: Sequence[Block],
        dtype: int,
        root: int,
        timeout_seconds: float,
        sync: bool,
        keep: object,
    ) -> Work: ...
    def scatter(
        self,
        sources: Sequence[Block],
        target: Block,
        dtype: int,
        root: int,
        timeout_seconds: float,
        sync: bool,
        keep: object,
    ) -> Work: ...
    def all_to_all(
        self,
        sources: Sequence[Block],
        targets: Sequence[Block],
        dtype: int,
        timeout_seconds: float,
        sync: bool,
        keep: object,
    ) -> Work: ...
    def barrier(self, timeout_seconds: float, sync: bool) -> Work: ...
    def send(
        self,
        tensor: int,
        count: int,
        dtype: int,
        destination: int,
        tag: int,
        timeout_seconds: float,
        sync: bool,
        keep: object,
    ) -> Work: ...
    def recv(
        self,
        tensor: int,
        count: int,
        dtype: int,
        source: int,
        tag: int,
        timeout_seconds: float,
        sync: bool,
        keep: object,
    ) -> Work: ...  # source -1: any

# The one spelling of a graph, as in Config.graph. Raises ValueError.
def canonical_graph(graph: str) -> str: ...

# Whether it is one of any number of members.
def fits_any_size(graph: str) -> bool: ...

# The pairs of ranks that may talk; None: all. Raises ValueError.
def overlay(addresses: Sequence[bytes], graph: str) -> list[tuple[int, int]] | None: ...

class Communicator(CollectiveCalls):
    """One group of members of a run: collectives in a fixed order, messages by tag."""

    def __init__(
        self,
        context: Context,
        name: str,
        rank: int,
        addresses: Sequence[bytes],
        timeout_seconds: float = 1800,
        algorithm: str = "auto",
        deterministic: bool = False,
        probes: bool = False,
        graph: Sequence[tuple[int, int]] | None = None,  # pairs that may talk; None: all
    ) -> None: ...
    timeout_seconds: float
    # Rank 0 waits for a message of every other rank. On a timeout rank 0 raises CollectiveTimeout
    # naming the first (wait_all_ranks: every) missing rank, the others name rank 0.
    def monitored_barrier(self, timeout_seconds: float, wait_all_ranks: bool) -> None: ...
    def abort(
        self, reason: str
    ) -> None: ...  # every operation of the group fails, here and at the others
    def close(self) -> None: ...  # local; the group's name may not be used again in this context
    def error(self) -> str: ...  # "" or why the group is broken
    def plan(
        self, collective: str, count: int, dtype: int
    ) -> str: ...  # algorithm chosen, for bench and docs

class Run(CollectiveCalls):
    """One member of an elastic run: who is in may change between and during calls."""

    def __init__(
        self,
        name: str,
        coordinator_host: str,
        coordinator_port: int,
        *,
        bind_host: str = "",
        port: int = 0,
        advertise_hosts: Sequence[str] = (),
        sockets: int = 1,
        congestion_control: str = "kernel",
        shared_memory: bool = True,
        connect_timeout_seconds: float = 30,
        timeout_seconds: float = 1800,
        algorithm: str = "auto",
        deterministic: bool = False,
        probes: bool = False,
        takeover_seconds: float = 10,
        trace_folder: str = "",
        tls: str = "remote",  # as in Context
        key_file: str = "",  # "" = a new key
        coordinator_key: bytes = b"",  # its fingerprint, 32 bytes; b"" = none, for loopback
        token: bytes = b"",  # 16 bytes; b"" = none
        outward: bool = False,  # as in Context, and `graph`
        graph: str = "",
    ) -> None: ...  # begins to join
    timeout_seconds: float
    # False: not by then. They raise what ended the run, and KeyboardInterrupt.
    def wait_until_joined(self, timeout_seconds: float) -> bool: ...
    def wait_for_members(self, count: int, timeout_seconds: float) -> bool: ...
    def wait_for_change(self, quorum_id: int, timeout_seconds: float) -> bool: ...
    @property
    def place(self) -> tuple[int, int, int]: ...  # rank, world_size, quorum_id, of one moment
    @property
    def edges(self) -> list[tuple[int, int]] | None: ...  # ranks that may talk; None: all
    @property
    def in_force(self) -> tuple[int, int, int]: ...  # the same, whether pinned or not
    # Calls mean the ranks of the quorum in force now until unpin(); where it has changed by then
    # they end in MemberLost on every member.
    def pin(self) -> tuple[int, int, int]: ...
    def unpin(self) -> None: ...
    @property
    def member_id(self) -> str: ...  # 8 hex digits, as in members and contributions
    @property
    def members(self) -> list[tuple[str, str, int]]: ...  # by rank: id, "host:port", joined_at
    def flight_record(self) -> str: ...  # JSON lines
    # Its events after the first `seen` ones, and how many there are now.
    def flight_events(self, seen: int) -> tuple[str, int]: ...
    @property
    def trouble(self) -> str: ...  # with the coordinator; "" if there is none
    @property
    def links(self) -> list[tuple[int, int, float, float]]: ...  # from, to, bytes/s, round trip
    @property
    def round_trip_seconds(self) -> float: ...  # to the coordinator; 0: unknown
    # Newcomers enter between any two operations until gate_newcomers(); then they wait for every
    # member's admit().
    def gate_newcomers(self) -> None: ...
    @property
    def pending_quorum_id(self) -> int: ...  # that newcomers wait for; 0: none
    def admit(self, quorum_id: int) -> None: ...
    def set_revision(self, revision: int, digest: bytes) -> None: ...  # digest: 32 bytes
    @property
    def committed_revision(self) -> tuple[int, bytes]: ...  # with its digest; 0: none
    # Messages about the shared state, which those of send() and recv() never meet; in another
    # quorum they end in MemberLost. tag: 0..2147483647.
    def send_state(
        self,
        quorum_id: int,
        rank: int,
        tag: int,
        pointer: int,
        bytes: int,
        timeout_seconds: float,  # 0: the run's
        keep: object,
    ) -> Work: ...
    def receive_state(
        self,
        quorum_id: int,
        rank: int,  # -1 = of anybody
        tag: int,
        pointer: int,
        bytes: int,
        timeout_seconds: float,
        keep: object,
    ) -> Work: ...
    def describe_address(self) -> str: ...
    def wait_completions(self, timeout_seconds: float) -> list[Work]: ...
    def statistics(self) -> dict[str, int]: ...
    # Those of Context, recovered_operations, recovery_microseconds
    def error(self) -> str: ...  # "" or why it ended
    def plan(self, collective: str, count: int, dtype: int) -> str: ...
    def abort(self, reason: str) -> None: ...  # every operation fails, here and at the others
    def leave(self) -> None: ...  # politely; idempotent

class DLPackBuffer:
    """A CPU array of any library, by __dlpack__: no copy; alive as long as this object is."""

    def __init__(
        self, array: object
    ) -> None: ...  # TypeError: no __dlpack__ / not CPU; ValueError: unsupported dtype
    @property
    def pointer(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def dtype(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def contiguous(self) -> bool: ...
    @property
    def readonly(self) -> bool: ...

def make_key_file(path: str) -> bytes: ...  # of a new key, its fingerprint
def read_key_file(path: str) -> bytes: ...  # its fingerprint
def token_id(secret: bytes) -> bytes: ...  # 8 bytes, no secret

class KeyBook:
    """Keys and tokens of a coordinator's runs, in a file beside its database."""

    def __init__(self, database: str) -> None: ...
    @property
    def path(self) -> str: ...
    # Tokens are secrets of 16 bytes.
    def invite(self, run: str, uses: int = 0, seconds: float = 0) -> bytes: ...  # 0 = no limit
    def standing_token(self, run: str, key_file: str) -> bytes: ...
    def revoke_key(self, run: str, fingerprint: bytes) -> None: ...
    def revoke_token(self, run: str, token_id: bytes, with_keys: bool = False) -> bool: ...
    # Oldest first: id, is_standing, is_revoked, used; issued (None = not noted), expires (None =
    # never; both in seconds since 1970), uses_left (None = any number).
    def tokens(self, run: str) -> list[dict[str, Any]]: ...
    # As they came: fingerprint, token (its id; None = never admitted), is_revoked.
    def keys(self, run: str) -> list[dict[str, Any]]: ...

class CoordinatorServer:
    """Decides who is in its runs: socket and database, driven by threads of its own."""

    def __init__(
        self,
        database: str,  # path of its file
        *,
        bind_host: str = "",  # "" = all interfaces, IPv4 and IPv6
        port: int = 0,  # 0 = any free port
        advertise_hosts: Sequence[str] = (),  # () = found by itself
        runs: Mapping[str, int] = {},  # name -> world size to begin and go on with; {} = any run
        heartbeat_seconds: float = 0.5,
        silence_seconds: float = 10,
        link_grace_seconds: float = 10,
        takeover_seconds: float = 10,
        listen_seconds: float = 0,
        tls: str = "remote",  # as in Context; "never" = no keys and tokens
        key_file: str = "",  # made if it is not there; "" = a new key
    ) -> None: ...
    @property
    def fingerprint(self) -> bytes: ...
    @property
    def hosts(self) -> list[str]: ...
    @property
    def port(self) -> int: ...
    @property
    def is_closed(self) -> bool: ...
    def status(self) -> dict[str, Any]: ...  # see csrc/membership/coordinator_server.h
    def next_events(
        self, timeout_seconds: float
    ) -> list[dict[str, Any]]: ...  # since the last call; waits for the first
    def abandon(self, run: str) -> str: ...  # why not; "" = done
    def close(self) -> None: ...  # idempotent

def probe(
    host: str,
    port: int,
    run: str,
    *,
    fingerprint: bytes = b"",  # of the key that must answer; b"" = speak plainly
    token: bytes = b"",
    key_file: str = "",  # "" = a new key
    timeout_seconds: float = 5,
) -> tuple[int, int, str]:
    """Ask whether somebody is there, and change nothing: protocol version, answer, words.

    Version -1: what answered is no pccl; answer -1: it is of another version. Raises ConnectError:
    no connection, another key, no answer in time. ValueError: the key file is none.
    """

def examine(
    host: str,
    port: int,
    run: str,
    own_port: int,  # which the coordinator is to dial at the address that it sees; 0 = none
    *,
    fingerprint: bytes = b"",
    token: bytes = b"",
    key_file: str = "",
    timeout_seconds: float = 20,
) -> dict[str, Any]:
    """Ask a coordinator how it sees this machine: a dial back, and a burst of bytes each way.

    reply: as of probe(); unless its answer is 3, the rest is empty. seen_as: "address:port";
    was_dialed, is_reached, dial_seconds, error: of the dial back; sent_bytes_per_second,
    received_bytes_per_second (0 = unknown). Takes some seconds, releases the GIL. Raises as
    probe().
    """

# Codecs, by name ("int8", "int4:hadamard", ...): see pccl/codecs.py. All release the GIL.
def parse_codec(name: str) -> tuple[str, int, int]:
    """Return its full name, the two bytes it is on the wire, and elements of a block.

    Raises ValueError: there is no such codec; the text lists those there are.
    """

def read_segment(wire: bytes) -> tuple[str, int, int] | None:
    """Return codec, dtype (-1: any float) and elements as the header says; None: no header."""

def encoded_bytes(codec: str, dtype: int, count: int) -> int: ...
def encode(
    codec: str,
    source: Block,
    dtype: int,
    *,
    divisor: float = 1,
    seed: int = 0,
    step: int = 0,
    first_element: int = 0,
    residual: int = 0,  # pointer to `count` float32: with error feedback
    estimate: int = 0,  # likewise: EF21
) -> bytes:
    """Raises ValueError for a wrong codec or dtype, NonFiniteContribution for NaN and infinity."""

def combine(
    codec: str,
    own: Block,
    dtype: int,
    wires: list[bytes],
    *,
    divisor: float = 1,
    seed: int = 0,
    step: int = 0,
    first_element: int = 0,
) -> bytes:
    """Raises as encode() and, for one of `wires` that is no such segment, RemoteProtocolError."""

def decode(codec: str, wire: bytes, target: Block, dtype: int, *, adds: bool = False) -> None:
    """Set, or with `adds` (float32) add to, `target`. Raises RemoteProtocolError for bad bytes."""

def load_cuda_codecs(path: str) -> bool:
    """Whether the codecs on a device are there; the first call's path counts."""

def has_cuda_kernels(codec: str, dtype: int) -> bool: ...
def cuda_encode(
    codec: str,
    values: Block,
    dtype: int,
    payload: int,
    nonfinite: int,
    stream: int,
    *,
    seed: int = 0,
    step: int = 0,
) -> None:
    """Device memory; put into the stream. Raises RuntimeError for an error of CUDA."""

def cuda_decode(codec: str, payload: int, values: Block, dtype: int, stream: int) -> None:
    """Likewise; what is decoded was accepted on the host."""

def simd_target() -> str: ...

Edges = list[tuple[int, int]]  # names for types only

class Network:
    """Links among ranks 0..world_size-1, for planning; lists are [from * world_size + to]."""
    def __init__(
        self,
        world_size: int,
        bytes_per_second: Sequence[float],  # 0: the pair may carry nothing
        latency_seconds: Sequence[float] = [],  # one way; empty: 0
        out_bytes_per_second: Sequence[float] = [],  # [rank]; empty: no caps
        in_bytes_per_second: Sequence[float] = [],
    ) -> None: ...
    def bounds(self) -> tuple[float, float]: ...  # by cuts, by sums; bytes a second
    def sites(self) -> list[int]: ...  # [rank]
    def packed_rate(self) -> float: ...  # bytes a second
    def plan(self, count: int, element_bytes: int, algorithm: str) -> dict[str, Any]: ...
    def fault(self, schedule: dict[str, Any], count: int) -> str: ...  # "" if it is right
    def restricted(self, edges: Sequence[tuple[int, int]]) -> Network: ...
    def accepting(self, accepts: Sequence[bool]) -> Network: ...
    def best_regular_graph(self, degree: int, seed: int) -> Edges: ...

def graph(name: str, world_size: int, degree: int, seed: int) -> Edges: ...
def overlay_edges(graph: str, world_size: int) -> Edges: ...
def gossip_round(graph: str, world_size: int, round: int, seed: int) -> list[float]: ...
def gossip_period(graph: str, world_size: int) -> int: ...
