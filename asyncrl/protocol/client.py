"""What workers, validators and trainers call. Blocking: they compute in the same thread anyway."""

from __future__ import annotations

import hashlib
import http.client
import json
import secrets
import time
from typing import Any
from urllib.parse import urlencode, urlsplit

from asyncrl.protocol.keys import BadSignature, Key, SignedDocument
from asyncrl.protocol.requests import HEADER, Request, audience, sign_request

__all__ = ["CoordinatorClient", "CoordinatorError", "CoordinatorUnreachable"]

_ANSWER_BYTES_MAX = 64 << 20
_BACKOFF_SECONDS_MAX = 5.0


class CoordinatorError(Exception):
    """The coordinator refused; `code` is for programs: "banned", "size", "step", "order", "replay",
    "clock", "rate", "role", "disk", ... Nothing was done."""

    def __init__(self, code: str, text: str, status: int) -> None:
        super().__init__(text)
        self.code = code
        self.status = status


class CoordinatorUnreachable(Exception):
    """It did not answer in time; what was asked may be done or not. Asking again is safe."""


class CoordinatorClient:
    """One caller's line to the coordinator. Not thread-safe.

    A request that got no answer is signed anew and repeated until `timeout_seconds`; all of them
    can be repeated. A coordinator that is restarted meanwhile costs a pause.

    Args:
        url: http://host:port.
        key: of the caller.
        coordinator: address of its key; a document signed by another one is refused.
        timeout_seconds: for one call, repetitions included.

    Raises, by every method:
        CoordinatorError: it said no, and why.
        CoordinatorUnreachable: no answer in `timeout_seconds`.
    """

    def __init__(
        self, url: str, key: Key, *, run: str, coordinator: str, timeout_seconds: float = 60.0
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or not parts.port:
            raise ValueError(f"coordinator: expected http://host:port, got {url!r}")
        self._place = (parts.hostname, parts.port)
        self._url = url
        self._key = key
        self._coordinator = coordinator
        self._audience = audience(run, coordinator)
        self._timeout_seconds = timeout_seconds
        self._connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> CoordinatorClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- everybody ---

    def run(self) -> dict[str, Any]:
        """Return what the run is: RunOptions as a dictionary.

        Raises:
            BadSignature: it is not signed by the coordinator.
        """
        document = SignedDocument.from_bytes("run", self._ask("GET", "/run"))
        if document.signer != self._coordinator:
            raise BadSignature(f"run: signed by {document.signer}, not {self._coordinator}")
        return document.fields()

    # --- workers ---

    def register(self, amount: int, reference: str = "first") -> dict[str, Any]:
        """Stake `amount` coins; return the account. The same reference again changes nothing."""
        return self._post("/register", amount=amount, reference=reference)

    def assignment(self, wait: float = 0.0) -> dict[str, Any]:
        """Return {"step", "submission_index", "trainer_step", "weights": {version: sha256}}.

        `step` is None while all open steps have enough files; with `wait` seconds it is waited for.
        """
        return self._get("/assignment", wait=wait)

    def upload(self, data: bytes, step: int, submission_index: int) -> dict[str, Any]:
        """Send a file of rollouts; return {"sha256", "state", ...}."""
        query = urlencode({"step": step, "submission": submission_index})
        return self._json(self._ask("PUT", f"/rollouts?{query}", data))

    def report_broadcast(self, version: int, seconds: float) -> None:
        """Tell how long a version's weights took to come, for the page."""
        self._post("/broadcast", version=version, seconds=float(seconds))

    def claim(self, amount: int) -> dict[str, Any]:
        """Take out claimable coins; return the account."""
        return self._post("/claim", amount=amount, reference=secrets.token_hex(8))

    def unstake(self, amount: int) -> dict[str, Any]:
        """Take back coins of the stake; return the account."""
        return self._post("/unstake", amount=amount, reference=secrets.token_hex(8))

    # --- validators ---

    def pending(self, wait: float = 0.0) -> list[dict[str, Any]]:
        """Return files that wait for this validator: {"sha256", "address", "step",
        "submission_index", "open_steps", ...}, oldest first."""
        return list(self._get("/pending", wait=wait)["files"])

    def file(self, sha256: str) -> bytes:
        """Return a file's bytes.

        Raises:
            CoordinatorError: "absent"; or "hash": other bytes came than were asked for.
        """
        data = self._ask("GET", f"/files/{sha256}")
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CoordinatorError("hash", f"{self._url}: other bytes than {sha256}", 200)
        return data

    def send_verdict(self, data: bytes) -> dict[str, Any]:
        """Send SignedVerdict.data; return the file as it stands now."""
        return self._json(self._ask("POST", "/verdicts", data))

    # --- trainers ---

    def accepted(self, after: int = 0, wait: float = 0.0) -> list[dict[str, Any]]:
        """Return accepted files behind `after`, by their "decided" numbers, ascending."""
        return list(self._get("/accepted", after=after, wait=wait)["files"])

    def advance(self, step: int, metrics: dict[str, Any]) -> None:
        """Begin `step`; `metrics` are of the one before, for the page: reward, staleness, ..."""
        self._post("/step", step=step, metrics=metrics)

    def announce_weights(self, version: int, sha256: str) -> None:
        """Say that a version is published."""
        self._post("/weights", version=version, sha256=sha256)

    # --- how ---

    def _get(self, path: str, **query: float) -> dict[str, Any]:
        wait = float(query.get("wait", 0.0))
        return self._json(self._ask("GET", f"{path}?{urlencode(query)}", wait=wait))

    def _post(self, path: str, **fields: object) -> dict[str, Any]:
        return self._json(self._ask("POST", path, json.dumps(fields).encode()))

    def _json(self, data: bytes) -> dict[str, Any]:
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise CoordinatorError("answer", f"{self._url}: not the answer of a coordinator", 200)
        return found

    def _ask(self, method: str, target: str, body: bytes = b"", wait: float = 0.0) -> bytes:
        deadline = time.monotonic() + self._timeout_seconds + wait
        pause, problem = 0.1, ""
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise CoordinatorUnreachable(
                    f"{method} {self._url}{target}: no answer in {self._timeout_seconds:.0f} s: "
                    f"{problem}"
                )
            try:
                status, data = self._once(method, target, body, min(left, wait + 20))
            except (OSError, http.client.HTTPException) as error:
                self.close()
                problem = str(error) or type(error).__name__
            else:
                if status == 200:
                    return data
                refused = self._refusal(status, data)
                if refused.status not in (408, 429, 500, 502, 503, 504):
                    raise refused
                problem = str(refused)
            time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
            pause = min(2 * pause, _BACKOFF_SECONDS_MAX)

    def _once(self, method: str, target: str, body: bytes, seconds: float) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(*self._place)
        self._connection.timeout = seconds
        if self._connection.sock is not None:
            self._connection.sock.settimeout(seconds)
        signature = sign_request(self._key, Request(self._audience, method, target), body)
        headers = {HEADER: signature}
        try:
            self._connection.request(method, target, body=body or None, headers=headers)
        except (BrokenPipeError, ConnectionResetError):
            # It hung up while we still sent: what it said before is why.
            if self._connection.sock is None:
                raise
        answer = self._connection.getresponse()
        data = answer.read(_ANSWER_BYTES_MAX)
        if answer.read(1) or answer.will_close:
            self.close()
        return answer.status, data

    def _refusal(self, status: int, data: bytes) -> CoordinatorError:
        try:
            found = self._json(data)
            return CoordinatorError(str(found["code"]), str(found["error"])[:1000], status)
        except (CoordinatorError, KeyError):
            return CoordinatorError("http", f"{self._url}: status {status}", status)
