"""The members of a run, whichever way they are connected: four adapters with the same few calls."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

import pccl
from pccl.codecs import ErrorFeedback

__all__ = ["Members", "Travel", "adapt"]

Row = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Travel:
    """How a contribution takes part in an average."""

    weight: float
    total: float  # of all weights, where nobody is lost
    codec: str = "none"
    feedback: ErrorFeedback | None = None

    @property
    def wire(self) -> str:
        return "" if self.codec == "none" else self.codec


class Members(abc.ABC):
    """What DiLoCo asks of a group. Every member makes the same calls in the same order."""

    is_elastic = False
    takes_codecs = True
    takes_neighbors = True

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Of this member, unlike all others."""

    @abc.abstractmethod
    def gather(self, row: Row) -> npt.NDArray[np.uint8]:
        """Everybody's row, by rank: shape [members, bytes]; the same result at all members.

        Goes on with those that are left where members are lost.
        """

    @abc.abstractmethod
    def average(self, flat: Tensor, travel: Travel) -> None:
        """flat = sum of weight * flat over the members / sum of weights, in place.

        Elastic groups divide each element by the weights that are in it.
        """

    @abc.abstractmethod
    def share(self, state: Mapping[str, Tensor], revision: int) -> None:
        """Give every member the same bytes; newcomers enter here.

        Raises CallMismatch, on every member, where names or shapes differ.
        """

    def neighbor_average(self, flat: Tensor, graph: str, round_index: int, seed: int) -> list[int]:
        """See Communicator.neighbor_average."""
        raise ValueError("gossip: only over pccl, alone or as the backend of torch.distributed")

    def leave(self) -> None:  # noqa: B027  # the others of a fixed group end anyway
        """Be no longer in the others' way."""

    def bytes_sent(self) -> int:
        """By this process so far, on sockets and in memory; 0 where nobody counts."""
        return 0


def adapt(comm: Any) -> Members:
    """The adapter of a communicator, a torch group, or of nobody else (None).

    Raises:
        TypeError: anything else.
    """
    if comm is None:
        return Alone()
    inner = getattr(comm, "communicator", None)  # of the elastic backend of torch
    if isinstance(inner, pccl.ElasticCommunicator):
        return ElasticMembers(inner)
    if isinstance(comm, pccl.ElasticCommunicator):
        return ElasticMembers(comm)
    if isinstance(comm, pccl.Communicator):
        return FixedMembers(comm)
    if isinstance(comm, dist.ProcessGroup):
        return TorchMembers(comm)
    raise TypeError(
        "comm: expected what pccl.join() or pccl.init() returns, a torch.distributed group, or "
        f"None for a run of one member, got {type(comm).__name__}"
    )


class Alone(Members):
    """A run of one member that nobody joins."""

    name = "alone"

    def gather(self, row: Row) -> npt.NDArray[np.uint8]:
        return np.array([row])

    def average(self, flat: Tensor, travel: Travel) -> None:
        pass

    def share(self, state: Mapping[str, Tensor], revision: int) -> None:
        pass

    def neighbor_average(self, flat: Tensor, graph: str, round_index: int, seed: int) -> list[int]:
        return []


class ElasticMembers(Members):
    """Of pccl.join(): members die and come."""

    is_elastic = True

    def __init__(self, comm: pccl.ElasticCommunicator) -> None:
        self.comm = comm

    @property
    def name(self) -> str:
        return self.comm.member_id

    def gather(self, row: Row) -> npt.NDArray[np.uint8]:
        return self.comm.gather_rows(row)

    def average(self, flat: Tensor, travel: Travel) -> None:
        self.comm.all_reduce(
            flat.numpy(),
            "avg",
            weight=travel.weight,
            codec=travel.wire,
            error_feedback=travel.feedback,
        )

    def share(self, state: Mapping[str, Tensor], revision: int) -> None:
        arrays = {name: tensor.detach().numpy() for name, tensor in state.items()}
        self.comm.sync_state(arrays, revision=revision)

    def neighbor_average(self, flat: Tensor, graph: str, round_index: int, seed: int) -> list[int]:
        return self.comm.neighbor_average(flat.numpy(), graph, round_index=round_index, seed=seed)

    def leave(self) -> None:
        self.comm.leave()

    def bytes_sent(self) -> int:
        return _count(self.comm.statistics())


class FixedMembers(Members):
    """Of pccl.init(): one that dies ends the run."""

    def __init__(self, comm: pccl.Communicator) -> None:
        self.comm = comm
        self._is_shared = False

    @property
    def name(self) -> str:
        return f"rank {self.comm.rank}"

    def gather(self, row: Row) -> npt.NDArray[np.uint8]:
        rows = np.zeros((self.comm.world_size, row.size), np.uint8)
        self.comm.all_gather_into_tensor(rows, row)
        return rows

    def average(self, flat: Tensor, travel: Travel) -> None:
        self.comm.all_reduce(
            flat.numpy(),
            "weighted_avg",
            factor=travel.weight,
            codec=travel.wire,
            error_feedback=travel.feedback,
        )

    def share(self, state: Mapping[str, Tensor], revision: int) -> None:
        if not self._is_shared:  # later they are the same by construction, and reports show it
            for tensor in state.values():
                self.comm.broadcast(tensor.detach().numpy(), 0)
            self._is_shared = True

    def neighbor_average(self, flat: Tensor, graph: str, round_index: int, seed: int) -> list[int]:
        return self.comm.neighbor_average(flat.numpy(), graph, round_index=round_index, seed=seed)

    def bytes_sent(self) -> int:
        return _count(self.comm.statistics())


class TorchMembers(Members):
    """A group of torch.distributed for CPU tensors: gloo, or pccl with a fixed world."""

    takes_neighbors = False

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self._is_shared = False
        self._is_pccl = dist.get_backend(group) == "pccl"
        self.takes_codecs = self._is_pccl

    @property
    def name(self) -> str:
        return f"rank {dist.get_rank(self.group)}"

    def gather(self, row: Row) -> npt.NDArray[np.uint8]:
        world_size = dist.get_world_size(self.group)
        rows = [torch.zeros(row.size, dtype=torch.uint8, device="cpu") for _ in range(world_size)]
        dist.all_gather(rows, torch.from_numpy(row.copy()), group=self.group)
        return np.stack([found.numpy() for found in rows])

    def average(self, flat: Tensor, travel: Travel) -> None:
        flat.mul_(travel.weight)
        if travel.wire:
            pccl_group: Any = self.group
            pccl_group.all_reduce_in(
                travel.wire, flat, dist.ReduceOp.SUM, error_feedback=travel.feedback
            ).wait()
        else:
            dist.all_reduce(flat, group=self.group)
        flat.div_(travel.total)

    def share(self, state: Mapping[str, Tensor], revision: int) -> None:
        if not self._is_shared:
            for tensor in state.values():
                dist.broadcast(tensor.detach(), group_src=0, group=self.group)
            self._is_shared = True

    def bytes_sent(self) -> int:
        statistics = getattr(self.group, "statistics", None)
        return _count(statistics()) if statistics is not None else 0


def _count(statistics: dict[str, int]) -> int:
    return statistics.get("bytes_sent_tcp", 0) + statistics.get("bytes_sent_memory", 0)
