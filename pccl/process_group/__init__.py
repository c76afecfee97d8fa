"""The torch.distributed backend: `init_process_group("pccl")`.

A Python subclass of ProcessGroup over the core, so that one wheel serves every version of torch.
Both the old and the new name of each operation are there, since versions of torch call different
ones. This package is, beside the bench, the only place in pccl that imports torch.
"""

from pccl.process_group import hooks
from pccl.process_group.creation import create
from pccl.process_group.elastic import ElasticProcessGroup
from pccl.process_group.group import ProcessGroupPCCL
from pccl.process_group.training import elastic_average, elastic_ddp, sync_state

__all__ = [
    "ElasticProcessGroup",
    "ProcessGroupPCCL",
    "create",
    "elastic_average",
    "elastic_ddp",
    "hooks",
    "sync_state",
]
