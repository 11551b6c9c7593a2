"""Connections that have said something and have no session: they do not stay.

Whoever may not join could else take the places of all that may.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from d8mesh.core.broker.effects import Peer

#: Who is refused tries again within this (15 s), so that a mended setting is seen on the same
#: connection; then it has to connect anew.
UNWELCOME_S: Final = 20.0
#: Of one address, as of those that have said nothing yet: whoever is refused beyond that does not
#: stay at all. Who speaks before HELLO does, for after a restart of the orchestrator all do that.
MAX_UNWELCOME_PER_ADDRESS: Final = 256
#: Remembered, as many as there may be connections.
MAX_UNWELCOME: Final = 4096


class Unwelcome:
    """Those that have said something that opened no session; times are monotonic."""

    def __init__(self) -> None:
        #: by routing id, those since the longest first
        self._since: dict[bytes, tuple[Peer, float]] = {}
        self._count: Counter[str] = Counter()

    def note(self, peer: Peer, now: float) -> None:
        """Take one in, if it is not known."""
        if peer.routing_id not in self._since:
            self._since[peer.routing_id] = (peer, now)
            self._count[peer.address] += 1

    def are_many(self, address: str) -> bool:
        """Return whether an address has more of them than may stay."""
        return self._count.get(address, 0) > MAX_UNWELCOME_PER_ADDRESS

    def due(self, now: float) -> list[Peer]:
        """Return those whose time is over, and the oldest of too many; and forget them."""
        found: list[Peer] = []
        for peer, since in self._since.values():
            if now - since < UNWELCOME_S and len(self._since) - len(found) <= MAX_UNWELCOME:
                break
            found.append(peer)
        for peer in found:
            self.forget(peer)
        return found

    def forget(self, peer: Peer) -> None:
        """It has a session now, or its connection is closed."""
        if self._since.pop(peer.routing_id, None) is not None:
            self._count[peer.address] -= 1
            if not self._count[peer.address]:
                del self._count[peer.address]
