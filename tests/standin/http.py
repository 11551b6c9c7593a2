"""HTTP/1.1 for the stand-in: one asyncio protocol a connection, no limits, no mercy.

A request's task is cancelled the moment its client leaves, whatever it is waiting for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from tests.standin.counters import Closed

#: Bytes that wait for a slow reader before `Exchange.line` waits for it.
HIGH_WATER_BYTES: Final = 256 * 1024


@dataclass(slots=True)
class Exchange:
    """One request, and the way of its answer."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    _connection: Connection
    is_streaming: bool = False

    def json(self, answer: object, *, status: int = 200) -> None:
        """Answer with one JSON object."""
        self.whole(json.dumps(answer).encode(), status=status)

    def whole(
        self, body: bytes, *, status: int = 200, content_type: str = "application/json"
    ) -> None:
        """Answer with a body of known length."""
        head = f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        self._connection.write(_status(status) + head.encode() + b"\r\n")
        if self.method != "HEAD":
            self._connection.write(body)

    def begin(self, content_type: str = "application/x-ndjson") -> None:
        """Begin a stream; the status is 200 from now on."""
        self.is_streaming = True
        head = f"Content-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
        self._connection.write(_status(200) + head.encode())

    def line(self, part: object) -> None:
        """Write one line of the stream."""
        self.raw_line(json.dumps(part).encode() + b"\n")

    def raw_line(self, line: bytes) -> None:
        """Write one line that is made already, with its newline."""
        self._connection.write(b"%x\r\n%b\r\n" % (len(line), line))

    def end(self) -> None:
        """End the stream as HTTP wants it, whatever its lines said."""
        self._connection.write(b"0\r\n\r\n")

    def cut(self) -> None:
        """Close the connection in the middle of whatever it is."""
        self._connection.close()

    @property
    def is_drained(self) -> bool:
        """Whether the reader has taken most of what was written."""
        return self._connection.may_write.is_set()

    async def drained(self) -> None:
        """Wait until the reader has taken most of what was written."""
        await self._connection.may_write.wait()


Handler = Callable[[Exchange], Awaitable[None]]


@dataclass(slots=True, eq=False)
class Connection(asyncio.Protocol):
    """One client: its requests are answered one after another.

    Attributes:
        closed: told when it has ended.
    """

    handler: Handler
    members: set[Connection]
    closed: Callable[[Closed], None]
    may_write: asyncio.Event = field(default_factory=asyncio.Event)
    _transport: asyncio.Transport | None = None
    _read: bytearray = field(default_factory=bytearray)
    _task: asyncio.Task[None] | None = None
    _path: str = ""
    _opened: float = field(default_factory=time.monotonic)
    _is_ended_here: bool = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(HIGH_WATER_BYTES)
        self.may_write.set()
        self.members.add(self)

    def pause_writing(self) -> None:
        self.may_write.clear()

    def resume_writing(self) -> None:
        self.may_write.set()

    def data_received(self, data: bytes) -> None:
        self._read += data
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        self.members.discard(self)
        self._transport = None
        at, is_answered = time.monotonic(), self._task is None
        self.closed(Closed(self._path, self._opened, at, is_answered, not self._is_ended_here))
        if self._task is not None:
            self._task.cancel()

    def write(self, part: bytes) -> None:
        """Write, if somebody is there."""
        if self._transport is not None:
            self._transport.write(part)

    def close(self) -> None:
        """Close it, once what was written is away."""
        self._is_ended_here = True
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Break it."""
        self._is_ended_here = True
        if self._transport is not None:
            self._transport.abort()

    def _next(self) -> None:
        if self._task is not None or (found := self._parsed()) is None:
            return
        self._path = found.path
        self._task = asyncio.ensure_future(self._answer(found))
        self._task.add_done_callback(self._answered)

    async def _answer(self, exchange: Exchange) -> None:
        try:
            await self.handler(exchange)
        except Exception as error:  # a fault of the stand-in must be seen by who tests with it
            if not exchange.is_streaming:
                exchange.json({"error": f"stand-in: {error!r}"}, status=500)
            self.close()
            raise

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._task = None
        with contextlib.suppress(asyncio.CancelledError):
            task.result()
        if self._transport is not None:
            self._next()

    def _parsed(self) -> Exchange | None:
        head, mark, rest = bytes(self._read).partition(b"\r\n\r\n")
        if not mark:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ", 2)
        named = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in named}
        found = _body(headers, rest)
        if found is None:
            return None
        body, used = found
        del self._read[: len(head) + 4 + used]
        return Exchange(method, path.partition("?")[0], headers, body, self)


def _body(headers: dict[str, str], rest: bytes) -> tuple[bytes, int] | None:
    """Return the body and its bytes on the wire; None: it is not all there yet."""
    if headers.get("transfer-encoding", "").lower() != "chunked":
        length = int(headers.get("content-length", "0"))
        return None if len(rest) < length else (rest[:length], length)
    body, at = b"", 0
    while True:
        size, mark, _ = rest[at:].partition(b"\r\n")
        if not mark:
            return None
        length = int(size, 16)
        at += len(size) + 2
        if len(rest) < at + length + 2:
            return None
        body += rest[at : at + length]
        at += length + 2
        if not length:
            return body, at


def _status(status: int) -> bytes:
    date = formatdate(usegmt=True)
    return f"HTTP/1.1 {status} {_phrase(status)}\r\nDate: {date}\r\n".encode()


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in {each.value for each in HTTPStatus} else "?"
