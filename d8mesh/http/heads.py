"""Heads of requests and of answers: what they may say, and how they are written."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final
from urllib.parse import unquote

import httptools

from d8mesh.http.answers import Refusal

#: Request line and headers together; ours are a few hundred bytes.
MAX_HEAD_BYTES: Final = 16_384
#: The address of a request; our longest are ids and a cursor.
MAX_URL_BYTES: Final = 4096
_STATUS_LINES: Final = {
    each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\nServer: d8mesh\r\nDate: ".encode("ascii")
    for each in HTTPStatus
}


def bad(text: str) -> Refusal:
    """Return what refuses a malformed request."""
    return Refusal("http.bad_request", f"Bad Request: {text}")


def large_head() -> Refusal:
    """Return what refuses a head of more than MAX_HEAD_BYTES."""
    text = f"the headers are larger than {MAX_HEAD_BYTES} bytes"
    return Refusal("http.headers_too_large", text)


def check_head(version: str, headers: list[tuple[bytes, bytes]]) -> None:
    """Refuse what one may read in two ways, and llhttp reads in one."""
    if version not in ("1.0", "1.1"):
        raise bad("expected HTTP/1.1")
    names = [name for name, _ in headers]
    if names.count(b"host") > 1:
        raise bad("two Hosts")
    for name, value in headers if b"transfer-encoding" in names else ():
        if name == b"transfer-encoding" and (version == "1.0" or value.lower() != b"chunked"):
            raise bad("Transfer-Encoding: expected chunked, in HTTP/1.1")


def path_and_query(url: bytes) -> tuple[str, bytes]:
    """Return the path, decoded, and the query of a request's address, or refuse it."""
    if not url.startswith(b"/"):  # for a proxy, or no path at all
        try:
            parsed = httptools.parse_url(url)
        except httptools.HttpParserInvalidURLError as error:
            raise bad("the address is no path") from error
        url = (parsed.path or b"/") + b"?" + (parsed.query or b"")
    path, _, query = url.partition(b"#")[0].partition(b"?")
    return unquote(path.decode("ascii"), errors="replace"), query


def head_of(status: int, date: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return the head of an answer; no header may have a line break."""
    fields = b"".join([b"\r\n%b: %b" % header for header in headers])
    if fields.count(b"\n") != len(headers) or fields.count(b"\r") != len(headers):
        raise ValueError(f"a header has a line break: {headers!r:.200}")
    return _STATUS_LINES[status] + date + fields + b"\r\n\r\n"
