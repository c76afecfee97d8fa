"""The address of a run, one string to paste: pccl://host:port/run#fingerprint.token."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from dataclasses import dataclass, field, replace

__all__ = [
    "DEFAULT_PORT",
    "DEFAULT_STATUS_PORT",
    "RunAddress",
    "decode_key",
    "decode_token",
    "encode_bytes",
]

DEFAULT_PORT = 29400
DEFAULT_STATUS_PORT = 29401  # of the status page

# Of the core: csrc/transport/address.h, token.h.
FINGERPRINT_BYTES = 32
TOKEN_BYTES = 16

# Of the core: a run's name travels in every handshake.
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
# Letters, digits, hyphens and underscores in labels of at most 63; as in the names of hosts.
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")


@dataclass(frozen=True)
class RunAddress:
    """Where a run's coordinator listens, the run's name, and what admits to it.

    `str` of it is what to paste. It holds the token: show people `shown`.
    """

    host: str  # a name, or a number without brackets
    port: int
    run: str
    fingerprint: bytes = b""  # of the coordinator's key; empty: none, which is for loopback
    token: bytes = field(default=b"", repr=False)  # a secret; empty: for keys that are in already

    def __post_init__(self) -> None:
        if not _is_host(self.host):
            raise ValueError(f"host: expected a name or an IP address, got {self.host!r}")
        if not 0 < self.port <= 65535:
            raise ValueError(f"port: expected 1 to 65535, got {self.port}")
        check_run_name(self.run)
        for name, count in (("fingerprint", FINGERPRINT_BYTES), ("token", TOKEN_BYTES)):
            found = len(getattr(self, name))
            if found not in (0, count):
                raise ValueError(f"{name}: expected {count} bytes, got {found}")
        if self.token and not self.fingerprint:
            raise ValueError("token: it is shown to nobody whose key is not known")

    @classmethod
    def parse(cls, text: str) -> RunAddress:
        """Read "pccl://host:port/run#fingerprint.token"; without ":port" it is 29400.

        IPv6 stands in brackets. Without ".token" it admits only keys that are known already;
        without '#' it is for loopback.

        Raises:
            ValueError: it is no such address; the message shows what is wrong and one that is
                right.
        """

        def refuse(what: str) -> ValueError:
            shown = text.partition("#")[0]  # the rest is a secret
            return ValueError(
                f"run address {shown!r}: expected pccl://host:port/run#key.token, as the "
                f"coordinator prints it, for example pccl://203.0.113.7:29400/my-run#K7Q...; but "
                f"{what}"
            )

        scheme, separator, rest = text.strip().partition("://")
        if not separator or scheme != "pccl":
            raise refuse("it does not begin with pccl://")
        rest, hash_sign, secrets = rest.partition("#")
        fingerprint, dot, token = secrets.partition(".")
        try:
            key = decode_key(fingerprint) if hash_sign else b""
            secret = decode_token(token) if dot else b""
        except ValueError as error:
            raise refuse(f"{error}; copy the whole line") from None
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
            return cls(host, int(match[3]) if match[3] else DEFAULT_PORT, run, key, secret)
        except ValueError as error:
            raise refuse(str(error)) from None

    def __str__(self) -> str:
        key = "#" + encode_bytes(self.fingerprint) if self.fingerprint else ""
        return self.shown + key + ("." + encode_bytes(self.token) if self.token else "")

    @property
    def shown(self) -> str:
        """Without key and token: for messages and logs."""
        return f"pccl://{self.place}/{self.run}"

    def with_token(self, token: bytes) -> RunAddress:
        return replace(self, token=token)

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


def encode_bytes(data: bytes) -> str:
    """Base64 for URLs (RFC 4648, 5), without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode_key(text: str) -> bytes:
    """A key's fingerprint, 43 characters. Raises ValueError."""
    return _decode("the fingerprint of a key", text, FINGERPRINT_BYTES)


def decode_token(text: str) -> bytes:
    """A token, 22 characters. Raises ValueError; the message does not hold it."""
    return _decode("a token", text, TOKEN_BYTES)


def _decode(what: str, text: str, count: int) -> bytes:
    wanted = (8 * count + 5) // 6
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) != count or encode_bytes(data) != text:
        raise ValueError(f"{what} has {wanted} letters, digits, '-' and '_', got {len(text)}")
    return data


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _is_host(host: str) -> bool:
    return len(host) <= 253 and (_is_ipv6(host) or _HOST_NAME.fullmatch(host) is not None)
