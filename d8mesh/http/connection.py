"""One connection: requests come in, and are answered in turn.

Strict where the parser (llhttp, by httptools) is lenient: whoever stands between a client and us
must not be able to read a request otherwise than we do. What is malformed, too large or too slow
is refused here, as JSON, and ends the connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import httptools

from d8mesh.http.answers import Refusal, problem
from d8mesh.http.cycle import RequestCycle, head_of

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
#: Bytes beside those of a body in chunks, for each of them: five, if each has a chunk of its own.
BESIDE_BYTES_PER_BYTE: Final = 6
#: Requests of one connection that may wait for the answers before theirs.
MAX_AHEAD: Final = 64
#: Bytes of a body that wait for the application before no more is read.
INPUT_BYTES: Final = 262_144
#: Output waiting for one slow reader before whoever writes it has to wait.
OUTPUT_BYTES: Final = 65_536


class Connection(asyncio.BufferedProtocol):
    """Serves one connection.

    Args:
        server: whose application is called, and who is told of what is refused.
    """

    _transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self.server = server
        self._client: tuple[str, int] = ("", 0)
        self._parser: Any = httptools.HttpRequestParser(self)
        #: what is not answered yet, in order, and the one of them whose body is still coming
        self._cycles: deque[RequestCycle] = deque()
        self._incoming: RequestCycle | None = None
        self._url, self._headers = b"", list[tuple[bytes, bytes]]()
        #: bytes of a head that is coming, or beside those of a body
        self._beside_bytes = 0
        #: whether a head is coming; since when it is waited for what is to come next
        self._is_begun, self._is_used = False, False
        self._since = self._moved_at = server.loop.time()
        self._refusal: Refusal | None = None
        self._drained_until = 0.0
        self._is_paused = False
        self._writable: asyncio.Future[None] | None = None
        self._written = self._moved = 0

    @property
    def peer(self) -> str:
        """The address of the other side."""
        return self._client[0]

    @property
    def is_busy(self) -> bool:
        """True while a request is not answered."""
        return bool(self._cycles)

    # ----------------------------------------------------------- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(OUTPUT_BYTES)
        self._client = (transport.get_extra_info("peername") or ("", 0))[:2]
        refusal = self.server.admit(self)
        if refusal is not None:
            self._tell(refusal, lingers=False)

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
            return  # what comes after what was refused
        try:
            self._beside_bytes += nbytes
            self._feed(memoryview(self.server.buffer)[:nbytes])
            if self._incoming is not None:
                most = MAX_HEAD_BYTES + BESIDE_BYTES_PER_BYTE * self._incoming.received_bytes
                if self._beside_bytes > most:
                    raise _bad("too much beside the chunks")
            elif self._beside_bytes > MAX_HEAD_BYTES:
                raise _large_head()
        except Refusal as refusal:
            self._refuse(refusal)

    def pause_writing(self) -> None:
        self._writable = self.server.loop.create_future()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None:
            writable.set_result(None)

    # -------------------------------------------------------- called by the parser

    def on_message_begin(self) -> None:
        self._url, self._headers = b"", []
        self._is_begun, self._since = True, self.server.loop.time()

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
            raise _large_head()
        if len(self._cycles) > MAX_AHEAD:
            raise Refusal("access.flood", f"{MAX_AHEAD} requests wait for their answers already")
        version = str(self._parser.get_http_version())
        _check_head(version, self._headers)
        path, query = _path_and_query(self._url)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": version,
            "method": self._parser.get_method().decode("ascii"),
            "path": path,
            "query_string": query,
            "headers": self._headers,
            "client": self._client,
        }
        self._incoming = RequestCycle(self, scope, keeps=self._parser.should_keep_alive())
        self._beside_bytes, self._since = 0, self.server.loop.time()
        self._is_begun, self._is_used = False, True
        self._cycles.append(self._incoming)
        if len(self._cycles) == 1:
            self._incoming.start()
        else:
            self.pause_reading()

    def on_body(self, body: bytes) -> None:
        assert self._incoming is not None
        self._beside_bytes -= len(body)
        if self._incoming.take(body) > INPUT_BYTES:
            self.pause_reading()

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade():
            return  # it says so before the body
        assert self._incoming is not None
        self._incoming.complete()
        self._incoming, self._beside_bytes, self._is_begun = None, 0, False

    # ----------------------------------------------------- called by the cycles

    def pause_reading(self) -> None:
        """Read no more for now."""
        self._is_paused = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on, unless a request waits for the answer to another."""
        if self._is_paused and len(self._cycles) <= 1:
            self._is_paused, self._since = False, self.server.loop.time()
            self._transport.resume_reading()

    async def writable(self) -> None:
        """Wait while more is on its way than OUTPUT_BYTES."""
        while self._writable is not None:
            await asyncio.wait((self._writable,))

    def write(self, content: bytes) -> None:
        """Send."""
        self._written += len(content)
        self._transport.write(content)

    def finish(self, cycle: RequestCycle) -> None:
        """Go on when a request is answered."""
        self._cycles.popleft()
        self._since = self.server.loop.time()
        if not cycle.keeps or not cycle.is_whole:
            self._end(lingers=not cycle.is_whole)
        elif self._cycles:
            self._cycles[0].start()
        elif self._refusal is not None:
            self._tell(self._refusal)
        self.resume_reading()

    def fail(self, cycle: RequestCycle) -> None:
        """End, for the application has not answered."""
        if cycle.is_started:
            self.abort()  # so that its reader knows that this is not all
        else:
            self._cycles.remove(cycle)
            self._tell(Refusal("d8.error", "an error of ours: see the log"))

    # -------------------------------------------------------- called by the server

    def abort(self) -> None:
        """End at once, whatever is under way."""
        self._transport.abort()

    def close_overdue(self, now: float) -> None:
        """End if this connection has used up its time."""
        if self._is_overdue(now):
            if self._incoming is not None or self._is_begun:
                self.server.refused("http.timeout", self.peer, "a request came too slowly")
            self.abort()

    def _is_overdue(self, now: float) -> bool:
        moved = self._written - self._transport.get_write_buffer_size()
        if moved != self._moved or moved == self._written:
            self._moved, self._moved_at = moved, now
        if now - self._moved_at > STUCK_S:
            return True
        if self._drained_until:
            return now > self._drained_until
        if self._is_paused:
            return False  # we ourselves hold it up
        if self._incoming is not None:
            allowed_s = BODY_S + self._incoming.received_bytes / BODY_BYTES_PER_S
        elif self._cycles:
            return False
        else:
            allowed_s = KEEP_ALIVE_S if self._is_used and not self._is_begun else HEADERS_S
        return now - self._since > allowed_s

    # ----------------------------------------------------------------------- inside

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
            raise _bad(str(error)) from error

    def _refuse(self, refusal: Refusal) -> None:
        """Answer what came before, then say why there will be no more."""
        self._parser, self._is_begun = None, False
        self.server.refused(refusal.code, self.peer, str(refusal))
        cycle, self._incoming = self._incoming, None
        if cycle is not None:
            self._cycles.remove(cycle)
            cycle.leave()
        if cycle is not None and cycle.is_started:
            self.abort()
        elif self._cycles:
            self._refusal = refusal
            self.pause_reading()
        else:
            self._tell(refusal)

    def _tell(self, refusal: Refusal, *, lingers: bool = True) -> None:
        response = problem(refusal)
        assert isinstance(response.body, bytes)
        response.headers |= {"Content-Length": str(len(response.body)), "Connection": "close"}
        headers = [(name.encode(), value.encode()) for name, value in response.headers.items()]
        self.write(head_of(response.status, self.server.date(), headers) + response.body)
        self._end(lingers=lingers)

    def _end(self, *, lingers: bool) -> None:
        """Close when all is sent; if `lingers`, read on a while and throw it away."""
        self._parser = self._incoming = None
        self._is_begun = False
        if not lingers:
            self._transport.close()
        elif not self._transport.is_closing():
            self._drained_until = self.server.loop.time() + LINGER_S
            self._transport.write_eof()
            self._transport.resume_reading()


def _bad(text: str) -> Refusal:
    return Refusal("http.bad_request", f"Bad Request: {text}")


def _large_head() -> Refusal:
    text = f"the headers are larger than {MAX_HEAD_BYTES} bytes"
    return Refusal("http.headers_too_large", text)


def _check_head(version: str, headers: list[tuple[bytes, bytes]]) -> None:
    """Refuse what one may read in two ways, and llhttp reads in one.

    Raises:
        Refusal: a version or a coding that we do not speak, or two Hosts.
    """
    if version not in ("1.0", "1.1"):
        raise _bad("expected HTTP/1.1")
    names = [name for name, _ in headers]
    if names.count(b"host") > 1:
        raise _bad("two Hosts")
    for name, value in headers if b"transfer-encoding" in names else ():
        if name == b"transfer-encoding" and (version == "1.0" or value.lower() != b"chunked"):
            raise _bad("Transfer-Encoding: expected chunked, in HTTP/1.1")


def _path_and_query(url: bytes) -> tuple[str, bytes]:
    if not url.startswith(b"/"):  # for a proxy, or no path at all
        try:
            parsed = httptools.parse_url(url)
        except httptools.HttpParserInvalidURLError as error:
            raise _bad("the address is no path") from error
        url = (parsed.path or b"/") + b"?" + (parsed.query or b"")
    path, _, query = url.partition(b"#")[0].partition(b"?")
    return unquote(path.decode("ascii"), errors="replace"), query
