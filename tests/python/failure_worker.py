"""One rank as a process of its own: reads commands from stdin, tells what happened on stdout.

A command and an event are one line of JSON each. A command {"do": "open", ...} calls the method of that
name; its dictionary comes back as {"event": "done", ...}, an exception of the library as
{"event": "error", "kind": "MemberLost", "text": ..., "time": ...}. `time` is time.monotonic(), which all
processes of a machine share. See rank_processes.py for the other side.
"""

from __future__ import annotations

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

from pccl import _core

Spec = dict[str, Any]  # a call: collective, dtype, count, op, root, counts, receives

# What a test may provoke. Anything else is a fault of the worker and ends it with a traceback.
EXPECTED = (_core.PcclError, ValueError, TypeError)


def tell(event: str, **fields: object) -> None:
    sys.stdout.write(json.dumps({"event": event, "time": time.monotonic(), **fields}) + "\n")
    sys.stdout.flush()


def describe(error: BaseException) -> dict[str, object]:
    return {"kind": type(error).__name__, "text": str(error), "time": time.monotonic()}


def launch(
    group: _core.Communicator, spec: Spec, timeout_seconds: float, sync: bool
) -> tuple[_core.Work, list[np.ndarray]]:
    """Start the call that `spec` describes; every input element holds this rank + 1."""
    collective = spec["collective"]
    if collective == "barrier":
        return group.barrier(timeout_seconds, sync), []
    dtype_name = spec.get("dtype", "float32")
    dtype = _core.DATA_TYPES[dtype_name]
    op = _core.REDUCE_OPS[spec.get("op", "sum")]
    root = spec.get("root", 0)
    count = spec.get("count", 1000)
    counts = spec.get("counts", [count] * group.world_size)
    receives = spec.get("receives", counts)

    def filled(length: int) -> np.ndarray:
        return np.full(length, group.rank + 1, dtype_name)

    def blocks(arrays: list[np.ndarray]) -> list[tuple[int, int]]:
        return [(array.ctypes.data, array.size) for array in arrays]

    one = filled(count)
    inputs = [filled(length) for length in counts]
    outputs = [filled(length) for length in receives]
    own = filled(counts[group.rank])
    keep = (one, inputs, outputs, own)
    end = (timeout_seconds, sync, keep)
    at_root = group.rank == root
    if collective == "all_reduce":
        pointer = one.ctypes.data
        return group.all_reduce(pointer, pointer, count, dtype, op, 1.0, *end), [one]
    if collective == "reduce":
        pointer = one.ctypes.data
        return group.reduce(pointer, pointer, count, dtype, op, 1.0, root, *end), [one]
    if collective == "broadcast":
        return group.broadcast(one.ctypes.data, count, dtype, root, *end), [one]
    if collective == "all_gather":
        return group.all_gather(blocks([own])[0], blocks(outputs), dtype, *end), outputs
    if collective == "reduce_scatter":
        work = group.reduce_scatter(blocks(inputs), blocks([own])[0], dtype, op, 1.0, *end)
        return work, [own]
    if collective == "gather":
        targets = blocks(outputs) if at_root else []
        return group.gather(blocks([own])[0], targets, dtype, root, *end), outputs
    if collective == "scatter":
        sources = blocks(inputs) if at_root else []
        return group.scatter(sources, blocks([own])[0], dtype, root, *end), [own]
    if collective == "all_to_all":
        return group.all_to_all(blocks(inputs), blocks(outputs), dtype, *end), outputs
    if collective == "send":
        work = group.send(one.ctypes.data, count, dtype, spec["peer"], spec.get("tag", 0), *end)
        return work, []
    if collective == "recv":
        work = group.recv(one.ctypes.data, count, dtype, spec["peer"], spec.get("tag", 0), *end)
        return work, [one]
    raise AssertionError(f"unknown collective {collective}")


def call_api(group: Any, spec: Spec, timeout_seconds: float) -> None:
    """The same through pccl.communicator."""
    collective = spec["collective"]
    seconds = {"timeout_seconds": timeout_seconds}
    if collective == "barrier":
        group.barrier(**seconds)
        return
    dtype = spec.get("dtype", "float32")
    count = spec.get("count", 1000)
    counts = spec.get("counts", [count] * group.world_size)
    receives = spec.get("receives", counts)
    root = spec.get("root", 0)
    op = spec.get("op", "sum")
    one = np.full(count, group.rank + 1, dtype)
    own = np.full(counts[group.rank], group.rank + 1, dtype)
    inputs = [np.full(length, group.rank + 1, dtype) for length in counts]
    outputs = [np.full(length, group.rank + 1, dtype) for length in receives]
    at_root = group.rank == root
    if collective == "all_reduce":
        group.all_reduce(one, op, **seconds)
    elif collective == "reduce":
        group.reduce(one, root, op, **seconds)
    elif collective == "broadcast":
        group.broadcast(one, root, **seconds)
    elif collective == "all_gather":
        group.all_gather(outputs, own, **seconds)
    elif collective == "reduce_scatter":
        group.reduce_scatter(own, inputs, op, **seconds)
    elif collective == "gather":
        group.gather(own, outputs if at_root else None, root, **seconds)
    elif collective == "scatter":
        group.scatter(own, inputs if at_root else None, root, **seconds)
    elif collective == "all_to_all":
        group.all_to_all(outputs, inputs, **seconds)
    else:
        raise AssertionError(f"unknown collective {collective}")


def digest(arrays: list[np.ndarray]) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


class Worker:
    """The commands. `context` and `group` are those of the last open() and join()."""

    context: _core.Context
    group: _core.Communicator
    world: Any  # pccl.Communicator of init()

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
            self.context, name, rank, [bytes.fromhex(a) for a in addresses], timeout_seconds, algorithm
        )
        return {}

    def init(self, method: str, rank: int, world_size: int, **options: Any) -> Spec:
        import pccl

        config = pccl.Config(**options)
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
        """all_reduce of random numbers; also how far it is from the sum that numpy makes in float64."""
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

    def loop(self, count: int, timeout_seconds: float = 0) -> Spec:
        """all_reduce until a line comes on rank 0's stdin; every result is checked on every rank."""
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

    def call_each(self, specs: list[list[Spec]], addresses: list[str], timeout_seconds: float) -> Spec:
        """Each entry in a group of its own: launch its calls, then wait for all; what came of it."""
        control, encoded = self.group, [bytes.fromhex(address) for address in addresses]
        results = []
        for index, calls in enumerate(specs):
            group = _core.Communicator(
                self.context, f"case {index}", control.rank, encoded, timeout_seconds
            )
            begin = time.monotonic()
            errors: list[Spec] = []
            works = []
            try:
                works = [launch(group, spec, 0, False)[0] for spec in calls]
            except EXPECTED as error:
                errors.append(describe(error))
            for work in works:
                try:
                    work.wait()
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
            except EXPECTED as error:
                errors.append(describe(error))
            seconds = time.monotonic() - begin
            self.world.barrier(timeout_seconds=timeout_seconds + 5)
            group.close()
            results.append({"errors": errors, "seconds": seconds})
        return {"results": results}

    def refuse_bad_arguments(self) -> Spec:
        """Calls that are wrong on this rank alone; what each raised, and what was sent meanwhile."""
        import bad_arguments

        before = self.world.statistics()
        raised = {}
        for name, function in bad_arguments.api_calls(self.world).items():
            raised[name] = attempt(function)
        after = self.world.statistics()
        return {"raised": raised, "before": before, "after": after}

    def refuse_bad_core_arguments(self) -> Spec:
        import bad_arguments

        before = self.context.statistics()
        raised = {}
        for name, function in bad_arguments.core_calls(self.group).items():
            raised[name] = attempt(function)
        after = self.context.statistics()
        return {"raised": raised, "before": before, "after": after}

    def world_call(self, spec: Spec, timeout_seconds: float = 30) -> Spec:
        call_api(self.world, spec, timeout_seconds)
        return {}

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


def attempt(function: Any) -> list[str]:
    try:
        function()
    except EXPECTED as error:
        return [type(error).__name__, str(error)]
    return ["", "no error"]


def resources() -> dict[str, int]:
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    with open("/proc/self/maps") as file:
        shared = sum("memfd:pccl" in line for line in file)
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": int(status["Threads"]),
        "rss_kib": int(status["VmRSS"].split()[0]),
        "shared_maps": shared,
    }


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
