"""torch 2.14's reconfigure interface: a group that is told who is in it, again and again."""

from __future__ import annotations

import base64
from datetime import timedelta
from typing import Any

from torch.distributed import Work

from pccl import _core
from pccl._graphs import graph_text
from pccl._run import ContextOpener, Run
from pccl.config import Config
from pccl.process_group.base import GroupBase
from pccl.process_group.elastic import ChangingWorld
from pccl.process_group.tensors import UNSET, Options, fail

# All members of a run say its name when they connect; who they are, their addresses say.
_RUN_NAME = "torch-reconfigure"


class ReconfigurableProcessGroup(ChangingWorld):
    """A process group whose members are given by reconfigure(); before that it has none.

    Members that die do not leave by themselves: operations end in MemberLost on every member, and
    whoever decides calls reconfigure() with the handles of those that go on.
    """

    supports_reconfigure = True

    def __init__(
        self, place: tuple[int, int], name: str, timeout: timedelta, config: Config, store: Any
    ) -> None:
        self._rank, self._size = place
        opener = ContextOpener(config)
        address = opener(_RUN_NAME)
        self._run = Run(opener.take(), 0, [address], config)
        self._used: set[int] = set()
        core: Any = _Unconfigured()
        GroupBase.__init__(self, core, self._run.completions, place, name, timeout, store)
        self._codec = config.codec

    def get_reconfigure_handle(self) -> str:
        """What the others name this process by; text that fits into any store."""
        return base64.b64encode(self._run.context.address).decode()

    def reconfigure(self, opts: Any) -> Work:
        """Make the group of these members; the work is done when all of them have called it.

        What runs in the group of before fails, here and at its other members.

        Args:
            opts: torch's ReconfigureOptions: `uuid`, a number not used before; `handles`,
                a list by rank, or a set, whose ranks follow the order of the handles' text;
                `timeout`; `hints`, of which there are none.

        Raises:
            ValueError: the configuration's graph does not fit these members.
            RuntimeError: the uuid is used up, or the handles are not different ones with this
                process's among them.
        """
        handles = list(opts.handles) if isinstance(opts.handles, list) else sorted(opts.handles)
        own = self.get_reconfigure_handle()
        if opts.uuid in self._used:
            fail("reconfigure", f"uuid {opts.uuid} was already used")
        if own not in handles or len(set(handles)) != len(handles):
            fail("reconfigure", f"expected different handles, with {own} among them, got {handles}")
        addresses = [_address(handle) for handle in handles]
        config = self._run.config
        edges = _core.overlay(addresses, graph_text(config.graph))
        timeout = getattr(opts, "timeout", None)
        self._used.add(opts.uuid)
        self._core.close()
        self._rank, self._size = handles.index(own), len(handles)
        self._core = _core.Communicator(
            self._run.context,
            f"reconfigure#{opts.uuid}",
            self._rank,
            addresses,
            self._timeout.total_seconds(),
            config.algorithm,
            config.deterministic,
            config.probes,
            edges,
        )
        self._core_all_reduce = self._core.all_reduce
        self._abort_hooks.renew()
        limit = UNSET if timeout is None else timeout
        return self.barrier(Options(timeout=limit))

    def abort(self) -> None:
        """Fail every operation of the group, here and at the others, until reconfigure()."""
        self._core.abort(f"rank {self._rank} called abort() on group {self._name!r}")
        self._abort_hooks.call()

    def shutdown(self) -> None:
        """Leave politely. Idempotent."""
        if self._open:
            self._open = False
            self._core.close()
            self._run.close()


class _Unconfigured:
    """Stands for the communicator before the first reconfigure()."""

    def __getattr__(self, name: str) -> Any:
        if name in ("close", "abort"):
            return lambda *_: None
        if name == "error":
            return lambda: ""
        return lambda *_: fail(name, "the group has no members yet: call reconfigure() first")


def _address(handle: str) -> bytes:
    try:
        return base64.b64decode(handle, validate=True)
    except ValueError:
        fail("reconfigure", f"{handle!r} is no handle")
