"""Checks that make the default group themselves, and end it: on ranks that have none yet."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor


def _rank() -> int:
    return int(os.environ["RANK"])


def _size() -> int:
    return int(os.environ["WORLD_SIZE"])


def _use_and_leave() -> Tensor:
    """One operation over the world, one over a part of it, and the end."""
    assert dist.get_backend() == "pccl"
    assert (dist.get_rank(), dist.get_world_size()) == (_rank(), _size())
    tensor = torch.full((1009,), float(_rank()))
    dist.all_reduce(tensor)
    assert torch.equal(tensor, torch.full((1009,), _size() * (_size() - 1) / 2))
    pair = dist.new_group([0, 1])
    if _rank() < 2:
        dist.broadcast(tensor, 0, group=pair)
    dist.destroy_process_group()
    assert not dist.is_initialized()
    return tensor


def the_backend_is_known_without_importing_it() -> None:
    assert "pccl.process_group" not in sys.modules
    assert "pccl._core" not in sys.modules
    assert dist.is_backend_available("pccl")
    assert dist.Backend("pccl") == "pccl"


def env_init(port: int) -> Tensor:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("pccl")
    return _use_and_leave()


def tcp_init(port: int) -> Tensor:
    method = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("pccl", init_method=method, rank=_rank(), world_size=_size())
    return _use_and_leave()


def file_init(path: str) -> Tensor:
    method = f"file://{path}"
    dist.init_process_group("pccl", init_method=method, rank=_rank(), world_size=_size())
    return _use_and_leave()


def store_init(port: int) -> Tensor:
    store = dist.TCPStore("127.0.0.1", port, _size(), _rank() == 0, timedelta(seconds=30))
    dist.init_process_group("pccl", store=store, rank=_rank(), world_size=_size())
    return _use_and_leave()


def the_same_store_serves_again_and_again(path: str) -> list[Tensor]:
    results = []
    store = dist.FileStore(path, _size())
    for index in range(3):
        prefixed = dist.PrefixStore(str(index), store)
        dist.init_process_group("pccl", store=prefixed, rank=_rank(), world_size=_size())
        results.append(_use_and_leave())
    return results


def groups_for_a_device_are_ours_too(path: str) -> Tensor:
    method = f"file://{path}"
    dist.init_process_group("cpu:pccl", init_method=method, rank=_rank(), world_size=_size())
    tensor = torch.ones(3)
    dist.all_reduce(tensor)
    dist.destroy_process_group()
    return tensor


def options_are_a_config(path: str) -> Tensor:
    import pccl

    method = f"file://{path}"
    with pytest.raises(TypeError, match="pg_options"):
        dist.init_process_group(
            "pccl",
            store=dist.HashStore(),
            rank=0,
            world_size=1,
            pg_options="ring",
        )
    dist.init_process_group(
        "pccl",
        init_method=method,
        rank=_rank(),
        world_size=_size(),
        pg_options=pccl.Config(algorithm="ring", shared_memory=False),
    )
    return _use_and_leave()


def a_second_init_after_an_abort_works(path: str) -> list[Tensor]:
    dist.init_process_group("pccl", init_method=f"file://{path}1", rank=_rank(), world_size=_size())
    tensor = torch.ones(3)
    dist.all_reduce(tensor)
    Path(f"{path}-{_rank()}").touch()
    if _rank() == 1:
        # An abort takes the result from those that don't have it yet.
        deadline = time.monotonic() + 60
        while not all(Path(f"{path}-{rank}").exists() for rank in range(_size())):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        dist.group.WORLD.abort()
    with pytest.raises(RuntimeError):  # noqa: PT012  # one of them, when the word arrives
        for _ in range(1000):
            dist.all_reduce(torch.ones(3))
    dist.destroy_process_group()
    dist.init_process_group("pccl", init_method=f"file://{path}2", rank=_rank(), world_size=_size())
    return [tensor, _use_and_leave()]


def a_rank_that_never_comes_is_named_on_every_rank(path: str) -> None:
    import pccl

    if _rank() == _size() - 1:
        return
    with pytest.raises(RuntimeError) as caught:
        dist.init_process_group(
            "pccl",
            store=dist.FileStore(path, _size()),
            rank=_rank(),
            world_size=_size(),
            timeout=timedelta(seconds=1.5),
            pg_options=pccl.Config(connect_timeout_seconds=1.5),
        )
    assert f"rank {_size() - 1} of {_size()}" in str(caught.value)
