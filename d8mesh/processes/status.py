"""The status page of a worker: ``GET /health`` on 7200 or one of the next ports.

As small as it can be, for it lives in every worker: no routing, no Werkzeug. The same server as
the orchestrator's, on a thread; it asks nothing of anybody and so always answers.
"""

from __future__ import annotations

import errno
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from socket import socket
from typing import Final

from d8mesh.edge.network import bind, port_holder
from d8mesh.errors import ConfigError, D8Error
from d8mesh.http.answers import Refusal, Response, answer, problem
from d8mesh.http.asgi import AsgiSend, Receive, Scope, fields_of
from d8mesh.http.guard import Guard, Rejections
from d8mesh.http.server import Server, ServerThread

#: Requests of one address: so many at once, and so many per second in the long run.
BURST: Final = 200
PER_SECOND: Final = 50.0
#: Addresses remembered; the one silent for longest is forgotten.
MAX_ASKERS: Final = 1024


class StatusServer(ServerThread):
    """Shows what `report` returns, on the first free one of `ports`.

    Args:
        report: the documented body; 200 if its ``status`` is ``healthy``, else 503. It is called
            from this server's thread.
        guard: who may ask.

    Raises:
        D8Error: no port is free.
        ConfigError: `host` is no address of this machine.
    """

    def __init__(
        self,
        host: str,
        ports: Sequence[int],
        report: Callable[[], Mapping[str, object]],
        guard: Guard,
    ) -> None:
        self._report, self._guard = report, guard
        self._rates, self._rejections = _Rates(), Rejections()
        bound = _bind_first("127.0.0.1" if host == "localhost" else host, ports)
        super().__init__(Server(self._show, [bound], self._guard.admits, self._rejections))
        (self.port,) = self.ports

    async def _show(self, scope: Scope, receive: Receive, send: AsgiSend) -> None:
        peer = scope["client"][0]
        try:
            response = self._answer(peer, scope)
        except Refusal as refusal:
            self._rejections.add(refusal.code, peer, str(refusal))
            response = problem(refusal)
        await response.send(send, is_head=scope["method"] == "HEAD")

    def _answer(self, peer: str, scope: Scope) -> Response:
        if not self._rates.allows(peer, time.monotonic()):
            raise Refusal("access.flood", f"at most {PER_SECOND:g} requests a second")
        fields = fields_of(scope)
        self._guard.check(peer, scope["http_version"], fields)
        self._guard.access_of(peer, fields)
        if scope["path"] != "/health":
            raise Refusal("http.not_found", "expected /health")
        if scope["method"] not in ("GET", "HEAD"):
            raise Refusal("http.method", "expected GET", headers={"Allow": "GET, HEAD"})
        report = {**self._report(), "rejected": self._rejections.counts()}
        return answer(report, 200 if report.get("status") == "healthy" else 503)


class _Rates:
    """A token bucket for each address."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, address: str, now: float) -> bool:
        """Take a token; False if there is none."""
        tokens, at = self._buckets.pop(address, (BURST, now))
        tokens = min(BURST, tokens + (now - at) * PER_SECOND)
        is_allowed = tokens >= 1
        self._buckets[address] = (tokens - 1 if is_allowed else tokens, now)
        if len(self._buckets) > MAX_ASKERS:
            self._buckets.popitem(last=False)
        return is_allowed


def _bind_first(host: str, ports: Sequence[int]) -> socket:
    failure: OSError | None = None
    for port in ports:
        try:
            return bind(host, port)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise ConfigError(
                    f"FLASK_HOST={host!r}: expected an address of this machine, or 0.0.0.0 for all"
                ) from error
            failure = error
    holder = port_holder(ports[0]) if ports else None
    held_by = f" ({ports[0]} is taken by {holder})" if holder else ""
    raise D8Error(
        f"none of the status ports {ports[0]} to {ports[-1]} can be used{held_by}: set "
        "WORKER_STATUS_PORT"
    ) from failure
