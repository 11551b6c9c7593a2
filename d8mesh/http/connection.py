"""One connection: requests come in, an ASGI application answers them in turn.

Strict where the parser (llhttp, by httptools) is lenient: whoever stands between a client and us
must not be able to read a request otherwise than we do. What is malformed, too large or too slow
is refused here, as JSON, and ends the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import httptools

from d8mesh.http.answers import NO_CONTENT, Refusal, Response
from d8mesh.http.asgi import SINK, AsgiApplication, AsgiMessage, Scope
from d8mesh.http.guard import Rejections
from d8mesh.http.heads import (
    MAX_HEAD_BYTES,
    MAX_URL_BYTES,
    bad,
    check_head,
    head_of,
    large_head,
    path_and_query,
)

#: A connection says something, and all headers are in, by then.
HEADERS_S: Final = 10.0
#: A body may take this long, and more while it comes at this rate at least.
BODY_S: Final = 20.0
BODY_BYTES_PER_S: Final = 32_768
#: An idle connection is kept open for its next request this long.
KEEP_ALIVE_S: Final = 75.0
#: An answer is given up when in this time no more of it could be sent than that.
STUCK_S: Final = 30.0
STUCK_BYTES: Final = 65_536
#: After a refusal we listen on until nothing came for so long: a reset would hide the answer.
LINGER_S: Final = 2.0
#: Requests of one connection that may wait for the answers before theirs.
MAX_REQUESTS_AHEAD: Final = 64
#: Bytes of a body that wait for the application before no more is read, and of an answer that
#: wait for its reader before whoever writes it has to: thousands of connections may do both.
WAITING_BYTES: Final = 65_536
#: Of a transport's `get_extra_info`: whether a handshake (TLS) has begun and is not done.
HANDSHAKING: Final = "d8.handshaking"

_log: Final = logging.getLogger("d8mesh.http")


class ServesConnections(Protocol):
    """What a connection needs of its server, which says what each is for."""

    loop: asyncio.AbstractEventLoop
    application: AsgiApplication
    buffer: bytearray
    rejections: Rejections

    def admit(self, connection: HttpConnection) -> Refusal | None: ...
    def forget(self, connection: HttpConnection) -> None: ...
    def refused(self, path: str, origin: str | None, refusal: Refusal) -> Response: ...
    def date(self) -> bytes: ...


@dataclass(slots=True, eq=False)
class _Asked:
    """A request, whether the connection may serve another, and what has come of its body."""

    scope: Scope
    keeps: bool
    unread: bytearray = field(default_factory=bytearray)
    received_bytes: int = 0
    is_whole: bool = False


class HttpConnection(asyncio.BufferedProtocol):
    """Serves one connection of a server."""

    _transport: asyncio.Transport

    def __init__(self, server: ServesConnections) -> None:
        self._server = server
        self.peer, self._client = "", ("", 0)
        self._parser: Any = httptools.HttpRequestParser(self)
        #: what is not answered, in order, and the one of them whose body is still coming
        self._asked: deque[_Asked] = deque()
        self._incoming: _Asked | None = None
        self._url, self._headers = b"", list[tuple[bytes, bytes]]()
        #: bytes of a head that is coming, or since the last ones of a body
        self._beside_bytes = 0
        #: since when it is waited for what is to come next: a head that has begun, or another
        self._since = self._moved_at = server.loop.time()
        self._is_begun = self._is_used = self._is_lost = False
        self._refusal: Refusal | None = None
        #: the path and the Origin of what is refused
        self._told_at: tuple[str, str | None] = "", None
        self._drained_until = self._paused_at = 0.0
        #: the call of the application for the first of what is asked, and what it waits for
        self._task: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self.on_room: Callable[[], None] | None = None
        #: its answer: a head that is not sent yet; whether any of it is
        self._head = b""
        self._is_told = self._is_started = self._is_chunked = False
        self._written = self._moved = 0

    @property
    def is_busy(self) -> bool:
        """True while a request is not answered."""
        return bool(self._asked)

    # ----------------------------------------------------------- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(WAITING_BYTES)
        with contextlib.suppress(OSError):  # reset already; asyncio does this for its own sockets
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client = (transport.get_extra_info("peername") or ("", 0))[:2]
        self.peer = str(self._client[0])
        refusal = self._server.admit(self)
        if refusal is not None:
            self._tell(refusal, lingers=False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.forget(self)
        self._parser = None  # it holds us, too
        self._leave()
        self._asked.clear()
        self.resume_writing()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._server.buffer  # used up in `buffer_updated`, before anyone else is given it

    def buffer_updated(self, nbytes: int) -> None:
        if self._parser is None:  # what comes after what was refused
            self._drained_until = min(self._server.loop.time() + LINGER_S, self._since + BODY_S)
            return
        try:
            self._beside_bytes += nbytes
            self._feed(memoryview(self._server.buffer)[:nbytes])
            if self._beside_bytes > MAX_HEAD_BYTES:  # the parser puts them together
                raise large_head() if self._incoming is None else bad("too much beside the chunks")
        except Refusal as refusal:
            self.refuse(refusal)

    def pause_writing(self) -> None:
        self._writable = self._server.loop.create_future()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None:
            writable.set_result(None)
        if self.on_room is not None:
            self.on_room()

    # -------------------------------------------------------- called by the parser

    def on_message_begin(self) -> None:
        self._url, self._headers = b"", []
        self._is_begun, self._since = True, self._server.loop.time()

    def on_url(self, url: bytes) -> None:
        self._url += url
        if len(self._url) > MAX_URL_BYTES:
            raise Refusal("http.url_too_long", f"URI Too Long: at most {MAX_URL_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._incoming is None:  # else it follows the last chunk, and is of no interest
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._incoming is not None:
            return  # of the head that `_feed` made up
        if sum(len(name) + len(value) + 4 for name, value in self._headers) > MAX_HEAD_BYTES:
            raise large_head()
        if len(self._asked) > MAX_REQUESTS_AHEAD:
            raise Refusal(
                "access.flood", f"{MAX_REQUESTS_AHEAD} requests wait for their answers already"
            )
        version = str(self._parser.get_http_version())
        check_head(version, self._headers)
        path, query = path_and_query(self._url)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": version,
            "method": self._parser.get_method().decode("ascii"),
            "path": path,
            "query_string": query,
            "headers": self._headers,
            "client": self._client,
            SINK: self,
        }
        self._incoming = _Asked(scope, self._parser.should_keep_alive())
        self._beside_bytes, self._since = 0, self._server.loop.time()
        self._is_begun, self._is_used = False, True
        self._asked.append(self._incoming)
        if len(self._asked) == 1:
            self._start()
        else:
            self._pause_reading()

    def on_body(self, body: bytes) -> None:
        asked = self._incoming
        assert asked is not None
        self._beside_bytes = 0
        asked.unread += body
        asked.received_bytes += len(body)
        if len(asked.unread) > WAITING_BYTES:
            self._pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade():
            return  # it says so before the body
        assert self._incoming is not None
        self._incoming.is_whole = True
        self._incoming, self._beside_bytes, self._is_begun = None, 0, False
        self._wake()

    # ------------------------------------------------- called by the application (ASGI)

    async def _receive(self) -> AsgiMessage:
        """Return what has come of the body; after its end, wait for the caller to leave."""
        if self._waits_for_100():
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not self._is_lost:
            asked = self._asked[0]
            if not self._is_told and (asked.unread or asked.is_whole):
                body, self._is_told = bytes(asked.unread), asked.is_whole
                asked.unread.clear()
                self._resume_reading()
                return {"type": "http.request", "body": body, "more_body": not asked.is_whole}
            self._waiter = self._server.loop.create_future()
            await self._waiter
        return {"type": "http.disconnect"}

    def _waits_for_100(self) -> bool:
        """Return whether the caller waits to be told that its body is wanted."""
        asked = None if self._is_lost else self._asked[0]
        if asked is None or asked.is_whole or asked.received_bytes:
            return False
        headers = [(name, value.lower()) for name, value in asked.scope["headers"]]
        return asked.scope["http_version"] == "1.1" and (b"expect", b"100-continue") in headers

    async def _send(self, message: AsgiMessage) -> None:
        """Send a part of the answer; nothing if the caller has left."""
        while self._writable is not None:
            await asyncio.wait((self._writable,))
        has_more = message.get("more_body", False)
        if self._is_lost:
            return
        if message["type"] == "http.response.start":
            self._begin(message["status"], list(message["headers"]))
            return
        self.write_part(message.get("body", b""), has_more=has_more)

    @property
    def is_full(self) -> bool:
        """See `BodySink`."""
        return self._writable is not None

    def write_part(self, body: bytes, *, has_more: bool) -> None:
        """See `BodySink`."""
        if self._is_lost:
            return
        if self._asked[0].scope["method"] == "HEAD":
            body = b""
        elif self._is_chunked:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            body += b"" if has_more else b"0\r\n\r\n"
        if self._head or body:
            head, self._head = self._head, b""
            self._is_started = True
            self._write(head + body)
        if not has_more:
            self._finish()

    def _begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Make the head; it is sent with what follows of the body at once, or else without."""
        asked, names = self._asked[0], {name.lower() for name, _ in headers}
        is_sized = b"content-length" in names or status == NO_CONTENT
        version = asked.scope["http_version"]
        self._is_chunked = not is_sized and version == "1.1"
        if self._is_chunked:
            headers.append((b"Transfer-Encoding", b"chunked"))
        asked.keeps &= asked.is_whole and b"connection" not in names
        asked.keeps &= is_sized or self._is_chunked
        if b"connection" not in names and not (asked.keeps and version == "1.1"):
            headers.append((b"Connection", b"keep-alive" if asked.keeps else b"close"))
        self._head = head_of(status, self._server.date(), headers)
        if not is_sized:  # its first part may follow in this turn of the loop
            self._server.loop.call_soon(self._send_head, asked)

    def _send_head(self, asked: _Asked) -> None:
        if self._head and not self._is_lost and self._asked and self._asked[0] is asked:
            head, self._head = self._head, b""
            self._is_started = True
            self._write(head)

    # ------------------------------------------------------------ one request after another

    def _start(self) -> None:
        """Have the application called for what was asked first."""
        self._is_told = self._is_started = False
        self._task = self._server.loop.create_task(self._serve(self._asked[0]))

    async def _serve(self, asked: _Asked) -> None:
        try:
            await self._server.application(asked.scope, self._receive, self._send)
        except Exception:
            _log.exception("application failed")
        if self._is_lost or not self._asked or self._asked[0] is not asked:
            return
        if self._is_started:
            self.abort()  # so that its reader knows that this is not all
        else:
            self._tell(Refusal("d8.error", "an error of ours: see the log"))

    def _finish(self) -> None:
        """Go on when a request is answered."""
        asked = self._asked.popleft()
        self._resume_reading()
        self._since = self._server.loop.time()
        if not asked.keeps:
            self._end(lingers=not asked.is_whole)
        elif self._asked:
            self._start()
        elif self._refusal is not None:
            self._tell(self._refusal)

    def _leave(self) -> None:
        """Let the application know that nobody waits for its answer."""
        self._is_lost = True
        self._wake()
        if self._task is not None and self._asked and not self._asked[0].scope.get("d8.runs_on"):
            self._task.cancel()

    # ------------------------------------------------------------- refusing, and the end

    def _feed(self, data: bytes | memoryview) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as pause:
            # Another protocol is offered (Java's client does, with HTTP/2), and we go on as if it
            # were not. llhttp has skipped the body: another one reads it, after a head of our own.
            self._parser = httptools.HttpRequestParser(self)
            sizes = (b"content-length", b"transfer-encoding")
            kept = [b"%b: %b\r\n" % each for each in self._headers if each[0] in sizes]
            self._feed(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(kept))
            self._feed(data[pause.args[0] :])
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, Refusal):
                raise error.__context__ from None
            raise bad(str(error)) from error

    def refuse(self, refusal: Refusal, path: str = "") -> None:
        """Answer what came before, then say why there will be no more.

        Args:
            path: that was asked for, where this connection has not been told of it.
        """
        self._told_at = (path, None) if path else self._place()
        self._parser, self._is_begun = None, False
        asked, self._incoming = self._incoming, None
        if all(each.keeps for each in self._asked if each is not asked):
            self._server.rejections.add(refusal.code, self.peer, str(refusal))
        # Else it follows a request that ends the connection: nobody is told, or hears, of it.
        if asked is not None and self._asked[0] is asked:
            self._leave()
            if self._is_started:
                self.abort()
                return
        if asked is not None:
            self._asked.remove(asked)
        if self._asked:
            self._refusal = refusal
            self._pause_reading()
        else:
            self._tell(refusal)

    def _place(self) -> tuple[str, str | None]:
        """Return the path and the Origin of the request that is coming, as far as they are in."""
        if self._incoming is not None:
            path: str = self._incoming.scope["path"]
            headers = self._incoming.scope["headers"]
        elif self._is_begun:
            try:
                path, headers = path_and_query(self._url)[0], self._headers
            except (Refusal, UnicodeDecodeError):
                return "", None
        else:
            return "", None
        origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
        return path, origins[0] if len(origins) == 1 else None

    def _tell(self, refusal: Refusal, *, lingers: bool = True) -> None:
        self._head = b""
        response = self._server.refused(*self._told_at, refusal)
        assert isinstance(response.body, bytes)
        response.headers |= {"Content-Length": str(len(response.body)), "Connection": "close"}
        headers = [(name.encode(), value.encode()) for name, value in response.headers.items()]
        self._write(head_of(response.status, self._server.date(), headers) + response.body)
        self._end(lingers=lingers)

    def _end(self, *, lingers: bool) -> None:
        """Close when all is sent; if `lingers`, read on a while and throw it away."""
        self._parser = self._incoming = None
        self._is_begun = False
        self._asked.clear()
        if not lingers:
            self._transport.close()
        elif not self._transport.is_closing():
            self._since = self._server.loop.time()
            self._drained_until = self._since + LINGER_S
            self._transport.write_eof()
            self._transport.resume_reading()

    def abort(self) -> None:
        """End at once, whatever is under way."""
        self._transport.abort()

    def close_overdue(self, now: float) -> None:
        """End if this connection has used up its time."""
        if self._is_overdue(now):
            is_shaking = self._transport.get_extra_info(HANDSHAKING)
            if self._incoming is not None or self._is_begun or is_shaking:
                self._server.rejections.add("http.timeout", self.peer, "a request came too slowly")
            self.abort()

    def _is_overdue(self, now: float) -> bool:
        moved = self._written - self._transport.get_write_buffer_size()
        if moved == self._written or moved - self._moved > STUCK_BYTES:
            self._moved, self._moved_at = moved, now
        if now - self._moved_at > STUCK_S:
            return True
        if self._drained_until:
            if moved < self._written:  # else whoever reads slowly loses the end
                self._drained_until = now + LINGER_S
            return now > self._drained_until
        if self._paused_at or (self._asked and self._incoming is None):
            return False  # we ourselves hold it up
        if self._incoming is not None:
            allowed_s = BODY_S + self._incoming.received_bytes / BODY_BYTES_PER_S
        else:
            allowed_s = KEEP_ALIVE_S if self._is_used and not self._is_begun else HEADERS_S
        return now - self._since > allowed_s

    # ----------------------------------------------------------------------- the transport

    def _write(self, content: bytes) -> None:
        self._written += len(content)
        self._transport.write(content)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _pause_reading(self) -> None:
        self._paused_at = self._paused_at or self._server.loop.time()
        self._transport.pause_reading()

    def _resume_reading(self) -> None:
        """Read on, unless a request waits for the answer to another."""
        if self._paused_at and len(self._asked) <= 1:
            self._since += self._server.loop.time() - self._paused_at
            self._paused_at = 0.0
            self._transport.resume_reading()
