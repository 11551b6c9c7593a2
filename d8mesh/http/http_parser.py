"""Reading requests: waitress's parser, strict where it is lenient, with limits by path.

What is malformed is answered with 400 and the connection closed: whoever stands between a
client and us must not be able to read a request otherwise than we do.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from typing import Any, Final

from waitress.parser import HTTPRequestParser, ParsingError, TransferEncodingNotImplemented
from waitress.utilities import BadRequest, Error, RequestHeaderFieldsTooLarge

#: Request line and headers together; ours are a few hundred bytes.
MAX_HEAD_BYTES: Final = 16_384
#: The address of a request; our longest are ids and a cursor.
MAX_URL_BYTES: Final = 4096
#: The line before a chunk, and what follows the last one.
MAX_CHUNK_LINE_BYTES: Final = 1024
_TRANSFER_ENCODING: Final = re.compile(rb"\ntransfer-encoding[ \t]*:", re.IGNORECASE)
_BAD_HEAD: Final = re.compile(rb"(?<!\r)\n|\0")
_CODES: Final[Mapping[int, str]] = {
    400: "http.bad_request",
    413: "http.too_large",
    414: "http.url_too_long",
    431: "http.headers_too_large",
}


class UrlTooLong(Error):  # type: ignore[misc]  # waitress has no types
    """414, which waitress does not have."""

    code = 414
    reason = "URI Too Long"


class Parser(HTTPRequestParser):  # type: ignore[misc]
    """One request as it comes in.

    Args:
        adj: waitress's settings; its `max_request_body_size` is the limit of most paths.
        body_bytes: larger limits by path prefix.
    """

    completed: bool

    def __init__(self, adj: Any, body_bytes: Mapping[str, int]) -> None:
        super().__init__(_Limits(adj))
        self.begun = time.monotonic()
        self._body_bytes = body_bytes

    def received(self, data: bytes) -> int:
        if self.body_rcv is None and not self.completed:
            head = (self.header_plus + data).partition(b"\r\n\r\n")[0]
            if _BAD_HEAD.search(head):
                return self._refuse(
                    BadRequest("a NUL, or a line that ends with LF alone"), len(data)
                )
            line = head.partition(b"\r\n")[0]
            if len(line) > MAX_URL_BYTES + 32:
                return self._refuse(UrlTooLong(f"at most {MAX_URL_BYTES} bytes"), len(data))
        consumed = int(super().received(data))
        receiver = self.body_rcv
        if self.chunked and receiver is not None and not self.completed:
            line_bytes = len(receiver.control_line)
            if line_bytes > MAX_CHUNK_LINE_BYTES or len(receiver.trailer) > MAX_CHUNK_LINE_BYTES:
                self.error = BadRequest("the line before a chunk is too long")
                self.completed = True
        if self.completed:
            self.expect_continue = False  # waitress would ask for the body of what it refuses
        return consumed

    def parse_header(self, header_plus: bytes) -> None:
        if len(_TRANSFER_ENCODING.findall(header_plus)) > 1:
            raise ParsingError("two Transfer-Encodings")
        try:
            super().parse_header(header_plus)
        except TransferEncodingNotImplemented as error:
            raise ParsingError(str(error)) from error
        except ValueError as error:  # an integer of thousands of digits
            raise ParsingError("Content-Length is invalid") from error
        headers = self.headers
        if "TRANSFER_ENCODING" in headers:  # waitress takes it away where it understood it
            raise ParsingError("Transfer-Encoding in HTTP/1.0")
        if self.chunked and "CONTENT_LENGTH" in headers:
            raise ParsingError("both Content-Length and Transfer-Encoding")
        if self.version not in ("1.0", "1.1"):
            raise ParsingError("expected HTTP/1.1")
        for prefix, limit in self._body_bytes.items():
            if self.path.startswith(prefix):
                self.adj.max_request_body_size = limit + 1

    def _refuse(self, error: Error, consumed: int) -> int:
        self.error = error
        self.completed = self.headers_finished = True
        return consumed


class _Limits:
    """The settings that the parser reads, of this one request."""

    __slots__ = (
        "inbuf_overflow",
        "max_request_body_size",
        "max_request_header_size",
        "url_scheme",
    )

    def __init__(self, adj: Any) -> None:
        self.inbuf_overflow = adj.inbuf_overflow
        self.max_request_body_size = adj.max_request_body_size + 1  # waitress refuses from it on
        self.max_request_header_size = MAX_HEAD_BYTES
        self.url_scheme = adj.url_scheme


def refusal_body(error: Any) -> tuple[str, bytes]:
    """Return the code and the JSON body that tell of an error of waitress's."""
    code = _CODES.get(error.code, "d8.error")
    if isinstance(error, RequestHeaderFieldsTooLarge):
        text = f"the headers are larger than {MAX_HEAD_BYTES} bytes"
    elif error.code == 500:
        text = "an error of ours: see the log"
    else:
        text = f"{error.reason}: {error.body}"
    return code, json.dumps({"error": text[:500], "code": code}).encode("utf-8")
