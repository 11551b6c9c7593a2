"""Bounds what a peer can have this process hold: messages without end, and answers nobody reads.

ZeroMQ bounds a frame and counts whole messages. A message of ever more frames is bounded by
neither, and a thousand messages may be of any size. Bytes are counted here, from outside: what the
system has received on a connection against what has come out of it, and what a peer takes of what
it is sent.

Where the system tells nothing of a connection, nothing is bounded here (`traffic`).
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from d8mesh.core.protocol.messages import MAX_FRAME_BYTES
from d8mesh.edge.transport.traffic import Traffic, traffic_of

#: What lies in the system's own buffers, beside one largest frame, before it is looked at.
BUFFERED_BYTES: Final = 16 * 1024 * 1024
#: Bytes without a message that end a connection.
MAX_UNFINISHED_BYTES: Final = MAX_FRAME_BYTES + BUFFERED_BYTES
#: The same before the first message, which is a HELLO: 10,000 held tasks are 0.5 MB.
MAX_FIRST_BYTES: Final = 4 * 1024 * 1024
#: The same of all connections together: sixteen of the largest frames that come at once.
MAX_UNFINISHED_IN_ALL_BYTES: Final = 16 * MAX_FRAME_BYTES
#: From so many bytes on it is watched whether messages come out.
WATCHED_BYTES: Final = 2 * 1024 * 1024
#: Times that the loop took all there was, until what did not come out is known to be unfinished.
ROUNDS: Final = 2
#: A peer that takes less than this while more is waiting for it is slow.
SLOW_BYTES_PER_S: Final = 1_000_000
#: What may wait for a slow peer beyond what waited when that was noticed.
SLOW_BYTES: Final = 4 * 1024 * 1024
#: A peer that has taken nothing for so long while something was waiting is cut off, as by ZeroMQ
#: one that answers no heartbeat: it may say what it likes, if it does not read.
UNREAD_S: Final = 15.0

#: Why connections end: names of counters.
UNFINISHED: Final = "zmq.unfinished"
UNREAD: Final = "zmq.unread"


@dataclass(slots=True, eq=False)
class TcpConnection:
    """One TCP connection; times in monotonic seconds."""

    #: a duplicate of ZeroMQ's own, so that it is this connection and no later one; None: it ended
    #: before it could be looked at
    handle: socket.socket | None
    address: str
    since: float
    #: how far the loop was when it came
    round: float
    #: under which its messages come out; None: none has
    routing_id: bytes | None = None
    #: why it was cut off
    code: str = ""
    #: received by the time when nothing of it was unfinished
    settled_bytes: int = 0
    #: received since, and how far the loop was then
    marked: tuple[int, float] | None = None
    #: of these it is known that they are of no message that came out
    unfinished_bytes: int = 0
    #: of ours, at the last look
    taken_bytes: int = 0
    looked_at: float = 0.0
    #: something has been waiting for it since; it has last taken some of it
    waiting_since: float | None = None
    took_at: float = 0.0
    #: the number of the connection that the gate had admitted last when this one was not asked
    #: about yet: its own is above it
    admitted_before: int = 0


@dataclass(slots=True)
class _Allowance:
    """How many bytes a slow peer may still be sent."""

    left_bytes: int


class ByteGuard:
    """Looks at connections again and again.

    Thread: `look`, `settle` and `forget` by one; the others by the loop that sends and receives.
    """

    def __init__(self) -> None:
        #: routing ids whose messages are of interest
        self.watched: dict[bytes, None] = {}
        #: by routing id; only who looks adds and removes, the loop uses up what stands there
        self.slow: dict[bytes, _Allowance] = {}
        self._heard: deque[set[bytes]] = deque()
        self._is_marking = False

    def hear(self, routing_ids: set[bytes]) -> None:
        """Learn from whom messages have come out."""
        self._heard.append(routing_ids)

    def takes(self, routing_id: bytes, size_bytes: int) -> bool:
        """Return whether a peer may be sent so much more."""
        allowance = self.slow.get(routing_id)
        if allowance is None:
            return True
        if allowance.left_bytes <= 0:
            return False
        allowance.left_bytes -= size_bytes
        return True

    @property
    def is_alert(self) -> bool:
        """Whether a look is due soon."""
        return self._is_marking or bool(self.slow)

    def settle(self, connection: TcpConnection) -> None:
        """Learn that the first message of a connection has come out."""
        traffic = None if connection.handle is None else traffic_of(connection.handle)
        self._settle(connection, 0 if traffic is None else traffic.received_bytes)

    def forget(self, connection: TcpConnection) -> None:
        """Learn that a connection has ended."""
        if connection.routing_id is not None:
            self.watched.pop(connection.routing_id, None)
            self.slow.pop(connection.routing_id, None)

    def look(
        self, connections: Iterable[TcpConnection], now: float, round_: float
    ) -> list[tuple[TcpConnection, str]]:
        """Return the connections that have to end, and why.

        Args:
            round_: how often the loop has taken all there was.
        """
        heard: set[bytes] = set()
        while self._heard:
            heard |= self._heard.popleft()
        ending: list[tuple[TcpConnection, str]] = []
        held: list[TcpConnection] = []
        self._is_marking = False
        for connection in connections:
            traffic = None if connection.handle is None else traffic_of(connection.handle)
            if traffic is None or connection.code:
                continue
            self._mark(connection, traffic, heard, round_)
            is_known = connection.routing_id is not None
            most = MAX_UNFINISHED_BYTES if is_known else MAX_FIRST_BYTES
            if connection.unfinished_bytes > most:
                ending.append((connection, UNFINISHED))
            elif self._is_unread(connection, traffic, now):
                ending.append((connection, UNREAD))
            elif connection.unfinished_bytes:
                held.append(connection)
        return ending + [(each, UNFINISHED) for each in _beyond(held)]

    def _mark(
        self, connection: TcpConnection, traffic: Traffic, heard: set[bytes], round_: float
    ) -> None:
        """Bring `unfinished_bytes` up to date.

        What was received before the loop took all there was, and is of no message that came out
        since, is of a message that has no end yet. Of who has spoken that is known from when its
        messages are of interest: what was received before may have come out.
        """
        if connection.routing_id in heard:
            self._settle(connection, traffic.received_bytes)
            return
        pending = traffic.received_bytes - connection.settled_bytes
        if pending <= WATCHED_BYTES:
            return
        self._is_marking = True
        routing_id = connection.routing_id
        if routing_id is not None and routing_id not in self.watched:
            self.watched[routing_id] = None
            connection.settled_bytes = traffic.received_bytes
            return
        if connection.marked is None:
            connection.marked = (pending, round_)
            return
        was, at = connection.marked
        if round_ - at >= ROUNDS:
            connection.unfinished_bytes, connection.marked = was, (pending, round_)

    def _settle(self, connection: TcpConnection, received_bytes: int) -> None:
        connection.settled_bytes = received_bytes
        connection.unfinished_bytes, connection.marked = 0, None
        if connection.routing_id is not None:
            self.watched.pop(connection.routing_id, None)

    def _is_unread(self, connection: TcpConnection, traffic: Traffic, now: float) -> bool:
        """Note how fast a peer takes what it is sent; return whether it has stopped to."""
        taken = traffic.taken_bytes - connection.taken_bytes
        passed_s = now - connection.looked_at
        connection.taken_bytes, connection.looked_at = traffic.taken_bytes, now
        routing_id = connection.routing_id
        if not traffic.unsent_bytes:
            connection.waiting_since = None
            if routing_id is not None:
                self.slow.pop(routing_id, None)
            return False
        if taken or connection.waiting_since is None:
            connection.took_at = now
        if connection.waiting_since is None:
            connection.waiting_since = now
        elif routing_id is None:
            pass  # nothing of ours waits for it
        elif taken > SLOW_BYTES_PER_S * passed_s:
            self.slow.pop(routing_id, None)
        else:
            allowance = self.slow.setdefault(routing_id, _Allowance(SLOW_BYTES))
            allowance.left_bytes = min(SLOW_BYTES, allowance.left_bytes + taken)
        return now - connection.took_at >= UNREAD_S


def _beyond(held: list[TcpConnection]) -> list[TcpConnection]:
    """Return the largest of those that hold too much together."""
    total = sum(each.unfinished_bytes for each in held)
    found: list[TcpConnection] = []
    for each in sorted(held, key=lambda it: it.unfinished_bytes, reverse=True):
        if total <= MAX_UNFINISHED_IN_ALL_BYTES:
            break
        total -= each.unfinished_bytes
        found.append(each)
    return found
