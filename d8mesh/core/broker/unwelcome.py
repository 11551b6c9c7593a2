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
#: Of one address, as of those that have said nothing yet; of all together, as many as connections.
MAX_UNWELCOME_PER_ADDRESS: Final = 256
MAX_UNWELCOME: Final = 4096


class Unwelcome:
    """Those that have said something that opened no session; times are monotonic."""

    def __init__(self) -> None:
        #: by routing id, those since the longest first
        self._since: dict[bytes, tuple[Peer, float]] = {}
        self._count: Counter[str] = Counter()

    def note(self, peer: Peer, now: float) -> bool:
        """Take one in, if it is not known; return whether there is room for it."""
        if peer.routing_id in self._since:
            return True
        if (
            self._count[peer.address] >= MAX_UNWELCOME_PER_ADDRESS
            or len(self._since) >= MAX_UNWELCOME
        ):
            return False
        self._since[peer.routing_id] = (peer, now)
        self._count[peer.address] += 1
        return True

    def due(self, now: float) -> list[Peer]:
        """Return those whose time is over, and forget them."""
        found: list[Peer] = []
        for peer, since in self._since.values():
            if now - since < UNWELCOME_S:
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
