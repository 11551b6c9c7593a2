"""One request and its answer: what ASGI calls `receive` and `send`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from d8mesh.http.asgi import Message, Scope

if TYPE_CHECKING:
    from d8mesh.http.connection import Connection

_STATUS_LINES: Final = {
    each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\nServer: d8mesh\r\nDate: ".encode("ascii")
    for each in HTTPStatus
}
_log: Final = logging.getLogger("d8mesh.http")


class RequestCycle:
    """A request as it comes in, and its answer as it goes out.

    Args:
        connection: which it came from.
        scope: as of ASGI.
        keeps: whether the connection may serve another afterwards.
    """

    def __init__(self, connection: Connection, scope: Scope, *, keeps: bool) -> None:
        self._connection, self._scope = connection, scope
        self.keeps = keeps and scope["http_version"] == "1.1"
        #: of the body: whether all of it has come, how much, and how much nobody has asked for
        self.is_whole = False
        self.received_bytes = self._unread_bytes = 0
        self._parts: list[bytes] = []
        self._is_told = self._is_left = False
        self._waiter: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        #: of the answer: whether any of it is sent, and a head that is not
        self.is_started = self._is_done = self._is_chunked = False
        self._head = b""

    def start(self) -> None:
        """Have the application called."""
        self._task = self._connection.server.loop.create_task(self._run())

    def take(self, part: bytes) -> int:
        """Take a part of the body; return how many bytes nobody has asked for yet."""
        self._parts.append(part)
        self.received_bytes += len(part)
        self._unread_bytes += len(part)
        self._wake()
        return self._unread_bytes

    def complete(self) -> None:
        """Learn that the body is whole."""
        self.is_whole = True
        self._wake()

    def leave(self) -> None:
        """Learn that the caller has left."""
        self._is_left = True
        self._wake()
        if self._task is not None and not self._scope.get("d8.runs_on"):
            self._task.cancel()

    async def receive(self) -> Message:
        """Return what has come of the body; after its end, wait for the caller to leave."""
        if self._is_asked_for():
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not self._is_left and (self._is_told or not (self._parts or self.is_whole)):
            self._waiter = self._connection.server.loop.create_future()
            await self._waiter
        if self._is_left:
            return {"type": "http.disconnect"}
        body = b"".join(self._parts)
        self._parts.clear()
        self._unread_bytes, self._is_told = 0, self.is_whole
        self._connection.resume_reading()
        return {"type": "http.request", "body": body, "more_body": not self.is_whole}

    async def send(self, message: Message) -> None:
        """Send a part of the answer; nothing if the caller has left."""
        await self._connection.writable()
        if message.get("more_body"):
            await self._connection.server.turn()
        if self._is_left:
            return
        if message["type"] == "http.response.start":
            self._begin(message["status"], message.get("headers", ()))
            return
        body: bytes = message.get("body", b"")
        is_last = not message.get("more_body", False)
        if self._scope["method"] == "HEAD":
            body = b""
        elif self._is_chunked:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            body += b"0\r\n\r\n" if is_last else b""
        if self._head or body:
            self.is_started = True
            self._connection.write(self._head + body)
            self._head = b""
        if is_last:
            self._is_done = True
            self._connection.finish(self)

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Make the head, and send it unless the body follows at once."""
        lines = list(headers)
        names = {name.lower(): value for name, value in lines}
        is_sized = b"content-length" in names
        self._is_chunked = not is_sized and self._scope["http_version"] == "1.1"
        if self._is_chunked:
            lines.append((b"Transfer-Encoding", b"chunked"))
        if b"connection" in names or not (is_sized or self._is_chunked):
            self.keeps = False
        if b"connection" not in names and not (self.keeps and self.is_whole):
            lines.append((b"Connection", b"close"))
        self._head = head_of(status, self._connection.server.date(), lines)
        if not is_sized:
            self._connection.write(self._head)
            self._head, self.is_started = b"", True

    async def _run(self) -> None:
        try:
            await self._connection.server.application(self._scope, self.receive, self.send)
        except Exception:
            _log.exception("application failed")
        finally:
            self._task = None  # it holds us, too
        if not self._is_left and not self._is_done:
            self._connection.fail(self)

    def _is_asked_for(self) -> bool:
        """Return whether the caller waits to be told that the body is wanted."""
        if self.is_whole or self.received_bytes or self._scope["http_version"] != "1.1":
            return False
        return (b"expect", b"100-continue") in self._scope["headers"]

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def head_of(status: int, date: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return the head of an answer.

    Raises:
        ValueError: a header has a line break.
    """
    fields = b"".join([b"\r\n%b: %b" % header for header in headers])
    head = _STATUS_LINES[status] + date + fields
    if head.count(b"\n") != len(headers) + 2 or head.count(b"\r") != len(headers) + 2:
        raise ValueError(f"a header has a line break: {headers!r:.200}")
    return head + b"\r\n\r\n"
