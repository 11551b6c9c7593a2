"""The broker's ROUTER: encrypted, behind a gate, its connections watched.

A message is one frame. Nothing here ever blocks in a send.

Source: https://libzmq.readthedocs.io/en/latest/zmq_socket.html, RFC 26/CurveZMQ, RFC 27/ZAP
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import zmq

from d8mesh.core.broker.effects import Peer
from d8mesh.core.protocol.addresses import endpoint
from d8mesh.edge.transport.connections import Connections
from d8mesh.edge.transport.keys import KeyPair
from d8mesh.edge.transport.routing_numbers import begin_anywhere, newest_number, place_after
from d8mesh.edge.transport.self_test import prove_gate
from d8mesh.edge.transport.socket_options import (
    AND_MORE,
    COPIED_BYTES,
    HANDSHAKE_MS,
    LINGER_MS,
    NOBLOCK,
    READABLE,
    configure,
    plain_send,
)
from d8mesh.edge.transport.zap import CURVE, ZAP_DOMAIN, Gate, ZapHandler, told_user
from d8mesh.errors import D8Error

#: Connections waiting to be accepted.
BACKLOG: Final = 1024
#: Connections whose address and key are remembered: those that have ended are forgotten, so there
#: are never so many.
MAX_KNOWN_PEERS: Final = 16_384
#: Of so many that have ended it is remembered whose they were: what they said last may still be in
#: ZeroMQ's queue.
MAX_ENDED: Final = 4096
#: Of a frame: the key and the number of the connection that it came over.
_USER: Final = "User-Id"
#: libzmq's own numbers: on Windows they are not those of Python's `errno`, but of the C library.
#: A port that the system keeps to itself (EACCES, which zmq.Errno lacks) is as good as taken.
_TAKEN: Final = (zmq.Errno.EADDRINUSE, errno.EACCES)


class _NamedPeer(NamedTuple):
    """Who speaks under a name of ZeroMQ's, and what its frames tell of its connection."""

    peer: Peer
    user: str


class RouterEndpoint:
    """A bound ROUTER.

    Args:
        hosts: addresses to listen on, all with the same port; ``*`` for all there are.
        ports: tried in turn; the first free one is taken.
        keys: the key pair of this orchestrator; None: without encryption, for measurements of
            what it costs. No production code does that.
        gate: whether a peer of this address and public key may connect at all; others are
            refused before a frame of theirs is read (ZAP).
        is_taken: whether an address and port are somebody else's although they could be bound.
        wake: called, from a thread of its own, when there are rejections, or to have it received.

    Raises:
        D8Error: none of the ports is free, or the gate does not hold (`self_test`).
    """

    def __init__(
        self,
        hosts: str | Sequence[str],
        ports: Sequence[int],
        *,
        keys: KeyPair | None,
        gate: Gate,
        is_taken: Callable[[str, int], bool] = lambda host, port: False,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        # One thread: with more, the gate may be asked about whom the monitor has yet to tell of.
        self._context = zmq.Context(1)
        handler = ZapHandler(self._context, gate, mechanism=b"NULL" if keys is None else CURVE)
        if keys is not None:
            try:
                prove_gate(lambda: _guarded(self._context, keys), handler, keys.public)
            except BaseException:
                self._context.term()
                raise
        begin_anywhere()
        self.socket = _guarded(self._context, keys)
        self._alone = [(self.socket, READABLE)]
        self._send = plain_send(self.socket)
        #: ZeroMQ's name of a connection -> whose it is; a routing id that we gave -> that name. Of
        #: a name there may be another connection later, of a routing id never.
        self._known: dict[bytes, _NamedPeer] = {}
        self._names: dict[bytes, bytes] = {}
        self._count = 0
        self._newest = newest_number(self._context, self.socket)
        self._connections = Connections(
            self._context,
            self.socket,
            handler,
            handshake_s=HANDSHAKE_MS / 1000,
            wake=wake,
        )
        #: connections that were refused or cut off, for the loop to count, the oldest first
        self.rejections = self._connections.rejections
        self._slow, self._ended = self._connections.guard.slow, self._connections.ended
        try:
            self.port = self._bind([hosts] if isinstance(hosts, str) else hosts, ports, is_taken)
        except BaseException:  # also on Ctrl-C: what was taken is let go
            self.close()
            raise

    def receive(self, limit: int, *, is_readable: bool = False) -> list[tuple[Peer, bytes | None]]:
        """Return (who said it, frame) of what has come in, at most `limit`.

        The frame is None for a message of more than one frame.

        Args:
            is_readable: it is known that something has come in, and need not be asked.
        """
        received: list[tuple[Peer, bytes | None]] = []
        get, known, alone, count = self.socket.recv, self._known, self._alone, 0
        while count < limit:
            # Asking whether there is more costs a fifth of the exception that says there is
            # not; where several came, more is likely.
            if is_readable:
                is_readable = False
            elif count < 2 and not zmq.zmq_poll(alone, 0):
                break
            try:
                name: bytes = get(NOBLOCK)
            except zmq.Again:
                break
            # A frame always follows it. Uncopied, it tells whether there is more at once: to ask
            # the socket costs more than both calls.
            part = get(NOBLOCK, False, False)
            count += 1
            said_by = known.get(name)
            if said_by is None or part.get(_USER) != said_by.user:
                said_by = self._first(name, part)
            frame = None if part.more else part.bytes
            if part.more:
                while get(NOBLOCK, False).more:
                    pass
            if said_by is not None:
                received.append((said_by.peer, frame))
        self._connections.took(received, is_all=count < limit)
        while len(self._ended) > MAX_ENDED:
            self._forget(self._ended.popleft())
        return received

    def send(self, routing_id: bytes, frame: bytes) -> bool:
        """Send without waiting; False: the peer is gone (EHOSTUNREACH) or reads too slowly."""
        name = self._names.get(routing_id)
        if name is None or self._connections.has_ended(routing_id):
            return False  # there may be another connection of that name by now
        if self._slow and not self._connections.guard.takes(routing_id, len(frame)):
            return False
        try:
            self._send(name, AND_MORE)
            self._send(frame, NOBLOCK, len(frame) < COPIED_BYTES)
        except zmq.ZMQError:
            return False
        return True

    def is_reading(self, routing_id: bytes) -> bool:
        """Return whether a peer is there and takes what it is sent. Thread: any."""
        return routing_id not in self._slow and not self._connections.has_ended(routing_id)

    def drop(self, peer: Peer, code: str = "") -> None:
        """Close the connection of a peer; with a code it is one of the `rejections`."""
        self._connections.drop(peer.routing_id, code)

    def close(self) -> None:
        """Let the port go."""
        self._connections.close()
        self.socket.close(LINGER_MS)
        self._context.term()

    def _first(self, name: bytes, part: zmq.Frame) -> _NamedPeer | None:
        """Return who said the first frame of a connection, by its address and key.

        None: it has asked for a name, or has that of another connection, and is cut off.
        """
        is_taken = name in self._known
        place = math.inf if is_taken else place_after(self._newest, name)
        self._count += 1
        routing_id = name + self._count.to_bytes(8, "big")
        address, user = _told_of(part, "Peer-Address"), _told_of(part, _USER)
        key, number = told_user(user)
        self._connections.hear_first(part, number, routing_id, place)
        if place == math.inf:
            return None
        if len(self._names) >= MAX_KNOWN_PEERS:
            self._forget(next(iter(self._names)))
        peer = Peer(routing_id, address.removeprefix("::ffff:"), key)
        self._names[routing_id] = name
        self._known[name] = _NamedPeer(peer, user)
        return self._known[name]

    def _forget(self, routing_id: bytes) -> None:
        """What is still to be sent to it goes to nobody, whoever has its name by now."""
        name = self._names.pop(routing_id, None)
        if name is not None:
            del self._known[name]

    def _bind(
        self, hosts: Sequence[str], ports: Sequence[int], is_taken: Callable[[str, int], bool]
    ) -> int:
        for port in ports:
            if any(is_taken(host, port) for host in hosts):
                continue
            found = self._bound(hosts, port)
            if found is not None:
                return found
        raise D8Error(
            f"the ports {ports[0]} to {ports[-1]} are all taken: stop what uses them, or set "
            "D8_BROKER_PORT"
        )

    def _bound(self, hosts: Sequence[str], port: int) -> int | None:
        """Listen on a port of all addresses, or on none; None if it is taken on one of them."""
        listening: list[str] = []
        for host in hosts:
            self.socket.set(zmq.IPV6, int(host == "*" or ":" in host))  # of the next bind
            try:
                self.socket.bind(endpoint(host, port))
            except zmq.ZMQError as error:
                for each in listening:
                    self.socket.unbind(each)
                if error.errno in _TAKEN:
                    return None
                raise D8Error(f"cannot listen on {host}:{port}: {error}") from error
            listening.append(self.socket.getsockopt_string(zmq.LAST_ENDPOINT))
            port = int(listening[-1].rpartition(":")[2])
        return port


def _guarded(context: zmq.Context[zmq.Socket[bytes]], keys: KeyPair | None) -> zmq.Socket[bytes]:
    """Return a ROUTER that is not bound; None: one without encryption."""
    router = context.socket(zmq.ROUTER)
    configure(router)
    router.set(zmq.ROUTER_MANDATORY, 1)
    router.set(zmq.HEARTBEAT_IVL, 0)
    router.set(zmq.BACKLOG, BACKLOG)
    router.set(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
    if keys is not None:
        router.curve_server = True
        router.curve_secretkey = keys.secret
    return router


def _told_of(part: zmq.Frame, what: str) -> str:
    """Return what is known of the connection that a frame came over; "" if nothing is."""
    try:
        return str(part.get(what))
    except zmq.ZMQError:
        return ""
