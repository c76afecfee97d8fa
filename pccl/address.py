"""The address of a run, one string to paste: pccl://host:port/run."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

__all__ = ["DEFAULT_PORT", "RunAddress"]

DEFAULT_PORT = 29400

# Of the core: a run's name travels in every handshake.
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
# Letters, digits, hyphens and underscores in labels of at most 63; as in the names of hosts.
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")


@dataclass(frozen=True)
class RunAddress:
    """Where a run's coordinator listens, and the run's name."""

    host: str  # a name, or a number without brackets
    port: int
    run: str

    def __post_init__(self) -> None:
        if not _is_host(self.host):
            raise ValueError(f"host: expected a name or an IP address, got {self.host!r}")
        if not 0 < self.port <= 65535:
            raise ValueError(f"port: expected 1 to 65535, got {self.port}")
        check_run_name(self.run)

    @classmethod
    def parse(cls, text: str) -> RunAddress:
        """Read "pccl://host:port/run"; without ":port" it is 29400. IPv6 stands in brackets.

        Raises:
            ValueError: it is no such address; the message shows what is wrong and one that is
                right.
        """

        def refuse(what: str) -> ValueError:
            return ValueError(
                f"run address {text!r}: expected pccl://host:port/run, as the coordinator prints "
                f"it, for example pccl://203.0.113.7:29400/my-run; but {what}"
            )

        scheme, separator, rest = text.strip().partition("://")
        if not separator or scheme != "pccl":
            raise refuse("it does not begin with pccl://")
        rest, hash_sign, _ = rest.partition("#")
        if hash_sign:
            raise refuse(
                "what follows '#' is a key's fingerprint and a token, which this version of pccl "
                "does not support yet"
            )
        place, slash, run = rest.partition("/")
        if not slash or not run:
            raise refuse("the name of the run is missing behind the host")
        match = re.fullmatch(r"(?:\[([^\[\]]*)\]|([^\[\]:]*))(?::([0-9]{1,5}))?", place)
        if match is None:
            raise refuse(
                f"{place!r} is no host and port"
                + (" (an IPv6 address stands in brackets)" if place.count(":") > 1 else "")
            )
        try:
            host = match[1] if match[1] is not None else match[2]
            if match[1] is not None and not _is_ipv6(host):
                raise ValueError(f"host: expected an IPv6 address in brackets, got {host!r}")
            return cls(host, int(match[3]) if match[3] else DEFAULT_PORT, run)
        except ValueError as error:
            raise refuse(str(error)) from None

    def __str__(self) -> str:
        return f"pccl://{self.place}/{self.run}"

    @property
    def place(self) -> str:
        """Host and port as URLs write them."""
        return f"{bracketed(self.host)}:{self.port}"


def bracketed(host: str) -> str:
    """A host as URLs write it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def check_run_name(run: str) -> None:
    """Raise ValueError unless `run` can name a run."""
    if not _RUN_NAME.fullmatch(run):
        raise ValueError(
            f"run: expected 1 to 255 letters, digits, '.', '_' or '-', not first one of the last "
            f"three, got {run!r}"
        )


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _is_host(host: str) -> bool:
    return len(host) <= 253 and (_is_ipv6(host) or _HOST_NAME.fullmatch(host) is not None)
