"""How OpenAI's streams are written: ``data:`` alone, and what tells of their end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from d8mesh.doors.openai.errors import error_body
from d8mesh.errors import D8Error
from d8mesh.http.events import json_line

EVENT_STREAM: Final = "text/event-stream"
#: Readers skip it; it tells them that we live.
COMMENT: Final = b": waiting\n\n"
STREAM_END: Final = b"data: [DONE]\n\n"


def data_of(body: Mapping[str, Any]) -> bytes:
    """Return a body as an event without a name."""
    return b"data: %b\n\n" % json_line(body)


def broken(error: D8Error) -> bytes:
    """Return what ends a stream that is not complete: no reason, and no `STREAM_END`.

    Clients raise at the error; who misses it misses the reason, and the end.
    """
    return data_of(error_body(error))
