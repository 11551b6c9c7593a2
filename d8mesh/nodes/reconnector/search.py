"""Who is known, which route is open, and why there is none, in words for people."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from d8mesh.config import Config
from d8mesh.core.protocol.addresses import MAX_CANDIDATES, endpoint, parse_endpoint
from d8mesh.core.protocol.route import KnownBroker, Route
from d8mesh.edge import address_file
from d8mesh.edge.discovery import Discovery, NodeKind
from d8mesh.edge.logs import event
from d8mesh.edge.network import first_reachable, reachable_host, usable_addresses
from d8mesh.edge.network.probe import told, why_unreachable
from d8mesh.edge.transport.connector import KEYLESS
from d8mesh.errors import BrokerUnavailableError, ConfigError
from d8mesh.program import command_name

#: How long an address has to take a connection: a lost SYN is repeated after 1 s.
TRY_S: Final = 1.5
#: mDNS has so long to answer before the address file is looked at.
FILE_S: Final = 0.3
#: An address of that file which led nowhere is left alone for so long: another program has it.
DISPROVED_S: Final = 30.0
#: How long one look at why nobody answers may take.
WHY_LOOK_S: Final = 0.5
#: Orchestrators that are remembered: more in one mesh is odd, or means harm.
MAX_BROKERS: Final = 64
#: Pairs of ports that are remembered of each; an orchestrator that has gone costs two tries for
#: each, one after the other.
MAX_PORTS: Final = 4
#: Largest answer of /health that is read.
MAX_HEALTH_BYTES: Final = 65_536
_log: Final = logging.getLogger("d8mesh.reconnector")


def checked(url: str | None, endpoint: str | None) -> str | None:
    """Return the URL of an orchestrator in its usual form.

    Raises:
        ConfigError: it is no ``http://HOST:PORT``, or `endpoint` no ``tcp://HOST:PORT``.
    """
    for name, given in (("url", url), ("endpoint", endpoint)):
        if given is not None and not isinstance(given, str):
            raise ConfigError(f"{name}: saw {given!r:.80}, expected a text, or None")
    if endpoint is not None:
        parse_endpoint(endpoint)
    return None if url is None else Config.from_env({"ORCHESTRATOR_URL": url}).orchestrator_url


class KnownBrokers:
    """Where the orchestrators of a mesh are. Thread: any."""

    def __init__(self) -> None:
        #: broker id -> what was told of it, newest first, each with other ports
        self.told: dict[str, tuple[KnownBroker, ...]] = {}
        self._lock = threading.Lock()

    def add(self, told: KnownBroker) -> bool:
        """Note where one is; return whether something else was known of it before."""
        with self._lock:
            before = self.told.get(told.broker_id, ())
            if not before and len(self.told) >= MAX_BROKERS:
                return False
            addresses, rest = list(told.addresses), []
            for each in before:
                ours = (each.port, each.web_port, each.server_key)
                if ours == (told.port, told.web_port, told.server_key):
                    addresses += each.addresses
                else:
                    rest.append(each)
            newest = replace(told, addresses=tuple(dict.fromkeys(addresses))[:MAX_CANDIDATES])
            self.told[told.broker_id] = (newest, *rest)[:MAX_PORTS]
            return bool(before) and before[0] != newest


class Search:
    """Finds a route to an orchestrator of the mesh.

    Tried is what is given, else the orchestrators that are known, the last good one first, and
    what the orchestrator of this machine wrote down.

    Args:
        config: the mesh's name and key, the interfaces and the data folder stand there.
        given: ``tcp://HOST:PORT`` of the broker (``?key=`` and its public key behind it, if that
            is known), or ``http://HOST:PORT`` of the orchestrator.
        known: who is known, as somebody else hears it; None: they are heard of here, by mDNS and
            by the address file.
        only: the id of the only orchestrator to look for; empty: any.
        is_useless: (broker id, endpoint, or "" for any) -> who is there is not looked for.

    Thread: `find` is called by one; the rest by any.
    """

    def __init__(
        self,
        config: Config,
        *,
        given: str | None = None,
        known: KnownBrokers | None = None,
        only: str = "",
        is_useless: Callable[[str, str], bool] = lambda broker_id, endpoint: False,
    ) -> None:
        self._config, self._given = config, Route.given(given) if given else None
        self.known, self.only, self._is_useless = known or KnownBrokers(), only, is_useless
        #: set when something is told of where an orchestrator is
        self.news = threading.Event()
        self._is_listening = known is None and not given
        self._discovery: Discovery | None = None
        self._last_good = ""
        #: what the address file named, until a session stands there; what led nowhere, until when
        self.unproven: Route | None = None
        self._disproved: dict[Route, float] = {}
        #: why the URL led nowhere last
        self._refused = "no answer yet"

    def listen(self, on_told: Callable[[KnownBroker], None]) -> None:
        """Begin to hear of orchestrators, if that is done here."""
        if self._is_listening:
            self._discovery = Discovery(
                mesh=self._config.mesh,
                addresses=self._own_addresses,
                on_sighting=lambda sighting: on_told(sighting.broker),
                browse=(NodeKind.ORCHESTRATOR,),
                on_trouble=lambda text: event(_log, logging.WARNING, "discovery", trouble=text),
            )
            self._discovery.start()

    def close(self) -> None:
        """Hear of nothing any more."""
        if self._discovery is not None:
            self._discovery.close()

    def find(self) -> Route | None:
        """Return the best route that is open now, if there is any."""
        if self._given is not None:
            is_url = self._given.is_http
            route = self._by_url(self._given.endpoint) if is_url else self._keyed(self._given)
            is_useless = route and self._is_useless(route.broker_id, route.endpoint)
            return None if is_useless else route
        return self._by_known() or (self._by_file() if self._is_listening else None)

    def disprove(self) -> None:
        """The last route is of no use: if the address file named it, it is left alone now."""
        if self.unproven is not None:
            self._disproved[self.unproven] = time.monotonic() + DISPROVED_S
            self.unproven = None

    def _by_url(self, url: str) -> Route | None:
        try:
            return find_route_by_url(url, key=self._config.mesh_key)
        except BrokerUnavailableError as error:
            self._refused = told(error.__cause__) or str(error)
            event(_log, logging.DEBUG, "url.failed", error=str(error))
            return None

    def _keyed(self, given: Route) -> Route | None:
        """Return the route with the key of who is said to be there; None: nobody tells of it."""
        if given.server_key is not None:
            return given
        host, port = given.address
        written = address_file.read(Path(self._config.data_dir), self._config.mesh)
        told = [each for known in list(self.known.told.values()) for each in known]
        for each in [*told, *([] if written is None else [written])]:
            if each.port == port and host in each.addresses and each.server_key is not None:
                return given._replace(server_key=each.server_key)
        with contextlib.suppress(BrokerUnavailableError):
            url = endpoint(host, self._config.web_port, "http")
            body = _health_at(url, self._config.mesh_key)
            if body["broker_port"] == port:
                return given._replace(server_key=_key_of(body.get("server_key")))
        return None

    def _by_known(self) -> Route | None:
        ids = [self.only] if self.only else list(self.known.told)
        for broker_id in sorted(ids, key=lambda each: each != self._last_good):
            route = None if self._is_useless(broker_id, "") else self._route_to(broker_id)
            if route is not None:
                self._last_good = broker_id
                return route
        return None

    def _route_to(self, broker_id: str) -> Route | None:
        """Try the newest ports first, with all addresses that were ever told with them."""
        over_http: Route | None = None
        for each in self.known.told.get(broker_id, ()):
            route = find_route(each)
            if route is None or self._is_useless(broker_id, route.endpoint):
                continue
            if not route.is_http:
                return route
            over_http = over_http or route
        return over_http

    def _by_file(self) -> Route | None:
        """Return a route to who wrote the address file, unless others are heard of meanwhile."""
        if self.news.wait(FILE_S) and (route := self._by_known()) is not None:
            return route
        written = address_file.read(Path(self._config.data_dir), self._config.mesh)
        if written is None or self.only not in ("", written.broker_id):
            return None
        route = find_route(written)
        if route is None or time.monotonic() < self._disproved.get(route, 0.0):
            return None
        self.unproven = route
        return route

    def _own_addresses(self) -> list[str]:
        return [each.address for each in usable_addresses(self._config.interfaces)]

    # ------------------------------------------------------------------- for people

    def trouble(self, route: Route | None) -> str:
        """Say why no orchestrator answers; takes `WHY_LOOK_S` at most.

        Args:
            route: where the link leads that stands; None: there is none.
        """
        if self._given is None:
            return self._trouble_around() if route is None else _trouble_at(route)
        if not self._given.is_http:
            why = why_unreachable(*self._given.address, deadline_s=WHY_LOOK_S)
            if route is None and not why:
                return f"{self._given.endpoint}: {KEYLESS}"
            return _trouble_at(self._given)
        url = self._given.endpoint
        shown = f"ORCHESTRATOR_URL {url}" if url == self._config.orchestrator_url else url
        why = f": {self._refused}" if route is None else f" leads to {_trouble_at(route)}"
        return f"{shown}{why}"

    def _trouble_around(self) -> str:
        mesh = self._config.mesh
        for broker_id in [self.only] if self.only else list(self.known.told):
            for each in self.known.told.get(broker_id, ()):
                why = why_unreachable(each.addresses[0], each.port, deadline_s=WHY_LOOK_S)
                where = f"{', '.join(each.addresses[:4])} port {each.port}"
                return f"{broker_id} is announced at {where}: {why or 'trying to connect'}"
        if self.only:
            return f"looking for {self.only} of mesh {mesh!r}, which has the tasks"
        strangers = () if self._discovery is None else self._discovery.strangers
        others = f" (other meshes are there: {', '.join(strangers[:4])})" if strangers else ""
        return (
            f"no orchestrator of mesh {mesh!r} is heard by mDNS on "
            f"{', '.join(self._own_addresses()[:4]) or 'any interface'}{others}. Is one running "
            f"({command_name()} orchestrator)? "
            "Where mDNS does not get through, set ORCHESTRATOR_URL"
        )


def _trouble_at(route: Route) -> str:
    why = why_unreachable(*route.address, deadline_s=WHY_LOOK_S)
    return f"{route.endpoint}: {why or 'it takes connections, but no orchestrator answers there'}"


def find_route(broker: KnownBroker) -> Route | None:
    """Return the best open route: over HTTP only if ZeroMQ's port lets no address through."""
    for port, scheme in ((broker.port, "tcp"), (broker.web_port, "http")):
        host = port and reachable_host(broker.addresses, port, deadline_s=TRY_S)
        if port and host:
            return Route(endpoint(host, port, scheme), broker.broker_id, broker.server_key)
    return None


def find_route_by_url(url: str, *, key: str | None = None) -> Route:
    """Return the best route to the orchestrator whose REST is at `url`.

    Args:
        url: where a person said that an orchestrator is: it is given the key.
        key: D8_MESH_KEY.

    Raises:
        BrokerUnavailableError: nothing answers there, or not as an orchestrator does.
    """
    body = _health_at(url, key)
    host, port = urlsplit(url).hostname or "", body["broker_port"]
    is_open = first_reachable([(host, port)], deadline_s=TRY_S) is not None
    place, broker_id = endpoint(host, port) if is_open else url, str(body.get("broker_id", ""))
    return Route(place, broker_id, _key_of(body.get("server_key")))


def _health_at(url: str, key: str | None) -> dict[str, Any]:
    """Return what an orchestrator's ``/health`` tells, its ``broker_port`` at the least.

    Raises:
        BrokerUnavailableError: as of `find_route_by_url`.
    """
    import http.client  # slow to import, and most processes never need it

    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        with closing(kind(parts.hostname or "", parts.port, timeout=TRY_S)) as connection:
            connection.request("GET", "/health", headers=headers)
            body = json.loads(connection.getresponse().read(MAX_HEALTH_BYTES))
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
        raise BrokerUnavailableError(f"no orchestrator answers at {url}: {error}") from error
    if isinstance(body, dict) and body.get("code") == "access.token":
        which = "another D8_MESH_KEY than this machine" if key else "a D8_MESH_KEY, set it here too"
        raise BrokerUnavailableError(f"the orchestrator at {url} has {which}")
    if not isinstance(body, dict) or not isinstance(body.get("broker_port"), int):
        raise BrokerUnavailableError(f"what answers at {url} is no orchestrator")
    return body


def _key_of(told: object) -> bytes | None:
    """Return the public key that 64 hex digits stand for; None: they are none."""
    is_key = isinstance(told, str) and re.fullmatch(r"[0-9a-f]{64}", told, re.ASCII)
    return bytes.fromhex(str(told)) if is_key else None
