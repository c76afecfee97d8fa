"""Collective communication over machines that nobody owns together.

With torch: `torch.distributed.init_process_group("pccl")`; the rest of the program is unchanged.
Without torch: `with pccl.init("tcp://host:port", rank=0, world_size=2) as comm:`.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pccl._core import (
        Aborted,
        CallMismatch,
        CollectiveTimeout,
        ConnectError,
        DatabaseError,
        MemberLost,
        NonFiniteContribution,
        PcclError,
        RemoteProtocolError,
        Work,
    )
    from pccl._quantized import quantized
    from pccl.communicator import Communicator, init
    from pccl.config import Config
    from pccl.coordinator import Coordinator, CoordinatorOptions
    from pccl.elastic import ElasticCommunicator, join
    from pccl.process_group import hooks

__version__ = "0.1.0"

__all__ = [
    "Aborted",
    "CallMismatch",
    "CollectiveTimeout",
    "Communicator",
    "Config",
    "ConnectError",
    "Coordinator",
    "CoordinatorOptions",
    "DatabaseError",
    "ElasticCommunicator",
    "MemberLost",
    "NonFiniteContribution",
    "PcclError",
    "RemoteProtocolError",
    "Work",
    "__version__",
    "hooks",
    "init",
    "join",
    "quantized",
]

# Imported at first use: `import torch` imports this file through its entry point, and a program
# that never communicates should not pay for it.
_HOMES = {
    "Aborted": "pccl._core",
    "CallMismatch": "pccl._core",
    "CollectiveTimeout": "pccl._core",
    "Communicator": "pccl.communicator",
    "Config": "pccl.config",
    "ConnectError": "pccl._core",
    "Coordinator": "pccl.coordinator",
    "CoordinatorOptions": "pccl.coordinator",
    "DatabaseError": "pccl._core",
    "ElasticCommunicator": "pccl.elastic",
    "MemberLost": "pccl._core",
    "NonFiniteContribution": "pccl._core",
    "PcclError": "pccl._core",
    "RemoteProtocolError": "pccl._core",
    "Work": "pccl._core",
    "hooks": "pccl.process_group",
    "init": "pccl.communicator",
    "join": "pccl.elastic",
    "quantized": "pccl._quantized",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'pccl' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if "torch" in sys.modules:
    # Otherwise torch's entry point does it, at the end of `import torch`.
    from pccl._autoload import register as _register

    _register()
