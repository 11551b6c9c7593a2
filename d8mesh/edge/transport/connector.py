"""Where links are made: a `Route` in, a link to the orchestrator out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from d8mesh.core.protocol.route import Route
from d8mesh.edge.transport.sockets import DealerLink, SharedContext
from d8mesh.edge.transport.tunnel import Tunnel
from d8mesh.errors import BrokerUnavailableError


@dataclass(frozen=True, slots=True)
class Connector:
    """Makes the links of one party.

    Args:
        wake: ends the wait of who takes links, when there is a new one. Thread: any.
        shared: whose ZeroMQ threads all links use; None: each has some of its own.
    """

    wake: Callable[[], None] = lambda: None
    shared: SharedContext | None = None

    def connect(self, route: Route) -> DealerLink:
        """Return a new link; it connects by itself, and again when the connection breaks.

        Raises:
            BrokerUnavailableError: there is no such address, or no descriptor is left.
        """
        if not route.is_http:
            return DealerLink(route.endpoint, self.shared, route.server_key)
        try:
            tunnel = Tunnel(route.endpoint)
        except OSError as error:
            raise BrokerUnavailableError(f"no port for {route.endpoint}: {error}") from error
        try:
            return DealerLink(tunnel.endpoint, self.shared, route.server_key, tunnel)
        except BaseException:
            tunnel.close()
            raise
