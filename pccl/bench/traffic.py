"""What this process has sent, where the backend counts it: pccl does, gloo does not."""

from dataclasses import dataclass

import torch.distributed as dist

__all__ = ["BytesSent", "bytes_sent"]


@dataclass(frozen=True)
class BytesSent:
    """Bytes that left this process since it joined: payload, headers and control, by transport."""

    tcp: int
    memory: int  # to ranks of the same host, through shared memory

    @property
    def total(self) -> int:
        return self.tcp + self.memory


def bytes_sent(group: dist.ProcessGroup | None) -> BytesSent | None:
    """Return what the whole process of this group has sent, or None where nobody counts."""
    read = getattr(group, "statistics", None)
    if read is None:
        return None
    counters: dict[str, int] = read()
    return BytesSent(counters["bytes_sent_tcp"], counters["bytes_sent_memory"])
