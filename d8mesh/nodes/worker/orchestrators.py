"""Every orchestrator of the mesh, and a `Reconnector` for each, so that none holds up another.

Known are those that mDNS brings, that were reached last, that this machine's address file
names (where nothing is heard by mDNS), and ORCHESTRATOR_URL, which adds one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from d8mesh.config import Config
from d8mesh.core.protocol.route import KnownBroker, Route
from d8mesh.edge import address_file
from d8mesh.edge.transport.connector import Connector
from d8mesh.edge.transport.keys import KeyPair
from d8mesh.edge.transport.sockets import DealerLink
from d8mesh.nodes.credentials import secret_of, web_access
from d8mesh.nodes.reconnector.known_brokers import MAX_BROKERS, KnownBrokers
from d8mesh.nodes.reconnector.reconnector import Reconnector
from d8mesh.nodes.reconnector.search import Search
from d8mesh.nodes.reconnector.trust import OrchestratorTrust


class Orchestrators:
    """All orchestrators of one worker.

    Args:
        config: the mesh's name and key and the data folder stand there.
        url: ``http://HOST:PORT`` of an orchestrator, or ``tcp://HOST:PORT`` of a broker.
        known: where orchestrators were reached last.
        keys: the worker's.
        wake: called when a link can be taken.

    Thread: the I/O thread, but for `told`.
    """

    def __init__(
        self,
        config: Config,
        *,
        url: str | None = None,
        known: Iterable[KnownBroker] = (),
        keys: KeyPair,
        wake: Callable[[], None],
    ) -> None:
        #: new links to take: their key, the link, where it leads
        self.links: deque[tuple[str, DealerLink, Route]] = deque()
        #: broker id -> key of the link, where sessions stand; told by the I/O thread
        self.joined: dict[str, str] = {}
        self._config, self._url = config, url
        self._connector = Connector(wake, keys=keys, access=web_access(config))
        self.trust = OrchestratorTrust(config, secret_of(config), is_one_named=url is not None)
        self._known = KnownBrokers(self.trust)
        self._reconnectors: dict[str, Reconnector] = {}
        #: where a link was one too many -> the broker id that answered there
        self._doubles: dict[str, str] = {}
        self._written: KnownBroker | None = None
        self._lock = threading.Lock()
        for each in known:
            if self._known.is_open(each, is_heard=False):
                self._go_to(each)
        if url is not None:
            self._seek(url, given=url)
        self.look()

    def told(self, broker: KnownBroker) -> None:
        """Connect to who is said to be there, or know better where it is. Thread: any.

        Who may not be contacted is passed over, and looked at again when more is known of it.
        """
        if self._known.is_open(broker):
            self._go_to(broker)

    def _go_to(self, broker: KnownBroker) -> None:
        broker_id = broker.broker_id
        if broker_id not in self._known.told:
            self._known.add(broker)
        self._seek(broker_id, only=broker_id)
        reconnector = self._reconnectors.get(self.joined.get(broker_id, broker_id))
        if reconnector is not None:
            reconnector.told(broker)

    def look(self) -> None:
        """Take in what has changed: this machine's address file, and whom to trust."""
        for each in self._known.reconsidered():
            self._go_to(each)
        written = address_file.read(Path(self._config.data_dir), self._config.mesh)
        if written is not None and written != self._written:
            self._written = written
            self.told(written)

    def again(self, key: str) -> None:
        """This link is useless: make another."""
        if (reconnector := self._reconnectors.get(key)) is not None:
            reconnector.again()

    def refused(self, key: str, link: DealerLink) -> str:
        """This link does not get in: make another after a pause; return why, for people."""
        reconnector = self._reconnectors.get(key)
        return "" if reconnector is None else str(reconnector.refused(link))

    def welcomed(self, key: str, broker_id: str) -> bool:
        """A session stands over this link; return whether its orchestrator is trusted."""
        reconnector = self._reconnectors.get(key)
        return reconnector is None or reconnector.proven(broker_id)

    def doubt(self, key: str) -> None:
        """Nobody answers there: see whether the orchestrator is elsewhere now."""
        if (reconnector := self._reconnectors.get(key)) is not None:
            reconnector.doubt()

    def leads_to(self, endpoint: str, broker_id: str) -> None:
        """An orchestrator that is joined already answers there: whoever was there has gone."""
        if len(self._doubles) >= MAX_BROKERS:
            self._doubles.clear()
        self._doubles[endpoint] = broker_id

    def reached(self, broker_id: str, route: Route) -> KnownBroker:
        """Return what is worth remembering of an orchestrator that a route led to."""
        host, port = route.address
        key, told = route.server_key, self._known.told.get(broker_id, ())
        found = next((each for each in told if each.server_key == key), None)
        if found is None:
            return KnownBroker(broker_id, (host,), port, None, key)
        return replace(found, addresses=(host,), port=port)

    def close(self) -> None:
        """Stop looking for all of them, and close what was not taken."""
        with self._lock:
            reconnectors = list(self._reconnectors.values())
        for each in reconnectors:
            each.stop()
        for each in reconnectors:
            each.close()

    def _seek(self, key: str, *, given: str | None = None, only: str = "") -> None:
        with self._lock:
            if key in self._reconnectors:
                return
            if len(self._reconnectors) > MAX_BROKERS:  # with the one that was given
                self._drop_forgotten()
            if len(self._reconnectors) > MAX_BROKERS:
                return
            is_useless = partial(self._is_useless, key)
            search = Search(
                self._config,
                given=given,
                trust=self.trust,
                known=self._known,
                only=only,
                is_useless=is_useless,
            )
            self._reconnectors[key] = Reconnector(
                search, self._connector, links=self.links, key=key
            )

    def _drop_forgotten(self) -> None:
        """Look no longer for those that had to go for others (`KnownBrokers.add`)."""
        kept = {*self._known.told, *self.joined.values(), self._url}
        for key in [each for each in self._reconnectors if each not in kept]:
            self._reconnectors.pop(key).stop()

    def _is_useless(self, key: str, broker_id: str, endpoint: str) -> bool:
        """Return whether another link than `key` leads to who is there."""
        is_joined = self.joined.get(broker_id, key) != key
        return is_joined or self._doubles.get(endpoint) in self.joined
