"""Communication hooks for DDP: gradients travel in a codec.

    ddp.register_comm_hook(None, pccl.hooks.int8)
    ddp.register_comm_hook(pccl.hooks.ErrorFeedback(ddp), pccl.hooks.int4_error_feedback)
    ddp.register_comm_hook(pccl.hooks.PowerSGDState(None), pccl.hooks.powersgd)
    ddp.register_comm_hook(None, pccl.hooks.bf16)

All ranks register the same hook; all end with the same gradients, byte by byte. Torch's own hooks
work as well; the last two are such, for which a plain registration is not enough.
"""

# Not with annotations from __future__: DDP looks for types in those of a hook, and refuses text.
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import (
    PowerSGDState,
    powerSGD_hook,
)
from torch.futures import Future

from pccl import codecs
from pccl.process_group.group import ProcessGroupPCCL

__all__ = [
    "ErrorFeedback",
    "PowerSGDState",
    "bf16",
    "int4_error_feedback",
    "int8",
    "powersgd",
]

_Kept = codecs.ErrorFeedback | codecs.Difference


def int8(group: Any, bucket: GradBucket) -> Future[Tensor]:
    """Average a bucket in int8: a quarter of float32's bytes, a relative error of about 1 %.

    Args:
        group: the process group, or None for the default one.
    """
    work = _checked(group).all_reduce_in("int8", bucket.buffer())
    return _first_of(work)


class ErrorFeedback:
    """What int4_error_feedback keeps: for each parameter, what was lost of its gradients so far.

    Part of the state of a training, this rank's own: save state_dict() with the model, as each rank
    does for itself. A newcomer begins without. Memory: 8 bytes a parameter (ef21: 12), of the CPU.
    """

    def __init__(self, module: torch.nn.Module, *, group: Any = None, ef21: bool = False) -> None:
        """
        Args:
            module: the DDP module, or the one inside it.
            group: the process group, or None for the default one.
            ef21: the difference from an estimate is sent, which has no need of bounded gradients
                (pccl.codecs.Difference); for float32 in the memory of the CPU.
        """
        inner = getattr(module, "module", module)
        self._names = {parameter: name for name, parameter in inner.named_parameters()}
        self._group = group
        self._fields = ("estimate", "mean") if ef21 else ("residual",)
        self._buckets: dict[int, tuple[list[Tensor], _Kept]] = {}
        # field -> parameter -> values [elements], of parameters that are in no bucket yet.
        self._loose: dict[str, dict[Tensor, Tensor]] = {field: {} for field in self._fields}

    def state_dict(self) -> dict[str, Tensor]:
        """Return "residual.layer.weight" and so on, a copy; none where nothing was lost yet.

        Raises:
            RuntimeError: a backward pass is under way.
        """
        self._take_apart()
        return {
            f"{field}.{self._names[parameter]}": values.clone().view_as(parameter)
            for field, all_values in self._loose.items()
            for parameter, values in all_values.items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take what state_dict() returned, here or in another process.

        Raises:
            ValueError: a name or a size that the module has not, or the state of the other variant;
                nothing is changed.
        """
        places = {
            f"{field}.{name}": (field, parameter)
            for field in self._fields
            for parameter, name in self._names.items()
        }
        loose: dict[str, dict[Tensor, Tensor]] = {field: {} for field in self._fields}
        for name, values in state.items():
            if name not in places:
                raise ValueError(f"error feedback: the module has no {name!r}")
            field, parameter = places[name]
            if values.numel() != parameter.numel():
                raise ValueError(
                    f"error feedback: {name!r} has {values.numel()} elements, the parameter has "
                    f"{parameter.numel()}"
                )
            loose[field][parameter] = values.detach().float().cpu().flatten().clone()
        self._take_apart()
        self._loose = loose

    def _of(self, bucket: GradBucket) -> _Kept:
        """What belongs to this bucket. DDP forms its buckets anew after the first step."""
        parameters = bucket.parameters()
        known, kept = self._buckets.get(bucket.index(), (None, None))
        if kept is not None and known is not None and _same(known, parameters):
            return kept
        if known is not None:
            self._take_apart()
        count = sum(parameter.numel() for parameter in parameters)
        is_ef21 = "estimate" in self._fields
        kept = codecs.Difference(count) if is_ef21 else codecs.ErrorFeedback(count)
        for field, all_values in self._loose.items():
            pieces = [
                all_values.pop(p) if p in all_values else torch.zeros(p.numel(), device="cpu")
                for p in parameters
            ]
            setattr(kept, field, torch.cat(pieces).numpy())
        self._buckets[bucket.index()] = parameters, kept
        return kept

    def _take_apart(self) -> None:
        for parameters, kept in self._buckets.values():
            counts = [parameter.numel() for parameter in parameters]
            for field in self._fields:
                pieces = torch.split(torch.from_numpy(getattr(kept, field)), counts)
                self._loose[field].update(zip(parameters, pieces, strict=True))
        self._buckets.clear()


def int4_error_feedback(state: ErrorFeedback, bucket: GradBucket) -> Future[Tensor]:
    """Average a bucket in int4, an eighth of float32's bytes; what is lost is sent next time."""
    group, buffer, kept = _checked(state._group), bucket.buffer(), state._of(bucket)
    if isinstance(kept, codecs.ErrorFeedback):
        return _first_of(group.all_reduce_in("int4", buffer, error_feedback=kept))
    values = buffer.float().cpu().numpy()
    average, loss = kept.begin(values)
    tensor = torch.from_numpy(average)

    def finish(done: Future[Any]) -> Tensor:
        done.value()  # raises what has failed
        kept.end(values, average, loss)
        return buffer.copy_(torch.from_numpy(kept.mean))  # done when it returns

    work = group.all_reduce_in("int4", tensor, error_feedback=loss)
    future: Future[Tensor] = work.get_future().then(finish)
    return future


def bf16(group: Any, bucket: GradBucket) -> Future[Tensor]:
    """Torch's bf16_compress_hook, which DDP under that name takes from builds with NCCL only."""
    return bf16_compress_hook(group, bucket)


def powersgd(state: PowerSGDState, bucket: GradBucket) -> Future[Tensor]:
    """Torch's powerSGD_hook, one bucket after the other.

    Each of its messages is sent when the one before has come. Those of several buckets at once
    would begin in another order on each rank; so this waits, and backward() with it.

    Source: Vogels et al., PowerSGD, NeurIPS 2019, arXiv 1905.13727.
    """
    future: Future[Tensor] = powerSGD_hook(state, bucket)
    with suppress(RuntimeError):  # whoever asks the future for the gradients hears of it
        future.wait()
    return future


def _checked(group: Any) -> ProcessGroupPCCL:
    group = group or dist.group.WORLD
    if not isinstance(group, ProcessGroupPCCL):
        raise TypeError(f"pccl.hooks: expected a process group of pccl, got {group!r}")
    return group


def _first_of(work: Any) -> Future[Tensor]:
    future: Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future


def _same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))
