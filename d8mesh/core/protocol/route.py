"""How an orchestrator is reached, and what is known of where one is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from d8mesh.core.protocol.addresses import endpoint as endpoint_of
from d8mesh.core.protocol.addresses import parse_endpoint


class Route(NamedTuple):
    """``tcp://HOST:PORT`` (ZeroMQ), or ``http[s]://HOST:PORT`` (its connection through REST).

    `broker_id` is who shall answer there, "" for whoever does; `server_key` the public key of
    the broker, 32 bytes. Without it nothing can be connected: None says that it is not known yet.
    `tls` is the fingerprint that its certificate is said to have, "" if none was told;
    `is_given` says that a person named the place.
    """

    endpoint: str
    broker_id: str = ""
    server_key: bytes | None = None
    tls: str = ""
    is_given: bool = False

    @classmethod
    def given(cls, text: str) -> Route:
        """Return the route that a person wrote: a URL, or ``tcp://HOST:PORT[?key=…]``."""
        if text.startswith(("http://", "https://")):
            return cls(text)
        host, port, key = parse_endpoint(text)
        return cls(endpoint_of(host, port), "", key)

    @property
    def is_http(self) -> bool:
        """True when it goes through the REST port."""
        return self.endpoint.startswith(("http://", "https://"))

    @property
    def address(self) -> tuple[str, int]:
        """Address (or name) and port that a connection goes to."""
        parts = urlsplit(self.endpoint)
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


@dataclass(frozen=True, slots=True)
class KnownBroker:
    """Where an orchestrator says that it is, or was reached; the likeliest address first.

    `server_key` is the public key that it says it has, 32 bytes; None if that was not told.
    `proof` is that who has it knows the mesh key (`membership.announced_proof`); b"": none told.
    `tls` is the SHA-256 fingerprint of its web port's certificate (64 hex digits); "" for plain
    HTTP.
    """

    broker_id: str
    addresses: tuple[str, ...]
    port: int
    web_port: int | None
    server_key: bytes | None = None
    proof: bytes = b""
    tls: str = ""
