"""One connection: requests come in, an ASGI application answers them in turn.

Strict where the parser (llhttp, by httptools) is lenient: whoever stands between a client and us
must not be able to read a request otherwise than we do. What is malformed, too large or too slow
is refused here, as JSON, and ends the connection.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import httptools

from d8mesh.http.asgi import Message, Scope

if TYPE_CHECKING:
    from d8mesh.http.server import Server

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
#: Request line and headers together; ours are a few hundred bytes.
MAX_HEAD_BYTES: Final = 16_384
#: The address of a request; our longest are ids and a cursor.
MAX_URL_BYTES: Final = 4096
#: What a body in chunks may have beside its bytes: in all, and more for each chunk.
MAX_BESIDE_BYTES: Final = 1024
BESIDE_BYTES_PER_CHUNK: Final = 64
#: Requests of one connection that may wait for the answers before theirs.
MAX_AHEAD: Final = 64
#: Bytes of a body that wait for the application before no more is read.
INPUT_BYTES: Final = 262_144
#: Output waiting for one slow reader before whoever writes it has to wait.
OUTPUT_BYTES: Final = 65_536

_STATUS_LINES: Final = {
    each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n".encode("ascii") for each in HTTPStatus
}
_log: Final = logging.getLogger("d8mesh.http")


class Refused(Exception):
    """What came in is refused by the server itself; the connection ends with it."""

    def __init__(self, status: int, code: str, text: str, *, is_unread: bool = False) -> None:
        super().__init__(text)
        self.status, self.code, self.is_unread = status, code, is_unread


class Connection(asyncio.BufferedProtocol):
    """Serves one connection.

    Args:
        server: whose application is called, and who is told of what is refused.
    """

    _transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self.server = server
        self.peer, self._client = "", ("", 0)
        self._parser: Any = httptools.HttpRequestParser(self)
        #: what is not answered yet, in order, and the one of them whose body is still coming
        self._cycles: deque[_Cycle] = deque()
        self._incoming: _Cycle | None = None
        #: the head that is coming, and the bytes of it, or none between two requests
        self._url, self._headers = b"", list[tuple[bytes, bytes]]()
        self._head_bytes = self._beside_bytes = 0
        #: since when it is waited for what is to come next
        self._since = server.loop.time()
        self._answered = 0
        self._refusal: Refused | None = None
        self._drained_until = 0.0
        self._is_paused = False
        self._writable: asyncio.Future[None] | None = None
        #: bytes given to the transport; how many had left it, and since when
        self._written = 0
        self._left, self._left_at = 0, self._since

    # ----------------------------------------------------------- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(OUTPUT_BYTES)
        self._client = (transport.get_extra_info("peername") or ("", 0))[:2]
        self.peer = str(self._client[0])
        try:
            self.server.admit(self)
        except Refused as refusal:
            self._refuse(refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.forget(self)
        self._parser = None  # it holds us, too
        for cycle in self._cycles:
            cycle.leave()
        self._cycles.clear()
        self.resume_writing()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.server.buffer  # used up in `buffer_updated`, before anyone else is given it

    def buffer_updated(self, nbytes: int) -> None:
        if self._parser is None:
            return  # refused: what still comes is thrown away
        before, answered = self._incoming, self._answered + len(self._cycles)
        body_bytes = before.received_bytes if before else 0
        try:
            self._feed(memoryview(self.server.buffer)[:nbytes])
            if self._incoming is None:
                if answered == self._answered + len(self._cycles) and self._head_bytes:
                    self._count_head(nbytes)
            elif self._incoming is before:
                self._beside_bytes += nbytes - (before.received_bytes - body_bytes)
                if self._beside_bytes > MAX_BESIDE_BYTES + BESIDE_BYTES_PER_CHUNK * before.chunks:
                    raise _bad("too much beside the chunks")
        except Refused as refusal:
            self._refuse(refusal)

    def pause_writing(self) -> None:
        self._writable = self.server.loop.create_future()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    # -------------------------------------------------------- called by the parser

    def on_message_begin(self) -> None:
        self._url, self._headers = b"", []
        self._head_bytes, self._since = 1, self.server.loop.time()

    def on_url(self, url: bytes) -> None:
        self._url += url
        if len(self._url) > MAX_URL_BYTES:
            raise Refused(414, "http.url_too_long", f"at most {MAX_URL_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._incoming is None:  # else it follows the last chunk, and is of no interest
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        self._count_head(len(self._url) + sum(len(n) + len(v) + 4 for n, v in self._headers))
        self._head_bytes = self._beside_bytes = 0
        if len(self._cycles) > MAX_AHEAD:
            raise Refused(429, "access.flood", f"{MAX_AHEAD} requests are not answered yet")
        version = str(self._parser.get_http_version())
        _check_headers(version, self._headers)
        path, query = _path_and_query(self._url)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "method": self._parser.get_method().decode("ascii"),
            "scheme": "http",
            "path": path,
            "raw_path": self._url,
            "query_string": query,
            "root_path": "",
            "headers": self._headers,
            "client": self._client,
            "server": None,
        }
        cycle = _Cycle(self, scope)
        cycle.keeps = version == "1.1" and self._parser.should_keep_alive()
        cycle.expects = version == "1.1" and (b"expect", b"100-continue") in self._headers
        self._incoming = cycle
        self._since = self.server.loop.time()
        self._cycles.append(cycle)
        if len(self._cycles) == 1:
            cycle.start()
        else:
            self.pause_reading()

    def on_body(self, body: bytes) -> None:
        assert self._incoming is not None
        if self._incoming.take(body) > INPUT_BYTES:
            self.pause_reading()

    def on_chunk_header(self) -> None:
        assert self._incoming is not None
        self._incoming.chunks += 1

    def on_message_complete(self) -> None:
        assert self._incoming is not None
        self._incoming.complete()
        self._incoming = None

    # --------------------------------------------------------- called by the cycles

    def pause_reading(self) -> None:
        """Read no more for now."""
        if not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on, unless a request waits for the answer to another."""
        if self._is_paused and len(self._cycles) <= 1:
            self._is_paused = False
            self._transport.resume_reading()

    async def writable(self) -> None:
        """Wait while more is on its way than OUTPUT_BYTES."""
        while self._writable is not None:
            await asyncio.wait((self._writable,))

    def write(self, content: bytes) -> None:
        """Send."""
        self._written += len(content)
        self._transport.write(content)

    def finish(self, cycle: _Cycle) -> None:
        """Go on when a request is answered."""
        self._cycles.popleft()
        self._answered += 1
        self._since = self.server.loop.time()
        if not cycle.keeps or not cycle.is_whole:
            self._end(lingers=not cycle.is_whole)
        elif self._cycles:
            self._cycles[0].start()
        elif self._refusal is not None:
            self._tell(self._refusal)
        self.resume_reading()

    def fail(self, cycle: _Cycle) -> None:
        """Say that the application has not answered."""
        self._cycles.remove(cycle)
        self._tell(Refused(500, "d8.error", "an error of ours: see the log"))

    def abort(self) -> None:
        """End at once, whatever is under way."""
        self._transport.abort()

    # --------------------------------------------------------- called by the server

    @property
    def is_busy(self) -> bool:
        """True while a request is not answered."""
        return bool(self._cycles)

    def close_overdue(self, now: float) -> None:
        """End if this connection has used up its time."""
        if self._is_overdue(now):
            if self._incoming is not None or (self._head_bytes and not self._cycles):
                self.server.refused("http.timeout", self.peer, "a request came too slowly")
            self.abort()

    def _is_overdue(self, now: float) -> bool:
        left = self._written - self._transport.get_write_buffer_size()
        if left != self._left or left == self._written:
            self._left, self._left_at = left, now
        if now - self._left_at > STUCK_S:
            return True
        if self._drained_until:
            return now > self._drained_until
        if self._is_paused:  # we ourselves hold it up
            self._since = now
            return False
        if self._incoming is not None:
            allowed_s = BODY_S + self._incoming.received_bytes / BODY_BYTES_PER_S
        elif self._cycles:
            return False
        else:
            is_new = self._head_bytes > 0 or not self._answered
            allowed_s = HEADERS_S if is_new else KEEP_ALIVE_S
        return now - self._since > allowed_s

    # ----------------------------------------------------------------------- inside

    def _feed(self, data: memoryview) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as pause:  # we go on as if it had not been asked for
                data = data[pause.args[0] :]
            except httptools.HttpParserError as error:
                if isinstance(error.__context__, Refused):
                    raise error.__context__ from None
                raise _bad(str(error)) from error

    def _count_head(self, nbytes: int) -> None:
        self._head_bytes += nbytes
        if self._head_bytes > MAX_HEAD_BYTES:
            text = f"the headers are larger than {MAX_HEAD_BYTES} bytes"
            raise Refused(431, "http.headers_too_large", text)

    def _refuse(self, refusal: Refused) -> None:
        """Answer what came before, then say why there will be no more."""
        self._parser, self._head_bytes = None, 0
        self.server.refused(refusal.code, self.peer, str(refusal))
        cycle, self._incoming = self._incoming, None
        if cycle is not None:
            self._cycles.remove(cycle)
            if cycle.leave():
                self.abort()  # its answer has begun
                return
        if self._cycles:
            self._refusal = refusal
            self.pause_reading()
        else:
            self._tell(refusal)

    def _tell(self, refusal: Refused) -> None:
        body = json.dumps({"error": str(refusal)[:500], "code": refusal.code}).encode("ascii")
        head = b"Content-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        self.write(_STATUS_LINES[refusal.status] + head % len(body) + body)
        self._end(lingers=not refusal.is_unread)

    def _end(self, *, lingers: bool) -> None:
        """Close when all is sent; if `lingers`, read on a while and throw it away."""
        self._parser = self._incoming = None
        self._head_bytes = 0
        if not lingers:
            self._transport.close()
        elif not self._transport.is_closing():
            self._drained_until = self.server.loop.time() + LINGER_S
            self._transport.write_eof()
            self._is_paused = False
            self._transport.resume_reading()


class _Cycle:
    """One request and its answer: ASGI's `receive` and `send`."""

    __slots__ = (
        "_connection",
        "_head",
        "_is_chunked",
        "_is_done",
        "_is_left",
        "_is_started",
        "_is_told",
        "_parts",
        "_scope",
        "_task",
        "_waiter",
        "chunks",
        "expects",
        "is_whole",
        "keeps",
        "received_bytes",
        "unread_bytes",
    )

    def __init__(self, connection: Connection, scope: Scope) -> None:
        self._connection, self._scope = connection, scope
        self._parts: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._head = b""
        self._is_chunked = self._is_done = self._is_left = self._is_started = self._is_told = False
        self.chunks = self.received_bytes = self.unread_bytes = 0
        self.is_whole = False
        self.expects, self.keeps = False, True

    def start(self) -> None:
        """Have the application called."""
        self._task = self._connection.server.loop.create_task(self._run())

    def take(self, part: bytes) -> int:
        """Take a part of the body; return how many bytes nobody has asked for yet."""
        self._parts.append(part)
        self.received_bytes += len(part)
        self.unread_bytes += len(part)
        self._wake()
        return self.unread_bytes

    def complete(self) -> None:
        """Learn that the body is whole."""
        self.is_whole = True
        self._wake()

    def leave(self) -> bool:
        """Learn that the caller has left; return whether the answer had begun."""
        self._is_left = True
        self._wake()
        if self._task is not None and not self._scope.get("d8.runs_on"):
            self._task.cancel()
        return self._is_started

    async def receive(self) -> dict[str, Any]:
        """Return what has come of the body; after its end, wait for the caller to leave."""
        if self.expects and not self._is_started:
            self.expects = False
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not self._is_left and (self._is_told or not (self._parts or self.is_whole)):
            self._waiter = self._connection.server.loop.create_future()
            await self._waiter
        if self._is_left:
            return {"type": "http.disconnect"}
        body = b"".join(self._parts)
        self._parts.clear()
        self.unread_bytes, self._is_told = 0, self.is_whole
        self._connection.resume_reading()
        return {"type": "http.request", "body": body, "more_body": not self.is_whole}

    async def send(self, message: Message) -> None:
        """Send a part of the answer; nothing if the caller has left."""
        connection = self._connection
        await connection.writable()
        if self._is_left:
            return
        if message["type"] == "http.response.start":
            self._begin(int(message["status"]), message["headers"])
            return
        body: bytes = message.get("body", b"")
        is_last = not message.get("more_body", False)
        if self._scope["method"] == "HEAD":
            body = b""
        elif self._is_chunked:
            body = (b"%x\r\n%b\r\n" % (len(body), body)) if body else b""
            body += b"0\r\n\r\n" if is_last else b""
        if self._head or body:
            connection.write(self._head + body)
            self._head = b""
        if is_last:
            self._is_done = True
            connection.finish(self)

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Make the head, and send it if there may be nothing else for a while."""
        self._is_started = True
        names = {name.lower(): value for name, value in headers}
        lines = [_STATUS_LINES[status][:-2], self._connection.server.standing_headers()]
        lines += [b"%b: %b" % header for header in headers]
        is_sized = b"content-length" in names or status in (204, 304)
        if not is_sized and self._scope["http_version"] == "1.1":
            self._is_chunked = True
            lines.append(b"Transfer-Encoding: chunked")
        elif not is_sized:
            self.keeps = False
        if names.get(b"connection") == b"close":
            self.keeps = False
        elif not (self.keeps and self.is_whole):
            lines.append(b"Connection: close")
        head = b"\r\n".join(lines)
        if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines):
            raise ValueError(f"a header of the answer to {self._scope['path']} has a line break")
        self._head = head + b"\r\n\r\n"
        if not is_sized:
            self._connection.write(self._head)
            self._head = b""

    async def _run(self) -> None:
        try:
            await self._connection.server.application(self._scope, self.receive, self.send)
        except Exception:
            _log.exception("application failed")
        self._task = None  # it holds us, too
        if self._is_left or self._is_done:
            return
        if self._head or not self._is_started:
            self._connection.fail(self)
        else:
            self._connection.abort()  # so that its reader knows that it is not whole

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _bad(text: str) -> Refused:
    return Refused(400, "http.bad_request", f"Bad Request: {text}")


def _check_headers(version: str, headers: list[tuple[bytes, bytes]]) -> None:
    """Refuse what one may read in two ways, and llhttp reads.

    Raises:
        Refused: a version or a coding that we do not speak, or two Hosts.
    """
    if version not in ("1.0", "1.1"):
        raise _bad("expected HTTP/1.1")
    hosts = 0
    for name, value in headers:
        if name == b"host":
            hosts += 1
        elif name == b"transfer-encoding" and (version == "1.0" or value.lower() != b"chunked"):
            raise _bad("Transfer-Encoding: expected chunked, in HTTP/1.1")
    if hosts > 1:
        raise _bad("two Hosts")


def _path_and_query(url: bytes) -> tuple[str, bytes]:
    if not url.startswith(b"/"):  # of a proxy, or no path at all
        try:
            parsed = httptools.parse_url(url)
        except httptools.HttpParserInvalidURLError as error:
            raise _bad("the address is no path") from error
        url = (parsed.path or b"/") + b"?" + (parsed.query or b"")
    path, _, query = url.partition(b"#")[0].partition(b"?")
    return unquote(path.decode("ascii"), errors="replace"), query
