"""The HTTP server: waitress, with deadlines, caps and JSON for what it refuses by itself.

Waitress takes requests in on one thread, whole and within limits, before a thread of ours
sees them: slow or endless input costs no thread. What it lacks is here: requests have a
deadline, addresses a cap, `urgent` paths threads of their own, and threads start on demand.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask

from d8mesh.core.protocol.addresses import is_admissible
from d8mesh.http.http_parser import Parser, refusal_body

#: Connections at once. Windows can wait for 512 sockets only, and CPython says so.
MAX_CONNECTIONS: Final = 1024 if hasattr(select, "poll") else 480
#: Connections of one address: 256 waits and 50 streams of one busy client fit twice.
MAX_PER_ADDRESS: Final = MAX_CONNECTIONS // 2
#: A connection says something, and all headers are in, by then.
HEADERS_S: Final = 10.0
#: A body may take this long, and more while it comes at this rate at least.
BODY_S: Final = 20.0
BODY_BYTES_PER_S: Final = 32_768
#: An idle connection is kept open for its next request this long.
KEEP_ALIVE_S: Final = 75.0
#: An answer of which nothing could be sent for this long is given up.
STUCK_S: Final = 30.0
#: After refusing a request we listen on, so that the answer is read and not lost to a reset.
LINGER_S: Final = 2.0
#: Output waiting for one slow reader before whoever writes it has to wait.
OUTPUT_BYTES: Final = 1_048_576
#: Unused threads end after this time.
THREAD_IDLE_S: Final = 30.0
#: How often deadlines are looked at.
LOOK_S: Final = 0.5
#: Longest waits for something to read or write: with open connections, whose deadlines pass
#: meanwhile, and with none (a new one and `close` end it).
OPEN_WAIT_S, IDLE_WAIT_S = 1.0, 30.0
#: Threads of the urgent lane: enough for /health, whatever the others wait for.
_URGENT_THREADS: Final = 2
#: Connections accepted in one go: a turn costs as much as there are connections.
ACCEPTS_PER_TURN: Final = 64
#: Connections waiting to be accepted.
_BACKLOG: Final = 1024

Application: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
#: Told of what is refused without the application: (code, address, what).
Refused: TypeAlias = Callable[[str, str, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one listener takes.

    threads: most requests served at once, beside the urgent ones.
    urgent: paths with threads of their own.
    body_bytes: largest body, and by path (a prefix) where another is allowed.
    """

    threads: int
    urgent: Collection[str] = ()
    body_bytes: int = 65_536
    large_body_bytes: Mapping[str, int] | None = None


class Listener:
    """Serves a WSGI application on a bound socket until closed.

    Args:
        application: the WSGI application.
        bound: as `bind` returns it.
        limits: how much is taken at once.
        refused: told of requests and connections that never reach the application.

    Thread: `run` on one thread; `close` from any.
    """

    def __init__(
        self, application: Application, bound: socket.socket, limits: Limits, refused: Refused
    ) -> None:
        self.port: int = bound.getsockname()[1]
        self._map: dict[int, Any] = {}
        self._crew = _Crew(limits.threads, limits.urgent)
        settings = Adjustments(
            sockets=[bound],
            ident="d8mesh",
            asyncore_use_poll=hasattr(select, "poll"),
            backlog=_BACKLOG,
            connection_limit=MAX_CONNECTIONS,
            outbuf_high_watermark=OUTPUT_BYTES,
            # one more request may be read while one runs: so a client that leaves is noticed
            channel_request_lookahead=1,
            log_socket_errors=False,
            max_request_body_size=limits.body_bytes,
            clear_untrusted_proxy_headers=True,
        )
        self._server = _Server(
            application,
            self._map,
            True,
            bound,
            dispatcher=self._crew,
            adj=settings,
            sockinfo=(bound.family, bound.type, bound.proto, bound.getsockname()),
            bind_socket=False,
        )
        self._server.parser_limits = limits.large_body_bytes or {}
        self._server.refused = refused
        self._is_running = False
        self._is_closing = threading.Event()
        self._is_closed = threading.Event()

    def run(self) -> None:
        """Serve until `close`."""
        self._is_running = True
        next_look = 0.0
        try:
            while not self._is_closing.is_set():
                wait_s = OPEN_WAIT_S if self._server.active_channels else IDLE_WAIT_S
                wasyncore.loop(wait_s, hasattr(select, "poll"), self._map, count=1)
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + LOOK_S
                    self._server.close_overdue()
        finally:
            self._crew.shutdown()
            self._server.is_shut = True
            with contextlib.suppress(OSError):
                wasyncore.close_all(self._map, ignore_all=True)
            self._is_closed.set()

    def start(self) -> None:
        """Serve on a thread of its own."""
        self._is_running = True
        threading.Thread(target=self.run, name="http", daemon=True).start()

    def close(self, timeout_s: float = 1.0) -> None:
        """Stop serving; connections are closed, whatever runs there."""
        self._is_closing.set()
        if not self._is_running:
            wasyncore.close_all(self._map, ignore_all=True)
            return
        with contextlib.suppress(OSError):
            self._server.pull_trigger()
        self._is_closed.wait(timeout_s)


class _ErrorTask(ErrorTask):  # type: ignore[misc]  # waitress has no types
    """Answers in JSON what waitress refuses, and counts it."""

    def execute(self) -> None:
        error = self.request.error
        code, body = refusal_body(error)
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        channel = self.channel
        channel.lingers = True
        channel.server.refused(code, channel.addr[0], str(error.body))
        self.write(body)


class _Channel(HTTPChannel):  # type: ignore[misc]
    """One connection, with deadlines."""

    error_task_class = _ErrorTask
    #: what is still to be read after our refusal is thrown away until this monotonic time
    lingers = False
    drained_until = 0.0

    def __init__(self, *args: Any, **named: Any) -> None:
        self.opened = time.monotonic()
        super().__init__(*args, **named)

    def parser_class(self, adj: Any) -> Parser:
        return Parser(adj, self.server.parser_limits)

    def is_overdue(self, now: float, at: float) -> bool:
        """Return whether this connection has used up its time."""
        if self.drained_until:
            return now > self.drained_until
        if self.total_outbufs_len and at - self.last_activity > STUCK_S:
            return True
        if self.requests:
            return False
        request = self.request
        if request is None:
            is_new = self.last_activity == self.creation_time
            allowed_s = HEADERS_S if is_new else KEEP_ALIVE_S
            return bool(at - self.last_activity > allowed_s)
        if not request.headers_finished:
            return bool(now - request.begun > HEADERS_S)
        received = request.body_bytes_received
        return bool(now - request.begun > BODY_S + received / BODY_BYTES_PER_S)

    def readable(self) -> bool:
        return bool(self.drained_until) or bool(super().readable())

    def writable(self) -> bool:
        return not self.drained_until and bool(super().writable())

    def handle_read(self) -> None:
        if not self.drained_until:
            super().handle_read()
            return
        with contextlib.suppress(OSError):
            self.recv(65_536)  # closes by itself at the end

    def handle_close(self) -> None:
        if self.lingers and self.connected:
            self.lingers = False
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)
                self.drained_until = time.monotonic() + LINGER_S
                self.will_close = False
                return
        super().handle_close()


class _Server(TcpWSGIServer):  # type: ignore[misc]
    """Accepts whom it may, and closes what is overdue."""

    channel_class = _Channel
    parser_limits: Mapping[str, int]
    refused: Refused
    is_shut = False

    def handle_accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                accepted = self.accept()
            except OSError:
                return
            if accepted is None:
                return
            self._welcome(*accepted)

    def _welcome(self, connection: socket.socket, address: tuple[Any, ...]) -> None:
        host = str(address[0])
        if not is_admissible(host):
            self._turn_away(connection, host, 403, "http.peer", "outside the private networks")
            return
        count = sum(channel.addr[0] == host for channel in self.active_channels.values())
        if count >= MAX_PER_ADDRESS:
            what = f"{count} connections of one address are open: at most {MAX_PER_ADDRESS}"
            self._turn_away(connection, host, 429, "access.flood", what)
            return
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _Channel(self, connection, address, self.adj, map=self._map)

    def pull_trigger(self) -> None:
        if not self.is_shut:  # then its descriptor may be somebody else's by now
            with contextlib.suppress(OSError):
                super().pull_trigger()

    def maintenance(self, now: float) -> None:
        """Leave it to `close_overdue`: waitress would wait until it can write once more."""

    def close_overdue(self) -> None:
        """Close the connections that have used up their time."""
        now, at = time.monotonic(), time.time()
        for channel in list(self.active_channels.values()):
            if channel.is_overdue(now, at):
                if channel.request is not None:  # not one that is idle, or lingers
                    self.refused("http.timeout", channel.addr[0], "a request came too slowly")
                channel.lingers = False
                channel.handle_close()

    def _turn_away(
        self, connection: socket.socket, host: str, status: int, code: str, what: str
    ) -> None:
        """Say why in one packet, and close without reading."""
        self.refused(code, host, what)
        body = f'{{"error": "{what}", "code": "{code}"}}'
        reason = "Forbidden" if status == 403 else "Too Many Requests"
        head = (
            f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        with contextlib.suppress(OSError), connection:
            connection.setblocking(False)
            connection.send((head + body).encode("ascii"))
            connection.shutdown(socket.SHUT_WR)


class _Crew:
    """The threads, as waitress asks for them: two lanes that grow on demand."""

    def __init__(self, threads: int, urgent: Collection[str]) -> None:
        self._urgent_paths = frozenset(urgent)
        self._urgent = _Lane("http-urgent", _URGENT_THREADS if urgent else 0)
        self._rest = _Lane("http-work", threads)

    def add_task(self, channel: Any) -> None:
        """Let a connection's first request be served."""
        requests = channel.requests
        is_urgent = bool(requests) and getattr(requests[0], "path", "") in self._urgent_paths
        (self._urgent if is_urgent else self._rest).put(channel)

    def shutdown(self) -> None:
        """Take no more; threads end with what they are at."""
        self._urgent.close()
        self._rest.close()


class _Lane:
    """Threads that serve connections in turn, as many as are needed and allowed."""

    def __init__(self, name: str, limit: int) -> None:
        self._name, self._limit = name, limit
        self._waiting: deque[Any] = deque()
        self._has_work = threading.Condition()
        self._threads = self._idle = 0
        self._is_closed = False

    def put(self, channel: Any) -> None:
        with self._has_work:
            self._waiting.append(channel)
            if self._idle >= len(self._waiting):
                self._has_work.notify()
                return
            if self._threads >= self._limit:
                return  # whoever is free next takes it
            self._threads += 1
        threading.Thread(target=self._serve, name=self._name, daemon=True).start()

    def close(self) -> None:
        with self._has_work:
            self._is_closed = True
            self._waiting.clear()
            self._has_work.notify_all()

    def _serve(self) -> None:
        while (channel := self._next()) is not None:
            channel.service()

    def _next(self) -> Any:
        """Return the next connection, or None when this thread is to end."""
        with self._has_work:
            self._idle += 1
            while not self._waiting and not self._is_closed:
                if not self._has_work.wait(THREAD_IDLE_S) and not self._waiting:
                    break
            self._idle -= 1
            if self._waiting and not self._is_closed:
                return self._waiting.popleft()
            self._threads -= 1
            return None
