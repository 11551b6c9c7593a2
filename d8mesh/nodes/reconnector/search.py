"""Who is known, which route is open, and why there is none, in words for people."""

from __future__ import annotations

import logging
import math
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

from d8mesh.config import Config
from d8mesh.core.protocol.addresses import endpoint, parse_endpoint
from d8mesh.core.protocol.route import KnownBroker, Route
from d8mesh.edge import address_file
from d8mesh.edge.discovery import Discovery, NodeKind
from d8mesh.edge.logs import event
from d8mesh.edge.network import first_reachable, reachable_host, usable_addresses
from d8mesh.edge.network.probe import told, why_unreachable
from d8mesh.edge.transport.connector import KEYLESS
from d8mesh.edge.transport.web_client import WrongSchemeError
from d8mesh.errors import BrokerUnavailableError, ConfigError
from d8mesh.nodes.credentials import secret_of
from d8mesh.nodes.reconnector.health import broker_at
from d8mesh.nodes.reconnector.known_brokers import KnownBrokers
from d8mesh.nodes.reconnector.trust import OrchestratorTrust
from d8mesh.program import command_name

#: How long an address has to take a connection: a lost SYN is repeated after 1 s.
TRY_S: Final = 1.5
#: mDNS has so long to answer before the address file is looked at.
FILE_S: Final = 0.3
#: An address where nobody answered as the orchestrator does is left alone for so long: another
#: program has it.
DISPROVED_S: Final = 30.0
#: How long all that is known may be tried before what else there is to do is done: the next time
#: it goes on with those not tried yet. Anybody may announce names that lead nowhere.
PASS_S: Final = 6.0
#: So many of those are remembered.
MAX_DISPROVED: Final = 256
#: How long one look at why nobody answers may take.
WHY_LOOK_S: Final = 0.5
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


class Search:
    """Finds a route to an orchestrator of the mesh that may be contacted.

    Tried is what is given, else the orchestrators that are known, the last good one first, and
    what the orchestrator of this machine wrote down.

    Args:
        config: the mesh's name and key, the interfaces and the data folder stand there.
        given: ``tcp://HOST:PORT`` of the broker (``?key=`` and its public key behind it, if that
            is known), or ``http://HOST:PORT`` of the orchestrator.
        trust: says who may be contacted; None: one of its own.
        known: who is known, as somebody else hears it; None: they are heard of here, by mDNS and
            by the address file.
        only: the id of the only orchestrator to look for; empty: any.
        is_useless: (broker id, endpoint, or "" for any) -> who is there is not looked for.

    Raises:
        ConfigError: the file with the trusted keys cannot be used.

    Thread: `find` is called by one; the rest by any.
    """

    def __init__(
        self,
        config: Config,
        *,
        given: str | None = None,
        trust: OrchestratorTrust | None = None,
        known: KnownBrokers | None = None,
        only: str = "",
        is_useless: Callable[[str, str], bool] = lambda broker_id, endpoint: False,
    ) -> None:
        self._config, self._given = config, Route.given(given) if given else None
        self.trust = trust or OrchestratorTrust(
            config, secret_of(config), is_one_named=given is not None
        )
        self.known = known or KnownBrokers(self.trust)
        self.only, self._is_useless = only, is_useless
        if self._given is not None and self._given.server_key is not None:
            self.trust.give(self._given.server_key)
        #: set when something is told of where an orchestrator is
        self.news = threading.Event()
        self._is_listening = known is None and not given
        self._discovery: Discovery | None = None
        self._last_good = ""
        #: what the address file named, until a session stands there
        self.unproven: Route | None = None
        #: endpoint -> until when it is left alone
        self._disproved: dict[str, float] = {}
        #: broker id -> when it led nowhere last
        self._vain: dict[str, float] = {}
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
        if self._is_listening:
            for each in self.known.reconsidered():
                self.known.add(each)
        return self._by_known() or (self._by_file() if self._is_listening else None)

    def disprove(self, route: Route | None = None) -> None:
        """The last route is of no use: if the address file named it, it is left alone now.

        Args:
            route: whoever answers there is not the orchestrator: it is left alone, too.
        """
        for each in (self.unproven, route):
            if each is not None:
                self._disproved.pop(each.endpoint, None)
                if len(self._disproved) >= MAX_DISPROVED:
                    del self._disproved[next(iter(self._disproved))]
                self._disproved[each.endpoint] = time.monotonic() + DISPROVED_S
        self.unproven = None

    def _is_disproved(self, endpoint: str) -> bool:
        return time.monotonic() < self._disproved.get(endpoint, 0.0)

    def _by_url(self, url: str) -> Route | None:
        try:
            trusted = self._trusted_at(*Route(url).address)
            found = broker_at(url, trusted=trusted)
        except BrokerUnavailableError as error:
            self._refused = told(error.__cause__) or str(error)
            if isinstance(error.__cause__, (ssl.SSLCertVerificationError, WrongSchemeError)):
                self.trust.turned_away(url, self._refused)
            event(_log, logging.DEBUG, "url.failed", error=str(error))
            return None
        self.trust.let_through(url)
        self.trust.prefer(found.server_key)
        if not self.trust.may_contact(found):
            self._refused = self.trust.why_not(found)
            return None
        return route_beside(url, found)

    def _keyed(self, given: Route) -> Route | None:
        """Return the route with the key of who is said to be there; None: nobody tells of it."""
        if given.server_key is not None:
            return given
        for each in self._said_to_be_at(*given.address):
            self.trust.prefer(each.server_key)
            if self.trust.may_contact(each):
                return given._replace(server_key=each.server_key)
            self._refused = self.trust.why_not(each)
        key = self.trust.only_key
        return None if key is None else given._replace(server_key=key)

    def _said_to_be_at(self, host: str, port: int) -> Iterator[KnownBroker]:
        """Yield who is said to be there."""
        for each in self._heard_of():
            if each.port == port and host in each.addresses:
                yield each
        web_port = self._config.web_port
        for scheme in ("http", "https"):
            try:
                url = endpoint(host, web_port, scheme)
                found = broker_at(url, trusted=self._trusted_at(host, web_port))
            except BrokerUnavailableError:
                continue
            if found.port == port:
                yield found
            return

    def _heard_of(self) -> Sequence[KnownBroker]:
        """Return all that is told of orchestrators, by mDNS and by this machine's own."""
        told = [each for known in list(self.known.told.values()) for each in known]
        written = self._written()
        return [*told, *([] if written is None else [written])]

    def _written(self) -> KnownBroker | None:
        return address_file.read(Path(self._config.data_dir), self._config.mesh)

    def _trusted_at(self, host: str, web_port: int) -> Collection[str]:
        """Return the fingerprints of certificates that are good where a person sends us.

        What anybody may announce by mDNS is none: a token may be shown there.
        """
        own = self._written()
        if own is None or own.web_port != web_port or host not in (*own.addresses, "localhost"):
            return self._config.tls_trust
        return {*self._config.tls_trust, own.tls}

    def _by_known(self) -> Route | None:
        first, others = ([self.only], []) if self.only else self._in_turn()
        until = math.inf
        for broker_id in first + others:
            if until == math.inf and broker_id in others:
                until = time.monotonic() + PASS_S
            route = None if self._is_useless(broker_id, "") else self._route_to(broker_id)
            if route is not None:
                self._last_good = broker_id
                return route
            self._vain[broker_id] = time.monotonic()
            if time.monotonic() >= until:
                break
        return None

    def _in_turn(self) -> tuple[list[str], list[str]]:
        """Return who is known: the last good one and those that have answered; the others.

        Of the others the newest told come first, and at the end those who led nowhere, who did so
        the longest ago first.
        """
        ids, answered = list(reversed(self.known.told)), self.trust.pinned_ids
        self._vain = {each: at for each, at in self._vain.items() if each in self.known.told}

        first = [each for each in ids if each in answered or each == self._last_good]
        first.sort(key=lambda each: each != self._last_good)
        others = [each for each in ids if each not in first]
        return first, sorted(others, key=lambda each: self._vain.get(each, 0.0))

    def _route_to(self, broker_id: str) -> Route | None:
        """Try the newest ports first, with all addresses that were ever told with them."""
        over_http: Route | None = None
        for each in self._open_places(broker_id):
            route = find_route(each, is_bad=self._is_disproved)
            if route is None:
                self.trust.unreachable(each.server_key)
            if route is None or self._is_useless(broker_id, route.endpoint):
                continue
            if not route.is_http:
                return route
            over_http = over_http or route
        return over_http

    def _open_places(self, broker_id: str) -> Iterator[KnownBroker]:
        """Yield where one is said to be, as far as that one may be contacted now."""
        for each in self.known.told.get(broker_id, ()):
            if self.trust.may_contact(each):
                yield each

    def _by_file(self) -> Route | None:
        """Return a route to who wrote the address file, unless others are heard of meanwhile."""
        if self.news.wait(FILE_S) and (route := self._by_known()) is not None:
            return route
        written = address_file.read(Path(self._config.data_dir), self._config.mesh)
        if written is None or self.only not in ("", written.broker_id):
            return None
        if not self.trust.may_contact(written):
            return None
        route = find_route(written)
        if route is None or self._is_disproved(route.endpoint):
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
            return self._trouble_given(self._given, route)
        url = self._given.endpoint
        shown = f"ORCHESTRATOR_URL {url}" if url == self._config.orchestrator_url else url
        why = f": {self._refused}" if route is None else f" leads to {_trouble_at(route)}"
        return f"{shown}{why}"

    def _trouble_given(self, given: Route, route: Route | None) -> str:
        strangers = self.trust.strangers
        if route is None and strangers:
            return f"{given.endpoint}: {strangers[-1]}"
        why = why_unreachable(*given.address, deadline_s=WHY_LOOK_S)
        if route is None and not why:
            return f"{given.endpoint}: {KEYLESS}"
        return _trouble_at(given)

    def _trouble_around(self) -> str:
        mesh = self._config.mesh
        for broker_id in [self.only] if self.only else list(self.known.told):
            for each in self._open_places(broker_id):
                why = why_unreachable(each.addresses[0], each.port, deadline_s=WHY_LOOK_S)
                where = f"{', '.join(each.addresses[:4])} port {each.port}"
                return f"{broker_id} is announced at {where}: {why or 'trying to connect'}"
        if self.only:
            return f"looking for {self.only} of mesh {mesh!r}, which has the tasks"
        if passed_over := self.trust.strangers:
            return passed_over[-1]
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


def find_route(
    broker: KnownBroker, *, is_bad: Callable[[str], bool] = lambda endpoint: False
) -> Route | None:
    """Return the best open route: over HTTP only if ZeroMQ's port lets no address through.

    Args:
        is_bad: which endpoints to try only where no other is open.
    """
    web_scheme = "https" if broker.tls else "http"
    for port, scheme in ((broker.port, "tcp"), (broker.web_port, web_scheme)):
        host = _open_host(broker.addresses, port, scheme, is_bad) if port else None
        if port and host:
            tls = broker.tls if scheme == "https" else ""
            return Route(endpoint(host, port, scheme), broker.broker_id, broker.server_key, tls)
    return None


def _open_host(
    addresses: Sequence[str], port: int, scheme: str, is_bad: Callable[[str], bool]
) -> str | None:
    good = [each for each in addresses if not is_bad(endpoint(each, port, scheme))]
    for hosts in (good, addresses):
        host = reachable_host(hosts, port, deadline_s=TRY_S) if hosts else None
        if host is not None or len(good) == len(addresses):
            return host
    return None


def route_beside(url: str, broker: KnownBroker) -> Route:
    """Return the best route to an orchestrator that `url` led to: through that if no other is."""
    host = broker.addresses[0]
    is_open = first_reachable([(host, broker.port)], deadline_s=TRY_S) is not None
    if is_open:
        return Route(endpoint(host, broker.port), broker.broker_id, broker.server_key)
    return Route(url, broker.broker_id, broker.server_key, broker.tls, is_given=True)
