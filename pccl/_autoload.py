"""Makes the name "pccl" known to torch.distributed, without importing torch or the core.

torch runs `autoload` at the end of every `import torch`, so nothing may happen here but a look-up.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pccl.process_group import ProcessGroupPCCL


def autoload() -> None:
    """Entry point of the group "torch.backends". Never raises: `import torch` must not fail."""
    try:
        register()
    except Exception as error:  # whatever a future torch changes
        import logging

        logging.getLogger("pccl").warning("backend 'pccl' not registered with torch: %r", error)


def register() -> bool:
    """Register the backend if torch is there already and does not know it; say whether it does."""
    distributed = sys.modules.get("torch.distributed")
    # Missing in a torch built without torch.distributed, or while torch is being imported.
    backend = getattr(distributed, "Backend", None)
    if backend is None:
        return False
    if not hasattr(backend, "PCCL"):
        # A list: a plain "cpu" would register the devices "c", "p" and "u".
        backend.register_backend("pccl", _create, extended_api=True, devices=["cpu", "cuda"])
        _register_rendezvous(distributed)
    return True


def _register_rendezvous(distributed: Any) -> None:
    """Make "pccl://host:port/run" an init_method, and PCCL_RUN do where RANK is not set."""
    distributed.register_rendezvous_handler("pccl", _meet)
    module = sys.modules.get("torch.distributed.rendezvous")
    handlers = getattr(module, "_rendezvous_handlers", {})
    read_environment = handlers.get("env")  # torch has no public way to extend it
    if read_environment is None:
        return

    def meet(url: str, **options: Any) -> Iterator[Any]:
        from pccl.config import names_elastic_run

        is_ours = "rank=" not in url and names_elastic_run()
        return _meet(url, **options) if is_ours else read_environment(url, **options)

    handlers["env"] = meet


def _meet(url: str, **options: Any) -> Iterator[Any]:
    from pccl.process_group.elastic import meet

    return meet(url, **options)


def _create(backend_options: Any, group_options: Any) -> ProcessGroupPCCL:
    from pccl.process_group import create

    return create(backend_options, group_options)
