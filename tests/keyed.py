"""Keys, a ROUTER and links with them, for tests."""

from __future__ import annotations

from typing import Final

from d8mesh.core.protocol.membership import Verdict
from d8mesh.core.protocol.route import Route
from d8mesh.edge.transport.keys import KeyPair, new_pair
from d8mesh.edge.transport.router import RouterEndpoint
from d8mesh.edge.transport.sockets import DealerLink, SharedContext
from d8mesh.edge.transport.zap import Gate

#: Of the tests' orchestrators that are no real ones, and of who connects to any.
SERVER: Final = new_pair()
PEER: Final = new_pair()


def admit(address: str, key: bytes) -> Verdict:
    """Let everybody in."""
    del address, key
    return Verdict.ADMITTED


def router_at(port: int = 0, *, gate: Gate = admit, keys: KeyPair = SERVER) -> RouterEndpoint:
    return RouterEndpoint("127.0.0.1", [port], keys=keys, gate=gate)


def link_to(
    port: int,
    *,
    server_key: bytes = SERVER.public,
    keys: KeyPair = PEER,
    shared: SharedContext | None = None,
) -> DealerLink:
    return DealerLink(f"tcp://127.0.0.1:{port}", shared, server_key=server_key, keys=keys)


def route_to(port: int, broker_id: str = "") -> Route:
    return Route(f"tcp://127.0.0.1:{port}", broker_id, SERVER.public)


def endpoint_of(port: int, server_key: bytes = SERVER.public) -> str:
    """Return the endpoint of a test's orchestrator as a person writes it."""
    return f"tcp://127.0.0.1:{port}?key={server_key.hex()}"
