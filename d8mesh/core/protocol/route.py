"""How an orchestrator is reached, and what is known of where one is. Pure.

Which of the known addresses answers is `nodes.reconnector`'s to find out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from d8mesh.core.protocol.addresses import endpoint


class Route(NamedTuple):
    """One way to one orchestrator.

    `endpoint` is ``tcp://HOST:PORT`` (ZeroMQ) or ``http://HOST:PORT`` (the same frames through
    the REST port). `broker_id` is who shall answer there; empty: whoever does. `server_key` is
    the broker's public key for CURVE, 32 bytes; None: nothing is encrypted or proven.
    """

    endpoint: str
    broker_id: str = ""
    server_key: bytes | None = None

    @property
    def is_http(self) -> bool:
        """True when it goes through the REST port."""
        return self.endpoint.startswith("http")

    @property
    def address(self) -> tuple[str, int]:
        """Address (or name) and port that a connection goes to."""
        parts = urlsplit(self.endpoint)
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


@dataclass(frozen=True, slots=True)
class KnownBroker:
    """Where an orchestrator says that it is, or was reached; the likeliest address first."""

    broker_id: str
    addresses: tuple[str, ...]
    port: int
    web_port: int | None

    def route_to(self, host: str, *, is_http: bool = False) -> Route:
        """Return the route over one of the addresses; `is_http` needs a `web_port`."""
        if is_http:
            assert self.web_port is not None
            return Route(endpoint(host, self.web_port, "http"), self.broker_id)
        return Route(endpoint(host, self.port), self.broker_id)
