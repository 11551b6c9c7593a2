"""The TCP connections of a ROUTER: how many there may be, which end, and why.

ZeroMQ tells of its connections by a monitor and nothing more: it bounds neither their number nor
how long one may say nothing. A thread reads the monitor and keeps a table of them. Each has a
duplicate of its descriptor, so that a connection that is cut off is the one that was meant, and
what it has done can still be seen when it has ended. The gate answers nobody whom the table does
not have (`catch_up`): who has got through a handshake is known, however late the thread is.

Who may connect is not decided here (`zap`), nor what a message may be.

Source: https://libzmq.readthedocs.io/en/latest/zmq_socket_monitor.html, RFC 23/ZMTP
"""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import sys
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import zmq

from d8mesh.core.broker.effects import Peer
from d8mesh.edge.transport.byte_guard import ByteGuard, TcpConnection
from d8mesh.edge.transport.descriptors import most_connections
from d8mesh.edge.transport.monitor import Monitor, MonitorEvent
from d8mesh.edge.transport.traffic import has_left, traffic_of
from d8mesh.edge.transport.zap import ZapHandler

#: Connections at once: a LAN of 2,000 workers, their clients, and as many that mean no good. One
#: holds 60 KB.
MAX_PEER_CONNECTIONS: Final = 4096
#: Connections of one address: it cannot take the places of all others.
MAX_PEERS_PER_ADDRESS: Final = MAX_PEER_CONNECTIONS * 3 // 4
#: Connections of one address that have not said anything yet. Many nodes of one machine that start
#: at once and are refused here try again within a moment.
MAX_UNHEARD_PER_ADDRESS: Final = 256
#: Connections that have ended and are remembered, longer than the loop sends to them.
MAX_GONE: Final = 2 * MAX_PEER_CONNECTIONS
#: Whoever has shaken hands says HELLO at once.
UNHEARD_S: Final = 10.0
#: How often connections are looked at, with some that are new, and with some that are suspected.
LOOK_AT_ALL_S: Final = 1.0
LOOK_AT_NEW_S: Final = 0.25
ALERT_LOOK_S: Final = 0.1
#: A connection that ends this soon after something came in was ended for what that was.
JUST_NOW_MS: Final = 2000

#: Why connections end: names of counters.
HANDSHAKE: Final = "zmq.handshake"  #: not ZMTP, of an old version, without encryption, a wrong key
SILENT: Final = "zmq.silent"  #: no handshake in time
UNHEARD: Final = "zmq.unheard"  #: a handshake, and nothing after it
FRAME: Final = "zmq.frame"  #: a frame that is too large, or was not sealed by its peer
CROWD: Final = "zmq.crowd"  #: beyond the most connections
ASKED_NAME: Final = "zmq.named"  #: it has asked for a name: see `routing_numbers`
#: It was told to end by the loop, which counts why.
TOLD_TO_END: Final = "dropped"

#: What the client says in the handshake of CURVE, at least: greeting, HELLO, INITIATE.
SHAKEN_BYTES: Final = 64 + 202 + 259
#: A connection is reset when it is closed, whatever has not been read or sent.
_RESET: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


class Rejection(NamedTuple):
    """A connection that was refused or cut off."""

    code: str
    address: str


@dataclass(frozen=True, slots=True)
class Caps:
    """How many connections there may be: in all, of one address, of one that said nothing yet."""

    in_all: int = MAX_PEER_CONNECTIONS
    per_address: int = MAX_PEERS_PER_ADDRESS
    unheard_per_address: int = MAX_UNHEARD_PER_ADDRESS


class _FirstMessage(NamedTuple):
    """The first message of a connection has come out.

    descriptor: ZeroMQ's.
    number: the gate's; descriptors are given again, this is not.
    place: as which connection the ROUTER has named it; `math.inf`: it has not.
    """

    descriptor: int
    number: int
    routing_id: bytes
    place: float


class Connections:
    """Watches the connections of a ROUTER that is not bound yet.

    Args:
        handshake_s: how long ZeroMQ waits for the end of a handshake.
        handler: of the gate, which counts whom it refuses; it waits for the table from now on.
        wake: has the loop go round once more, from any thread.

    Thread: made and closed, and all public calls made, by the thread of the ROUTER.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        router: zmq.Socket[bytes],
        handler: ZapHandler,
        *,
        handshake_s: float,
        wake: Callable[[], None] = lambda: None,
        caps: Caps | None = None,
    ) -> None:
        self.guard = ByteGuard()
        self._watched = self.guard.watched
        #: to be counted by the loop, the oldest first
        self.rejections: deque[Rejection] = deque()
        #: how often the loop has taken all there was
        self.round = 0.0
        self._handshake_s, self._wake = handshake_s, wake
        self._caps = caps or Caps(most_connections(MAX_PEER_CONNECTIONS))
        self._table: dict[int, TcpConnection] = {}
        self._by_routing_id: dict[bytes, TcpConnection] = {}
        #: routing ids of connections that have ended, the oldest first
        self._gone: OrderedDict[bytes, None] = OrderedDict()
        self._count: Counter[str] = Counter()
        self._unheard: Counter[str] = Counter()
        #: routing ids of connections that have ended, for the loop to forget
        self.ended: deque[bytes] = deque()
        #: what the loop told: first messages, routing ids to be dropped and why
        self._heard: deque[_FirstMessage] = deque()
        self._dropped: deque[tuple[bytes, str]] = deque()
        #: first messages; of the handshakes of some the monitor may have yet to tell
        self._first: list[_FirstMessage] = []
        #: handshakes that succeeded, of connections not heard yet (below zero: of some that are
        #: heard the monitor has yet to tell); the gate's refusals, as far as their connections
        #: have ended
        self._finished, self._denied, self._handler = 0, handler.refusals, handler
        #: handshakes that succeeded so far, and connections with a place to be compared with it
        self._shaken = 0
        self._placed: list[tuple[TcpConnection, float]] = []
        #: the monitor has told of a handshake that was not finished: that connection ends next
        self._is_unfinished = False
        #: how often the gate has wanted the table brought up to date, and for which it was
        self._wanted, self._reached, self._turn = 0, 0.0, threading.Condition()
        self._next_look = 0.0
        self._is_closing = False
        self._fault: Exception | None = None  #: what has ended the thread
        self._inner, self._outer = socket.socketpair()
        for each in (self._inner, self._outer):
            each.setblocking(False)
        self._monitor = Monitor(context, router)
        self._thread = threading.Thread(target=self._serve, name="connections", daemon=True)
        self._thread.start()
        handler.before_answers = self.catch_up

    # ------------------------------------------------------------- what the loop calls

    def hear_first(self, part: zmq.Frame, number: int, routing_id: bytes, place: float) -> None:
        """Learn of the first message of a connection.

        Args:
            number, place: as of `_FirstMessage`.
        """
        with contextlib.suppress(zmq.ZMQError):
            descriptor = part.get(zmq.SRCFD)
            if isinstance(descriptor, int):
                self._heard.append(_FirstMessage(descriptor, number, routing_id, place))
                if place == math.inf:
                    self._rouse()

    def took(self, received: list[tuple[Peer, bytes | None]], *, is_all: bool) -> None:
        """Learn what has come out; `is_all`: nothing more was there.

        Peers are served in turn: of so many messages as there are peers, each has had one taken.

        Raises:
            Exception: what has ended the thread, so that nothing bounds connections any more.
        """
        if self._fault is not None:
            raise self._fault
        self.round += 1.0 if is_all else len(received) / (len(self._table) + 1)
        if self._watched and received:
            self.guard.hear({peer.routing_id for peer, _ in received})

    def has_ended(self, routing_id: bytes) -> bool:
        """Return whether it is known that a connection has ended. Thread: any."""
        return routing_id in self._gone

    def drop(self, routing_id: bytes, code: str = "") -> None:
        """Cut a connection off; without a code nothing of it is counted here."""
        self._dropped.append((routing_id, code))
        self._rouse()

    def catch_up(self) -> None:
        """Return when the table has all connections that there are by now. Thread: the gate's."""
        with self._turn:
            self._wanted += 1
            wanted = self._wanted
            self._rouse()
            self._turn.wait_for(lambda: self._reached >= wanted)

    def close(self) -> None:
        """Watch no longer."""
        self._is_closing = True
        self._rouse()
        self._thread.join()
        self._monitor.close()
        self._inner.close()
        self._outer.close()
        for connection in self._table.values():
            if connection.handle is not None:
                connection.handle.close()

    # --------------------------------------------------------------- the thread's part

    def _serve(self) -> None:
        try:
            self._watch()
        except Exception as fault:
            self._fault = fault
            self._wake()
        finally:
            self._reach(math.inf)

    def _reach(self, wanted: float) -> None:
        with self._turn:
            self._reached = wanted
            self._turn.notify_all()

    def _watch(self) -> None:
        poller = zmq.Poller()
        poller.register(self._monitor.socket, zmq.POLLIN)
        poller.register(self._inner, zmq.POLLIN)
        while not self._is_closing:
            left_s = max(0.0, self._next_look - time.monotonic())
            wait_ms = int(left_s * 1000 + 0.999) if self._table else None
            poller.poll(0 if self._monitor.is_ahead else wait_ms)
            with contextlib.suppress(BlockingIOError):
                self._inner.recv(4096)
            self._step(time.monotonic())

    def _rouse(self) -> None:
        with contextlib.suppress(OSError):  # it is roused already, or has ended
            self._outer.send(b"\0")

    def _step(self, now: float) -> None:
        dropped = [self._dropped.popleft() for _ in range(len(self._dropped))]
        placed, self._placed = self._placed, []
        told_of, wanted = set(self._take_first()), self._wanted  # the monitor tells of all these
        is_all = False
        while not is_all:
            told, is_all = self._monitor.read()
            for each in told:
                self._take_in(each, now)
        self._reach(wanted)
        self._note_heard(lambda each: each in told_of)
        for connection, place in placed:
            if place > self._shaken:
                self._refuse(connection, ASKED_NAME)
        for routing_id, code in dropped:
            meant = self._by_routing_id.get(routing_id)
            if meant is not None and code:
                self._refuse(meant, code)
            elif meant is not None:
                _cut(meant, TOLD_TO_END)
        if now >= self._next_look:
            self._look(now)

    def _take_in(self, told: MonitorEvent, now: float) -> None:
        kind = told.kind
        if kind == zmq.EVENT_ACCEPTED:
            self._accepted(told, now)
        elif kind == zmq.EVENT_DISCONNECTED:
            self._ended(told.descriptor, now)
        elif kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._finished += 1
            self._shaken += 1
        else:
            self._is_unfinished = True

    def _accepted(self, told: MonitorEvent, now: float) -> None:
        address, before = told.address, self._handler.newest
        connection = TcpConnection(told.handle, address, now, self.round, admitted_before=before)
        self._table[told.descriptor] = connection
        self._count[address] += 1
        self._unheard[address] += 1
        if told.handle is not None and self._is_crowded(address):
            self._note_heard()  # whoever has spoken meanwhile takes no place
            if self._is_crowded(address):
                self._refuse(connection, CROWD)
        self._next_look = min(self._next_look, now + LOOK_AT_NEW_S)

    def _is_crowded(self, address: str) -> bool:
        caps = self._caps
        return (
            len(self._table) > caps.in_all
            or self._count[address] > caps.per_address
            or self._unheard[address] > caps.unheard_per_address
        )

    def _take_first(self) -> list[_FirstMessage]:
        self._first.extend(self._heard.popleft() for _ in range(len(self._heard)))
        return self._first

    def _note_heard(self, is_meant: Callable[[_FirstMessage], bool] = lambda each: True) -> None:
        """Take in who has spoken, of those that are meant."""
        first, self._first = self._take_first(), []
        for each in first:
            if not is_meant(each):
                self._first.append(each)
            elif not self._is_noted(each) and each.place < math.inf:
                self._has_left(each.routing_id)

    def _is_noted(self, first: _FirstMessage) -> bool:
        """Note whose a first message is; False: its connection has ended."""
        connection = self._table.get(first.descriptor)
        if connection is None or first.number <= connection.admitted_before:
            return False
        if first.place == math.inf:
            self._refuse(connection, ASKED_NAME)
            return True
        if connection.routing_id is None:
            self._finished -= 1
            _less(self._unheard, connection.address)
        else:
            self._by_routing_id.pop(connection.routing_id, None)
            self.ended.append(connection.routing_id)
        connection.routing_id = first.routing_id
        self._by_routing_id[first.routing_id] = connection
        self._placed.append((connection, first.place))
        self.guard.settle(connection)
        return True

    def _ended(self, descriptor: int, now: float) -> None:
        is_unfinished, self._is_unfinished = self._is_unfinished, False
        self._note_heard(lambda each: each.descriptor == descriptor)
        connection = self._table.pop(descriptor, None)
        if connection is None:
            return
        code = connection.code or self._reason(connection, now, is_unfinished=is_unfinished)
        if code and not connection.code:
            self._reject(code, connection.address)
        if connection.code not in ("", CROWD) and connection.routing_id is None:
            self._finished -= 1  # it was cut off after its handshake
        _less(self._count, connection.address)
        if connection.routing_id is None:
            _less(self._unheard, connection.address)
        else:
            self._by_routing_id.pop(connection.routing_id, None)
            self._has_left(connection.routing_id)
        self.guard.forget(connection)
        if connection.handle is not None:
            connection.handle.close()

    def _has_left(self, routing_id: bytes) -> None:
        self.ended.append(routing_id)
        self._gone[routing_id] = None
        if len(self._gone) > MAX_GONE:
            self._gone.popitem(last=False)

    def _reason(self, connection: TcpConnection, now: float, *, is_unfinished: bool) -> str:
        """Return why ZeroMQ has ended a connection; "": its peer has, or another has counted it.

        Of a handshake that came to its end the monitor does not say whose it was, the gate not
        whose connection it has refused.
        """
        if is_unfinished:  # out of time, or its peer has thought better of it
            is_late = now - connection.since > self._handshake_s * 0.8
            is_gone = connection.handle is not None and has_left(connection.handle)
            return SILENT if is_late and not is_gone else ""
        if connection.routing_id is None:
            received = _received(connection)
            if connection.handle is None or (received is not None and received < SHAKEN_BYTES):
                return HANDSHAKE  # the gate was not even asked
            if self._handler.refusals > self._denied:
                self._denied += 1
                return ""
            if self._finished <= 0:
                return HANDSHAKE
            self._finished -= 1
        return FRAME if _was_refused(connection) else ""

    def _look(self, now: float) -> None:
        connections = list(self._table.values())
        for connection in connections:
            is_late = now - connection.since > UNHEARD_S and not connection.code
            if is_late and connection.routing_id is None and self.round - connection.round >= 2:
                self._refuse(connection, UNHEARD)
        for connection, code in self.guard.look(connections, now, self.round):
            self._refuse(connection, code)
        if self.guard.is_alert:
            self._wake()  # so that the loop goes round, and it is seen what comes out
            self._next_look = now + ALERT_LOOK_S
        else:
            self._next_look = now + (LOOK_AT_NEW_S if self._unheard else LOOK_AT_ALL_S)

    def _refuse(self, connection: TcpConnection, code: str) -> None:
        if not connection.code:
            _cut(connection, code)
            self._reject(code, connection.address)

    def _reject(self, code: str, address: str) -> None:
        self.rejections.append(Rejection(code, address))
        self._wake()


def _received(connection: TcpConnection) -> int | None:
    """Return the bytes that came over a connection; None: that is not known."""
    traffic = None if connection.handle is None else traffic_of(connection.handle)
    return None if traffic is None else traffic.received_bytes


def _cut(connection: TcpConnection, code: str) -> None:
    """End a connection; whoever is refused is not waited for."""
    connection.code = connection.code or code
    if connection.handle is not None:
        with contextlib.suppress(OSError):  # it has ended
            if code != TOLD_TO_END:
                connection.handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            connection.handle.shutdown(socket.SHUT_RDWR)


def _was_refused(connection: TcpConnection) -> bool:
    """Return whether ZeroMQ has ended a connection for what came over it, and not its peer."""
    if connection.handle is None or has_left(connection.handle):
        return False
    traffic = traffic_of(connection.handle)
    return traffic is not None and traffic.quiet_ms < JUST_NOW_MS


def _less(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
