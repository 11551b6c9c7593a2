"""Reads the answer to one HTTP request from its connection: status, headers, and what follows.

What is read is parsed by llhttp (httptools): Python's own reader takes longer over the headers than
a small model over its first token.
"""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from typing import Any, Final, Protocol

import httptools

#: Asked of the system at once; what is there comes, be it less.
RECEIVED_BYTES: Final = 64 * 1024
#: Of the head of an answer; and headers of one answer (that of `http.client`).
MAX_ANSWER_HEAD_BYTES: Final = 128 * 1024
MAX_HEADERS: Final = 100
#: Answers before the one that counts: "100 Continue" and the like.
MAX_EARLY_ANSWERS: Final = 10


class Receives(Protocol):
    """What of a connection is needed here."""

    def recv(self, size: int, /) -> bytes:
        """Return what has come, at most so much; b"": nothing more will."""


class HttpAnswer:
    """The answer that comes over a connection.

    Args:
        connection: a request has been sent over it; it stays the caller's.

    Raises:
        OSError, http.client.HTTPException: the connection broke, or it is no answer.
    """

    def __init__(self, connection: Receives) -> None:
        self._connection = connection
        self._parser: Any = httptools.HttpResponseParser(self)
        self.status = 0
        self._headers: list[tuple[str, str]] = []
        #: parts of the body that have come and were not given on
        self._came: list[bytes] = []
        #: all of it was read
        self.is_over = False
        #: another answer can come over the connection, by what its head says
        self._keeps_alive = False
        self._is_headed = self._has_extra = False
        self._early = self._head_bytes = 0
        while not self._is_headed:
            self._receive()

    def getheader(self, name: str, default: str = "") -> str:
        """Return the header of this name, in lower case; several are one, with commas."""
        found = [value for each, value in self._headers if each == name]
        return ", ".join(found) if found else default

    def getheaders(self) -> list[tuple[str, str]]:
        """Return all headers, their names in lower case."""
        return self._headers

    def chunks(self) -> Iterator[bytes]:
        """Yield the body, as it comes; b"" where a connection that does not block has no more now.

        Raises:
            OSError, http.client.HTTPException: it broke off.
        """
        is_waiting = True
        while self._came or not self.is_over:
            try:
                part = self._part()
            except BlockingIOError:
                is_waiting, part = False, b""
            if part:
                yield part
            if not (is_waiting or self.is_over):
                yield b""  # to ask whether there is more would cost as much as reading it

    def read(self, most: int) -> bytes:
        """Return the beginning of the body: `most` bytes, or all if it has not so many."""
        found = bytearray()
        for part in self.chunks():
            found += part
            if len(found) >= most:
                break
        return bytes(found[:most])

    @property
    def may_be_followed(self) -> bool:
        """Whether another answer can come over the connection once this one is spent."""
        return self.status == 200 and self._keeps_alive

    def is_spent(self) -> bool:
        """Read to the end what has no content any more; return whether that was all.

        Raises:
            BlockingIOError: the connection does not wait, and the end has not come.
            OSError, http.client.HTTPException: it broke off.
        """
        while self._came or not self.is_over:
            if self._part().strip():
                return False
        return not self._has_extra

    def _part(self) -> bytes:
        """Return more of the body, waiting for it where there is none: b"" for what is none."""
        if not self._came:
            self._receive()
        came, self._came = self._came, []
        return came[0] if len(came) == 1 else b"".join(came)

    def _receive(self) -> None:
        data = self._connection.recv(RECEIVED_BYTES)
        if not data:
            self._end()
            return
        if not self._is_headed:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_ANSWER_HEAD_BYTES:
                raise http.client.LineTooLong("an answer's head")
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self.is_over:  # what stands behind the answer is no other one
                self._has_extra = True
            elif isinstance(error.__context__, http.client.HTTPException):
                raise error.__context__ from None
            else:
                raise http.client.BadStatusLine(f"{error} in {data[:60]!r}") from error

    def _end(self) -> None:
        """The connection has ended: so has a body that is neither counted nor cut in chunks."""
        if not self._is_headed:
            raise http.client.RemoteDisconnected("the connection ended before the answer")
        if self.getheader("content-length") or self.getheader("transfer-encoding"):
            raise http.client.IncompleteRead(b"")
        self.is_over = True

    # -------------------------------------------------------- called by the parser

    def on_message_begin(self) -> None:
        self._has_extra = self.is_over
        self._headers = self._headers if self.is_over else []

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_headed:
            return  # it follows the last chunk, and is of no interest
        if len(self._headers) >= MAX_HEADERS:
            raise http.client.HTTPException(f"got more than {MAX_HEADERS} headers")
        self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1").strip()))

    def on_headers_complete(self) -> None:
        if self._is_headed:
            return
        self.status = self._parser.get_status_code()
        self._keeps_alive = self._parser.should_keep_alive()
        self._is_headed = self.status >= 200
        self._early += 1
        if self._early > MAX_EARLY_ANSWERS:
            raise http.client.BadStatusLine("answers without end")

    def on_body(self, body: bytes) -> None:
        if not self.is_over:
            self._came.append(body)

    def on_message_complete(self) -> None:
        if self._is_headed:
            self.is_over = True
