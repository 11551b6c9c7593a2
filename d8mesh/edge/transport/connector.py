"""Where links are made: a `Route` in, a link to the orchestrator out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from d8mesh.core.protocol.route import Route
from d8mesh.edge.transport.keys import KeyPair
from d8mesh.edge.transport.sockets import DealerLink, SharedContext
from d8mesh.edge.transport.tunnel import ExchangeLink
from d8mesh.errors import BrokerUnavailableError

#: What is said of an address without a key.
KEYLESS: Final = (
    "the public key of the orchestrator there is not known. Give its http:// address instead, or "
    "put ?key= and its key behind (the orchestrator's /health tells it as server_key)"
)
Connection: TypeAlias = DealerLink | ExchangeLink


@dataclass(frozen=True, slots=True)
class Connector:
    """Makes the links of one party.

    Args:
        wake: called, from a thread of the link, when something has come in over HTTP.
        shared: whose ZeroMQ threads all links use; None: each has some of its own.
        keys: the party's key pair, by which an orchestrator knows it.
    """

    wake: Callable[[], None] = lambda: None
    shared: SharedContext | None = None
    keys: KeyPair = field(kw_only=True)

    def connect(self, route: Route) -> Connection:
        """Return a new link; it connects by itself, and again when the connection breaks.

        Raises:
            BrokerUnavailableError: there is no such address, no descriptor is left, or the
                public key of the orchestrator there is not known.
        """
        return ExchangeLink(route.endpoint, self.wake) if route.is_http else self.dealer(route)

    def dealer(self, route: Route) -> DealerLink:
        """As `connect`, for a route of ZeroMQ."""
        if route.server_key is None:
            raise BrokerUnavailableError(f"{route.endpoint}: {KEYLESS}")
        return DealerLink(route.endpoint, self.shared, server_key=route.server_key, keys=self.keys)
