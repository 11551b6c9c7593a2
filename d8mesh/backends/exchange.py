"""One question over HTTP and its answer, on a connection that an `AnswerReader` can end.

It follows no redirects, uses no proxies, takes no keys from the environment, and costs an eighth of
what larger clients do. Each answer has a connection of its own while it lasts, whose end tells the
service to stop.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from d8mesh.backends.answer_clocks import ANSWER_CLOCKS
from d8mesh.backends.kept_connections import KeptConnections
from d8mesh.backends.streaming import CONNECT_S, AnswerReader, PartT
from d8mesh.edge.transport.http_answer import HttpAnswer
from d8mesh.errors import BackendUnavailableError

#: Addresses of services whose parts are remembered.
_MAX_URLS: Final = 256
CONNECTIONS: Final = KeptConnections(ANSWER_CLOCKS)
_IPV4: Final = re.compile(r"\d{1,3}(\.\d{1,3}){3}", re.ASCII)


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
    #: its connection may have another question after it; not with `tls`
    may_be_kept: bool = False


@contextlib.contextmanager
def answer_to(question: HttpQuestion, reader: AnswerReader[PartT]) -> Iterator[HttpAnswer]:
    """Yield the answer, if it is a plain one; its connection ends if the answer has not.

    Raises:
        BackendUnavailableError: nobody is there.
        D8Error: what is there refuses.
        OSError, http.client.HTTPException: the connection broke.
    """
    parts, request = _split(question.url), _request(question)
    place = (parts.hostname or "", parts.port or 0)
    connection = CONNECTIONS.take(place) if question.may_be_kept else None
    if connection is None:
        try:
            connection = _connection(parts, question.tls)
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that no host can have
            raise BackendUnavailableError(
                f"{reader.service} does not answer at {reader.url}"
            ) from error
    answer: HttpAnswer | None = None
    try:
        reader.connected(connection)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have said why
            connection.sendall(request)
        answer = HttpAnswer(connection)
        reader.guard(answer)
        yield answer
    finally:
        if answer is not None and question.may_be_kept and not reader.is_broken_off:
            CONNECTIONS.keep(place, connection, answer)
        else:
            connection.close()


@lru_cache(_MAX_URLS)
def _split(url: str) -> SplitResult:
    return urlsplit(url)


def _connection(parts: SplitResult, tls: ssl.SSLContext | None) -> socket.socket:
    host, is_safe = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if is_safe else 80)
    connection = _connected(host, port)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if is_safe:
            context = tls or ssl.create_default_context()
            connection = context.wrap_socket(connection, server_hostname=host)
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return connection


def _connected(host: str, port: int) -> socket.socket:
    if not _IPV4.fullmatch(host):
        return socket.create_connection((host, port), CONNECT_S)
    connection = socket.socket()  # nothing is to be looked up
    try:
        connection.settimeout(CONNECT_S)
        connection.connect((host, port))
    except BaseException:
        connection.close()
        raise
    return connection


def _request(question: HttpQuestion) -> bytes:
    """Return the request as it is sent."""
    parts, body = _split(question.url), b""
    path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    lines = [
        f"{question.method} {path} HTTP/1.1",
        f"Host: {parts.netloc.rpartition('@')[2]}",
        "Accept-Encoding: identity",
        f"Connection: {'keep-alive' if question.may_be_kept else 'close'}",
        *(f"{name}: {value}" for name, value in question.headers.items()),
    ]
    if question.body is not None:
        body = _encoded(question.body)
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    head = "\r\n".join(lines)
    if head.count("\n") != len(lines) - 1 or head.count("\r") != len(lines) - 1:
        raise ValueError("a header of several lines")
    return head.encode("latin-1") + b"\r\n\r\n" + body


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
