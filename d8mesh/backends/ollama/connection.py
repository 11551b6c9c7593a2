"""A request to Ollama whose answer can be ended at any moment.

Not by the ``ollama`` package: it splits lines at U+2028 and the like, which may stand inside a
text, reads images from files of this machine if they are called like one, drops fields that it
does not know, and costs four times as much processor time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from d8mesh.backends.exchange import HttpQuestion, answer_to
from d8mesh.backends.ollama.faults import SERVICE, refused
from d8mesh.backends.streaming import MAX_LINE_BYTES, AnswerReader, PartT, lines_of
from d8mesh.edge.transport.http_answer import HttpAnswer
from d8mesh.errors import BackendTooLargeError

#: The answer of which nothing is read but whether it came.
_NO_BODY: Final = b"null"
_HEADERS: Final = {"Accept": "application/x-ndjson, application/json"}


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
    asked = HttpQuestion(
        url=f"{question.url}{question.path}",
        method=question.method,
        body=question.body,
        headers=_HEADERS,
        may_be_kept=question.url.startswith("http:"),
    )

    def lines(reader: AnswerReader[PartT]) -> Iterator[bytes]:
        with answer_to(asked, reader) as response:
            if question.whole_bytes:
                yield _whole(response, question.whole_bytes)
            else:
                yield from lines_of(SERVICE, response.chunks(), max_line_bytes=question.line_bytes)

    return AnswerReader(SERVICE, question.url, lines=lines, piece_of=piece_of, refused=refused)


def _whole(response: HttpAnswer, max_bytes: int) -> bytes:
    found = bytearray()
    for chunk in response.chunks():
        found += chunk
        if len(found) > max_bytes:
            raise BackendTooLargeError(f"{SERVICE} sent more than {max_bytes} bytes")
    return bytes(found) if found.strip() else _NO_BODY
