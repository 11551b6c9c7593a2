"""ZeroMQ: the broker's ROUTER, a session's DEALER, and the loop that waits for both.

A message is one frame, and every connection is encrypted and proven by CURVE. Nothing here ever
blocks in a send. Sockets belong to the thread that made them; only `Waker.wake` may be called
from another.

Source: https://libzmq.readthedocs.io/en/latest/zmq_setsockopt.html, RFC 23/ZMTP, RFC 26/CurveZMQ
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import zmq

from d8mesh.core.broker.effects import Peer
from d8mesh.core.protocol.addresses import endpoint
from d8mesh.core.protocol.membership import Verdict
from d8mesh.core.protocol.messages import MAX_FRAME_BYTES
from d8mesh.edge.transport.connections import Connections
from d8mesh.edge.transport.keys import KeyPair
from d8mesh.edge.transport.self_test import prove_gate
from d8mesh.edge.transport.zap import CURVE, ZAP_DOMAIN, Gate, ZapHandler
from d8mesh.errors import BrokerUnavailableError, D8Error

#: A peer that has not finished the ZMTP handshake by then is dropped: silence is over in 3 s.
HANDSHAKE_MS: Final = 2500
#: Transport heartbeats: a dead TCP connection is noticed and closed by libzmq itself. Links send
#: them, and a ROUTER closes a connection over which they have ceased. It sends none: libzmq 4.3.5
#: aborts the process when one is due on a connection that broke while its queue was full.
HEARTBEAT_MS: Final = 5000
HEARTBEAT_TIMEOUT_MS: Final = 15_000
#: Messages that may wait for one peer; a message is a batch, so this is plenty.
SEND_QUEUE_MESSAGES: Final = 1000
RECEIVE_QUEUE_MESSAGES: Final = 1000
#: Pauses between tries to connect, growing: a broker that is started again is back in a second.
#: Who is cut off for long makes a new link, with longer pauses of its own.
RECONNECT_MS: Final = 50
RECONNECT_MAX_MS: Final = 200
#: A connection that nobody answers is tried anew: the system alone would pause up to a minute.
CONNECT_MS: Final = 2000
#: What CURVE adds to a frame, at most: its name, a nonce, a flag and a seal.
SEAL_BYTES: Final = 64
#: So many handshakes fail one after the other before it is believed: one breaks off when its
#: orchestrator is being stopped.
MAX_FAILED_HANDSHAKES: Final = 3
#: Connections waiting to be accepted.
BACKLOG: Final = 1024
#: How long closing may wait for what is still to be sent: a goodbye, not a queue.
LINGER_MS: Final = 300
#: Frames below this are copied into a message; larger ones are lent to it until they are sent.
COPIED_BYTES: Final = 65_536
#: As plain numbers: arithmetic with pyzmq's enums costs more than what it asks for.
_NOBLOCK: Final = int(zmq.NOBLOCK)
_READABLE: Final = int(zmq.POLLIN)
#: Not _PROTOCOL: while that is told of, a frame that does not open ends the process (libzmq 4.3.5).
_HANDSHAKE_FAILED: Final = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_AND_MORE: Final = int(zmq.NOBLOCK) | int(zmq.SNDMORE)
#: libzmq's own numbers: on Windows they are not those of Python's `errno`, but of the C library.
#: A port that the system keeps to itself (EACCES, which zmq.Errno lacks) is as good as taken.
_TAKEN: Final = (zmq.Errno.EADDRINUSE, errno.EACCES)


class Waker:
    """Ends a `Loop.wait` from any thread; many wakes before it are one.

    Without a lock, and the byte that woke is read later, before the next wait: whoever
    wakes a loop must not stand in its way just then.
    """

    def __init__(self) -> None:
        self._inner, self._outer = socket.socketpair()
        self._inner.setblocking(False)
        self._outer.setblocking(False)
        #: woken since the last `seen`
        self._is_set = False
        #: a byte is in the pipe, or on its way there
        self._has_byte = False

    def wake(self) -> None:
        """Let the loop go round once more. Thread: any."""
        if self._is_set:
            return
        self._is_set = True
        if not self._has_byte:
            self._has_byte = True
            with contextlib.suppress(OSError):  # closed meanwhile
                self._outer.send(b"\0")

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._inner.fileno()

    def seen(self) -> None:
        """Take the wakes so far as seen; what they were for is looked at after this."""
        self._is_set = False

    def settle(self, *, is_readable: bool) -> bool:
        """Read what woke last time; return whether the loop was woken since `seen`.

        Args:
            is_readable: whether the descriptor was ready after the last wait.
        """
        if (self._has_byte or is_readable) and not self._is_set:
            self._has_byte = False  # first: who wakes from here on sends a byte
            with contextlib.suppress(BlockingIOError):
                self._inner.recv(16)
        return self._is_set

    def close(self) -> None:
        """Let the descriptors go."""
        self._is_set = True
        self._inner.close()
        self._outer.close()


class Loop:
    """Waits for sockets and a waker."""

    def __init__(self, waker: Waker, *endpoints: RouterEndpoint | DealerLink) -> None:
        self._waker = waker
        self._descriptor = waker.fileno()
        self._is_readable = False
        self._poller = zmq.Poller()
        self._poller.register(self._descriptor, zmq.POLLIN)
        self._monitors: dict[object, DealerLink] = {}
        for each in endpoints:
            self.add(each)

    def add(self, endpoint: RouterEndpoint | DealerLink) -> None:
        """Wait for this one too."""
        self._poller.register(endpoint.socket, zmq.POLLIN)
        if isinstance(endpoint, DealerLink):
            self._poller.register(endpoint.monitor, zmq.POLLIN)
            self._monitors[endpoint.monitor] = endpoint

    def remove(self, endpoint: RouterEndpoint | DealerLink) -> None:
        """Wait for this one no longer; call it before closing it."""
        with contextlib.suppress(KeyError):
            self._poller.unregister(endpoint.socket)
            if isinstance(endpoint, DealerLink):
                self._poller.unregister(endpoint.monitor)
                del self._monitors[endpoint.monitor]

    def wait(self, timeout_s: float) -> bool:
        """Return when something can be received, the waker was woken, or time is over.

        Returns:
            Whether something can be received.
        """
        is_woken = self._waker.settle(is_readable=self._is_readable)
        wait_ms = 0 if is_woken else max(0, int(timeout_s * 1000 + 0.999))
        self._is_readable = has_message = False
        for handle, _ in self._poller.poll(wait_ms):
            if handle == self._descriptor:
                self._is_readable = True
            elif self._monitors and handle in self._monitors:
                self._monitors[handle].look()
            else:
                has_message = True
        self._waker.seen()
        return has_message


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
        self._context = zmq.Context()
        handler = ZapHandler(self._context, gate, mechanism=b"NULL" if keys is None else CURVE)
        if keys is not None:
            try:
                prove_gate(lambda: _guarded(self._context, keys), handler, keys.public)
            except BaseException:
                self._context.term()
                raise
        self.socket = _guarded(self._context, keys)
        self._alone = [(self.socket, _READABLE)]
        self._send = _plain_send(self.socket)
        self._peers: dict[bytes, Peer] = {}
        self._connections = Connections(
            self._context, self.socket, handshake_s=HANDSHAKE_MS / 1000, wake=wake
        )
        #: connections that were refused or cut off, for the loop to count
        self.rejections = self._connections.rejections
        self._slow = self._connections.guard.slow
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
        get, peers, alone = self.socket.recv, self._peers, self._alone
        while len(received) < limit:
            # Asking whether there is more costs a fifth of the exception that says there is
            # not; where several came, more is likely.
            if is_readable:
                is_readable = False
            elif len(received) < 2 and not zmq.zmq_poll(alone, 0):
                break
            try:
                routing_id: bytes = get(_NOBLOCK)
            except zmq.Again:
                break
            # A frame always follows it. Uncopied, it tells whether there is more at once: to ask
            # the socket costs more than both calls.
            part = get(_NOBLOCK, False, False)
            peer = peers.get(routing_id)
            if peer is None:
                peer = self._first(routing_id, part)
            if part.more:
                while get(_NOBLOCK, False).more:
                    pass
                received.append((peer, None))
            else:
                received.append((peer, part.bytes))
        self._connections.took(received, is_all=len(received) < limit)
        return received

    def send(self, routing_id: bytes, frame: bytes) -> bool:
        """Send without waiting; False: the peer is gone (EHOSTUNREACH) or reads too slowly."""
        if self._slow and not self._connections.guard.takes(routing_id, len(frame)):
            return False
        try:
            self._send(routing_id, _AND_MORE)
            self._send(frame, _NOBLOCK, len(frame) < COPIED_BYTES)
        except zmq.ZMQError as error:
            if error.errno == zmq.Errno.EHOSTUNREACH:
                self._peers.pop(routing_id, None)
            return False
        return True

    def drop(self, peer: Peer) -> None:
        """Close the connection of a peer."""
        self._connections.drop(peer.routing_id)

    def close(self) -> None:
        """Let the port go."""
        self._connections.close()
        self.socket.close(LINGER_MS)
        self._context.term()

    def _first(self, routing_id: bytes, part: zmq.Frame) -> Peer:
        """Return who said the first frame of a connection, by its address and key."""
        self._connections.hear_first(part, routing_id)
        address, key = _told_of(part, "Peer-Address"), _told_of(part, "User-Id")
        if len(self._peers) >= MAX_KNOWN_PEERS:
            self._peers.clear()  # asked again at the next frame of each
        peer = self._peers[routing_id] = Peer(
            routing_id, address.removeprefix("::ffff:"), bytes.fromhex(key) or None
        )
        return peer

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


#: Connections whose address and key are remembered.
MAX_KNOWN_PEERS: Final = 16_384


class SharedContext(zmq.Context[zmq.Socket[bytes]]):
    """Lets many `DealerLink` s of one process share ZeroMQ's own threads; `term` lets them go."""


class Closes(Protocol):
    """Something that is let go with what stands on it."""

    def close(self) -> None:
        """Let it go."""


class DealerLink:
    """A DEALER connected to one address of a broker.

    Args:
        endpoint: ``tcp://HOST:PORT``.
        shared: whose threads to use; None: some of its own.
        server_key: the broker's public key, 32 bytes: what is said is encrypted for it alone, and
            nobody else can answer.
        keys: the key pair of this node, by which the broker knows it; None: as for
            `RouterEndpoint`, and `server_key` too.
        tunnel: what leads from `endpoint` to the broker; it is closed with the link.

    When the connection breaks, it is made again to the same address. `is_cut` tells that it
    is broken; `is_renewed` that it was, and that the other side may know nothing of us. Once it
    `is_refused` it had better be closed: it is made anew in vain many times a second, or never.
    """

    def __init__(
        self,
        endpoint: str,
        shared: SharedContext | None = None,
        *,
        server_key: bytes | None,
        keys: KeyPair | None,
        tunnel: Closes | None = None,
    ) -> None:
        #: of who is at the other end
        self.server_key = server_key
        self.is_cut = self.is_renewed = False
        #: what the broker said of our key instead of letting us in
        self.verdict: Verdict | None = None
        self._failures = 0  #: handshakes that have failed since one succeeded
        self._tunnel = tunnel
        context = SharedContext() if shared is None else shared
        self._owned = context if shared is None else None
        with contextlib.ExitStack() as undo:
            if self._owned is not None:
                undo.callback(self._owned.term)
            try:
                self.socket = context.socket(zmq.DEALER)
                undo.callback(self.socket.close, 0)
                _configure(self.socket)
                self.socket.set(zmq.RECONNECT_IVL, RECONNECT_MS)
                self.socket.set(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
                self.socket.set(zmq.CONNECT_TIMEOUT, CONNECT_MS)
                if keys is not None:
                    self.socket.curve_publickey = keys.public
                    self.socket.curve_secretkey = keys.secret
                    self.socket.curve_serverkey = server_key or b""
                self.monitor: zmq.Socket[bytes] = self.socket.get_monitor_socket(
                    zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | _HANDSHAKE_FAILED
                )
                undo.callback(self.monitor.close, 0)
                self.socket.connect(endpoint)
            except zmq.ZMQError as error:  # no such address, or no descriptors left
                raise BrokerUnavailableError(f"cannot connect to {endpoint}: {error}") from error
            undo.pop_all()
        self._send = _plain_send(self.socket)
        self._alone = [(self.socket, _READABLE)]

    @property
    def is_tunnelled(self) -> bool:
        """True if it leads through the REST port."""
        return self._tunnel is not None

    def send(self, frame: bytes) -> bool:
        """Send without waiting; False if the queue to the broker is full."""
        try:
            self._send(frame, _NOBLOCK, len(frame) < COPIED_BYTES)
        except zmq.ZMQError:
            return False
        return True

    @property
    def descriptors(self) -> tuple[int, int]:
        """What an outside loop waits for: of what comes in, and of what `look` tells.

        They are *edges*: readable once when something has happened, until the socket is asked.
        Sending asks it too, and may so use up the edge of what came in meanwhile. So after
        everything that was done with the socket, and not only after a wake-up, look at
        `has_input`; and call `look` until it returns.
        """
        return int(self.socket.getsockopt(zmq.FD)), int(self.monitor.getsockopt(zmq.FD))

    @property
    def has_input(self) -> bool:
        """True if a frame can be received."""
        return bool(zmq.zmq_poll(self._alone, 0))

    def receive(self, limit: int) -> list[bytes]:
        """Return what has come in, at most `limit` frames."""
        received: list[bytes] = []
        get, alone = self.socket.recv, self._alone
        while len(received) < limit and zmq.zmq_poll(alone, 0):
            received.append(get(_NOBLOCK))
        return received

    def await_frame(self, timeout_s: float) -> bytes | None:
        """Return the next frame as soon as it comes in; None: none did in time.

        For who has nothing else to wait for: a wait for several things costs twice as much. (A
        blocking `recv` would begin its time anew after every signal.)
        """
        if zmq.zmq_poll(self._alone, int(timeout_s * 1000 + 0.999)):
            return self.socket.recv(_NOBLOCK)
        return None

    def look(self) -> None:
        """Bring `is_cut` and `is_renewed` up to date; the `Loop` calls it."""
        while True:
            try:
                told, _ = self.monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.ZMQError:
                return
            kind = int.from_bytes(told[:2], sys.byteorder)
            if kind == zmq.EVENT_DISCONNECTED:
                self.is_cut, self.is_renewed = True, False
            elif kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.is_renewed = self.is_cut or self.is_renewed
                self.is_cut, self._failures = False, 0
            elif kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                status = str(int.from_bytes(told[2:6], sys.byteorder))
                is_final = status == Verdict.REFUSED.value
                self.verdict = Verdict.REFUSED if is_final else Verdict.WAITING
            else:
                self._failures += 1

    @property
    def is_refused(self) -> bool:
        """True when what answers there does not let us in, or is not who it should be."""
        return self.verdict is not None or self._failures >= MAX_FAILED_HANDSHAKES

    def close(self) -> None:
        """Let the connection go."""
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(LINGER_MS)
        if self._owned is not None:
            self._owned.term()
        if self._tunnel is not None:
            self._tunnel.close()


def _guarded(context: zmq.Context[zmq.Socket[bytes]], keys: KeyPair | None) -> zmq.Socket[bytes]:
    """Return a ROUTER that is not bound; None: one without encryption."""
    router = context.socket(zmq.ROUTER)
    _configure(router)
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


def _plain_send(handle: zmq.Socket[bytes]) -> Callable[..., object]:
    """Return (frame, flags, whether it is copied) -> None: `send` without pyzmq's Python around it.

    That looks for options of draft sockets, at twice the cost of sending.
    """
    return super(zmq.Socket, handle).send


def _configure(handle: zmq.Socket[bytes]) -> None:
    for option, value in (
        (zmq.LINGER, LINGER_MS),
        (zmq.MAXMSGSIZE, MAX_FRAME_BYTES + SEAL_BYTES),
        (zmq.HANDSHAKE_IVL, HANDSHAKE_MS),
        (zmq.HEARTBEAT_IVL, HEARTBEAT_MS),
        (zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS),
        (zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS),
        (zmq.SNDHWM, SEND_QUEUE_MESSAGES),
        (zmq.RCVHWM, RECEIVE_QUEUE_MESSAGES),
        (zmq.IPV6, 1),
        (zmq.IMMEDIATE, 0),
    ):
        handle.set(option, value)
