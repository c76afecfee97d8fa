"""Meeting in a key-value store, a torch.distributed one or any other."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

from pccl._core import ConnectError, PcclError
from pccl.rendezvous.messages import (
    POLL_SECONDS_MAX,
    POLL_SECONDS_MIN,
    WORD_OF_RANK_0_SECONDS,
    Opener,
    describe_missing,
    encode_list,
    parse_list,
    remaining,
)

# How long rank 0 looks which addresses are there when it has given up, in a store without check().
_LOOK_SECONDS = 1.0


class Store(Protocol):
    """What a key-value store must be able to do; torch.distributed's stores fit.

    `get` waits until the key is set, or raises. Keys are used once: give each run a fresh store, or
    a torch store, of which repeated use is told apart.
    """

    def set(self, key: str, value: bytes) -> object: ...
    def get(self, key: str) -> bytes: ...


def exchange_through_store(
    store: Store,
    opener: Opener,
    rank: int,
    world_size: int,
    deadline: float,
    *,
    prefix: str = "pccl",
) -> list[bytes]:
    """Exchange addresses through `store`: rank 0 collects them and publishes the list.

    3 round trips to the store a rank, P at rank 0. With a torch store, or any that has
    `add(key, amount)`, the same store serves again and again: each rank counts its visits.

    Raises:
        ConnectError: not all ranks came before the deadline; they are named on every rank.
    """
    visit = store.add(f"{prefix}/visits/{rank}", 1) if hasattr(store, "add") else 1
    keys = f"{prefix}/{visit}"
    started = time.monotonic()
    if rank == 0:
        run = secrets.token_hex(16)
        store.set(f"{keys}/run", run.encode())
    else:
        run = _get(store, f"{keys}/run", deadline, lambda: [0], world_size, started).decode()
    store.set(f"{keys}/address/{rank}", opener(run))

    def missing() -> list[int]:
        seconds = _LOOK_SECONDS / world_size
        return [r for r in range(world_size) if not _has(store, f"{keys}/address/{r}", seconds)]

    if rank != 0:
        list_deadline = deadline + WORD_OF_RANK_0_SECONDS
        text = _get(
            store, f"{keys}/addresses", list_deadline, lambda: missing() or [0], world_size, started
        )
        return parse_list(json.loads(text), world_size)
    addresses = []
    try:
        for other in range(world_size):
            key = f"{keys}/address/{other}"
            addresses.append(_get(store, key, deadline, missing, world_size, started))
    except ConnectError as error:
        store.set(f"{keys}/addresses", json.dumps({"error": str(error)}).encode())
        raise
    store.set(f"{keys}/addresses", json.dumps(encode_list(addresses)).encode())
    return addresses


def _has(store: Any, key: str, seconds: float) -> bool:
    if hasattr(store, "check"):
        return bool(store.check([key]))
    try:
        _get_in_thread(store, key, time.monotonic() + seconds)
    except Exception:  # not there, or the store is gone: it cannot be told apart
        return False
    return True


def _get(
    store: Any,
    key: str,
    deadline: float,
    missing: Callable[[], list[int]],
    world_size: int,
    started: float,
) -> bytes:
    """store.get(key), or ConnectError after the deadline, naming `missing()`."""
    wait = getattr(store, "wait", None)
    try:
        if wait is None:
            return _get_in_thread(store, key, deadline)
        # torch takes 0 for "no limit", and whole milliseconds only.
        wait([key], timedelta(milliseconds=max(1, int(remaining(deadline) * 1000))))
        return bytes(store.get(key))
    except (LookupError, TimeoutError, RuntimeError) as error:
        if isinstance(error, PcclError):
            raise
        if remaining(deadline) > 0.05:
            raise ConnectError(f"rendezvous: the store failed on {key!r}: {error}") from error
        raise ConnectError(
            f"rendezvous: waited {time.monotonic() - started:.1f} s for "
            f"{describe_missing(missing(), world_size)} to publish an address in the store"
        ) from error


def _get_in_thread(store: Store, key: str, deadline: float) -> bytes:
    """Bound a `get` that knows no deadline. A thread that never returns is left behind (daemon)."""
    result: list[bytes] = []
    failure: list[BaseException] = []

    def get() -> None:
        pause = POLL_SECONDS_MIN
        while True:
            try:
                result.append(store.get(key))
                return
            except (LookupError, TimeoutError) as error:  # not there yet, says the store
                if remaining(deadline) == 0:
                    failure.append(error)
                    return
                time.sleep(pause)
                pause = min(2 * pause, POLL_SECONDS_MAX)
            except BaseException as error:
                failure.append(error)
                return

    thread = threading.Thread(target=get, name="pccl-store-get", daemon=True)
    thread.start()
    thread.join(remaining(deadline))
    if result:
        return result[0]
    if failure:
        raise failure[0]
    raise TimeoutError(key)
