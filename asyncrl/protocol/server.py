"""The coordinator over HTTP. Every request but those for the page is signed, see requests.py.

GET  /run                          the run's document, signed by the coordinator; not signed by the caller
POST /register  {amount, reference}              anybody        stake and take part
GET  /assignment?wait=S                          worker         for which step, and which weights there are
PUT  /rollouts?step=S&submission=I  BODY         worker         a file; refused before it is read if it can't be taken
POST /broadcast {version, seconds}               worker, validator   how long weights took to come
POST /claim, /unstake {amount, reference}        worker         coins out
GET  /pending?wait=S                             validator      files that wait for its verdict
GET  /files/SHA256                               validator, trainer   a file's bytes
POST /verdicts  BODY                             validator      a signed verdict
GET  /accepted?after=N&wait=S                    trainer        files to train on, in order of decision
POST /step      {step, metrics}                  trainer        the run's next step
POST /weights   {version, sha256}                trainer        a version is published
GET  /, /status.json, /ledger?after=N            anybody        page, its data, the ledger's rows
"""  # noqa: E501

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from aiohttp import web

from asyncrl.protocol.coordinator import Coordinator
from asyncrl.protocol.keys import BadSignature
from asyncrl.protocol.requests import HEADER, Request, RequestRefused, SignedHeader, audience
from asyncrl.protocol.serving import Answer, FileAnswer, answer_json
from asyncrl.protocol.status import run_status
from asyncrl.protocol.uploads import Upload
from asyncrl.validation.verdict import SignedVerdict

__all__ = ["serve_coordinator", "watch_validators"]

_WAIT_SECONDS_MAX = 20.0
_LOOK_SECONDS = 0.05
_JSON_BYTES_MAX = 64 << 10
_LIST_MAX = 64
_LEDGER_ROWS_MAX = 1000
# Files of one worker that come at the same time: bounds what is on the disk before it is counted.
_RECEIVING_MAX = 2
_FILE = re.compile(r"/files/([0-9a-f]{64})")
# Nothing from elsewhere, nothing inline.
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"  # noqa: E501
_PAGE = {
    "/": ("asyncrl.protocol.page", "index.html", "text/html"),
    "/page.css": ("pccl.status_page", "page.css", "text/css"),
    "/run.css": ("asyncrl.protocol.page", "run.css", "text/css"),
    "/run.js": ("asyncrl.protocol.page", "run.js", "text/javascript"),
}
_WORKER, _VALIDATOR, _TRAINER = "worker", "validator", "trainer"


@dataclass(frozen=True)
class _Call:
    """A request whose sender is known."""

    request: web.BaseRequest
    header: SignedHeader

    @property
    def address(self) -> str:
        return self.header.address

    def number(self, name: str) -> int:
        text = self.request.query.get(name, "")
        if not re.fullmatch(r"[0-9]{1,15}", text):
            raise RequestRefused("query", f"{name}: expected a whole number, got {text!r}", 400)
        return int(text)

    def check_length(self, limit: int) -> None:
        """Refuse a body by what is said of it, before it is read."""
        length = self.request.content_length
        if length is None and self.request.body_exists:
            raise RequestRefused("length", "a body without Content-Length", 411)
        if max(length or 0, self.header.body_bytes) > limit:
            raise RequestRefused("size", f"a body of {length} bytes, at most {limit}", 413)
        if (length or 0) != self.header.body_bytes:
            raise RequestRefused("body", "Content-Length is not what was signed", 400)

    async def body(self, limit: int) -> bytes:
        self.check_length(limit)
        data = await self.request.content.read(-1) if self.request.body_exists else b""
        self.header.check_body(len(data), hashlib.sha256(data).hexdigest())
        return data

    async def fields(self, **types: type) -> Any:
        """Read a JSON object with exactly these fields; return their values, in this order."""
        try:
            found = json.loads(await self.body(_JSON_BYTES_MAX))
            values = [found[name] for name in types]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise RequestRefused("body", f"expected JSON with {', '.join(types)}", 400) from None
        for (name, kind), value in zip(types.items(), values, strict=True):
            if not isinstance(value, kind) or isinstance(value, bool):
                raise RequestRefused("body", f"{name}: expected {kind.__name__}", 400)
            if isinstance(value, int | float) and not 0 <= value < 1 << 53:
                raise RequestRefused("body", f"{name}: {value} is out of bounds", 400)
        return values


_Handler = Callable[[_Call], Awaitable[web.StreamResponse]]


class _Routes:
    def __init__(self, coordinator: Coordinator, audience_: str) -> None:
        self._coordinator = coordinator
        self._audience = audience_
        self._receiving: Counter[str] = Counter()
        # What needs a signature: (method, path) -> (roles, handler).
        self._signed: dict[tuple[str, str], tuple[tuple[str, ...], _Handler]] = {
            ("POST", "/register"): ((_WORKER, "stranger"), self._register),
            ("GET", "/assignment"): ((_WORKER,), self._assignment),
            ("PUT", "/rollouts"): ((_WORKER,), self._rollouts),
            ("POST", "/broadcast"): ((_WORKER, _VALIDATOR), self._broadcast),
            ("POST", "/claim"): ((_WORKER,), self._claim),
            ("POST", "/unstake"): ((_WORKER,), self._unstake),
            ("GET", "/pending"): ((_VALIDATOR,), self._pending),
            ("POST", "/verdicts"): ((_VALIDATOR,), self._verdicts),
            ("GET", "/accepted"): ((_TRAINER,), self._accepted),
            ("POST", "/step"): ((_TRAINER,), self._step),
            ("POST", "/weights"): ((_TRAINER,), self._weights),
            ("GET", "/files"): ((_VALIDATOR, _TRAINER), self._file),
        }

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if request.method == "GET":
            if path in _PAGE:
                return _page(*_PAGE[path])
            if path == "/status.json":
                return answer_json(run_status(self._coordinator))
            if path == "/run":
                return web.Response(
                    body=self._coordinator.document, content_type="application/json"
                )
            if path == "/ledger":
                return self._ledger(request)
        route = self._signed.get((request.method, "/files" if _FILE.fullmatch(path) else path))
        if route is None:
            raise RequestRefused("path", f"{request.method} {path}: no such thing", 404)
        roles, handler = route
        return await handler(self._call(request, roles))

    def _call(self, request: web.BaseRequest, roles: tuple[str, ...]) -> _Call:
        """Find out who asks, whether it may, and whether it asked this before."""
        asked = Request(self._audience, request.method, request.raw_path)
        header = SignedHeader.verify(asked, request.headers.get(HEADER))
        role = self._coordinator.role(header.address)
        if role == "banned":
            reason = self._coordinator.ledger.account(header.address).ban_reason
            raise RequestRefused("banned", f"{header.address}: banned: {reason}", 403)
        if role not in roles:
            raise RequestRefused(
                "role", f"{request.path} is for a {' or '.join(roles)}, not for a {role}", 403
            )
        # Keys are free, so strangers would fill the store; what they may do is safe to repeat.
        if role != "stranger":
            self._coordinator.nonces.admit(header)
            self._coordinator.hear(header.address)
        return _Call(request, header)

    def _ledger(self, request: web.BaseRequest) -> web.Response:
        after = request.query.get("after", "0")
        if not re.fullmatch(r"[0-9]{1,15}", after):
            raise RequestRefused("query", "after: expected a row's number", 400)
        rows = self._coordinator.ledger.entries(int(after), _LEDGER_ROWS_MAX)
        return answer_json({"rows": [{**asdict(row), "hash": row.hash()} for row in rows]})

    async def _wait_for(self, call: _Call, look: Callable[[], Any]) -> Any:
        """Return look() as soon as it is not empty, or after ?wait= seconds."""
        text = call.request.query.get("wait", "0")
        if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3})?", text):
            raise RequestRefused("query", f"wait: expected seconds, got {text!r}", 400)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(float(text), _WAIT_SECONDS_MAX)
        while not (found := look()) and loop.time() < deadline:
            await asyncio.sleep(_LOOK_SECONDS)
        return found

    # --- workers ---

    async def _register(self, call: _Call) -> web.Response:
        amount, reference = await call.fields(amount=int, reference=str)
        return answer_json(self._coordinator.register(call.address, amount, reference))

    async def _assignment(self, call: _Call) -> web.Response:
        def look() -> dict[str, Any] | None:
            found = self._coordinator.assignment(call.address)
            return None if found["step"] is None else found

        found = await self._wait_for(call, look)
        return answer_json(found or self._coordinator.assignment(call.address))

    async def _rollouts(self, call: _Call) -> web.Response:
        step, index = call.number("step"), call.number("submission")
        known = self._coordinator.uploads.get(call.header.body_sha256)
        if known is None or known.address != call.address:
            self._coordinator.expect(call.address, step, index, call.header.body_bytes)
        call.check_length(self._coordinator.options.file_bytes_max)
        part = self._coordinator.folder / "files" / f"{secrets.token_hex(8)}.part"
        if self._receiving[call.address] >= _RECEIVING_MAX:
            raise RequestRefused("rate", f"{_RECEIVING_MAX} of your files are on their way", 429)
        self._receiving[call.address] += 1
        try:
            digest = await _receive(call, part)
            call.header.check_body(part.stat().st_size, digest)
            upload = self._coordinator.add_file(part, digest, call.address, step, index)
        except OSError as error:
            raise RequestRefused("disk", f"the file was not kept: {error.strerror}", 507) from None
        finally:
            part.unlink(missing_ok=True)
            self._receiving[call.address] -= 1
            self._receiving += Counter()  # drops those that are at 0
        return answer_json(_shown(upload))

    async def _broadcast(self, call: _Call) -> web.Response:
        version, seconds = await call.fields(version=int, seconds=float)
        self._coordinator.add_broadcast(call.address, version, seconds)
        return answer_json({})

    async def _claim(self, call: _Call) -> web.Response:
        amount, reference = await call.fields(amount=int, reference=str)
        return answer_json(self._coordinator.claim(call.address, amount, reference))

    async def _unstake(self, call: _Call) -> web.Response:
        amount, reference = await call.fields(amount=int, reference=str)
        return answer_json(self._coordinator.unstake(call.address, amount, reference))

    # --- validators ---

    async def _pending(self, call: _Call) -> web.Response:
        uploads = self._coordinator.uploads
        found = await self._wait_for(call, lambda: uploads.pending_for(call.address, _LIST_MAX))
        return answer_json({"files": [_shown(upload) for upload in found]})

    async def _file(self, call: _Call) -> web.StreamResponse:
        match = _FILE.fullmatch(call.request.path)
        assert match is not None
        headers = {"Content-Type": "application/octet-stream", "Cache-Control": "no-store"}
        return FileAnswer(self._coordinator.path(match[1]), call.request, headers)

    async def _verdicts(self, call: _Call) -> web.Response:
        try:
            signed = SignedVerdict.from_bytes(await call.body(_JSON_BYTES_MAX))
        except BadSignature as error:
            raise RequestRefused("verdict", str(error), 400) from None
        if signed.validator != call.address:
            raise RequestRefused("verdict", f"signed by {signed.validator}", 403)
        return answer_json(_shown(self._coordinator.add_verdict(signed)))

    # --- trainers ---

    async def _accepted(self, call: _Call) -> web.Response:
        uploads, after = self._coordinator.uploads, call.number("after")
        found = await self._wait_for(call, lambda: uploads.accepted_after(after, _LIST_MAX))
        return answer_json({"files": [_shown(upload) for upload in found]})

    async def _step(self, call: _Call) -> web.Response:
        step, metrics = await call.fields(step=int, metrics=dict)
        self._coordinator.advance(step, metrics)
        return answer_json({"step": self._coordinator.step})

    async def _weights(self, call: _Call) -> web.Response:
        version, sha256 = await call.fields(version=int, sha256=str)
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise RequestRefused("body", "sha256: expected 64 digits", 400)
        self._coordinator.add_weights(version, sha256)
        return answer_json({})


async def _receive(call: _Call, part: Path) -> str:
    """Write the body to `part`, never more than was signed; return its SHA-256."""
    digest, left = hashlib.sha256(), call.header.body_bytes
    with open(part, "wb") as file:
        async for data in call.request.content.iter_any():
            left -= len(data)
            if left < 0:
                raise RequestRefused("size", "more bytes than were signed", 413)
            digest.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())  # an answer says that it is kept
    return digest.hexdigest()


def _shown(upload: Upload) -> dict[str, Any]:
    # When it came its step was open: that it is closed by now is not its worker's fault.
    return {**asdict(upload), "open_steps": [upload.step]}


def _page(package: str, name: str, kind: str) -> web.Response:
    return web.Response(
        body=resources.files(package).joinpath(name).read_bytes(),
        content_type=kind,
        charset="utf-8",
        headers={
            "Content-Security-Policy": _POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        },
    )


def serve_coordinator(coordinator: Coordinator, address: str) -> Answer:
    """Return what answers for a coordinator whose key has `address`; see serving.serve."""
    return _Routes(coordinator, audience(coordinator.options.run, address)).answer


async def watch_validators(coordinator: Coordinator) -> None:
    """Decide, for ever, what waits for validators that have fallen silent."""
    while True:
        await asyncio.sleep(1.0)
        coordinator.decide_without_the_silent()
