"""Connections to services whose last answer has ended: the next question need not connect anew.

One is used again only while it is young and nothing shows that the other side has left. What has
been sent over it is never sent again: it may have been begun.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from typing import Final, TypeAlias

from d8mesh.backends.answer_clocks import AnswerClocks
from d8mesh.edge.transport.http_answer import HttpAnswer

#: No longer than this: shorter than any server lets go of one that is quiet.
CONNECTION_KEPT_S: Final = 2.0
#: For one service: as many as answer side by side.
MAX_KEPT: Final = 64

#: Host and port.
ServicePlace: TypeAlias = tuple[str, int]


class KeptConnections:
    """The connections that wait for the next question.

    Args:
        clocks: look after those that nobody takes.

    Thread: any.
    """

    def __init__(self, clocks: AnswerClocks) -> None:
        self._clocks = clocks
        self._lock = threading.Lock()
        #: each with when it came, and what it has answered: the end of that may still be coming,
        #: so the oldest is taken first
        self._kept: dict[ServicePlace, list[tuple[float, socket.socket, HttpAnswer]]] = {}

    @property
    def count(self) -> int:
        """How many wait."""
        return sum(map(len, self._kept.values()))

    def take(self, place: ServicePlace) -> socket.socket | None:
        """Return a connection that nothing stands against; None: there is none."""
        while True:
            with self._lock:
                kept = self._kept.get(place)
                if not kept:
                    return None
                since, connection, answer = kept.pop(0)  # an empty list goes with the next look
            if time.monotonic() - since < CONNECTION_KEPT_S and _is_quiet(connection, answer):
                return connection
            connection.close()

    def keep(self, place: ServicePlace, connection: socket.socket, answer: HttpAnswer) -> None:
        """Have it wait for the next question, if it can have one; else it is closed."""
        if not answer.may_be_followed:
            connection.close()
            return
        with self._lock:
            is_kept = len(self._kept.get(place, ())) < MAX_KEPT
            if not self._kept:
                try:
                    self._clocks.watch(self.look)
                except RuntimeError:  # no thread can look after them
                    is_kept = False
            if is_kept:
                self._kept.setdefault(place, []).append((time.monotonic(), connection, answer))
        if not is_kept:
            connection.close()

    def look(self, now: float) -> None:
        """Close those that have waited for too long."""
        old: list[socket.socket] = []
        with self._lock:
            for place, kept in list(self._kept.items()):
                while kept and now - kept[0][0] >= CONNECTION_KEPT_S:
                    old.append(kept.pop(0)[1])
                if not kept:
                    del self._kept[place]
            if not self._kept:
                self._clocks.forget(self.look)
        for connection in old:
            connection.close()


def _is_quiet(connection: socket.socket, answer: HttpAnswer) -> bool:
    """Return whether its answer has ended, nothing came after it, and nobody has left."""
    try:
        connection.setblocking(False)
        if answer.is_spent():
            with contextlib.suppress(BlockingIOError):
                connection.recv(1)
                return False  # more than was asked for, or the end
            connection.setblocking(True)
            return True
    except (OSError, http.client.HTTPException):
        pass
    return False
