"""The status page of a worker: ``GET /health`` on 7200 or one of the next ports.

As small as it can be, for it lives in every worker: no routing, no Werkzeug. The same
listener as the orchestrator's, with two threads; it asks nothing of anybody and so always
answers.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from d8mesh.core.protocol.addresses import host_of, is_admissible
from d8mesh.edge.logs import event
from d8mesh.edge.network import bind, port_holder
from d8mesh.errors import D8Error
from d8mesh.http.own_hosts import OwnHosts, may_lack_host
from d8mesh.http.server import Limits, Listener

#: Requests of one address: so many at once, and so many per second in the long run.
BURST: Final = 200
PER_SECOND: Final = 50.0
#: Addresses remembered; the one silent for longest is forgotten.
MAX_ADDRESSES: Final = 1024
_THREADS: Final = 2
#: Nothing is to be sent here.
_BODY_BYTES: Final = 4096

_log: Final = logging.getLogger("d8mesh.status")


class StatusServer:
    """Shows what `report` returns, on the first free one of `ports`.

    Args:
        host: the address to listen on, or ``localhost``.
        ports: tried in turn.
        report: the documented body; 200 if its ``status`` is ``healthy``, else 503.
        allowed_hosts: as of D8_ALLOWED_HOSTS.

    Raises:
        D8Error: no port is free.

    Thread: `report` is called from threads of this server; the rest from any.
    """

    def __init__(
        self,
        host: str,
        ports: Sequence[int],
        report: Callable[[], Mapping[str, object]],
        *,
        allowed_hosts: Collection[str] = (),
    ) -> None:
        bound = _bind_first("127.0.0.1" if host == "localhost" else host, ports)
        page = _Page(report, allowed_hosts)
        limits = Limits(threads=_THREADS, body_bytes=_BODY_BYTES)
        self._listener = Listener(page, bound, limits, page.refused)
        self.port: int = self._listener.port

    def start(self) -> None:
        """Serve on a thread of its own."""
        self._listener.start()

    def close(self) -> None:
        """Stop serving."""
        self._listener.close()


class _Page:
    """The WSGI application."""

    def __init__(
        self, report: Callable[[], Mapping[str, object]], allowed_hosts: Collection[str]
    ) -> None:
        self._report = report
        self._own_hosts = OwnHosts(allowed_hosts)
        self._rates = _Rates()

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        status, body, headers = self._answer(environ)
        code = body.get("code")
        if code is not None:
            self.refused(str(code), environ["REMOTE_ADDR"], str(body["error"]))
        content = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(content))),
            *headers,
        ]
        start_response(status, headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [content]

    def refused(self, code: str, address: str, what: str) -> None:
        """Tell of a refusal in the log."""
        event(_log, logging.INFO, "refused", surface="status", code=code, address=address, why=what)

    def _answer(
        self, environ: Mapping[str, Any]
    ) -> tuple[str, Mapping[str, object], list[tuple[str, str]]]:
        address = environ["REMOTE_ADDR"]
        if not self._rates.allows(address, time.monotonic()):
            body = _problem("access.flood", f"at most {PER_SECOND:g} requests a second")
            return "429 Too Many Requests", body, [("Retry-After", "1")]
        if not is_admissible(address):
            return "403 Forbidden", _problem("http.peer", "only private networks may ask"), []
        header = environ.get("HTTP_HOST", "")
        host = "localhost" if may_lack_host(environ) else host_of(header)
        if host is None:
            body = _problem("http.bad_request", "the Host header is missing or malformed")
            return "400 Bad Request", body, []
        if host not in self._own_hosts:
            body = _problem("http.host", f"{host[:100]!r} is not a name of this machine")
            return "403 Forbidden", body, []
        if _is_foreign(environ, header):
            body = _problem("http.origin", "requests of web pages from elsewhere are refused")
            return "403 Forbidden", body, []
        if environ["PATH_INFO"] != "/health":
            return "404 Not Found", _problem("http.not_found", "expected /health"), []
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            body = _problem("http.method", "expected GET")
            return "405 Method Not Allowed", body, [("Allow", "GET, HEAD")]
        report = self._report()
        is_healthy = report.get("status") == "healthy"
        return "200 OK" if is_healthy else "503 Service Unavailable", report, []


class _Rates:
    """A token bucket for each address."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def allows(self, address: str, now: float) -> bool:
        """Take a token; False if there is none."""
        with self._lock:
            tokens, at = self._buckets.pop(address, (float(BURST), now))
            tokens = min(float(BURST), tokens + (now - at) * PER_SECOND)
            is_allowed = tokens >= 1
            self._buckets[address] = (tokens - 1 if is_allowed else tokens, now)
            if len(self._buckets) > MAX_ADDRESSES:
                self._buckets.popitem(last=False)
        return is_allowed


def _bind_first(host: str, ports: Sequence[int]) -> Any:
    problem: OSError | None = None
    for port in ports:
        try:
            return bind(host, port)
        except OSError as error:
            problem = error
    holder = port_holder(ports[0]) if ports else None
    held_by = f" ({ports[0]} is taken by {holder})" if holder else ""
    raise D8Error(
        f"none of the status ports {ports[0]} to {ports[-1]} can be used{held_by}: set "
        "WORKER_STATUS_PORT"
    ) from problem


def _is_foreign(environ: Mapping[str, Any], host: str) -> bool:
    origin = environ.get("HTTP_ORIGIN")
    if origin is not None and origin.partition("://")[2].lower() != host.lower():
        return True
    return str(environ.get("HTTP_SEC_FETCH_SITE", "")).lower() == "cross-site"


def _problem(code: str, text: str) -> dict[str, object]:
    return {"error": text, "code": code}
