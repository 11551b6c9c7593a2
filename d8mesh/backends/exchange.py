"""One question over HTTP and its answer, on a connection that an `AnswerReader` can end.

Python's own ``http.client``: it follows no redirects, uses no proxies, takes no keys from the
environment, and costs a quarter of what larger clients do. Each answer has a connection of its
own, whose end tells the service to stop.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from d8mesh.backends.streaming import CONNECT_S, AnswerReader, PartT
from d8mesh.errors import BackendUnavailableError

#: Read at once, if so much is there.
ANSWER_READ_BYTES: Final = 64 * 1024
#: The line before a chunk of a body: its size, and what nobody uses.
MAX_CHUNK_HEAD_BYTES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpQuestion:
    """What is sent where."""

    #: with its path
    url: str
    #: sent as JSON; None: there is none
    body: Mapping[str, Any] | None = None
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    #: what proves the other side; None: the system's roots
    tls: ssl.SSLContext | None = None


@contextlib.contextmanager
def answer_to(
    question: HttpQuestion, reader: AnswerReader[PartT]
) -> Iterator[http.client.HTTPResponse]:
    """Yield the answer, if it is a plain one; its connection ends in any case.

    Raises:
        BackendUnavailableError: nobody is there.
        D8Error: what is there refuses.
        OSError, http.client.HTTPException: the connection broke.
    """
    body, headers = None, dict(question.headers)
    if question.body is not None:
        body = _encoded(question.body)
        headers["Content-Type"] = "application/json"
    parts = urlsplit(question.url)
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    with contextlib.closing(_connection(question)) as connection:
        try:
            connection.connect()
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that no host can have
            raise BackendUnavailableError(
                f"{reader.service} does not answer at {reader.url}"
            ) from error
        connection.sock.settimeout(None)
        reader.connected(connection.sock)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have said why
            connection.request(question.method, path, body, headers)
        response = connection.getresponse()
        with contextlib.closing(response):
            reader.guard(response)
            yield response


def chunks_of(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield what comes, as it comes; b"" where a connection that does not block has nothing now.

    Raises:
        http.client.IncompleteRead: it ends in the middle.
    """
    stream = response.fp
    if stream is None or response.length == 0:
        return
    body = _ChunkedBody() if response.chunked else _PlainBody(response.length)
    data: bytes | None = stream.read1(ANSWER_READ_BYTES)  # its buffer may hold what came first
    is_waiting = True
    while True:
        if data is None:
            is_waiting = False
            yield b""
        else:
            if part := body.part(data):
                yield part
            if body.is_over:
                return
            if not is_waiting and len(data) < ANSWER_READ_BYTES:
                yield b""  # that was all: asking again would cost as much as reading
        data = stream.raw.read(ANSWER_READ_BYTES)


class _PlainBody:
    """A body of a length that is told, or up to the end of the connection."""

    def __init__(self, length: int | None) -> None:
        self._left = length
        self.is_over = False

    def part(self, data: bytes) -> bytes:
        """Return what of `data` is the body's; none is left: the connection has ended."""
        if self._left is None:
            self.is_over = not data
            return data
        if not data:
            raise http.client.IncompleteRead(b"", self._left)
        part = data[: self._left]
        self._left -= len(part)
        self.is_over = not self._left
        return part


class _ChunkedBody:
    """A body in chunks; what follows the last of them is not read: the connection ends."""

    def __init__(self) -> None:
        self._rest = b""
        #: of the chunk that is read, with the two bytes behind it
        self._left = 0
        self.is_over = False

    def part(self, data: bytes) -> bytes:
        """Return what of `data` is the body's; none is left: the connection has ended."""
        if not data:
            raise http.client.IncompleteRead(b"")
        raw, at = self._rest + data, 0
        found: list[bytes] = []
        while at < len(raw):
            if not self._left:
                end = raw.find(b"\r\n", at, at + MAX_CHUNK_HEAD_BYTES)
                if end < 0:
                    break
                size = _size_of(raw[at:end])
                if not size:
                    self.is_over = True
                    break
                self._left, at = size + 2, end + 2
            found.append(raw[at : at + max(0, self._left - 2)])
            read = min(self._left, len(raw) - at)
            self._left, at = self._left - read, at + read
        self._rest = raw[at:]
        if len(self._rest) > MAX_CHUNK_HEAD_BYTES and not self.is_over:
            raise http.client.IncompleteRead(b"")
        return found[0] if len(found) == 1 else b"".join(found)


def _size_of(head: bytes) -> int:
    digits = head.partition(b";")[0].strip()
    if not digits or digits.strip(b"0123456789abcdefABCDEF"):
        raise http.client.IncompleteRead(b"")
    return int(digits, 16)


def _connection(question: HttpQuestion) -> http.client.HTTPConnection:
    parts = urlsplit(question.url)
    host = parts.hostname or ""
    if parts.scheme != "https":
        return http.client.HTTPConnection(host, parts.port, timeout=CONNECT_S)
    context = question.tls or ssl.create_default_context()
    return http.client.HTTPSConnection(host, parts.port, timeout=CONNECT_S, context=context)


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
