"""Defects of Prime Intellect's PCCL 1.0.0, each found by running it, and here each is a test.

Elsewhere: wrong sums after an abort in place (test_elastic.py, kill -9 in place), a first failed
link that throws its reporter out (test_elastic_wan.py, line 8), a process that ends by exit() on a
bad message (test_strangers.py). The 43 ms floor of each operation is a figure of
benchmarks/all_reduce_vs_gloo.py. Its quantizer, bandwidth test and ring search have no counterpart
here yet.
"""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wire_format as wire
from coordinator_processes import CoordinatorProcess
from member_processes import PATIENCE_SECONDS, agree, by_step, members

import pccl


@pytest.fixture
def coordinator(tmp_path: Path) -> Any:
    with CoordinatorProcess(tmp_path, status=False) as process:
        yield process


def both(
    coordinator: CoordinatorProcess, program: Callable[[pccl.ElasticCommunicator], Any]
) -> list[Any]:
    """What `program` returns at each of two members, which are threads."""
    found: list[Any] = []

    def take_part() -> None:
        with pccl.join(str(coordinator.address), world_size_min=2) as comm:
            found.append(program(comm))

    threads = [threading.Thread(target=take_part) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert len(found) == 2
    return found


def test_four_failures_in_one_run_leak_no_operation(coordinator: CoordinatorProcess) -> None:
    # There, each failure kept a slot, and with none left "all done" was said of what was not.
    with members(6, coordinator.address, "sum", 60, 1 << 20) as started:
        for victim in started[2:]:
            started[0].wait_for("begin", 1)
            victim.wait_for("step", 2)
            victim.kill()
        for member in started[:2]:
            member.finish()
        agree(started[:2], 60)
        assert by_step(started[0])[59]["counts"] == [2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int16, torch.float64])
def test_a_shared_state_of_any_dtype_is_synchronised(
    coordinator: CoordinatorProcess, dtype: torch.dtype
) -> None:
    def program(comm: pccl.ElasticCommunicator) -> torch.Tensor:
        state = torch.full((70_001,), comm.rank, dtype=dtype)
        comm.sync_state({"state": state})
        return state

    first, second = both(coordinator, program)
    assert torch.equal(first, second)


def test_a_slice_at_any_address_works(coordinator: CoordinatorProcess) -> None:
    def program(comm: pccl.ElasticCommunicator) -> bytes:
        memory = np.zeros(4 * 5000 + 3, np.uint8)
        numbers = memory[3:].view(np.float32)  # aligned to nothing
        numbers[:] = comm.rank + 1
        comm.all_reduce(numbers)
        assert (numbers == 3).all()
        comm.sync_state({"numbers": numbers, "bytes": memory[1:4]})
        return memory.tobytes()

    first, second = both(coordinator, program)
    assert first == second


def test_a_handshake_that_comes_byte_by_byte_is_understood(
    coordinator: CoordinatorProcess,
) -> None:
    # There, a TCP segment that split a length made the master drop its client.
    stranger = wire.Address(run=coordinator.address.run)
    message = wire.hello(stranger, bytes(16))
    with socket.create_connection(("127.0.0.1", coordinator.port), 5) as caller:
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        caller.settimeout(5)
        for byte in message:
            caller.sendall(bytes([byte]))
        answer, reason = wire.read_reply(caller)
        assert answer == 0, reason


def test_a_length_without_bounds_allocates_nothing(coordinator: CoordinatorProcess) -> None:
    def resident_kib() -> int:
        status = Path(f"/proc/{coordinator.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    generator = random.Random(1)
    before = resident_kib()
    for _ in range(50):
        stranger = wire.Address(run=coordinator.address.run)
        with socket.create_connection(("127.0.0.1", coordinator.port), 5) as caller:
            caller.sendall(wire.hello(stranger, bytes(16)))
            assert wire.read_reply(caller)[0] == 0
            length = generator.choice([1 << 30, (1 << 32) - 1])
            caller.sendall(wire.Frame(type=8, length=length).encode(b"x" * 1000))
            caller.settimeout(5)
            # A goodbye may come first; then the connection ends.
            while caller.recv(4096):
                pass
    assert resident_kib() - before < 16 * 1024
    with pccl.join(str(coordinator.address)) as comm:
        assert comm.world_size == 1
