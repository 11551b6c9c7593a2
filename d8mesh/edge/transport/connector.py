"""Where links are made: a `Route` in, a link to the orchestrator out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from d8mesh.core.protocol.route import Route
from d8mesh.edge.transport.keys import KeyPair
from d8mesh.edge.transport.sockets import DealerLink, SharedContext
from d8mesh.edge.transport.tunnel import Tunnel
from d8mesh.edge.transport.web_client import WebAccess
from d8mesh.errors import BrokerUnavailableError

#: What is said of an address without a key.
KEYLESS: Final = (
    "the public key of the orchestrator there is not known. Give its http:// address instead, or "
    "put ?key= and its key behind (the orchestrator's /health tells it as server_key)"
)


@dataclass(frozen=True, slots=True)
class Connector:
    """Makes the links of one party.

    Args:
        wake: ends the wait of who takes links, when there is a new one. Thread: any.
        shared: whose ZeroMQ threads all links use; None: each has some of its own.
        keys: the party's key pair, by which an orchestrator knows it.
        access: with what it comes to a REST port.
    """

    wake: Callable[[], None] = lambda: None
    shared: SharedContext | None = None
    keys: KeyPair = field(kw_only=True)
    access: WebAccess = field(default_factory=WebAccess)

    def connect(self, route: Route) -> DealerLink:
        """Return a new link; it connects by itself, and again when the connection breaks.

        Raises:
            BrokerUnavailableError: there is no such address, no descriptor is left, or the
                public key of the orchestrator there is not known.
        """
        if route.server_key is None:
            raise BrokerUnavailableError(f"{route.endpoint}: {KEYLESS}")
        if not route.is_http:
            return self._link(route.endpoint, route.server_key)
        try:
            tunnel = Tunnel(route.endpoint, self._access_at(route))
        except OSError as error:
            raise BrokerUnavailableError(f"no port for {route.endpoint}: {error}") from error
        try:
            return self._link(tunnel.endpoint, route.server_key, tunnel)
        except BaseException:
            tunnel.close()
            raise

    def _access_at(self, route: Route) -> WebAccess:
        """Return what is shown at this place: no token where nobody sent us."""
        return replace(
            self.access,
            trusted=self.access.trusted | {route.tls},
            token=self.access.token if route.is_given else None,
        )

    def _link(self, endpoint: str, server_key: bytes, tunnel: Tunnel | None = None) -> DealerLink:
        return DealerLink(
            endpoint, self.shared, server_key=server_key, keys=self.keys, tunnel=tunnel
        )
