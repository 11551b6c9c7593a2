"""Streams of events: what a source yields, and how it is written.

A source knows nothing of the form in which it is read.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import msgspec

from d8mesh.http.answers import Response

_encoder: Final = msgspec.json.Encoder()
#: Beside newlines some readers (Python's `str.splitlines`, so httpx and requests) end a line at
#: these too; inside JSON they only stand in texts, where an escape means the same.
_SEPARATORS: Final = tuple(
    (char.encode(), b"\\u%04x" % ord(char)) for char in ("\x85", "\u2028", "\u2029")
)


@dataclass(slots=True, eq=False)
class Event:
    """Something that happened: its name, a body that JSON has, and how that was written.

    The same one may be given to many readers: it is written once in each form.
    """

    name: str
    body: dict[str, Any]
    rendered: dict[str, bytes] = field(default_factory=dict)


#: A text is a comment, which only tells that we live.
Item: TypeAlias = Event | str
Source: TypeAlias = AsyncGenerator[Item, None]


@dataclass(frozen=True, slots=True)
class EventFormat:
    """A way to write items: its media type, how an event is written, and a comment (%b)."""

    media_type: str
    render: Callable[[Event], bytes]
    comment: bytes = b""


def stream(source: Source, form: EventFormat) -> Response:
    """Return the answer that writes a source, which is closed in any case."""
    return Response(_written(source, form), content_type=form.media_type)


async def _written(source: Source, form: EventFormat) -> AsyncGenerator[bytes, None]:
    async with aclosing(source) as items:
        async for item in items:
            if isinstance(item, Event):
                content = item.rendered.get(form.media_type)
                if content is None:
                    content = item.rendered[form.media_type] = form.render(item)
                yield content
            elif form.comment:
                yield form.comment % item.encode()


def json_line(body: Mapping[str, Any] | str) -> bytes:
    """Return a body, or a text in one, as JSON that no reader takes for several lines."""
    line = _encoder.encode(body)
    if not line.isascii():
        for separator, escaped in _SEPARATORS:
            line = line.replace(separator, escaped)
    return line


def _sse(event: Event) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (event.name.encode("ascii"), json_line(event.body))


#: Server-sent events (the HTML standard, 9.2), and JSON a line.
SSE: Final = EventFormat("text/event-stream", _sse, b": %b\n\n")
NDJSON: Final = EventFormat("application/x-ndjson", lambda event: json_line(event.body) + b"\n")
