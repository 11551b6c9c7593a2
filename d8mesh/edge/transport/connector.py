"""Where links are made: a `Route` in, a link to the orchestrator out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from d8mesh.core.protocol.route import Route
from d8mesh.edge.transport.sockets import DealerLink, SharedContext
from d8mesh.edge.transport.tunnel import ExchangeLink

Connection: TypeAlias = DealerLink | ExchangeLink


@dataclass(frozen=True, slots=True)
class Connector:
    """Makes the links of one party.

    Args:
        wake: called, from a thread of the link, when something has come in over HTTP.
        shared: whose ZeroMQ threads all links use; None: each has some of its own.
    """

    wake: Callable[[], None] = lambda: None
    shared: SharedContext | None = None

    def connect(self, route: Route) -> Connection:
        """Return a new link; it connects by itself, and again when the connection breaks.

        Raises:
            BrokerUnavailableError: there is no such address, or no descriptor is left.
        """
        return ExchangeLink(route.endpoint, self.wake) if route.is_http else self.dealer(route)

    def dealer(self, route: Route) -> DealerLink:
        """As `connect`, for a route of ZeroMQ."""
        return DealerLink(route.endpoint, self.shared, route.server_key)
