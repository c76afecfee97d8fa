"""Finding each other: every rank tells its address and gets everybody's, before a deadline.

A rendezvous is a function `(opener, rank, world_size, deadline) -> addresses by rank`. It first
agrees on a random name of the run, which rank 0 draws, so that left-overs of another run cannot be
taken for this one; then `opener(run)` gives this rank's address. `deadline` is in time.monotonic()
seconds. Nothing received is trusted: bounded sizes, no pickle, and whoever does not speak the
protocol is dropped without harm to the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pccl.rendezvous.files import exchange_through_files
from pccl.rendezvous.messages import Opener
from pccl.rendezvous.store import Store, exchange_through_store
from pccl.rendezvous.tcp import exchange_over_tcp

__all__ = ["Place", "Store", "exchange_through_store"]

# Ports after MASTER_PORT that rank 0 tries when torchrun's own store listens on MASTER_PORT.
_PORTS_AFTER_AGENT = 8


@dataclass(frozen=True)
class Place:
    """Where ranks meet, from an init_method."""

    scheme: str  # "tcp" or "file"
    host: str = ""
    ports: tuple[int, ...] = ()
    directory: Path = Path()
    key: str = ""

    @classmethod
    def parse(cls, init_method: str) -> Place:
        """Read "tcp://host:port" or "file:///directory".

        Raises:
            ValueError: neither of the two; what was given is quoted.
        """
        try:
            parts = urlsplit(init_method)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"init_method={init_method!r}: {error}") from None
        if parts.scheme == "tcp" and parts.hostname and port:
            return cls("tcp", host=parts.hostname, ports=(port,))
        if parts.scheme == "file" and not parts.netloc and len(parts.path) > 1:
            return cls("file", directory=Path(unquote(parts.path)))
        raise ValueError(
            f"init_method={init_method!r}: expected 'env://', 'tcp://host:port' or "
            f"'file:///directory'"
        )

    @classmethod
    def of_launch(cls, host: str, port: int, *, port_is_taken: bool, run: str) -> Place:
        """Where a launcher's ranks meet: on its port, or beside it where torchrun's store has it.

        torchrun's store speaks torch's own protocol, which we cannot without torch, so rank 0 takes
        the first free of the next 8 ports, and `run` keeps neighbouring runs apart.
        """
        if port_is_taken:
            last = min(port + _PORTS_AFTER_AGENT, 65535)
            return cls(
                "tcp", host=host, ports=tuple(range(port + 1, last + 1)), key=f"{run}:{port}"
            )
        return cls("tcp", host=host, ports=(port,), key=run)

    def meet(self, opener: Opener, rank: int, world_size: int, deadline: float) -> list[bytes]:
        """Exchange addresses here; see exchange_over_tcp() and exchange_through_files()."""
        if self.scheme == "file":
            return exchange_through_files(self.directory, opener, rank, world_size, deadline)
        return exchange_over_tcp(
            self.host, self.ports, opener, rank, world_size, deadline, key=self.key
        )
