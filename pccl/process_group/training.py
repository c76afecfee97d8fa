"""Training over an elastic group: DDP that survives, and the state that newcomers receive."""

# Not with annotations from __future__: DDP looks for types in those of a hook, and refuses text.
import copy
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from pccl.process_group.elastic import ElasticProcessGroup
from pccl.process_group.tensors import Options


def elastic_average(group: Any, bucket: GradBucket) -> Future[Tensor]:
    """A hook of DDP: each element of a bucket is averaged over the members that are in it.

    One all_reduce a bucket. Without it DDP divides by the world size at the start of the backward
    pass, which is too much by the members that die during it.

    Args:
        group: the process group, or None for the default one.
    """
    group = group or dist.group.WORLD
    work = group.allreduce([bucket.buffer()], Options(reduce_op=dist.ReduceOp.AVG))
    future: Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future


def elastic_ddp(module: torch.nn.Module, **options: Any) -> DistributedDataParallel:
    """DistributedDataParallel for a group that newcomers join; call sync_state() before each step.

    Old and new members must do the same operations in a step, so DDP may do none of its own:
    sync_state() gives everybody the same parameters and buffers, not the constructor or the forward
    pass (`init_sync`, `broadcast_buffers`), and the buckets stay as they are
    (`find_unused_parameters`; otherwise each copy of DDP forms them anew after its first step). It
    costs a pass over the autograd graph and an all_reduce of 4 bytes a parameter in each step.

    Args:
        options: of DistributedDataParallel, except those three.
    """
    ddp = DistributedDataParallel(module, init_sync=False, find_unused_parameters=True, **options)
    ddp.broadcast_buffers = False  # the argument of the constructor has changed its name
    ddp.register_comm_hook(options.get("process_group"), elastic_average)
    return ddp


def sync_state(
    module: torch.nn.Module,
    optimizer: Optimizer | None = None,
    *,
    group: Any = None,
    revision: int | None = None,
    **more: Tensor,
) -> int:
    """Give every member the same bytes of a training; let newcomers in. Returns the revision.

    Everything of ElasticCommunicator.sync_state() holds. Where an optimizer has not stepped yet,
    here or anywhere, its state is neither made nor changed, unless others have it: then a newcomer
    gets it. What it looks like is found by a step of a copy, once: S bytes for a moment.

    Args:
        module: its parameters and buffers; a DDP module and the one inside it are the same.
        optimizer: of torch.optim, or alike: its state is tensors and numbers for each parameter.
            The numbers of its param_groups (lr and the like) belong to the state.
        group: an elastic process group. None: the default one.
        more: other tensors by name: a counter of steps, a random generator's state.

    Raises:
        TypeError: the group is not elastic.
    """
    group = group or dist.group.WORLD
    if not isinstance(group, ElasticProcessGroup):
        raise TypeError(f"sync_state: expected the group of an elastic run, got {group!r}")
    if isinstance(module, DistributedDataParallel):
        module = module.module
    state = {f"model.{name}": value.detach() for name, value in _tensors_of(module)}
    state |= {f"more.{name}": value.detach() for name, value in more.items()}
    held = None if optimizer is None else OptimizerState(optimizer)
    if held is not None:
        state |= held.tensors
    # The core reads and writes plain memory of the CPU.
    plain = {name: value.cpu().contiguous() for name, value in state.items()}
    found = group.communicator.sync_state(plain, revision=revision)
    with torch.no_grad():
        for name, value in state.items():
            if plain[name].data_ptr() != value.data_ptr():
                value.copy_(plain[name])
    if held is not None:
        held.install()
    return found


def _tensors_of(module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


@dataclass
class _Slot:
    """One value of an optimizer's state, of one parameter."""

    parameter: Tensor
    key: str
    value: Tensor


class OptimizerState:
    """An optimizer's state as tensors by name, the same names whether it has stepped or not."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._slots: list[_Slot] = []
        self.tensors: dict[str, Tensor] = {}
        is_there = []
        blank = _blank_state(optimizer)
        for index, parameter in enumerate(parameters):
            own = optimizer.state.get(parameter, {})
            for key, like in blank[index].items():
                value = own.get(key)
                is_there.append(value is not None)
                if value is None:
                    tensor = torch.zeros(like.shape, dtype=like.dtype, device=like.device)
                elif isinstance(value, Tensor):
                    tensor = value.detach()
                else:
                    tensor = torch.tensor(value, dtype=like.dtype, device=like.device)
                self._slots.append(_Slot(parameter, key, tensor))
                self.tensors[f"optimizer.{index}.{key}"] = tensor
        self._is_there = torch.tensor(is_there, dtype=torch.uint8, device="cpu")
        numbers = [value for *_, value in self._settings()]
        self._numbers = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        self.tensors |= {"optimizer.there": self._is_there, "optimizer.numbers": self._numbers}

    def install(self) -> None:
        """Give the optimizer what came."""
        for slot, is_there in zip(self._slots, self._is_there.tolist(), strict=True):
            own = self._optimizer.state[slot.parameter] if is_there else {}
            if not is_there:
                self._optimizer.state.get(slot.parameter, {}).pop(slot.key, None)
            elif not isinstance(own.get(slot.key, slot.value), Tensor):
                own[slot.key] = slot.value.item()
            elif slot.key not in own or own[slot.key] is None:
                own[slot.key] = slot.value
        for (group, key, before), value in zip(
            list(self._settings()), self._numbers.tolist(), strict=True
        ):
            if isinstance(before, Tensor):
                before.fill_(value)
            else:
                group[key] = type(before)(value)

    def _settings(self) -> Iterator[tuple[dict[str, Any], str, Any]]:
        """The numbers of the param_groups."""
        for group in self._optimizer.param_groups:
            for key in sorted(group):
                value = group[key]
                is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
                if is_number or (isinstance(value, Tensor) and value.numel() == 1):
                    yield group, key, value


class _Like(NamedTuple):
    """What a tensor looks like."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


_Blank = list[dict[str, _Like]]
_blanks: weakref.WeakKeyDictionary[Optimizer, _Blank] = weakref.WeakKeyDictionary()


def _blank_state(optimizer: Optimizer) -> _Blank:
    """What an optimizer keeps of each parameter once it has stepped, by key."""
    if optimizer not in _blanks:
        twin = copy.deepcopy(optimizer)
        parameters = [p for group in twin.param_groups for p in group["params"]]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        twin.step()
        _blanks[optimizer] = [
            {key: _look(value) for key, value in sorted(twin.state[p].items()) if value is not None}
            for p in parameters
        ]
    return _blanks[optimizer]


def _look(value: Any) -> _Like:
    if isinstance(value, Tensor):
        return _Like(value.shape, value.dtype, value.device)
    if isinstance(value, (int, float)):
        return _Like(torch.Size(), torch.float64, torch.device("cpu"))
    raise TypeError(f"sync_state: an optimizer's state that is a {type(value).__name__}")
