"""A source of events knows nothing of the form in which it is read."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from d8mesh.http.answers import Response
from d8mesh.http.events import NDJSON, SSE, Event, EventFormat, Source, stream


class Told:
    """Three items, and whether the source was closed."""

    def __init__(self) -> None:
        self.is_closed = False

    async def source(self) -> Source:
        try:
            yield "alive"
            yield Event("chunk", {"seq": 1})
            yield Event("done", {"text": "a\u2028b\x85c"})
        finally:
            self.is_closed = True


async def written(response: Response, *, is_head: bool = False, after: int = 100) -> list[bytes]:
    parts: list[bytes] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        if len(parts) >= after:
            raise ConnectionError
        parts.append(message.get("body", b""))

    await response.send(send, is_head=is_head)
    return parts[1:]


def test_server_sent_events() -> None:
    response = stream(Told().source(), SSE)
    assert response.headers["Content-Type"] == "text/event-stream"
    assert asyncio.run(written(response)) == [
        b": alive\n\n",
        b'event: chunk\ndata: {"seq":1}\n\n',
        b'event: done\ndata: {"text":"a\\u2028b\\u0085c"}\n\n',
        b"",
    ]


def test_json_lines_have_no_comments() -> None:
    parts = asyncio.run(written(stream(Told().source(), NDJSON)))
    assert parts == [b'{"seq":1}\n', b'{"text":"a\\u2028b\\u0085c"}\n', b""]


@pytest.mark.parametrize("form", [SSE, NDJSON])
def test_a_source_is_closed_when_its_reader_leaves(form: EventFormat) -> None:
    told = Told()
    with pytest.raises(ConnectionError):
        asyncio.run(written(stream(told.source(), form), after=2))
    assert told.is_closed


def test_the_head_alone_is_sent_without_beginning_the_source() -> None:
    told = Told()
    assert asyncio.run(written(stream(told.source(), SSE), is_head=True)) == [b""]
    assert not told.is_closed
