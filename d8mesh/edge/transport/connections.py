"""The TCP connections of a ROUTER: how many there may be, which end, and why.

ZeroMQ tells of its connections by a monitor and nothing more: it bounds neither their number nor
how long one may say nothing. A thread reads the monitor and keeps a table of them. Each has a
duplicate of its descriptor, so that a connection that is cut off is the one that was meant, and
what it has done can still be seen when it has ended.

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
from d8mesh.edge.transport.descriptors import duplicate, most_connections, socket_number
from d8mesh.edge.transport.traffic import has_left, traffic_of

#: Connections at once: a LAN of 2,000 workers, their clients, and as many that mean no good. One
#: holds 60 KB.
MAX_PEER_CONNECTIONS: Final = 4096
#: Connections of one address: it cannot take the places of all others.
MAX_PEERS_PER_ADDRESS: Final = MAX_PEER_CONNECTIONS * 3 // 4
#: Connections of one address that have not said anything yet. Many nodes of one machine that start
#: at once and are refused here try again within a moment.
MAX_UNHEARD_PER_ADDRESS: Final = 256
#: Connections that have ended and are remembered.
MAX_GONE: Final = MAX_PEER_CONNECTIONS
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
#: Never HANDSHAKE_FAILED_PROTOCOL: libzmq 4.3.5 tells of a frame that cannot be opened by that too,
#: loses its `errno` thereby, takes the connection for one whose queue is full, and aborts the
#: process at the next heartbeat (``Assertion failed: !_io_error``).
_TOLD_EVENTS: Final = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
#: A connection is reset when it is closed, whatever has not been read or sent.
_RESET: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
_MONITOR_ENDPOINT: Final = "inproc://d8.connections"


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
    number: what tells its socket from others that have that descriptor before and after it.
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
        refusals: how many connections the gate has refused so far, which it counts itself.
        wake: has the loop go round once more, from any thread.

    Thread: made and closed, and all public calls made, by the thread of the ROUTER.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        router: zmq.Socket[bytes],
        *,
        handshake_s: float,
        refusals: Callable[[], int] = lambda: 0,
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
        #: first messages of connections that the monitor may have yet to tell of
        self._early: list[_FirstMessage] = []
        #: handshakes that succeeded, of connections not heard yet (below zero: of some that are
        #: heard the monitor has yet to tell); the gate's refusals, as far as their connections
        #: have ended
        self._finished, self._denied, self._refusals = 0, refusals(), refusals
        #: handshakes that succeeded so far, and connections with a place to be compared with it
        self._shaken = 0
        self._placed: list[tuple[TcpConnection, float]] = []
        #: the monitor has told of a handshake that was not finished: that connection ends next
        self._is_unfinished = False
        self._next_look = 0.0
        self._is_closing = False
        self._fault: Exception | None = None  #: what has ended the thread
        self._router = router
        self._inner, self._outer = socket.socketpair()
        for each in (self._inner, self._outer):
            each.setblocking(False)
        router.monitor(_MONITOR_ENDPOINT, _TOLD_EVENTS)
        self._monitor: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        self._monitor.linger = 0
        self._monitor.rcvhwm = 0  # ZeroMQ's own thread shall never wait for this one
        self._monitor.connect(_MONITOR_ENDPOINT)
        self._thread = threading.Thread(target=self._serve, name="connections", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------- what the loop calls

    def hear_first(self, part: zmq.Frame, routing_id: bytes, place: float) -> None:
        """Learn of the first message of a connection.

        Args:
            place: as of `_FirstMessage`.
        """
        with contextlib.suppress(zmq.ZMQError):
            descriptor = part.get(zmq.SRCFD)
            if isinstance(descriptor, int):
                number = socket_number(descriptor)
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

    def close(self) -> None:
        """Watch no longer."""
        self._is_closing = True
        self._rouse()
        self._thread.join()
        self._router.disable_monitor()
        self._monitor.close(0)
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

    def _watch(self) -> None:
        poller = zmq.Poller()
        poller.register(self._monitor, zmq.POLLIN)
        poller.register(self._inner, zmq.POLLIN)
        while not self._is_closing:
            left_s = max(0.0, self._next_look - time.monotonic())
            poller.poll(int(left_s * 1000 + 0.999) if self._table else None)
            with contextlib.suppress(BlockingIOError):
                self._inner.recv(4096)
            self._step(time.monotonic())

    def _rouse(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is roused already
            self._outer.send(b"\0")

    def _step(self, now: float) -> None:
        dropped = [self._dropped.popleft() for _ in range(len(self._dropped))]
        placed, self._placed = self._placed, []
        told_of = set(self._early_ones())  # the monitor tells of all these now
        while True:
            try:
                told, _ = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            self._take_in(int.from_bytes(told[:2], sys.byteorder), told[2:6], now)
        self._note_heard(lambda each: each in told_of)
        self.ended.extend(each.routing_id for each in self._early if each in told_of)
        self._early = [each for each in self._early if each not in told_of]
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

    def _take_in(self, kind: int, value: bytes, now: float) -> None:
        if kind == zmq.EVENT_ACCEPTED:
            self._accepted(int.from_bytes(value, sys.byteorder), now)
        elif kind == zmq.EVENT_DISCONNECTED:
            self._ended(int.from_bytes(value, sys.byteorder), now)
        elif kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._finished += 1
            self._shaken += 1
        else:
            self._is_unfinished = True

    def _accepted(self, descriptor: int, now: float) -> None:
        handle, address = duplicate(descriptor)
        number = 0 if handle is None else socket_number(handle.fileno())
        connection = TcpConnection(handle, address, now, self.round, number=number)
        self._table[descriptor] = connection
        self._count[address] += 1
        self._unheard[address] += 1
        if self._is_crowded(address):
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

    def _early_ones(self) -> list[_FirstMessage]:
        self._early.extend(self._heard.popleft() for _ in range(len(self._heard)))
        return self._early

    def _note_heard(self, is_meant: Callable[[_FirstMessage], bool] = lambda each: True) -> None:
        """Take in who has spoken, of those that are meant."""
        early = self._early_ones()
        self._early = [each for each in early if not (is_meant(each) and self._is_noted(each))]

    def _is_noted(self, first: _FirstMessage) -> bool:
        """Note whose a first message is; False: of none that is known yet.

        A descriptor is given again at once when a connection ends: the next one may have spoken
        before the monitor tells of either.
        """
        connection, number = self._table.get(first.descriptor), first.number
        if connection is None or (connection.number != number and connection.number and number):
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
        _less(self._count, connection.address)
        if connection.routing_id is None:
            _less(self._unheard, connection.address)
        else:
            self._by_routing_id.pop(connection.routing_id, None)
            self.ended.append(connection.routing_id)
            self._gone[connection.routing_id] = None
            if len(self._gone) > MAX_GONE:
                self._gone.popitem(last=False)
        self.guard.forget(connection)
        if connection.handle is not None:
            connection.handle.close()

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
            if received is not None and received < SHAKEN_BYTES:
                return HANDSHAKE
            if self._refusals() > self._denied:
                self._denied += 1
                return ""
            if self._finished <= (0 if received is not None else self._finishing()):
                return HANDSHAKE
            self._finished -= 1
        return FRAME if _was_refused(connection) else ""

    def _finishing(self) -> int:
        """Return how many connections may be those whose handshake succeeded and are not heard.

        One that ended before it could be looked at is taken for none of them.
        """
        unheard = [each for each in self._table.values() if each.routing_id is None]
        counts = [_received(each) for each in unheard if not each.code]
        return sum(1 for count in counts if count is not None and count >= SHAKEN_BYTES)

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
