"""The connection to one OpenAI-compatible service: what is sent, and which lines come back.

The key goes to the configured address and nowhere else: there are no redirects, no proxies and no
credentials of the environment.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from d8mesh.backends.exchange import HttpQuestion, answer_to
from d8mesh.backends.openai.answers import END, events
from d8mesh.backends.openai.faults import ServiceFault, fault_in
from d8mesh.backends.reach import leaves_lan, outside_error
from d8mesh.backends.streaming import AnswerReader, PartT, RefusedAnswer, lines_of, shown
from d8mesh.edge.transport.http_answer import HttpAnswer
from d8mesh.errors import BackendTooLargeError, D8Error

#: An answer in one piece. JSON that means harm takes fifty times its size in memory.
MAX_WHOLE_BYTES: Final = 8 * 1024 * 1024
#: What is shown in place of a key.
KEY_SHOWN_AS: Final = "(hidden)"
_EVENTS: Final = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer that is read in one piece."""

    answer: Any
    ending: bool = True
    is_sign_of_life: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Hearing:
    """Who is told what comes beside the answer."""

    #: the error of ours for what the service refused
    failed: Callable[[ServiceFault], D8Error]
    #: the headers of an answer that is none
    headers: Callable[[Mapping[str, str]], None] = lambda headers: None


class Endpoint:
    """Where a service is, and how it is asked.

    Args:
        title: what it is called in what people read.
        url: with its path, such as ``https://HOST/v1``.
        key: sent as ``Authorization: Bearer``; None: none is.
    """

    def __init__(self, title: str, url: str, key: str | None) -> None:
        self.title, self.url, self._key = title, url.rstrip("/"), key
        #: nothing is sent to an address outside the LAN
        self.stays_in_lan = False
        self._tls: ssl.SSLContext | None = None
        self._lock = threading.Lock()

    def ask(
        self,
        path: str,
        body: Mapping[str, Any] | None,
        *,
        piece_of: Callable[[Any], PartT],
        hearing: Hearing,
        max_bytes: int = MAX_WHOLE_BYTES,
    ) -> AnswerReader[PartT]:
        """Begin a POST of `body`, or a GET; the parts are those of a stream, or all and `END`.

        A `path` that is a whole URL must be of this service.

        Args:
            max_bytes: of an answer in one piece.
        """
        url = path if path.startswith("http") else self.url + path

        question = HttpQuestion(
            url=url,
            method="GET" if body is None else "POST",
            body=body,
            headers=self._headers(),
            tls=self._context() if url.startswith("https") else None,
        )

        def lines(reader: AnswerReader[PartT]) -> Iterator[bytes]:
            if self.stays_in_lan and leaves_lan(self.url):
                raise outside_error(self.title, self.url)
            with answer_to(question, reader) as response:
                hearing.headers(dict(response.getheaders()))
                yield from self._lines(response, max_bytes)

        def refused(refusal: RefusedAnswer) -> D8Error:
            return hearing.failed(fault_in(refusal.status, refusal.headers, refusal.body))

        return AnswerReader(self.title, self.url, lines=lines, piece_of=piece_of, refused=refused)

    def redacted(self, text: str) -> str:
        """Return a service's words in a line, without the key, which some repeat.

        The key goes before anything is cut: else the beginning of it may stay.
        """
        return shown(text.replace(self._key, KEY_SHOWN_AS) if self._key else text)

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": f"application/json, {_EVENTS}"}
        return headers | ({"Authorization": f"Bearer {self._key}"} if self._key else {})

    def _context(self) -> ssl.SSLContext:
        """Return what proves the other side; made once, as reading all roots takes its time."""
        with self._lock:
            if self._tls is None:
                self._tls = ssl.create_default_context()
            return self._tls

    def _lines(self, response: HttpAnswer, max_bytes: int) -> Iterator[bytes]:
        kind = response.getheader("content-type", "").partition(";")[0].strip().lower()
        if kind == _EVENTS:
            yield from events(lines_of(self.title, response.chunks()))
            return
        content = bytearray()
        for chunk in response.chunks():
            content += chunk
            if len(content) > max_bytes:
                raise BackendTooLargeError(f"{self.title} sent more than an answer may hold")
        if content.lstrip().startswith((b"data:", b":")):  # a stream under another name
            yield from events(lines_of(self.title, [bytes(content)]))
            return
        yield bytes(content)
        yield END
