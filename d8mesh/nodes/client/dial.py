"""Finding a way to an orchestrator and connecting, on a thread of its own.

Order: the endpoint given, the URL, the last good address, mDNS, what this machine's orchestrator
wrote down; then it stays there.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

from d8mesh.config import Config
from d8mesh.core.protocol.addresses import parse_endpoint
from d8mesh.edge import address_file
from d8mesh.edge.discovery import Discovery, NodeKind, Sighting
from d8mesh.edge.logs import event
from d8mesh.edge.network import Way, find_way, find_way_by_url, first_reachable, usable_addresses
from d8mesh.edge.network.probe import told, why_unreachable
from d8mesh.edge.transport.sockets import DealerLink
from d8mesh.edge.transport.tunnel import ExchangeLink
from d8mesh.edge.waits import join
from d8mesh.errors import BrokerUnavailableError, ConfigError

#: Pauses between tries to reach an orchestrator, with jitter.
FIRST_PAUSE_S: Final = 0.05
MAX_PAUSE_S: Final = 1.0
#: How long one look for a way to an orchestrator may take.
DIAL_S: Final = 1.0
#: mDNS has so long to answer before the address file is looked at.
FILE_S: Final = 0.3
#: An address of that file which led nowhere is left alone for so long: another program has it.
DISPROVED_S: Final = 30.0
#: How long one look at why nobody answers may take, and how long it stays true.
LOOK_S: Final = 0.5
TROUBLE_S: Final = 2.0
#: While only HTTP works, ZeroMQ is tried again this often, then slower.
UPGRADE_S: Final = 2.0
MAX_UPGRADE_S: Final = 30.0
#: Orchestrators heard of that are remembered: more in one mesh is odd, or means harm.
MAX_SIGHTINGS: Final = 64
#: How long `close` waits for the thread.
END_S: Final = 3.0

Connection: TypeAlias = DealerLink | ExchangeLink
_log: Final = logging.getLogger("d8mesh.client")


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


class Dialler:
    """Finds a way to an orchestrator and connects, on a thread of its own.

    Args:
        config: the mesh's name and the interfaces stand there.
        endpoint: ``tcp://HOST:PORT`` of a broker, if known.
        url: ``http://HOST:PORT`` of an orchestrator, if known.
        wake: called when a new connection can be taken.
    """

    def __init__(
        self, config: Config, *, endpoint: str | None, url: str | None, wake: Callable[[], None]
    ) -> None:
        self._config, self._endpoint, self._url = config, endpoint, url
        self._wake = wake
        self._ready: deque[Connection] = deque()
        self._wanted = threading.Event()
        self._wanted.set()
        self._pause_s = 0.0
        self._lost = threading.Event()
        self._endpoint_used, self._is_doubted = "", False
        self._stop = threading.Event()
        self._sightings: dict[str, Sighting] = {}
        self._seen = threading.Event()
        self._last: tuple[str, ...] = ()
        #: what the address file named, until a session stands there; what led nowhere, until when
        self._unproven = ""
        self._disproved: dict[str, float] = {}
        #: whether a session ever stood; why the URL led nowhere last; what was told last, and when
        self._was_up, self._refused = False, "no answer yet"
        self._told, self._told_at = "", -TROUBLE_S
        #: the only orchestrator to look for; empty: any. Set by the I/O thread.
        self.only = ""
        # At once, and not on the thread below: a program that ends now can start no more threads.
        self._discovery = self._listening() if endpoint is None and url is None else None
        self._thread = threading.Thread(target=self._serve, name="d8-dial", daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Where the last connection leads: ``tcp://…`` or ``http://…``; empty: there was none."""
        return self._endpoint_used

    def take(self) -> Connection | None:
        """Return a new connection, if one has been made."""
        return self._ready.popleft() if self._ready else None

    def again(self, pause_s: float) -> None:
        """The connection is useless: make another after `pause_s`."""
        self._pause_s = pause_s
        if self._unproven:
            self._disproved[self._unproven] = time.monotonic() + DISPROVED_S
            self._unproven = ""
        self._lost.set()
        self._wanted.set()

    def proven(self) -> None:
        """An orchestrator has answered over the last connection."""
        self._unproven, self._was_up = "", True

    def doubt(self) -> None:
        """Make another connection if nobody accepts one where the last one leads."""
        if not self._lost.is_set() and self._endpoint_used:
            self._is_doubted = True
            self._wanted.set()

    def close(self) -> None:
        """Stop looking; let go of what was not taken."""
        self._stop.set()
        self._wanted.set()
        self._seen.set()
        join(self._thread, END_S)
        if self._discovery is not None:
            self._discovery.close()
        while self._ready:
            self._ready.popleft().close()

    def _serve(self) -> None:
        pause_s = FIRST_PAUSE_S
        is_http, upgrade_s = False, UPGRADE_S
        while not self._stop.is_set():
            was_wanted = self._wanted.wait(upgrade_s if is_http else None)
            if self._stop.is_set():
                return
            if was_wanted and self._stop.wait(self._pause_s):
                return
            self._pause_s = 0.0
            if self._is_doubted and not self._is_gone():
                continue
            way = self._find()
            if not was_wanted and (way is None or way.is_http):
                upgrade_s = min(MAX_UPGRADE_S, upgrade_s * 1.5)
                continue
            self._wanted.clear()  # before: the new connection may be lost at once
            self._lost.clear()
            if way is None or not self._connect(way):
                self._lost.set()
                self._wanted.set()
                self._stop.wait(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(MAX_PAUSE_S, pause_s * 2)
                continue
            is_http, upgrade_s, pause_s = way.is_http, UPGRADE_S, FIRST_PAUSE_S
            self._wake()
            self._stop.wait(FIRST_PAUSE_S)

    def _is_gone(self) -> bool:
        """Ask where the connection leads; if somebody accepts, all stays as it is."""
        self._is_doubted = False
        is_gone = first_reachable([Way(self._endpoint_used).place], deadline_s=DIAL_S) is None
        if not is_gone and not self._lost.is_set():
            self._wanted.clear()
            if self._lost.is_set():  # said meanwhile
                self._wanted.set()
        return is_gone or self._lost.is_set()

    def _connect(self, way: Way) -> bool:
        self._endpoint_used = way.endpoint
        if way.is_http:
            event(
                _log,
                logging.WARNING,
                "exchange.used",
                url=way.endpoint,
                why="the broker's port cannot be reached, open it for full speed",
            )
            self._ready.append(ExchangeLink(way.endpoint, self._wake))
            return True
        try:
            self._ready.append(DealerLink(way.endpoint))
        except BrokerUnavailableError as error:
            event(_log, logging.WARNING, "dial.failed", error=str(error))
            return False
        return True

    def _find(self) -> Way | None:
        if self._endpoint is not None:
            return Way(self._endpoint)
        if self._url is not None:
            try:
                return find_way_by_url(self._url, deadline_s=DIAL_S, key=self._config.mesh_key)
            except BrokerUnavailableError as error:
                self._refused = told(error.__cause__) or str(error)
                event(_log, logging.DEBUG, "dial.failed", error=str(error))
                return None
        return (
            self._try_known()
            or self._await_sighting(FILE_S)
            or self._by_file()
            or self._await_sighting(DIAL_S - FILE_S)
        )

    def _listening(self) -> Discovery:
        config = self._config
        discovery = Discovery(
            mesh=config.mesh,
            addresses=lambda: [a.address for a in usable_addresses(config.interfaces)],
            on_sighting=self._sighted,
            browse=(NodeKind.ORCHESTRATOR,),
            on_trouble=lambda text: event(_log, logging.WARNING, "discovery", trouble=text),
        )
        discovery.start()
        return discovery

    def _await_sighting(self, wait_s: float) -> Way | None:
        if not self._seen.wait(wait_s):
            return None
        self._seen.clear()
        return self._try_known()

    def _by_file(self) -> Way | None:
        """Return a way to what the orchestrator of this machine wrote down."""
        written = address_file.read(Path(self._config.data_dir), self._config.mesh)
        if written is None or self.only not in ("", written.broker_id):
            return None
        addresses, port = written.addresses, written.port
        way = find_way(addresses, port, written.web_port, deadline_s=DIAL_S)
        if way is None or time.monotonic() < self._disproved.get(way.endpoint, 0.0):
            return None
        self._unproven = way.endpoint
        return way

    def _try_known(self) -> Way | None:
        """Return a way to an orchestrator that was heard of, the last good one first."""
        known = [s for s in list(self._sightings.values()) if self.only in ("", s.node_id)]
        for sighting in sorted(known, key=lambda each: each.addresses != self._last):
            way = find_way(sighting.addresses, sighting.port, sighting.web_port, deadline_s=DIAL_S)
            if way is not None:
                self._last = sighting.addresses
                return way
        return None

    def _sighted(self, sighting: Sighting) -> None:
        before = self._sightings.get(sighting.node_id)
        if before is not None or len(self._sightings) < MAX_SIGHTINGS:
            self._sightings[sighting.node_id] = sighting
        self._seen.set()
        if self._unproven:  # this one is known to live
            self._lost.set()
            self._wanted.set()
        if before is not None and before.addresses != sighting.addresses:
            self.doubt()  # it has moved, perhaps: its silence would show it much later

    # ------------------------------------------------------------------- for people

    def trouble(self) -> str:
        """Say why no orchestrator answers; takes `LOOK_S` at most. Thread: any but the I/O's."""
        now = time.monotonic()
        if now - self._told_at >= TROUBLE_S:
            lost = "the connection to the orchestrator is lost"
            begin = lost if self._was_up else "never connected"
            self._told, self._told_at = f"{begin}: {self._look()}", now
        return self._told

    def _look(self) -> str:
        if self._endpoint is not None:
            return self._look_at(self._endpoint)
        if self._url is not None:
            named = "ORCHESTRATOR_URL " if self._url == self._config.orchestrator_url else ""
            if not self._endpoint_used or self._lost.is_set():
                return f"{named}{self._url}: {self._refused}"
            return f"{named}{self._url} leads to {self._look_at(self._endpoint_used)}"
        if self._endpoint_used and not self._lost.is_set():
            return self._look_at(self._endpoint_used)
        return self._look_around()

    def _look_at(self, endpoint: str) -> str:
        host, port = Way(endpoint).place
        why = why_unreachable(host, port, deadline_s=LOOK_S)
        return f"{endpoint}: {why or 'it takes connections, but no orchestrator answers there'}"

    def _look_around(self) -> str:
        """Say what mDNS has brought."""
        mesh = self._config.mesh
        known = [s for s in list(self._sightings.values()) if self.only in ("", s.node_id)]
        if known:
            heard = known[0]
            why = why_unreachable(heard.addresses[0], heard.port, deadline_s=LOOK_S)
            where = f"{', '.join(heard.addresses[:4])} port {heard.port}"
            return f"{heard.node_id} is announced at {where}: {why or 'trying to connect'}"
        if self.only:
            return f"looking for {self.only} of mesh {mesh!r}, which has the tasks"
        places = [each.address for each in usable_addresses(self._config.interfaces)]
        strangers = () if self._discovery is None else self._discovery.strangers
        others = f" (other meshes are there: {', '.join(strangers[:4])})" if strangers else ""
        return (
            f"no orchestrator of mesh {mesh!r} is heard by mDNS on "
            f"{', '.join(places[:4]) or 'any interface'}{others}. Is one running (d8mesh "
            "orchestrator)? Where mDNS does not get through, set ORCHESTRATOR_URL"
        )
