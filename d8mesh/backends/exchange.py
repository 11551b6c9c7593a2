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
    """Yield what comes, as it comes."""
    while chunk := response.read1(ANSWER_READ_BYTES):
        yield chunk
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)


def _connection(question: HttpQuestion) -> http.client.HTTPConnection:
    parts = urlsplit(question.url)
    host = parts.hostname or ""
    if parts.scheme != "https":
        return http.client.HTTPConnection(host, parts.port, timeout=CONNECT_S)
    context = question.tls or ssl.create_default_context()
    return http.client.HTTPSConnection(host, parts.port, timeout=CONNECT_S, context=context)


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
