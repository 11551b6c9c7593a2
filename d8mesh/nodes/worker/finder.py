"""Finding every orchestrator of the mesh, and dialling each until it answers.

Sources are mDNS, the places that worked last, what this machine's orchestrator wrote down (where
nothing is heard by mDNS), and ORCHESTRATOR_URL, which adds one. Each orchestrator has a thread of
its own, so that one that hangs holds nobody up.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from d8mesh.edge.address_file import Written
from d8mesh.edge.discovery import Sighting
from d8mesh.edge.identity import Place
from d8mesh.edge.logs import event
from d8mesh.edge.network import Way, ask_health, find_way, find_way_by_url, first_reachable
from d8mesh.edge.transport.sockets import DealerLink
from d8mesh.edge.transport.tunnel import ExchangeLink
from d8mesh.errors import BrokerUnavailableError

#: Pauses between tries, growing, with jitter.
FIRST_PAUSE_S: Final = 0.05
MAX_PAUSE_S: Final = 1.0
#: How long one look for a way may take.
DIAL_S: Final = 1.5
#: While only HTTP works, ZeroMQ is tried again this often.
UPGRADE_S: Final = 2.0
#: Where ZeroMQ worked before, HTTP is not taken sooner: the broker is being started again.
DOWNGRADE_S: Final = 5.0
#: How long a broker that answers no heartbeat has to accept a connection.
ACCEPT_S: Final = 1.0
#: Orchestrators pursued at once.
MAX_PURSUITS: Final = 64
_END_S: Final = 2.0
#: The key of what looks at the address file.
_FILE_KEY: Final = "address-file"

Connection: TypeAlias = DealerLink | ExchangeLink
_log: Final = logging.getLogger("d8mesh.worker")


class Pursuit:
    """Keeps one orchestrator dialled.

    Args:
        key: names the link.
        find: returns the best way there now, or None.
        found: called with a new connection, on this thread.
        wake: handed to connections over HTTP.
    """

    def __init__(
        self,
        key: str,
        find: Callable[[], Way | None],
        found: Callable[[str, Connection, Way], None],
        wake: Callable[[], None],
    ) -> None:
        self.key = key
        self._find, self._found, self._wake = find, found, wake
        self._wanted, self._stop, self._news, self._lost = (threading.Event() for _ in range(4))
        self._wanted.set()
        self._lost.set()
        self._lost_at, self._doubted = 0.0, ""
        self._thread = threading.Thread(target=self._serve, name=f"dial-{key[:8]}", daemon=True)
        self._thread.start()

    def again(self) -> None:
        """The connection is useless: make another."""
        self._lost_at = time.monotonic()
        self._lost.set()
        self._wanted.set()
        self._news.set()

    def doubt(self, endpoint: str) -> None:
        """Make another connection if nobody accepts one at `endpoint` any more."""
        if not self._lost.is_set() and not self._doubted:
            self._doubted = endpoint
            self._wanted.set()

    def hurry(self) -> None:
        """Something new is known of where it is: end the pause."""
        self._news.set()

    def close(self) -> None:
        """Stop."""
        self._stop.set()
        self._wanted.set()
        self._news.set()

    def join(self) -> None:
        """Wait a short time for the thread."""
        self._thread.join(_END_S)

    def _serve(self) -> None:
        pause_s, is_http = FIRST_PAUSE_S, False
        while not self._stop.is_set():
            is_wanted = self._wanted.wait(UPGRADE_S if is_http else None)
            if self._stop.is_set():
                return
            self._news.clear()
            if self._doubted and not self._is_gone():
                continue
            way = self._find()
            if not is_wanted and (way is None or way.is_http):
                continue
            if way is not None and way.is_http and not is_http and self._is_too_soon():
                way = None
            connection = None if way is None else self._connect(way)
            if way is None or connection is None:
                self._news.wait(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(MAX_PAUSE_S, pause_s * 2)
                continue
            self._doubted = ""
            self._lost.clear()
            self._wanted.clear()
            is_http, pause_s = way.is_http, FIRST_PAUSE_S
            self._found(self.key, connection, way)
            self._stop.wait(FIRST_PAUSE_S)  # a link that dies at once is not dialled in a rush

    def _is_gone(self) -> bool:
        """Ask at the doubted endpoint; if somebody accepts, all stays as it is."""
        is_gone = first_reachable([Way(self._doubted).place], deadline_s=ACCEPT_S) is None
        self._doubted = ""
        if not is_gone and not self._lost.is_set():
            self._wanted.clear()
            if self._lost.is_set():  # said meanwhile
                self._wanted.set()
        return is_gone or self._lost.is_set()

    def _is_too_soon(self) -> bool:
        return self._lost_at > 0 and time.monotonic() - self._lost_at < DOWNGRADE_S

    def _connect(self, way: Way) -> Connection | None:
        if way.is_http:
            why = "the broker's port cannot be reached: open it for full speed"
            event(_log, logging.WARNING, "exchange.used", url=way.endpoint, why=why)
            return ExchangeLink(way.endpoint, self._wake)
        try:
            return DealerLink(way.endpoint)
        except BrokerUnavailableError as error:
            event(_log, logging.WARNING, "dial.failed", error=str(error))
            return None


class Finder:
    """All pursuits of one worker.

    Args:
        url: ``http://HOST:PORT`` of an orchestrator, or ``tcp://HOST:PORT`` of a broker.
        places: where orchestrators were reached last.
        wake: called when a connection can be taken.
        key: D8_MESH_KEY, for the orchestrator at `url`.
        written: returns what this machine's orchestrator wrote down, if it did.

    Thread: `sighted` from any; the rest on the I/O thread.
    """

    def __init__(
        self,
        *,
        url: str | None,
        places: Iterable[Place],
        wake: Callable[[], None],
        key: str | None = None,
        written: Callable[[], Written | None] = lambda: None,
    ) -> None:
        self.links: deque[tuple[str, Connection, Way]] = deque()
        #: broker id -> key of the link, where sessions stand; told by the I/O thread
        self.joined: dict[str, str] = {}
        self.web_ports: dict[str, int | None] = {}
        self._wake, self._written, self._key = wake, written, key
        self._known: dict[str, dict[tuple[str, int, int | None], None]] = {}
        self._pursuits: dict[str, Pursuit] = {}
        #: broker id -> what it last said of itself; key of a link -> where it leads
        self._heard: dict[str, list[tuple[str, int, int | None]]] = {}
        self._endpoints: dict[str, str] = {}
        #: where a link was one too many -> the broker id that answered there
        self._doubles: dict[str, str] = {}
        self._lock = threading.Lock()
        for place in places:
            self._add(place.broker_id, [(place.address, place.port, place.web_port)])
        if url is not None:
            self._pursue(url, lambda: self._by_url(url))
        self._last_written: Written | None = None
        self._pursue(_FILE_KEY, self._look_at_file)

    def sighted(self, sighting: Sighting) -> None:
        """An orchestrator was heard: dial it, or know better where it is.

        One that says something else than before has moved, perhaps: long before its silence
        shows it, nobody accepts a connection at the old address.
        """
        node_id = sighting.node_id
        rows = [(address, sighting.port, sighting.web_port) for address in sighting.addresses]
        self._add(node_id, rows)
        before, key = self._heard.get(node_id, rows), self.joined.get(node_id, node_id)
        if node_id in self._pursuits:
            self._heard[node_id] = rows
        if rows != before:
            self.doubt(key, self._endpoints.get(key, ""))

    def again(self, key: str) -> None:
        """This link's connection is useless: make another."""
        pursuit = self._pursuits.get(key)
        if pursuit is not None:
            pursuit.again()

    def leads_to(self, endpoint: str, broker_id: str) -> None:
        """An orchestrator that is joined already answers there: whoever was there has gone."""
        if len(self._doubles) >= MAX_PURSUITS:
            self._doubles.clear()
        self._doubles[endpoint] = broker_id

    def doubt(self, key: str, endpoint: str) -> None:
        """Nobody answers there: see whether the orchestrator is elsewhere now."""
        pursuit = self._pursuits.get(key)
        if pursuit is not None and endpoint:
            pursuit.doubt(endpoint)

    def close(self) -> None:
        """Stop all pursuits, and close what was not taken."""
        with self._lock:
            pursuits = list(self._pursuits.values())
        for pursuit in pursuits:
            pursuit.close()
        for pursuit in pursuits:
            pursuit.join()
        while self.links:
            self.links.popleft()[1].close()

    def _add(self, broker_id: str, rows: Iterable[tuple[str, int, int | None]]) -> None:
        fresh = dict.fromkeys(rows)
        with self._lock:
            known = self._known.get(broker_id, {})
            self._known[broker_id] = dict(list((fresh | known).items())[:16])
        for _, _, web_port in fresh:
            self.web_ports[broker_id] = web_port
        self._pursue(broker_id, lambda: self._by_rows(broker_id))
        self._pursuits[broker_id].hurry() if broker_id in self._pursuits else None

    def _pursue(self, key: str, find: Callable[[], Way | None]) -> None:
        with self._lock:
            if key not in self._pursuits and len(self._pursuits) < MAX_PURSUITS:
                self._pursuits[key] = Pursuit(key, find, self._found, self._wake)

    def _found(self, key: str, connection: Connection, way: Way) -> None:
        self._endpoints[key] = way.endpoint
        self.links.append((key, connection, way))
        self._wake()

    def _by_rows(self, broker_id: str) -> Way | None:
        """Try the newest ports first, with all addresses that were ever told with them."""
        if self.joined.get(broker_id, broker_id) != broker_id:
            return None  # ORCHESTRATOR_URL led there already
        over_http: Way | None = None
        by_port: dict[tuple[int, int | None], list[str]] = {}
        for address, port, web_port in list(self._known[broker_id]):
            by_port.setdefault((port, web_port), []).append(address)
        for (port, web_port), addresses in by_port.items():
            way = find_way(addresses, port, web_port, deadline_s=DIAL_S)
            if way is not None and self._doubles.get(way.endpoint) in self.joined:
                continue
            if way is not None and not way.is_http:
                return way
            over_http = over_http or way
        return over_http

    def _look_at_file(self) -> None:
        """Take in what is written down, when that has changed; who it names is dialled as ever."""
        written = self._written()
        if written is not None and written != self._last_written:
            self._last_written = written
            rows = [(each, written.port, written.web_port) for each in written.addresses]
            self._add(written.broker_id, rows)

    def _by_url(self, url: str) -> Way | None:
        if url.startswith("tcp://"):
            return None if self._doubles.get(url) in self.joined else Way(url)
        try:
            broker_id = str(ask_health(url, deadline_s=DIAL_S, key=self._key).get("broker_id", ""))
            if self.joined.get(broker_id, url) != url:
                return None  # mDNS, or the last good address, led there already
            return find_way_by_url(url, deadline_s=DIAL_S, key=self._key)
        except BrokerUnavailableError as error:
            event(_log, logging.DEBUG, "dial.failed", error=str(error))
            return None
