"""Bad HTTP requests at all doors, made of what `/openapi.json` tells of them; their answers."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Final
from urllib.parse import quote

from msgspec import inspect

from bench.mutations import ODD_JSON, Drawing, changed, spoiled
from d8mesh.doors.anthropic.described import ANTHROPIC_CALLS
from d8mesh.doors.batches.described import BATCHES_CALLS
from d8mesh.doors.ollama.described import OLLAMA_CALLS
from d8mesh.doors.openai.described import OPENAI_CALLS
from d8mesh.doors.rest.described import JOIN_CALLS, REST_CALLS
from d8mesh.errors import D8Error
from d8mesh.http.described import AboutCall

#: Every call of every door but the tunnel, whose bytes are fuzzed as frames.
CALLS: Final[dict[str, AboutCall]] = {
    **REST_CALLS, **JOIN_CALLS, **OLLAMA_CALLS, **OPENAI_CALLS, **ANTHROPIC_CALLS, **BATCHES_CALLS,
}  # fmt: skip
#: What a variable of a path may be: nothing, one like ours, and what is not meant.
_IDS: Final = (
    "x",
    "0123456789abcdef-1",
    "..%2f..%2fx",
    "%00",
    "%ff",
    "a" * 200,
    "m%3a1b",
    "file-0",
)
#: Headers that lead astray, or lead nowhere.
_LINES: Final = (
    "Origin: http://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site", "Accept: */*",
    "Content-Encoding: gzip", "Content-Encoding: br", "Idempotency-Key: k",
    "X-Forwarded-For: 8.8.8.8",
    "Authorization: Bearer x", "anthropic-version: 2023-06-01", "X-D8-Priority: 99",
    "User-Agent: Mozilla/5.0", "Range: bytes=0-1", "If-None-Match: *", "Upgrade: websocket",
    "Accept-Encoding: gzip", "Expect: 100-continue", "Cookie: a=b", "TE: trailers",
)  # fmt: skip
_KINDS: Final = (
    "application/json",
    "application/json",
    "application/json",
    "text/plain",
    "",
    "a/b",
)
_METHODS: Final = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE")
_VARIABLE: Final = re.compile(r"<(?:\w+:)?\w+>")
#: Of an answer that is read at once, and as long as one may take.
READ_BYTES: Final = 65_536
ANSWER_S: Final = 60.0
#: Of the requests, those whose heads are spoiled too; each has a connection of its own.
UNFRAMED_PART: Final = 0.015
QUIET_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class BadRequest:
    """One request as bytes. `is_framed`: where it ends is beyond doubt, so that others may follow.

    `waits`: it may take as long as a model needs, or as it says itself.
    """

    content: bytes
    is_framed: bool
    has_body: bool
    waits: bool


def requests(seed: int, count: int) -> Iterator[BadRequest]:
    """Yield so many requests; the same for the same seed."""
    drawing = Drawing(seed)
    calls = list(CALLS.items())
    for _ in range(count):
        call, about = drawing.random.choice(calls)
        yield _request(drawing, call, about)


def _request(drawing: Drawing, call: str, about: AboutCall) -> BadRequest:
    draw = drawing.random
    method, rule = call.split(" ")
    path = _VARIABLE.sub(lambda _: draw.choice(_IDS), rule)
    if draw.random() < 0.05:
        path = draw.choice(
            (path + "/x", path.upper(), "/" + path, path[:-1] or "/", "/%2e%2e" + path)
        )
    query = _query(drawing, about)
    if draw.random() < 0.04:
        method = draw.choice(_METHODS)
    body = b"" if method in ("GET", "HEAD") else _body(drawing, about)
    lines = [f"Content-Type: {draw.choice(_KINDS)}"] if body else []
    if draw.random() < 0.3:
        lines.append(draw.choice(_LINES))
    host = "evil.example" if draw.random() < 0.02 else "localhost"
    if body or method not in ("GET", "HEAD"):
        lines.append(f"Content-Length: {len(body)}")
    is_framed = draw.random() >= UNFRAMED_PART
    if not is_framed:
        lines.insert(0, "Connection: close")
    head = "\r\n".join((f"{method} {path}{query} HTTP/1.1", f"Host: {host}", *lines, "", ""))
    written = head.encode("latin-1", "replace")
    if not is_framed:
        written = changed(written, draw.getrandbits(48) | 4, (b"\r\n",))
    return BadRequest(written + body, is_framed, method != "HEAD", about.body is not None)


def _query(drawing: Drawing, about: AboutCall) -> str:
    draw = drawing.random
    if about.query is None or draw.random() < 0.3:
        return "?timeout_s=0" if about.query is not None else ""
    told = _type_info(about.query)
    assert isinstance(told, inspect.StructType)
    pairs = {field.encode_name: drawing.of(field.type) for field in told.fields}
    if draw.random() < 0.6:
        pairs[draw.choice(list(pairs))] = draw.choice(ODD_JSON)
    pairs |= {name: 0 for name in ("timeout_s", "wait") if name in pairs}
    return "?" + "&".join(
        f"{name}={quote(str(value)[:300])}" for name, value in pairs.items() if value is not None
    )


@cache
def _type_info(kind: object) -> inspect.Type:
    return inspect.type_info(kind)


def _body(drawing: Drawing, about: AboutCall) -> bytes:
    draw = drawing.random
    kind = _type_info(about.body) if about.body is not None else None
    tree: Any = {} if kind is None else drawing.of(kind)
    if draw.random() < 0.7:
        tree = spoiled(tree, draw, ODD_JSON)
    if draw.random() < 0.05:
        tree = {"model": "m:1b", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    try:
        written = json.dumps(tree).encode()
    except (ValueError, RecursionError):
        written = b"{}"
    if draw.random() < 0.15:
        written = changed(written, draw.getrandbits(48) | 4, (written,))
    return written


class Answers:
    """Reads the answers of one connection, one after the other."""

    def __init__(self, port: int) -> None:
        self._connection = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._held = b""
        #: the other side has closed it, or will
        self.is_over = False

    def say(self, content: bytes) -> None:
        """Send bytes, as far as they are taken."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self._connection.sendall(content)

    def next(self, *, has_body: bool = True) -> int:
        """Return the status of the next answer, 0 if there is none.

        Raises:
            D8Error: it is no answer, or none came in time.
        """
        status, head = 100, b""
        while status == 100:
            while b"\r\n\r\n" not in self._held:
                if not self._more():
                    if self._held:
                        raise D8Error(f"half an answer: {self._held[:80]!r}")
                    return 0
            head, _, self._held = self._held.partition(b"\r\n\r\n")
            told = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
            if told is None:
                raise D8Error(f"no answer of HTTP: {head[:80]!r}")
            status = int(told[1])
        fields = head.lower()
        self.is_over = self.is_over or b"connection: close" in fields
        if has_body and status not in (204, 304):
            self._skip_body(fields)
        return status

    def rest(self) -> list[int]:
        """Return the statuses of all that is answered up to the end.

        Nobody knows where such a request ends: where nothing comes for `QUIET_S`, more of it is
        waited for, and it is told that no more comes. (What is answered to a HEAD ends with its
        connection, which is as good as a body.)
        """
        self._connection.settimeout(QUIET_S)
        found: list[int] = []
        try:
            while status := self.next():
                found.append(status)
        except D8Error:
            self._connection.settimeout(ANSWER_S)
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_WR)
            while status := self.next():
                found.append(status)
        return found

    def close(self) -> None:
        """Let it go."""
        self._connection.close()

    def _more(self) -> bool:
        try:
            part = self._connection.recv(READ_BYTES)
        except ConnectionResetError:
            part = b""
        except TimeoutError as error:
            raise D8Error("no answer came in time") from error
        self._held += part
        self.is_over = self.is_over or not part
        return bool(part)

    def _skip_body(self, fields: bytes) -> None:
        sized = re.search(rb"content-length: (\d+)", fields)
        if sized is not None:
            self._skip(int(sized[1]))
        elif b"transfer-encoding: chunked" in fields:
            size = -1
            while size:
                while b"\r\n" not in self._held:
                    if not self._more():
                        return
                line, _, self._held = self._held.partition(b"\r\n")
                size = int(line, 16)
                self._skip(size + 2)
        else:
            while self._more():
                pass
            self._held = b""

    def _skip(self, count: int) -> None:
        while len(self._held) < count and self._more():
            pass
        self._held = self._held[count:]
