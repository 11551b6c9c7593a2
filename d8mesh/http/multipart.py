"""Forms with files (RFC 7578), read as they come: nothing but a part of one is in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from werkzeug.exceptions import HTTPException
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import NEED_DATA, Data, Epilogue, Field, File, MultipartDecoder

from d8mesh.http.answers import Refusal

#: Headers of one field, and what is held of a body at once: servers hand on 64 KiB and more.
MAX_FORM_BUFFER_BYTES: Final = 8 * 1024 * 1024
#: Fields of a form; OpenAI's have three.
MAX_FORM_FIELDS: Final = 32
FORM: Final = "multipart/form-data"
#: What may stand behind a boundary, and before it.
_BEHIND_BYTES: Final = len("--\r\n")
_BEFORE_BYTES: Final = len("\r\n")


@dataclass(frozen=True, slots=True)
class FormField:
    """A field of a form begins; its content follows."""

    name: str
    #: of a file; None: it is none
    file_name: str | None


def boundary_of(content_type: str) -> bytes:
    """Return what parts the fields of a form.

    Raises:
        Refusal: it is no form.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get("boundary", "")
    if kind != FORM or not boundary:
        seen = f"saw {kind[:60]!r}" if kind else "there is no Content-Type"
        raise Refusal("http.media_type", f"{seen}, expected {FORM} with a boundary")
    return boundary.encode("utf-8", "replace")


async def _whole_boundaries(parts: AsyncIterator[bytes], boundary: bytes) -> AsyncIterator[bytes]:
    """Yield the same, no part of which ends between a boundary and what follows it.

    There Werkzeug takes the line's end before the boundary for content.
    """
    held = b""
    async for part in parts:
        held += part
        at = held.find(b"-", max(0, len(held) - len(boundary) - _BEHIND_BYTES))
        end = len(held) if at < 0 else max(0, at - _BEFORE_BYTES)
        if end:
            yield held[:end]
            held = held[end:]
    if held:
        yield held


async def form_of(parts: AsyncIterator[bytes], boundary: bytes) -> AsyncIterator[FormField | bytes]:
    """Yield the fields of a form, each followed by its content in pieces.

    Raises:
        Refusal: the body is no form, or its end is missing.
    """
    decoder = MultipartDecoder(boundary, MAX_FORM_BUFFER_BYTES, max_parts=MAX_FORM_FIELDS)
    try:
        async for part in _whole_boundaries(parts, b"--" + boundary):
            decoder.receive_data(part)
            while (happened := decoder.next_event()) is not NEED_DATA:
                if isinstance(happened, Field | File):
                    name = happened.filename if isinstance(happened, File) else None
                    yield FormField(happened.name or "", name)
                elif isinstance(happened, Data) and happened.data:
                    yield happened.data
        decoder.receive_data(None)
        while not isinstance(decoder.next_event(), Epilogue):
            pass
    except (ValueError, HTTPException, AttributeError) as error:
        # of a body that ends within a field Werkzeug raises AttributeError
        raise Refusal("http.bad_request", f"the body is no whole {FORM}") from error
