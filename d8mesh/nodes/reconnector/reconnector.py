"""Keeps one orchestrator connected, on a thread of its own."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from typing import Final

from d8mesh.core.protocol.route import KnownBroker, Route
from d8mesh.edge.logs import event
from d8mesh.edge.network import first_reachable
from d8mesh.edge.transport.connector import Connector
from d8mesh.edge.transport.sockets import DealerLink
from d8mesh.edge.waits import join
from d8mesh.errors import (
    BrokerUnavailableError,
    ForbiddenError,
    NotAdmittedError,
    OrchestratorKeyError,
    RevokedError,
)
from d8mesh.nodes.reconnector.refusals import pause_after, refusal_of
from d8mesh.nodes.reconnector.search import Search

#: Pauses between tries to reach an orchestrator, growing, with jitter.
SHORTEST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0
#: How long an orchestrator that answers no heartbeat has to accept a connection.
ACCEPT_S: Final = 1.0
#: While only HTTP works, ZeroMQ is tried again this often, then slower.
UPGRADE_S: Final = 2.0
MAX_UPGRADE_S: Final = 30.0
#: A broken connection may take so long to be made again; then other addresses are tried too.
CUT_S: Final = 2.0
#: Where ZeroMQ worked before, HTTP is not taken sooner: the broker is being started again.
DOWNGRADE_S: Final = 5.0
#: A client that hears none but orchestrators which it may not contact, for so long from its start,
#: says so; the right one would have been heard.
STRANGERS_ONLY_S: Final = 4.0
#: How long what was told of why nobody answers stays true.
TROUBLE_S: Final = 2.0
#: How long `close` waits for the thread.
RECONNECTOR_END_S: Final = 3.0
_log: Final = logging.getLogger("d8mesh.reconnector")


class Reconnector:
    """Finds an orchestrator, connects, and connects again when that link has become useless.

    Args:
        search: where it is looked for; nobody else may use it.
        connector: makes the links; it is woken when there is one.
        links: where new links are put, each with `key` and its route; None: see `take`.
        key: what the links are told apart by.

    Thread: any.
    """

    def __init__(
        self,
        search: Search,
        connector: Connector,
        *,
        links: deque[tuple[str, DealerLink, Route]] | None = None,
        key: str = "",
    ) -> None:
        self.search = search
        #: where the last link leads; None: there was none
        self.route: Route | None = None
        self._connector, self._key = connector, key
        self._links = deque[tuple[str, DealerLink, Route]]() if links is None else links
        self._wanted, self._lost, self._stop = (threading.Event() for _ in range(3))
        self._pause_s = self._lost_at = 0.0
        self._is_doubted = False
        #: why it is useless to wait for a session, until a person does something; None: it is not
        self.hopeless: ForbiddenError | None = None
        self._refusal: ForbiddenError | None = None  #: why the last link did not get in
        self._refusals = 0  #: so many times in a row
        self._begun = time.monotonic()
        #: whether a session ever stood; why none does, and when that was looked at
        self._was_up = False
        self._trouble, self._trouble_at = "", -TROUBLE_S
        self._want()
        # At once, and not on the thread: a program that ends now can start no more threads.
        search.listen(self.told)
        name = f"reconnect-{key[:8]}" if key else "d8-reconnect"
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def take(self) -> DealerLink | None:
        """Return a new link, if one has been made."""
        return self._links.popleft()[1] if self._links else None

    def again(self, pause_s: float = 0.0) -> None:
        """The link is useless: make another after `pause_s`."""
        self._pause_s, self._lost_at = pause_s, time.monotonic()
        self.search.disprove()
        self._want()

    def refused(self, link: DealerLink) -> ForbiddenError:
        """The last link does not get in: make another after a pause; return why."""
        assert self.route is not None
        route, before = self.route, self._refusal
        refusal = refusal_of(link.verdict, route, self._connector.keys.public, link.trouble)
        is_news = before is None or str(before) != str(refusal)
        self._refusals = 1 if is_news else self._refusals + 1
        self._refusal = refusal
        if isinstance(refusal, RevokedError) or (
            isinstance(refusal, NotAdmittedError) and not self._was_up
        ):
            self.hopeless = refusal
        if is_news:
            event(_log, logging.WARNING, "link.refused", code=refusal.code, why=str(refusal))
        if link.verdict is not None:
            self.search.trust.answered(route.server_key)
        elif not route.is_http:
            self.search.disprove(route)
            self.search.trust.unreachable(route.server_key)
        self.again(pause_after(refusal, self._refusals))
        return refusal

    def proven(self, broker_id: str) -> bool:
        """An orchestrator has answered over the last link: its key is trusted from now on.

        Returns:
            False: another one was the first to answer, so the link is of no use.
        """
        route = self.route
        if route is not None:
            if not self.search.trust.welcomed(route.server_key, broker_id):
                return False
            self.search.known.proven(broker_id, route)
        self._was_up, self.search.unproven = True, None
        self.hopeless = self._refusal = None
        self._refusals = 0
        return True

    def doubt(self) -> None:
        """Make another link if nobody accepts one where the last one leads."""
        if not self._lost.is_set():
            self._is_doubted = True
            self._wanted.set()

    def told(self, broker: KnownBroker) -> None:
        """Note where an orchestrator is said to be.

        One that says something else than before has moved, perhaps: long before its silence
        shows it, nobody accepts a connection at the old address.
        """
        if not self.search.known.is_open(broker):
            return
        is_news = self.search.known.add(broker)
        self.search.news.set()
        if self.search.unproven is not None:  # this one is known to live
            self._want()
        elif is_news:
            self.doubt()

    def trouble(self) -> str:
        """Say why no orchestrator answers; takes half a second at most."""
        now = time.monotonic()
        if now - self._trouble_at >= TROUBLE_S:
            lost = "the connection to the orchestrator is lost"
            refusal = self._refusal
            why = str(refusal) if refusal is not None else self._why()
            self._trouble = f"{lost if self._was_up else 'never connected'}: {why}"
            self._trouble_at = now
        return self._trouble

    def _why(self) -> str:
        return self.search.trouble(None if self._lost.is_set() else self.route)

    def stop(self) -> None:
        """Have the thread end soon."""
        self._stop.set()
        self._want()

    def close(self) -> None:
        """Stop looking; let go of what was not taken."""
        self.stop()
        join(self._thread, RECONNECTOR_END_S)
        self.search.close()
        while self._links:
            self._links.popleft()[1].close()

    def _want(self) -> None:
        self._lost.set()
        self._wanted.set()
        self.search.news.set()

    def _serve(self) -> None:
        news, pause_s, upgrade_s = self.search.news, SHORTEST_PAUSE_S, UPGRADE_S
        while not self._stop.is_set():
            is_over_http = self.route is not None and self.route.is_http
            is_wanted = self._wanted.wait(upgrade_s if is_over_http else None)
            if self._stop.wait(self._pause_s):
                return
            self._pause_s = 0.0
            news.clear()
            if self._is_doubted and not self._is_gone():
                continue
            route = self.search.find()
            if not is_wanted and (route is None or route.is_http):
                upgrade_s = min(MAX_UPGRADE_S, upgrade_s * 1.5)
                continue
            is_early = self._lost_at > 0 and time.monotonic() - self._lost_at < DOWNGRADE_S
            if route is not None and route.is_http and not is_over_http and is_early:
                route = None
            if route is None or not self._connect(route):
                self._mind_strangers()
                news.wait(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
                continue
            pause_s, upgrade_s = SHORTEST_PAUSE_S, UPGRADE_S
            self._stop.wait(SHORTEST_PAUSE_S)  # a link that dies at once is not replaced in a rush

    def _mind_strangers(self) -> None:
        """Note that only orchestrators are heard that may not be contacted."""
        strangers = self.search.trust.strangers
        is_patient = time.monotonic() - self._begun < STRANGERS_ONLY_S
        if strangers and self.route is None and not is_patient:
            self.hopeless = OrchestratorKeyError(strangers[-1])
            self._connector.wake()  # who waits shall hear of it
        elif isinstance(self.hopeless, OrchestratorKeyError):
            self.hopeless = None

    def _is_gone(self) -> bool:
        """Ask where the link leads; if somebody accepts, all stays as it is."""
        assert self.route is not None
        is_gone = first_reachable([self.route.address], deadline_s=ACCEPT_S) is None
        self._is_doubted = False
        if not is_gone:
            self._wanted.clear()
            if self._lost.is_set():  # said meanwhile
                self._wanted.set()
        return is_gone or self._lost.is_set()

    def _connect(self, route: Route) -> bool:
        """Make a link and hand it over; False if there can be none."""
        if route.is_http:
            why = "the broker's port cannot be reached: open it for full speed"
            event(_log, logging.WARNING, "exchange.used", url=route.endpoint, why=why)
        try:
            link = self._connector.connect(route)
        except BrokerUnavailableError as error:
            event(_log, logging.WARNING, "connect.failed", error=str(error))
            return False
        self._is_doubted = False
        self._wanted.clear()  # before: the new link may be lost at once
        self._lost.clear()
        self.route = route
        self._links.append((self._key, link, route))
        self._connector.wake()
        return True
