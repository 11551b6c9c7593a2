"""A request to Ollama whose answer can be ended at any moment.

The ``ollama`` package gives the connection. Its own reading and writing of messages is passed
by: it splits lines at U+2028 and the like, which may stand inside a text, reads images from files
of this machine if they are called like one, and drops fields that it does not know.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from d8mesh.backends.ollama.faults import SERVICE, refused
from d8mesh.backends.streaming import (
    CONNECT_S,
    MAX_LINE_BYTES,
    AnswerReader,
    PartT,
    lines_of,
    said,
)
from d8mesh.errors import BackendError, BackendTooLargeError

if TYPE_CHECKING:
    import httpx

#: The answer of which nothing is read but whether it came.
_NO_BODY: Final = b"null"


@dataclass(frozen=True, slots=True, kw_only=True)
class OllamaRequest:
    """What is sent to which address."""

    url: str
    path: str
    body: Mapping[str, Any]
    method: str = "POST"
    #: the answer is one text of at most so many bytes; 0: it comes in lines
    whole_bytes: int = 0
    #: of one line, if it comes in lines
    line_bytes: int = MAX_LINE_BYTES


def asking(question: OllamaRequest, piece_of: Callable[[Any], PartT]) -> AnswerReader[PartT]:
    """Begin to ask; `piece_of` says what a line of the answer means."""

    def lines(reader: AnswerReader[PartT]) -> Iterator[bytes]:
        with _answer(reader, question) as response:
            if question.whole_bytes:
                yield _whole(response, question.whole_bytes)
            else:
                yield from lines_of(
                    SERVICE, response.iter_raw(), max_line_bytes=question.line_bytes
                )

    return AnswerReader(SERVICE, question.url, lines=lines, piece_of=piece_of, refused=refused)


def import_package() -> None:
    """Import what the first request needs, half a second's work, before there is one."""
    with contextlib.suppress(Exception):  # a request says what is wrong with it
        from ollama import Client  # noqa: F401


@contextlib.contextmanager
def _answer(reader: AnswerReader[PartT], question: OllamaRequest) -> Iterator[httpx.Response]:
    try:
        import httpx
        from ollama import Client
    except Exception as error:  # whatever an import may raise: it must not do so unheard
        raise BackendError(f"the ollama package cannot be imported ({said(error)})") from error
    hooks = reader.hooks
    hooks["request"].append(_without_key)
    client = Client(
        question.url,
        follow_redirects=False,
        trust_env=False,
        verify=question.url.startswith("https"),
        timeout=httpx.Timeout(None, connect=CONNECT_S),
        event_hooks=hooks,
    )
    with contextlib.closing(client):
        http: httpx.Client = client._client
        with http.stream(question.method, question.path, json=question.body) as response:
            yield response


def _without_key(request: httpx.Request) -> None:
    request.headers.pop("authorization", None)  # the package adds OLLAMA_API_KEY by itself


def _whole(response: httpx.Response, max_bytes: int) -> bytes:
    found = bytearray()
    for chunk in response.iter_raw():
        found += chunk
        if len(found) > max_bytes:
            raise BackendTooLargeError(f"{SERVICE} sent more than {max_bytes} bytes")
    return bytes(found) if found.strip() else _NO_BODY
