"""How a group comes to be: torch's options, the meeting in torch's store, the first run."""

from __future__ import annotations

import functools
import time
import weakref
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _register_work, _resolve_process_group
from torch.distributed import distributed_c10d

from pccl._logs import set_log_level
from pccl._run import ContextOpener, Run
from pccl.config import Config
from pccl.process_group.elastic import ChangingWorld, join_group, run_address
from pccl.process_group.group import ProcessGroupPCCL
from pccl.process_group.reconfigure import ReconfigurableProcessGroup
from pccl.rendezvous import exchange_through_store

# The run of the default group, whose sub-groups share its context. One a process, as torch has one
# default group a process.
_world: weakref.ref[Run] | None = None


def create(options: Any, group_options: Any = None) -> ProcessGroupPCCL:
    """Make a group for torch; the creator function of the backend.

    The default group joins an elastic run if init_method is its address, or PCCL_RUN is set.

    Args:
        options: torch's _DistributedBackendOptions: store, ranks, timeout.
        group_options: a pccl.Config, from the argument `pg_options`; None reads the PCCL_*
            variables. A sub-group shares the sockets of the default group and takes only its
            `algorithm` and `codec`.

    Raises:
        ConnectError: not all ranks came in time; the message names the missing.
    """
    global _world
    if group_options is not None and not isinstance(group_options, Config):
        raise TypeError(f"pg_options: expected a pccl.Config, got {type(group_options).__name__}")
    config = group_options or Config.from_environment()
    set_log_level(config.log)
    world_ranks = list(options.global_ranks_in_group)
    _define_out_form()
    _let_groups_shrink()
    is_default = not world_ranks
    if is_default and getattr(options, "enable_reconfigure", False):
        place = options.group_rank, options.group_size
        return ReconfigurableProcessGroup(
            place, options.group_id, options.timeout, config, options.store
        )
    if is_default and (address := run_address(options.store, config)):
        return join_group(address, options, config)
    if isinstance(dist.group.WORLD, ChangingWorld):
        dist.group.WORLD.splitGroup()  # says that it can not
    world = _world() if _world is not None else None
    if not is_default and world is not None and not world.closed:
        run = world
        if isinstance(dist.group.WORLD, ProcessGroupPCCL):  # which may have shrunk
            world_ranks = [dist.group.WORLD._world_ranks[rank] for rank in world_ranks]
    else:
        run = _meet(options, config)
        world_ranks = list(range(options.group_size))
    group = ProcessGroupPCCL(
        run,
        world_ranks,
        options.group_id,
        options.timeout,
        algorithm=config.algorithm if group_options else "",
        codec=config.codec,
        store=options.store,
    )
    if is_default:
        _world = weakref.ref(run)
    return group


@functools.cache
def _define_out_form() -> None:
    """Make the functional all_gather_into_tensor_out reach groups written in Python.

    Up to torch 2.13 its C++ looks for a C++ backend in the group. This kernel does the same through
    the group's method, for groups of any kind.
    """
    operator = "all_gather_into_tensor_out"
    if not hasattr(torch.ops._c10d_functional, operator):
        return

    def gather(input: Tensor, group_size: int, group_name: Any, *, out: Tensor) -> Tensor:
        group = group_name  # a name, or since torch 2.13 also the group itself
        if isinstance(group, str):
            group = _resolve_process_group(cast(Any, group))
        _register_work(out, group._allgather_base(out, input))
        return out

    # Kept for the life of the process: dropping the library would undo it.
    library: Any = torch.library.Library
    _libraries.append(library("_c10d_functional", "IMPL"))
    for device in ("CPU", "CUDA"):
        _libraries[-1].impl(operator, gather, device)


_libraries: list[Any] = []


@functools.cache
def _let_groups_shrink() -> None:
    """Make dist.shrink_group() take the group that shrink() returns.

    torch would put it as a backend into a group of its own, and takes only backends in C++.
    """
    name = "_create_shrunk_process_group"
    make = getattr(distributed_c10d, name, None)
    if make is None:
        return

    def create_shrunk(backend: Any, ranks: Any, metadata: Any, is_default_group: bool) -> Any:
        if not isinstance(backend, ProcessGroupPCCL):
            return make(backend, ranks, metadata, is_default_group)
        backend.setGroupName(metadata["new_group_name"])
        return backend

    setattr(distributed_c10d, name, create_shrunk)


def _meet(options: Any, config: Config) -> Run:
    """Meet the other ranks in torch's store."""
    rank, world_size = options.group_rank, options.group_size
    # A group may want its operations to fail within a second; starting processes takes longer.
    patience = max(options.timeout.total_seconds(), config.connect_timeout_seconds)
    opener = ContextOpener(config)
    try:
        addresses = exchange_through_store(
            options.store, opener, rank, world_size, time.monotonic() + patience
        )
        return Run(opener.take(), rank, addresses, config)
    finally:
        opener.close()
