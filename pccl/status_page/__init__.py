"""The live page of a coordinator, its status as JSON, and its metrics: read only, by HTTP."""

from __future__ import annotations

import ipaddress
import json
import logging
import math
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pccl.status_page.metrics import format_metrics

__all__ = ["StatusServer"]

_logger = logging.getLogger("pccl.coordinator")

# More browsers than that at a time wait for their turn in the listening socket's queue, or give up.
_REQUESTS_MAX = 16
# For a whole request: who is slower is no browser.
_REQUEST_SECONDS = 5.0

# The plan that is drawn: of an all_reduce of this size, made at most so often.
_PLAN_BYTES = 64 << 20
_PLAN_SECONDS = 5.0

# Path -> (file of this package, its type).
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/map.js": ("map.js", "text/javascript; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
# Nothing from elsewhere, nothing inline, and nobody may put the page into a frame of theirs.
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"  # noqa: E501


class StatusServer:
    """Serves `status()` on `host`:`port` until close(); only GET, and only what is listed here.

    A page of another site can't read it through the reader's browser: the Host header must be an IP
    address, "localhost" or a name in `names`, which no name that an attacker owns is.

    Raises:
        OSError: the port is in use, or `host` is no address of this machine.
    """

    def __init__(
        self, status: Callable[[], dict[str, Any]], host: str, port: int, names: tuple[str, ...]
    ) -> None:
        self._http = _Server((host, port), status, {name.lower() for name in (host, *names)})
        self._thread = threading.Thread(
            target=self._http.serve_forever, name="pccl-status", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(
        self, place: tuple[str, int], status: Callable[[], dict[str, Any]], names: set[str]
    ) -> None:
        if ":" in place[0]:
            import socket

            self.address_family = socket.AF_INET6
        self.status = status
        self.plans = _Plans()
        self.names = names
        self._free = threading.Semaphore(_REQUESTS_MAX)
        super().__init__(place, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(timeout=_REQUEST_SECONDS):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _logger.debug("status page: a request of %s failed", client_address, exc_info=True)


class _Plans:
    """The plan for each run's links, made again when it is old, whoever asks how often."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Guarded by _lock. Run -> (when it was made, answer); runs that ended are dropped.
        self._made: dict[str, tuple[float, dict[str, Any]]] = {}

    def plan(self, status: dict[str, Any], name: str) -> dict[str, Any]:
        """`describe_plan`, or {"reason": why there is none}."""
        runs = {run["name"]: run for run in status["runs"]}
        if name not in runs:
            return {"reason": "there is no such run"}
        with self._lock:
            for ended in self._made.keys() - runs.keys():
                del self._made[ended]
            made_at, answer = self._made.get(name, (-math.inf, {}))
            if time.monotonic() - made_at > _PLAN_SECONDS:
                # numpy, for which no coordinator should wait when it starts.
                from pccl.measured_topology import describe_plan

                try:
                    answer = describe_plan(runs[name], _PLAN_BYTES)
                except ValueError as error:
                    answer = {"reason": str(error)}
                self._made[name] = time.monotonic(), answer
        return answer


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "pccl"
    sys_version = ""
    timeout = _REQUEST_SECONDS

    def do_GET(self) -> None:
        if not self._is_host_ours():
            self._answer(
                HTTPStatus.FORBIDDEN,
                "text/plain; charset=utf-8",
                b"pccl: the Host header names none of this coordinator's addresses\n",
            )
            return
        path = self.path.partition("?")[0]
        if path in _FILES:
            name, kind = _FILES[path]
            self._answer(HTTPStatus.OK, kind, resources.files(__name__).joinpath(name).read_bytes())
        elif path == "/status.json":
            body = json.dumps(self.server.status()).encode()
            self._answer(HTTPStatus.OK, "application/json", body)
        elif path == "/plan.json":
            self._answer_plan()
        elif path == "/metrics":
            kind, body = format_metrics(self.server.status())
            self._answer(HTTPStatus.OK, kind, body)
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"pccl: no such page\n")

    def _answer_plan(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        found = self.server.plans.plan(self.server.status(), query.get("run", [""])[0])
        self._answer(HTTPStatus.OK, "application/json", json.dumps(found).encode())

    def _is_host_ours(self) -> bool:
        host = self.headers.get("Host", "").strip().lower()
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if name == "localhost" or name in self.server.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _answer(self, code: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        _logger.debug("status page: %s " + format, self.address_string(), *arguments)
