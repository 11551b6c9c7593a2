"""Where links are made: a `Route` in, a link to the orchestrator out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from d8mesh.core.protocol.route import Route
from d8mesh.edge.transport.sockets import DealerLink, SharedContext
from d8mesh.edge.transport.tunnel import ExchangeLink

Connection: TypeAlias = DealerLink | ExchangeLink


def _nobody() -> None:
    """Wake nobody: who has only links of ZeroMQ waits for their sockets."""


class Connector:
    """Makes the links of one party.

    Args:
        wake: called, from a thread of the link, when something has come in over HTTP.
        shared: whose ZeroMQ threads all links use; None: each has some of its own.

    Thread: any; a link belongs to the thread that uses it first.
    """

    def __init__(
        self, wake: Callable[[], None] = _nobody, *, shared: SharedContext | None = None
    ) -> None:
        self.wake: Final = wake
        self._shared = shared

    def connect(self, route: Route) -> Connection:
        """Return a new link along `route`; it connects on its own, and again when it breaks.

        Raises:
            BrokerUnavailableError: there is no such address, or no descriptor is left.
        """
        return ExchangeLink(route.endpoint, self.wake) if route.is_http else self.dealer(route)

    def dealer(self, route: Route) -> DealerLink:
        """As `connect`, for a route of ZeroMQ."""
        return DealerLink(route.endpoint, self._shared, route.server_key)
