"""Where the orchestrators of a mesh are said to be, as far as they may be contacted."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from typing import Final

from d8mesh.core.protocol.addresses import MAX_CANDIDATES
from d8mesh.core.protocol.route import KnownBroker, Route
from d8mesh.nodes.reconnector.trust import OrchestratorTrust

#: Orchestrators that are remembered: more in one mesh is odd, or means harm.
MAX_BROKERS: Final = 64
#: Pairs of ports that are remembered of each; an orchestrator that has gone costs two tries for
#: each, one after the other.
MAX_PORTS: Final = 4


class KnownBrokers:
    """Where the orchestrators of a mesh are.

    Args:
        trust: says who of those that are told of may be contacted.

    Thread: any.
    """

    def __init__(self, trust: OrchestratorTrust) -> None:
        #: broker id -> what was told of it, newest first, each with other ports or another key
        self.told: dict[str, tuple[KnownBroker, ...]] = {}
        self._trust = trust
        #: by key: who may not be contacted, or not yet
        self._passed_over: dict[bytes, KnownBroker] = {}
        #: broker id -> where a session stood last
        self._proven: dict[str, Route] = {}
        self._lock = threading.Lock()

    def is_open(self, told: KnownBroker, *, is_heard: bool = True) -> bool:
        """Return whether who is there may be contacted; if not, it is looked at again later.

        Args:
            is_heard: it is there now, and not only remembered.
        """
        if self._trust.may_contact(told, is_heard=is_heard):
            return True
        if is_heard and told.server_key is not None:
            with self._lock:
                self._passed_over.pop(told.server_key, None)
                if len(self._passed_over) >= MAX_BROKERS:
                    del self._passed_over[next(iter(self._passed_over))]
                self._passed_over[told.server_key] = told
        return False

    def reconsidered(self) -> list[KnownBroker]:
        """Return who was passed over and may be contacted now; each once."""
        found = [told for told in list(self._passed_over.values()) if self._trust.may_contact(told)]
        with self._lock:
            for told in found:
                self._passed_over.pop(told.server_key or b"", None)
        return found

    def add(self, told: KnownBroker) -> bool:
        """Note where one is that may be contacted; return whether it was elsewhere before."""
        with self._lock:
            before = self.told.get(told.broker_id, ())
            if not before and len(self.told) >= MAX_BROKERS and not self._let_one_go():
                return False
            addresses, rest = list(told.addresses), []
            for each in before:
                ours = (each.port, each.web_port, each.server_key)
                if ours == (told.port, told.web_port, told.server_key):
                    addresses += each.addresses
                else:
                    rest.append(each)
            newest = replace(told, addresses=self._kept_addresses(told, addresses))
            self.told[told.broker_id] = self._kept_places(told.broker_id, newest, rest)
            return bool(before) and before[0] != newest

    def proven(self, broker_id: str, route: Route) -> None:
        """A session stands there: whoever says something else does not have it forgotten."""
        with self._lock:
            if len(self._proven) >= MAX_BROKERS:
                self._proven.clear()
            self._proven[broker_id] = route

    def _let_one_go(self) -> bool:
        """Forget one where no session stood, the oldest of the key that has the most names.

        Anybody may announce a trusted key under any name, and must not fill the table by it.
        """
        names = Counter(told[0].server_key for told in self.told.values())
        loose = [each for each in self.told if each not in self._proven]
        if not loose:
            return False
        del self.told[max(loose, key=lambda each: names[self.told[each][0].server_key])]
        return True

    def _kept_addresses(self, told: KnownBroker, addresses: list[str]) -> tuple[str, ...]:
        """Return the addresses to try, newest first; the last good one is always among them."""
        each = list(dict.fromkeys(addresses))
        proven = self._proven.get(told.broker_id)
        good = "" if proven is None else proven.address[0]
        if good in each[MAX_CANDIDATES:]:
            each[MAX_CANDIDATES - 1] = good
        return tuple(each[:MAX_CANDIDATES])

    def _kept_places(
        self, broker_id: str, newest: KnownBroker, rest: list[KnownBroker]
    ) -> tuple[KnownBroker, ...]:
        proven = self._proven.get(broker_id)
        port = 0 if proven is None else proven.address[1]
        dropped = [each for each in rest[MAX_PORTS - 1 :] if port in (each.port, each.web_port)]
        kept = rest[: MAX_PORTS - 1 - len(dropped[:1])] + dropped[:1]
        return (newest, *kept)
