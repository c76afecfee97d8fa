"""The outer state: flat float32 buffers on the host, and views of them for each parameter."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from diloco.merge import Contribution

__all__ = ["OuterState", "Part", "local_shard"]


def local_shard(tensor: Tensor) -> Tensor:
    """What this process holds: all of a plain tensor, the local shard of FSDP2's DTensor."""
    detached = tensor.detach()
    shard: Any = getattr(detached, "to_local", None)
    return detached if shard is None else shard()


@dataclass(frozen=True)
class Part:
    """One tensor of the model and its place in the flat buffers."""

    name: str
    tensor: Tensor  # the model's own
    begin: int
    end: int

    def view(self, flat: Tensor) -> Tensor:
        return flat[self.begin : self.end].view(local_shard(self.tensor).shape)


class OuterState:
    """theta and a buffer for pseudo-gradients: 8 bytes a parameter; the outer optimizer adds 4.

    Parts lie fragment by fragment, so that a fragment is a slice. The unit is what this process
    holds: with FSDP2 each process has the buffers of its own shards, and syncs with the processes
    of other members that hold the same shards. Persistent buffers of floating point (running
    statistics) are averaged with the last fragment, without the outer optimizer. Host memory is
    pinned where the model is on CUDA.
    """

    def __init__(self, model: nn.Module, fragments: int = 1, pattern: str = "strided") -> None:
        groups = assign_fragments(model, fragments, pattern)
        persistent = set(model.state_dict())
        buffers = [
            (name, buffer)
            for name, buffer in model.named_buffers()
            if name in persistent and buffer.is_floating_point()
        ]
        self.parts: list[Part] = []
        self.fragments: list[slice] = []
        begin = 0
        for group in groups:
            start = begin
            for name, tensor in group:
                begin = self._append(name, tensor, begin)
            self.fragments.append(slice(start, begin))
        self.trained = begin  # elements that the outer optimizer moves
        for name, buffer in buffers:
            begin = self._append(name, buffer, begin)
        self.elements = begin
        self.fragments[-1] = slice(self.fragments[-1].start, begin)
        self._cuda = any(part.tensor.is_cuda for part in self.parts)
        meshes = [getattr(part.tensor, "device_mesh", None) for part in self.parts]
        mesh: Any = next((mesh for mesh in meshes if mesh is not None), None)
        # Those of this member that hold the other shards.
        self._mesh = None if mesh is None else mesh.get_group()
        self._mesh_device = "cpu" if mesh is None else mesh.device_type
        self.theta = self.empty()
        self.delta = self.empty()
        # What the model's values are measured from: theta, but for methods that train from a copy.
        self.start = self.theta
        self.read(self.theta)

    def _append(self, name: str, tensor: Tensor, begin: int) -> int:
        if not tensor.is_floating_point():
            raise ValueError(f"{name}: expected floating point, got {tensor.dtype}")
        end = begin + local_shard(tensor).numel()
        self.parts.append(Part(name, tensor, begin, end))
        return end

    def empty(self) -> Tensor:
        """Another flat buffer, of zeros."""
        return torch.zeros(self.elements, dtype=torch.float32, device="cpu", pin_memory=self._cuda)

    def parts_of(self, fragment: int) -> Iterator[Part]:
        where = self.fragments[fragment]
        return (p for p in self.parts if where.start <= p.begin and p.end <= where.stop)

    def shapes(self) -> dict[str, list[int]]:
        """Of the whole tensors, in the order of the buffers; for messages and checkpoints."""
        return {part.name: list(part.tensor.shape) for part in self.parts}

    # --- between the model and the buffers --------------------------------------------------------

    @torch.no_grad()
    def read(self, flat: Tensor) -> None:
        """Copy the model's values."""
        self._fetch(self.parts, flat)

    @torch.no_grad()
    def measure(self, fragment: int, delta: Tensor) -> None:
        """delta = start - local, of a fragment; exactly 0 where no step was done.

        A parameter of less than 32 bits is compared with what it was rounded to.
        """
        parts = list(self.parts_of(fragment))
        self._fetch(parts, delta)
        for part in parts:
            start = part.view(self.start)
            if part.tensor.dtype != torch.float32:
                start = start.to(part.tensor.dtype).float()
            own = part.view(delta)
            torch.sub(start, own, out=own)

    @torch.no_grad()
    def install(self, fragment: int, values: Tensor, keep_local: float = 0.0) -> None:
        """local = keep_local * local + (1 - keep_local) * values, of a fragment."""
        for part in self.parts_of(fragment):
            local = local_shard(part.tensor)
            if keep_local == 0:
                local.copy_(part.view(values))
            else:
                new = part.view(values).to(local.device, local.dtype)
                local.copy_(torch.lerp(new, local, keep_local))

    @torch.no_grad()
    def read_gradients(self, flat: Tensor) -> None:
        """Copy the gradients; zeros where there is none."""
        flat.zero_()
        for part in self.parts:
            if part.tensor.grad is not None:
                part.view(flat).copy_(local_shard(part.tensor.grad))

    @torch.no_grad()
    def write_gradients(self, flat: Tensor) -> None:
        """Put averages where a gradient is here, or was at any member."""
        for part in self.parts:
            average = part.view(flat)
            if part.tensor.grad is not None:
                local_shard(part.tensor.grad).copy_(average)
            elif part.tensor.requires_grad and bool(average.any()):
                part.tensor.grad = torch.zeros_like(part.tensor)
                local_shard(part.tensor.grad).copy_(average)

    def weigh(self, flat: Tensor, contribution: Contribution) -> None:
        """Note the norm of `flat`, and how many elements are NaN or infinite.

        With FSDP2 the processes of a member add theirs up, tokens and samples as well, so that all
        of its shards get the same weight.
        """
        norm = float(torch.linalg.vector_norm(flat, dtype=torch.float64))
        bad = 0 if math.isfinite(norm) else int((~torch.isfinite(flat)).sum())
        sums = torch.tensor(
            [norm**2, bad, contribution.tokens, contribution.samples],
            dtype=torch.float64,
            device=self._mesh_device,
        )
        if self._mesh is not None:
            dist.all_reduce(sums, group=self._mesh)
            sums = sums.cpu()
        contribution.norm = math.sqrt(sums[0]) if sums[0] >= 0 else math.nan
        contribution.bad, contribution.tokens, contribution.samples = sums[1:].long().tolist()

    @property
    def is_sharded(self) -> bool:
        """Whether other processes of this member hold other shards."""
        return self._mesh is not None

    def largest_of_member(self, number: int) -> int:
        """With FSDP2 the largest of what this member's processes say; else `number`."""
        if self._mesh is None:
            return number
        largest = torch.tensor([number], device=self._mesh_device)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._mesh)
        return int(largest)

    def _fetch(self, parts: Sequence[Part], flat: Tensor) -> None:
        for part in parts:
            part.view(flat).copy_(local_shard(part.tensor), non_blocking=self._cuda)
        if self._cuda:
            torch.cuda.synchronize()


def drop_bad_state(optimizer: Optimizer) -> None:
    """Forget an inner optimizer's state of parameters where it is not finite any more."""
    for parameter, state in list(optimizer.state.items()):
        tensors = [value for value in state.values() if isinstance(value, Tensor)]
        if not all(bool(torch.isfinite(local_shard(value)).all()) for value in tensors):
            del optimizer.state[parameter]


def digest_of(tensors: Sequence[Tensor]) -> str:
    """SHA-256 over the bytes of host tensors, 64 hex digits."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().numpy().data)
    return digest.hexdigest()


def assign_fragments(
    model: nn.Module, count: int, pattern: str
) -> list[list[tuple[str, nn.Parameter]]]:
    """Deal the layers to `count` fragments, strided (l % count) or in runs of neighbours.

    A layer is a numbered child ("blocks.3"), or a top module that is not in a numbered one.
    """
    layers: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found = re.match(r"(.*?\.\d+)\.|([^.]+)", name)
            assert found is not None
            layers.setdefault(found[1] or found[2], []).append((name, parameter))
    if len(layers) < count:
        raise ValueError(f"fragments: expected at most the {len(layers)} layers, got {count}")
    if not layers:
        raise ValueError("model: no parameter requires a gradient")
    groups: list[list[tuple[str, nn.Parameter]]] = [[] for _ in range(count)]
    for index, members in enumerate(layers.values()):
        which = index % count if pattern == "strided" else index * count // len(layers)
        groups[which] += members
    return groups
