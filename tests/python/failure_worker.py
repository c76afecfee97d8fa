"""One rank as a process of its own: reads commands from stdin, tells what happened on stdout.

A command and an event are one line of JSON each. A command {"do": "open", ...} calls the method of
that name; its dictionary comes back as {"event": "done", ...}, an exception of the library as
{"event": "error", "kind": "MemberLost", "text": ..., "time": ...}. `time` is time.monotonic(), the
same in all processes of a machine. See rank_processes.py for the other side.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import select
import signal
import sys
import threading
import time
from typing import Any

import numpy as np
from worker_calls import EXPECTED, Spec, call_api, describe, digest, launch, resources, tell

from pccl import _core


class Worker:
    """The commands. `context` and `group` are those of the last open() and join()."""

    context: _core.Context
    group: _core.Communicator
    world: Any  # pccl.Communicator of init()
    _watched: list[np.ndarray]
    _digest: str

    def __init__(self) -> None:
        self._waiter: threading.Thread | None = None

    # --- setting up ---

    def open(self, **options: Any) -> Spec:
        self.context = _core.Context(options.pop("run", "test"), **options)
        return {
            "address": self.context.address.hex(),
            "member": self.context.describe_address().split(",")[0],
        }

    def join(
        self, rank: int, addresses: list[str], name: str = "group", algorithm: str = "auto",
        timeout_seconds: float = 30.0,
    ) -> Spec:  # fmt: skip
        self.group = _core.Communicator(
            self.context,
            name,
            rank,
            [bytes.fromhex(a) for a in addresses],
            timeout_seconds,
            algorithm,
        )
        return {}

    def init(self, method: str, rank: int, world_size: int, **options: Any) -> Spec:
        import pccl

        lists = {name: tuple(value) for name, value in options.items() if isinstance(value, list)}
        config = pccl.Config(**{**options, **lists})
        self.world = pccl.init(method, rank=rank, world_size=world_size, config=config)
        return {}

    # --- calls ---

    def call(self, spec: Spec, timeout_seconds: float = 0) -> Spec:
        _, outputs = launch(self.group, spec, timeout_seconds, True)
        firsts = [float(array.flat[0]) for array in outputs if array.size]
        uniform = all(bool((array == array.flat[0]).all()) for array in outputs if array.size)
        return {"firsts": firsts, "uniform": uniform, "digest": digest(outputs)}

    def start(self, spec: Spec, timeout_seconds: float = 0) -> Spec:
        """Launch and wait, with an event in between."""
        work, outputs = launch(self.group, spec, timeout_seconds, False)
        tell("started")
        work.wait()
        return {"digest": digest(outputs)}

    def call_random(self, count: int, seed: int) -> Spec:
        """all_reduce of random numbers; also how far it is from the sum in float64."""
        everyone = [
            np.random.default_rng(seed + rank).standard_normal(count).astype(np.float32)
            for rank in range(self.group.world_size)
        ]
        own = everyone[self.group.rank].copy()
        pointer = own.ctypes.data
        dtype, op = _core.DATA_TYPES["float32"], _core.REDUCE_OPS["sum"]
        self.group.all_reduce(pointer, pointer, count, dtype, op, 1.0, 0.0, True, own)
        expected = np.sum([array.astype(np.float64) for array in everyone], axis=0)
        return {"digest": digest([own]), "deviation": float(np.abs(own - expected).max(initial=0))}

    def timed(self, count: int, rounds: int) -> Spec:
        """Seconds of each of some all_reduces; connections are made by a first one."""
        data = np.zeros(count, np.float32)
        end = (_core.DATA_TYPES["float32"], _core.REDUCE_OPS["sum"], 1.0, 0.0, True, data)
        seconds = []
        for _ in range(rounds + 1):
            begin = time.monotonic()
            self.group.all_reduce(data.ctypes.data, data.ctypes.data, count, *end)
            seconds.append(time.monotonic() - begin)
        return {"seconds": seconds[1:]}

    def burst(self, count: int, tensors: int) -> Spec:
        """Seconds of all_reduces that are started together, and of the same one by one."""
        dtype, op = _core.DATA_TYPES["float32"], _core.REDUCE_OPS["sum"]
        seconds = []
        for sync in (True, False, True):  # the first for the connections
            data = np.full((tensors, count), self.group.rank + 1, np.float32)
            self.group.barrier(0.0, True)
            begin = time.monotonic()
            works = []
            for row in data:
                pointer = row.ctypes.data
                works.append(
                    self.group.all_reduce(pointer, pointer, count, dtype, op, 1.0, 0.0, sync, row)
                )
            for work in works:
                work.wait()
            seconds.append(time.monotonic() - begin)
            assert (data == self.group.world_size * (self.group.world_size + 1) / 2).all()
        return {"together": seconds[1], "one_by_one": seconds[2], "digest": digest([data])}

    def loop(self, count: int, timeout_seconds: float = 0) -> Spec:
        """all_reduce until a line comes on rank 0's stdin; every rank checks every result."""
        group = self.group
        numbers = np.empty(count + 1, np.float32)  # the last one: whether to stop
        expected = group.world_size * (group.world_size + 1) / 2
        dtype, op = _core.DATA_TYPES["float32"], _core.REDUCE_OPS["sum"]
        rounds = wrong = 0
        longest = 0.0
        while True:
            numbers.fill(group.rank + 1)
            stop = group.rank == 0 and bool(select.select([0], [], [], 0)[0])
            numbers[-1] = stop
            begin = time.monotonic()
            pointer = numbers.ctypes.data
            group.all_reduce(
                pointer, pointer, count + 1, dtype, op, 1.0, timeout_seconds, True, numbers
            )
            if rounds > 0:  # the first one connects
                longest = max(longest, time.monotonic() - begin)
            rounds += 1
            wrong += int((numbers[:-1] != expected).sum())
            if rounds == 1:
                tell("looping")
            if numbers[-1] > 0:
                return {"rounds": rounds, "wrong": wrong, "longest_seconds": longest}

    def call_each(
        self, specs: list[list[Spec]], addresses: list[str], timeout_seconds: float
    ) -> Spec:
        """Each entry in a group of its own: one call after the other; what came of it."""
        control, encoded = self.group, [bytes.fromhex(address) for address in addresses]
        results = []
        for index, calls in enumerate(specs):
            group = _core.Communicator(
                self.context, f"case {index}", control.rank, encoded, timeout_seconds
            )
            begin = time.monotonic()
            errors: list[Spec] = []
            for spec in calls:
                try:
                    launch(group, spec, 0, True)
                except EXPECTED as error:
                    errors.append(describe(error))
            seconds = time.monotonic() - begin
            # Nobody runs ahead or leaves before the others have heard.
            control.barrier(timeout_seconds + 5, True)
            group.close()
            results.append({"errors": errors, "seconds": seconds})
        return {"results": results}

    def call_each_api(self, specs: list[Spec], timeout_seconds: float) -> Spec:
        results = []
        for spec in specs:
            group = self.world.new_group(range(self.world.world_size))
            begin = time.monotonic()
            errors: list[Spec] = []
            try:
                call_api(group, spec, timeout_seconds)
                group.barrier(timeout_seconds=timeout_seconds)
            except EXPECTED as error:
                errors.append(describe(error))
            seconds = time.monotonic() - begin
            self.world.barrier(timeout_seconds=timeout_seconds + 5)
            group.close()
            results.append({"errors": errors, "seconds": seconds})
        return {"results": results}

    def world_call(self, spec: Spec, timeout_seconds: float = 30) -> Spec:
        call_api(self.world, spec, timeout_seconds)
        return {}

    def world_address(self) -> Spec:
        return {"address": self.world._run.context.describe_address().split(",")[0]}

    def wait_in(self, place: str) -> Spec:
        """Wait for others that never come, in one of the places where a program can wait."""
        if place == "with":
            with self.world:
                tell("waiting")
                call_api(self.world, {"collective": "all_reduce"}, 60)
        elif place == "monitored_barrier":
            tell("waiting")
            self.group.monitored_barrier(60, False)
        elif place == "wait":
            work, _ = launch(self.group, {"collective": "all_reduce"}, 60, False)
            tell("waiting")
            work.wait()
        elif place == "rendezvous":
            import pccl

            tell("waiting")
            config = pccl.Config(connect_timeout_seconds=60)
            pccl.init("tcp://127.0.0.1:1", rank=1, world_size=2, config=config)
        else:
            tell("waiting")
            launch(self.group, {"collective": place}, 60, True)
        return {}

    def statistics(self) -> Spec:
        return self.context.statistics()

    def usage(self) -> Spec:
        return resources()

    def forget(self) -> Spec:
        """Drop context and group; what the process holds after that."""
        del self.context, self.group
        gc.collect()
        return resources()

    def watch(self, spec: Spec, timeout_seconds: float = 0) -> Spec:
        """As start(), but keep the output when it fails, for watched()."""
        work, self._watched = launch(self.group, spec, timeout_seconds, False)
        tell("started")
        try:
            work.wait()
        finally:
            self._digest = digest(self._watched)
        return {}

    def watched(self) -> Spec:
        """Whether the output is as when the call failed, and whether it is as before the call."""
        before = all(bool((array == self.group.rank + 1).all()) for array in self._watched)
        return {"same": digest(self._watched) == self._digest, "unchanged": before}

    def flood(self, peer: int, count: int, messages: int, timeout_seconds: float) -> Spec:
        """Send what nobody asked for; how much of it left, and what became of the rest."""
        before = resources()["rss_kib"]
        spec = {"collective": "send", "peer": peer, "count": count, "dtype": "uint8"}
        works = [
            launch(self.group, {**spec, "tag": tag}, timeout_seconds, False)[0]
            for tag in range(messages)
        ]
        tell("flooding")
        sent, errors = 0, []
        for work in works:
            try:
                work.wait()
                sent += 1
            except EXPECTED as error:
                errors.append(describe(error))
        grown = resources()["rss_kib"] - before
        return {"sent": sent, "errors": errors[:2], "failed": len(errors), "grown_kib": grown}

    def drain(self, peer: int, count: int, messages: int) -> Spec:
        """Receive what flood() has sent."""
        right = 0
        for tag in range(messages):
            spec = {"collective": "recv", "peer": peer, "count": count, "dtype": "uint8"}
            _, (array,) = launch(self.group, {**spec, "tag": tag}, 0, True)
            right += bool((array == peer + 1).all())
        return {"right": right}

    def large(self, collective: str, count: int, seed: int) -> Spec:
        """One call on `count` bytes: how many are wrong, and their hash.

        The same 1 MiB of random bytes is repeated, with the number of the repetition in front, so
        that a piece in the wrong place shows.
        """
        data = np.empty(count, np.uint8)
        period = 1 << 20
        pattern = np.random.default_rng(seed).integers(0, 100, period, np.uint8)
        weight = self.group.rank + 1
        for index, begin in enumerate(range(0, count, period)):
            piece = data[begin : begin + period]
            np.multiply(pattern[: piece.size], weight, out=piece)
            piece[:4] = weight * (index // np.array([1, 100, 10_000, 1_000_000]) % 80)
        pointer, dtype = data.ctypes.data, _core.DATA_TYPES["uint8"]
        if collective == "all_reduce":
            op = _core.REDUCE_OPS["sum"]
            self.group.all_reduce(pointer, pointer, count, dtype, op, 1.0, 0.0, True, data)
            weight = sum(range(1, self.group.world_size + 1))
        else:
            self.group.broadcast(pointer, count, dtype, 1, 0.0, True, data)
            weight = 2
        expected = pattern * np.uint8(weight)
        wrong = 0
        for index, begin in enumerate(range(0, count, period)):
            piece = data[begin : begin + period]
            head = weight * (index // np.array([1, 100, 10_000, 1_000_000]) % 80)
            wrong += int((piece[:4] != head.astype(np.uint8)[: piece.size]).sum())
            wrong += int((piece[4:] != expected[4 : piece.size]).sum())
        return {"wrong": wrong, "digest": hashlib.sha256(data).hexdigest()}

    def cycle_contexts(self, cycles: int, shared_memory: bool) -> Spec:
        """Create, use and close a group of two contexts in this process, again and again."""
        usage = []
        for index in range(cycles + 1):
            contexts = [
                _core.Context("cycle", bind_host="127.0.0.1", shared_memory=shared_memory)
                for _ in range(2)
            ]
            addresses = [context.address for context in contexts]
            groups = [
                _core.Communicator(context, "g", rank, addresses, 20.0)
                for rank, context in enumerate(contexts)
            ]
            spec = {"collective": "all_reduce", "count": 10_000}
            works = [launch(group, spec, 0, False)[0] for group in groups]
            for work in works:
                work.wait()
            for group in groups:
                group.close()
            closers = [threading.Thread(target=context.close) for context in contexts]
            for closer in closers:
                closer.start()
            for closer in closers:
                closer.join()
            del works, groups, contexts
            if index in (0, cycles // 2, cycles):
                usage.append(resources())
        return {"usage": usage}

    # --- the end ---

    def close_group(self) -> Spec:
        self.group.close()
        return {}

    def abort(self, reason: str) -> Spec:
        self.group.abort(reason)
        return {}

    def close(self) -> Spec:
        begin = time.monotonic()
        self.context.close()
        return {"seconds": time.monotonic() - begin}

    def close_world(self) -> Spec:
        self.world.close()
        return {}

    def abort_while_waiting(self, reason: str) -> Spec:
        """abort() from another thread than the one that waits."""
        work, _ = launch(self.group, {"collective": "all_reduce"}, 60, False)
        aborter = threading.Thread(target=lambda: self.group.abort(reason))
        aborter.start()
        try:
            work.wait()
        finally:
            aborter.join()
        return {}

    def raise_in_with(self, text: str) -> Spec:
        try:
            with self.world:
                raise LookupError(text)
        except LookupError:
            return {}

    def use_closed(self) -> Spec:
        """What each kind of call on closed objects says."""
        raised = {}
        peer = 1 - min(self.group.rank, 1)
        for spec in (
            {"collective": "all_reduce"},
            {"collective": "barrier"},
            {"collective": "send", "peer": peer},
            {"collective": "recv", "peer": peer},
        ):
            try:
                launch(self.group, spec, 5, True)
                raised[spec["collective"]] = ["", "no error"]
            except EXPECTED as error:
                raised[spec["collective"]] = [type(error).__name__, str(error)]
        return {"raised": raised, "error": self.group.error()}

    def leave(self, manner: str) -> Spec:
        """End the process in the middle of a collective, without closing anything."""
        if manner == "thread waits":
            ready = threading.Event()

            def wait() -> None:
                ready.set()
                launch(self.group, {"collective": "all_reduce"}, 60, True)

            self._waiter = threading.Thread(target=wait, daemon=True)
            self._waiter.start()
            ready.wait(10)
        else:
            launch(self.group, {"collective": "all_reduce", "count": 1 << 20}, 60, False)
        tell("leaving")
        if manner == "os._exit":
            os._exit(3)
        if manner == "exception":
            raise RuntimeError("a fault of the user's program")
        sys.exit(3)


def main() -> None:
    # A shell may have started us with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    worker = Worker()
    tell("ready")
    for line in sys.stdin:
        command = json.loads(line)
        method = getattr(worker, command.pop("do"))
        try:
            tell("done", **method(**command))
        except EXPECTED as error:
            tell("error", **describe(error))
        except KeyboardInterrupt:
            tell("interrupted")
            raise


if __name__ == "__main__":
    main()
