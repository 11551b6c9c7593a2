"""The HTTP server: sockets that we bound, in a running loop, with caps and deadlines.

How a connection is read and answered is `connection`'s; what is answered is the application's.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from email.utils import formatdate
from typing import Final

from d8mesh.http.answers import Refusal, Response, problem
from d8mesh.http.asgi import AsgiApplication
from d8mesh.http.connection import HttpConnection
from d8mesh.http.guard import Rejections
from d8mesh.http.tls_transport import TlsConnection

#: Connections at once: 2,500 streams, 1,000 waits, and as many again that mean no good.
MAX_CONNECTIONS: Final = 8192
#: Connections of one address: it cannot take the places of all others.
MAX_PER_ADDRESS: Final = MAX_CONNECTIONS // 2
#: Connections waiting to be accepted, and accepted in one turn of the loop.
_BACKLOG: Final = 1024
_ACCEPTS_PER_TURN: Final = 128
#: Turns of the loop in which what was just accepted has come up, and what is closed has learnt it.
_LAST_TURNS: Final = 4
#: How often deadlines are looked at, while there are connections.
DEADLINES_LOOK_S: Final = 0.5
#: What comes is read into one buffer, a connection at a time.
_BUFFER_BYTES: Final = 65_536


def _plainly(path: str, origin: str | None, refusal: Refusal) -> Response:
    return problem(refusal)


class Server:
    """Serves an ASGI application, which is told of no lifespan, on bound sockets of its own.

    refused: tells, in the words that the path and the Origin ask for, of what is refused before
        the application sees it.
    tls: serves HTTPS with it; None: HTTP.

    Thread: all of it in one loop.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        application: AsgiApplication,
        sockets: Sequence[socket.socket],
        admits: Callable[[str], bool],
        rejections: Rejections,
        refused: Callable[[str, str | None, Refusal], Response] = _plainly,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.application, self.refused = application, refused
        self.buffer = bytearray(_BUFFER_BYTES)
        self.rejections = rejections
        self._sockets, self._admits, self._tls = sockets, admits, tls
        self._servers: list[asyncio.Server] = []
        self._connections: set[HttpConnection] = set()
        #: those that are told why not, and are about to end
        self._turned_away: set[HttpConnection] = set()
        self._by_address: Counter[str] = Counter()
        self._next_look: asyncio.TimerHandle | None = None
        self._date = (0, b"")

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports, in the order of the sockets."""
        return tuple(each.getsockname()[1] for each in self._sockets)

    async def start(self) -> None:
        """Accept connections from now on."""
        self.loop = asyncio.get_running_loop()
        for each in self._sockets:
            server = await self.loop.create_server(
                self._connection, sock=each, backlog=_ACCEPTS_PER_TURN
            )
            each.listen(_BACKLOG)  # asyncio takes one number for both
            self._servers.append(server)

    def _connection(self) -> HttpConnection | TlsConnection:
        connection = HttpConnection(self)
        if self._tls is None:
            return connection
        return TlsConnection(connection, self._tls, self.buffer)

    async def close(self, grace_s: float = 0.0) -> None:
        """Accept no more, let what is under way end for so long, then end it all."""
        await self._accept_no_more()
        until = time.monotonic() + grace_s
        while any(each.is_busy for each in self._connections) and time.monotonic() < until:
            await asyncio.sleep(0.01)
        for _ in range(_LAST_TURNS):
            for connection in [*self._connections, *self._turned_away]:
                connection.abort()
            await asyncio.sleep(0)

    async def _accept_no_more(self) -> None:
        """Stop listening once what was accepted is a connection.

        asyncio accepts in one turn of the loop and makes the connection in the next; of a server
        that was closed in between it makes none, and the socket stays open, unknown to anybody.
        """
        loop = asyncio.get_running_loop()
        if self._servers:
            for each in self._sockets:
                with contextlib.suppress(NotImplementedError):  # Windows' loop does both in one
                    loop.remove_reader(each)
            closed = asyncio.Event()
            await asyncio.sleep(0)
            # a timer comes last in its turn: after what Windows' loop has accepted in it
            loop.call_later(0, self._close_servers, closed)
            await closed.wait()
        for each in self._sockets:
            each.close()

    def _close_servers(self, closed: asyncio.Event) -> None:
        while self._servers:
            self._servers.pop().close()
        closed.set()

    # ------------------------------------------------------ called by the connections

    def admit(self, connection: HttpConnection) -> Refusal | None:
        """Take a new connection in, or return why not."""
        peer = connection.peer
        count = self._by_address[peer]
        if not self._admits(peer):
            refusal = Refusal("http.peer", "outside the private networks")
        elif count >= MAX_PER_ADDRESS or len(self._connections) >= MAX_CONNECTIONS:
            of = f"{count} of this address and {len(self._connections)} in all"
            refusal = Refusal("access.flood", f"too many connections are open: {of}")
        else:
            self._connections.add(connection)
            self._by_address[peer] = count + 1
            if self._next_look is None:
                self._next_look = self.loop.call_later(DEADLINES_LOOK_S, self._look)
            return None
        self._turned_away.add(connection)
        self.rejections.add(refusal.code, peer, str(refusal))
        return refusal

    def forget(self, connection: HttpConnection) -> None:
        """Learn that a connection has ended."""
        self._turned_away.discard(connection)
        if connection in self._connections:
            self._connections.remove(connection)
            self._by_address[connection.peer] -= 1
            if not self._by_address[connection.peer]:
                del self._by_address[connection.peer]

    def date(self) -> bytes:
        """Return the time as a Date header has it."""
        now = int(time.time())
        if now != self._date[0]:
            self._date = (now, formatdate(now, usegmt=True).encode("ascii"))
        return self._date[1]

    def _look(self) -> None:
        self._next_look = None
        now = self.loop.time()
        for connection in list(self._connections):
            connection.close_overdue(now)
        if self._connections:
            self._next_look = self.loop.call_later(DEADLINES_LOOK_S, self._look)


class ServerThread:
    """A server in a loop and a thread of its own, where the application is called."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name="http", daemon=True
        )
        self._is_up, self._stop = threading.Event(), asyncio.Event()
        self.ports = server.ports

    def start(self) -> None:
        """Serve."""
        self._thread.start()
        self._is_up.wait()

    def close(self, timeout_s: float = 1.0) -> None:
        """Stop serving; connections are closed, whatever runs there."""
        if self._thread.ident is None:
            asyncio.run(self._server.close())
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            self._server.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout_s)

    async def _serve(self) -> None:
        try:
            await self._server.start()
        finally:
            self._is_up.set()
        await self._stop.wait()
        await self._server.close()
