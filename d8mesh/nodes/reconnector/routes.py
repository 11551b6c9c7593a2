"""Which orchestrators are known, and which route to one is open."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Final
from urllib.parse import urlsplit

from d8mesh.core.protocol.addresses import MAX_CANDIDATES
from d8mesh.core.protocol.route import KnownBroker, Route
from d8mesh.edge.network import first_reachable, reachable_host
from d8mesh.errors import BrokerUnavailableError

#: How long an address has to take a connection: a lost SYN is repeated after 1 s.
TRY_S: Final = 1.5
#: Orchestrators that are remembered: more in one mesh is odd, or means harm.
MAX_BROKERS: Final = 64
#: Pairs of ports that are remembered of each.
MAX_PORTS: Final = 8
#: Largest answer of /health that is read.
MAX_HEALTH_BYTES: Final = 65_536


class KnownBrokers:
    """Where the orchestrators of a mesh are, as far as that was told.

    Thread: any.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[KnownBroker, ...]] = {}

    def __iter__(self) -> Iterator[str]:
        """Yield the ids."""
        return iter(list(self._known))

    def of(self, broker_id: str) -> tuple[KnownBroker, ...]:
        """Return what was told of one, newest first; each has other ports."""
        return self._known.get(broker_id, ())

    def add(self, told: KnownBroker) -> bool:
        """Note where one is; return whether something else was known of it before."""
        with self._lock:
            before = self._known.get(told.broker_id, ())
            if not before and len(self._known) >= MAX_BROKERS:
                return False
            ports = told.port, told.web_port
            same = [each for each in before if (each.port, each.web_port) == ports]
            addresses = [*told.addresses, *(address for each in same for address in each.addresses)]
            newest = replace(told, addresses=tuple(dict.fromkeys(addresses))[:MAX_CANDIDATES])
            rest = [each for each in before if each not in same]
            self._known[told.broker_id] = (newest, *rest)[:MAX_PORTS]
            return bool(before) and before[0] != newest


def find_route(broker: KnownBroker) -> Route | None:
    """Return the best open route to an orchestrator; None: there is none.

    The REST port is taken only when no address lets the broker's port through.
    """
    host = reachable_host(broker.addresses, broker.port, deadline_s=TRY_S)
    if host is not None:
        return broker.route_to(host)
    if broker.web_port is not None:
        host = reachable_host(broker.addresses, broker.web_port, deadline_s=TRY_S)
    return None if host is None else broker.route_to(host, is_http=True)


def find_route_by_url(url: str, *, key: str | None = None) -> Route:
    """Return the best route to the orchestrator whose REST is at `url`; see `ask_health`.

    Raises:
        BrokerUnavailableError: nothing answers there, or not as an orchestrator does.
    """
    health = ask_health(url, key=key)
    port, broker_id = health["broker_port"], str(health.get("broker_id", ""))
    assert isinstance(port, int)
    host = urlsplit(url).hostname or ""
    if first_reachable([(host, port)], deadline_s=TRY_S) is None:
        return Route(url, broker_id)
    return KnownBroker(broker_id, (host,), port, None).route_to(host)


def ask_health(url: str, *, key: str | None = None) -> dict[str, object]:
    """Return the JSON object of ``GET url/health``, whatever its status.

    Args:
        url: where a person said that an orchestrator is: it is given the key.
        key: D8_MESH_KEY.

    Raises:
        BrokerUnavailableError: nothing answers there, or not as an orchestrator does.
    """
    import http.client  # slow to import, and most processes never need it

    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=TRY_S)
    try:
        proof = {} if key is None else {"Authorization": f"Bearer {key}"}
        connection.request("GET", "/health", headers={"Accept": "application/json", **proof})
        body = json.loads(connection.getresponse().read(MAX_HEALTH_BYTES))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise BrokerUnavailableError(f"no orchestrator answers at {url}: {error}") from error
    finally:
        connection.close()
    if isinstance(body, dict) and body.get("code") == "access.token":
        which = "another D8_MESH_KEY than this machine" if key else "a D8_MESH_KEY, set it here too"
        raise BrokerUnavailableError(f"the orchestrator at {url} has {which}")
    if not isinstance(body, dict) or not isinstance(body.get("broker_port"), int):
        raise BrokerUnavailableError(f"what answers at {url} is no orchestrator")
    return body
