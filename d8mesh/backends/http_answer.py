"""Reads the answer to one HTTP request from its connection: status, headers, and what follows.

Python's own reader takes longer over the headers than a small model over its first token: it
reads them as those of a letter. This one knows what services send: lines of ``name: value``, and a
body that is cut in chunks, counted, or ends with the connection.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from typing import Final

#: Asked of the system at once; what is there comes, be it less.
RECEIVED_BYTES: Final = 64 * 1024
#: Of a status, a header, the size of a chunk; and headers of one answer (those of `http.client`).
MAX_HEAD_LINE_BYTES: Final = 65536
MAX_HEADERS: Final = 100
#: Answers before the one that counts: "100 Continue" and the like.
MAX_EARLY_ANSWERS: Final = 10
#: Statuses whose answers have no body.
_BODILESS: Final = frozenset({204, 304})


class HttpAnswer:
    """The answer that comes over a connection.

    Args:
        connection: a request has been sent over it; it stays the caller's.

    Raises:
        OSError, http.client.HTTPException: the connection broke, or it is no answer.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        #: what has come, and how much of it was read
        self._buffer, self._at = b"", 0
        self.status, self._version = 0, ""
        self._headers: list[tuple[str, str]] = []
        for _ in range(MAX_EARLY_ANSWERS):
            self._read_head()
            if self.status >= 200:
                break
        else:
            raise http.client.BadStatusLine("answers without end")
        #: bytes of the body, or of the chunk, that are still to come; None: until the end
        self._left: int | None = None
        self._is_chunked = self.getheader("transfer-encoding").lower() == "chunked"
        #: the end of the last chunk's line was not read yet; only what ends the body was not
        self._is_behind_chunk = self._is_behind_last = False
        #: all of it was read
        self.is_over = False
        self._begin_body()

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
        while not self.is_over:
            part = b""
            try:
                part = self._parts()
            except BlockingIOError:
                is_waiting = False
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
        is_framed = self._is_chunked or self._left is not None or self.is_over
        is_last = "close" in self.getheader("connection").lower()
        return self.status == 200 and self._version == "HTTP/1.1" and is_framed and not is_last

    def is_spent(self) -> bool:
        """Read to the end what has no content any more; return whether that was all.

        Raises:
            BlockingIOError: the connection does not wait, and the end has not come.
            OSError, http.client.HTTPException: it broke off.
        """
        while not self.is_over:
            if self._parts().strip():
                return False
        return self._at == len(self._buffer)

    # ------------------------------------------------------------------ the head

    def _read_head(self) -> None:
        status = self._line()
        version, _, rest = status.partition(" ")
        code = rest[:3]
        if not version.startswith("HTTP/") or not (code.isascii() and code.isdigit()):
            raise http.client.BadStatusLine(status[:100])
        self.status, self._version = int(code), version
        if self.status < 100:
            raise http.client.BadStatusLine(status[:100])
        self._headers = []
        while line := self._line():
            name, colon, value = line.partition(":")
            if not colon:
                raise http.client.HTTPException(f"no header: {line[:100]!r}")
            if len(self._headers) >= MAX_HEADERS:
                raise http.client.HTTPException(f"got more than {MAX_HEADERS} headers")
            self._headers.append((name.strip().lower(), value.strip()))

    def _begin_body(self) -> None:
        length = self.getheader("content-length")
        if self.status in _BODILESS:
            self.is_over = True
        elif not self._is_chunked and length.isascii() and length.isdigit():
            self._left = int(length)
            self.is_over = not self._left
        elif self._is_chunked:
            self._left = 0

    # ------------------------------------------------------------------ the body

    def _parts(self) -> bytes:
        """Return more of the body, waiting for it: b"" at its end."""
        if not self._is_chunked:
            return self._part()
        found: list[bytes] = []
        while not self.is_over and (not found or self._has_more()):  # what is there goes together
            if not self._left:
                try:
                    self._begin_chunk()
                except BlockingIOError:
                    if not found:
                        raise
                    break
            else:
                found.append(self._part())
                self._is_behind_chunk = not self._left
        return found[0] if len(found) == 1 else b"".join(found)

    def _begin_chunk(self) -> None:
        if self._is_behind_chunk:
            self._line()
            self._is_behind_chunk = False
        if not self._is_behind_last:
            text = self._line().partition(";")[0].strip()
            try:
                self._left = int(text, 16)
            except ValueError as error:
                raise http.client.IncompleteRead(b"") from error
            if self._left < 0:
                raise http.client.IncompleteRead(b"")
            self._is_behind_last = not self._left
        if self._is_behind_last:
            while self._line():  # what may stand behind the last chunk
                pass
            self.is_over = True

    def _has_more(self) -> bool:
        """Return whether more can be read without waiting: of a chunk, or the next one's size."""
        at = self._at
        if self._left:
            return at < len(self._buffer)
        if self._is_behind_chunk:
            at = self._buffer.find(b"\n", at) + 1
        return at > 0 and self._buffer.find(b"\n", at) >= 0

    def _part(self) -> bytes:
        """Return more of what is counted, or of what ends with the connection."""
        if self._at == len(self._buffer):
            self._buffer, self._at = self._connection.recv(RECEIVED_BYTES), 0
        end = len(self._buffer) if self._left is None else self._at + self._left
        part = self._buffer[self._at : end]
        self._at += len(part)
        if self._left is None:
            self.is_over = not part
        elif not part:
            raise http.client.IncompleteRead(b"", self._left)
        else:
            self._left -= len(part)
            self.is_over = not self._left and not self._is_chunked
        return part

    def _line(self) -> str:
        """Return the next line, without its end."""
        end = self._buffer.find(b"\n", self._at)
        while end < 0:
            self._buffer, begun = self._buffer[self._at :], len(self._buffer) - self._at
            self._at = 0
            if begun > MAX_HEAD_LINE_BYTES:
                raise http.client.LineTooLong("an answer's line")
            more = self._connection.recv(RECEIVED_BYTES)
            if not more:
                raise http.client.RemoteDisconnected("the connection ended before the answer")
            self._buffer += more
            end = self._buffer.find(b"\n", begun)
        if end - self._at > MAX_HEAD_LINE_BYTES:
            raise http.client.LineTooLong("an answer's line")
        line, self._at = self._buffer[self._at : end], end + 1
        return line.rstrip(b"\r").decode("latin-1")
