"""Who asks at a door of language models, as the request tells it."""

from __future__ import annotations

import re
from typing import Final

from d8mesh.core.protocol.wish import INTERACTIVE_PRIORITY, MAX_MODELS
from d8mesh.doors.llm.asked import Caller
from d8mesh.errors import InvalidTaskError
from d8mesh.http.routes import Request
from d8mesh.nodes.client.groups import MAX_KEY_CHARS

#: Of the name of a program, as it is kept: the longest User-Agents name every library.
MAX_PROGRAM_CHARS: Final = 120
#: An API key may carry a priority: programs whose headers nobody can set have keys.
_PRIORITY_MARK: Final = ";priority="
_PRIORITY: Final = re.compile(r"(10|[1-9])\Z")


def caller_of(request: Request, door: str) -> Caller:
    """Return who asks at `door`.

    Raises:
        InvalidTaskError: a header is not what it must be.
    """
    fields = request.fields
    return Caller(
        door=door,
        address=request.remote_addr or "",
        program=_printable(fields.get("user-agent", ""))[:MAX_PROGRAM_CHARS],
        priority=_priority(fields.get("x-d8-priority", ""), _api_key(request)),
        key=_idempotency_key(fields.get("idempotency-key", "")),
        token=request.access.token,
        fallbacks=_fallbacks(fields.get("x-d8-models", "")),
    )


def _api_key(request: Request) -> str:
    scheme, _, token = request.fields.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else request.fields.get("x-api-key", "")


def _priority(header: str, api_key: str) -> int:
    if header:
        if not _PRIORITY.match(header.strip()):
            raise InvalidTaskError(f"X-D8-Priority: saw {header[:40]!r}, expected 1 to 10")
        return int(header)
    _, mark, told = api_key.rpartition(_PRIORITY_MARK)
    if not mark:
        return INTERACTIVE_PRIORITY
    if not _PRIORITY.match(told):  # of the key nothing is repeated
        raise InvalidTaskError("the API key ends in ;priority= without a number from 1 to 10")
    return int(told)


def _idempotency_key(key: str) -> str:
    if len(key) > MAX_KEY_CHARS or not key.isprintable():
        raise InvalidTaskError(
            f"Idempotency-Key: expected at most {MAX_KEY_CHARS} printable characters"
        )
    return key


def _fallbacks(header: str) -> tuple[str, ...]:
    names = tuple(name for part in header.split(",") if (name := part.strip()))
    if len(names) >= MAX_MODELS:
        raise InvalidTaskError(f"X-D8-Models: at most {MAX_MODELS - 1} names of models")
    return names


def _printable(text: str) -> str:
    return "".join(char for char in text if char.isprintable())
