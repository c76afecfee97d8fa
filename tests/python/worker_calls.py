"""The calls of failure_worker.py, from dictionaries, and how it tells what came of them."""

from __future__ import annotations

import hashlib
import json
import os
import sys
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
