"""ZeroMQ: the broker's ROUTER, a session's DEALER, and the loop that waits for both.

A message is one frame, and every connection is encrypted and proven by CURVE. Nothing here ever
blocks in a send. Sockets belong to the thread that made them; only `Waker.wake` may be called
from another.

Source: https://libzmq.readthedocs.io/en/latest/zmq_setsockopt.html, RFC 23/ZMTP, RFC 26/CurveZMQ
"""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import Final, Protocol

import zmq

from d8mesh.core.protocol.membership import Verdict
from d8mesh.edge.transport.keys import KeyPair
from d8mesh.edge.transport.router import RouterEndpoint
from d8mesh.edge.transport.socket_options import (
    COPIED_BYTES,
    LINGER_MS,
    NOBLOCK,
    READABLE,
    configure,
    plain_send,
)
from d8mesh.errors import BrokerUnavailableError

#: Pauses between tries to connect, growing: a broker that is started again is back in a second.
#: Who is cut off for long makes a new link, with longer pauses of its own.
RECONNECT_MS: Final = 50
RECONNECT_MAX_MS: Final = 200
#: A connection that nobody answers is tried anew: the system alone would pause up to a minute.
CONNECT_MS: Final = 2000
#: So many handshakes fail one after the other before it is believed: one breaks off when its
#: orchestrator is being stopped.
MAX_FAILED_HANDSHAKES: Final = 3
#: Not _PROTOCOL: while that is told of, a frame that does not open ends the process (libzmq 4.3.5).
_HANDSHAKE_FAILED: Final = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL


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


class SharedContext(zmq.Context[zmq.Socket[bytes]]):
    """Lets many `DealerLink` s of one process share ZeroMQ's own threads; `term` lets them go."""


class LeadsToBroker(Protocol):
    """What a link goes through."""

    trouble: str

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
        tunnel: LeadsToBroker | None = None,
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
                configure(self.socket)
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
        self._send = plain_send(self.socket)
        self._alone = [(self.socket, READABLE)]

    @property
    def is_tunnelled(self) -> bool:
        """True if it leads through the REST port."""
        return self._tunnel is not None

    def send(self, frame: bytes) -> bool:
        """Send without waiting; False if the queue to the broker is full."""
        try:
            self._send(frame, NOBLOCK, len(frame) < COPIED_BYTES)
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
            received.append(get(NOBLOCK))
        return received

    def await_frame(self, timeout_s: float) -> bytes | None:
        """Return the next frame as soon as it comes in; None: none did in time.

        For who has nothing else to wait for: a wait for several things costs twice as much. (A
        blocking `recv` would begin its time anew after every signal.)
        """
        if zmq.zmq_poll(self._alone, int(timeout_s * 1000 + 0.999)):
            return self.socket.recv(NOBLOCK)
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
        is_known = self.verdict is not None or bool(self.trouble)
        return is_known or self._failures >= MAX_FAILED_HANDSHAKES

    @property
    def trouble(self) -> str:
        """Why a REST port on the way lets nothing through, in words; "" if none does so."""
        return "" if self._tunnel is None else self._tunnel.trouble

    def close(self) -> None:
        """Let the connection go."""
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(LINGER_MS)
        if self._owned is not None:
            self._owned.term()
        if self._tunnel is not None:
            self._tunnel.close()
