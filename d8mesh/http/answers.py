"""HTTP answers: always JSON, and every error code has its status here.

Nothing that goes out is a page or a traceback, whatever came in.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Final, Protocol

import msgspec

from d8mesh.core.protocol.json_model import MAX_DEPTH
from d8mesh.errors import D8Error
from d8mesh.http.asgi import AsgiMessage, AsgiSend, BodySink

JSON: Final = "application/json"
#: What a refused client is told to wait, by code, in whole seconds (HTTP allows no others).
RETRY_AFTER_S: Final[Mapping[str, int]] = {
    "queue.full": 1,
    "access.flood": 1,
    "broker.draining": 5,
    "broker.unavailable": 1,
    "wait.timeout": 1,
    "disk.low": 5,
}

#: The codes of every status: those of `d8mesh.errors` and those of HTTP itself (`http.*`).
_CODES: Final[Mapping[int, str]] = {
    400: (
        "protocol.invalid protocol.version task.rejected task.invalid model.unfit http.bad_request "
        "http.plain"
    ),
    401: "access.token access.revoked",
    403: (
        "access.forbidden access.pending access.banned access.key access.orchestrator_key "
        "access.scope http.host http.origin http.peer"
    ),
    404: "task.unknown worker.unknown model.unknown member.unknown backend.missing http.not_found",
    405: "http.method",
    408: "http.timeout",
    409: "key.conflict task.failed task.cancelled worker.id_taken member.ambiguous",
    410: "task.pruned http.gone",
    413: "task.too_large http.too_large",
    414: "http.url_too_long",
    415: "http.media_type",
    429: "queue.full access.flood access.limit",
    431: "http.headers_too_large",
    500: (
        "d8.error config.invalid core.transition task.error model.error client.wrong_loop "
        "worker.error member.error worker.outbox_broken worker.handler journal.failed journal.held "
        "journal.broken journal.key worker.outbox_key config.key_file"
    ),
    502: "backend.failed backend.memory backend.stalled backend.answer backend.too_large",
    503: (
        "broker.unavailable node.closed broker.draining task.unacknowledged backend.unavailable "
        "backend.busy backend.limit"
    ),
    504: "wait.timeout backend.deadline",
    507: "disk.low",
}
STATUS: Final[Mapping[str, int]] = {
    code: status for status, codes in _CODES.items() for code in codes.split()
}

#: What keeps a proxy from holding back a stream or a long poll, and from answering for us.
_PASSED_ON_AT_ONCE: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
#: A large answer is sent in parts, so that a slow reader holds up none but its own.
PART_BYTES: Final = 65_536
#: The status of an answer that has no body, nor a length of it.
NO_CONTENT: Final = 204
#: Headers of an answer after which the connection is of no further use.
CLOSES: Final[Mapping[str, str]] = {"Connection": "close"}
_NONE: Final[Mapping[str, str]] = {}
_encoder: Final = msgspec.json.Encoder()


class Refusal(Exception):
    """A request is refused, with a key of `STATUS`, before it reaches the mesh."""

    def __init__(self, code: str, text: str, *, headers: Mapping[str, str] = _NONE) -> None:
        super().__init__(text)
        self.code, self.headers = code, headers
        #: told beside error and code
        self.facts: Mapping[str, object] = {}


class ToldProblem(msgspec.Struct):
    """What `problem` tells: a text, a code, and of a forgotten task since when it is.

    Who shows no key is told by ``/health`` where the broker is all the same.
    """

    error: str
    code: str
    pruned_at: float | msgspec.UnsetType = msgspec.UNSET
    broker_id: str | msgspec.UnsetType = msgspec.UNSET
    broker_port: int | msgspec.UnsetType = msgspec.UNSET
    mesh: str | msgspec.UnsetType = msgspec.UNSET
    server_key: str | msgspec.UnsetType = msgspec.UNSET
    proof: str | msgspec.UnsetType = msgspec.UNSET
    tls: str | msgspec.UnsetType = msgspec.UNSET


class PushedBody(Protocol):
    """A body that is written by calls as it comes: no coroutine wakes up for a part."""

    def parts(self) -> AsyncGenerator[bytes, None]:
        """Yield it, for who cannot be called."""

    async def pushed(self, sink: BodySink) -> None:
        """Write it; return when all of it is written. Cancelled: the caller has left."""

    def leave(self) -> None:
        """Nobody reads it any more, or ever will; this may be called more than once."""


class Response:
    """What is answered: all of it, or what makes its parts, which is closed in any case.

    error: what a call tells of in a form of its own, to be counted; others are raised.
    """

    __slots__ = ("body", "error", "headers", "status")

    def __init__(
        self,
        body: bytes | AsyncGenerator[bytes, None] | PushedBody,
        status: int = 200,
        *,
        content_type: str = JSON,
        headers: Mapping[str, str] = _NONE,
    ) -> None:
        self.body, self.status = body, status
        self.error: D8Error | None = None
        self.headers = _PASSED_ON_AT_ONCE | {"Content-Type": content_type}
        if headers:
            self.headers |= headers

    async def send(self, send: AsgiSend, *, is_head: bool, sink: BodySink | None = None) -> None:
        """Send all of it, or its head alone."""
        body = self.body
        if not isinstance(body, bytes | AsyncGenerator):
            try:
                await send(self._start({}))
                if is_head:
                    await send(_LAST)
                elif sink is not None:
                    await body.pushed(sink)
                else:
                    await _send_parts(body.parts(), send)
            finally:
                body.leave()
            return
        is_sized = isinstance(body, bytes) and self.status != NO_CONTENT
        await send(self._start({"Content-Length": str(len(body))} if is_sized else {}))  # type: ignore[arg-type]
        if isinstance(body, bytes):
            if len(body) <= PART_BYTES:
                await send({"type": "http.response.body", "body": body})
                return
            body = _in_parts(body)
        if is_head:
            await body.aclose()
            await send(_LAST)
        else:
            await _send_parts(body, send)

    def _start(self, more: Mapping[str, str]) -> AsgiMessage:
        headers = [
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in {**self.headers, **more}.items()
        ]
        return {"type": "http.response.start", "status": self.status, "headers": headers}


async def _send_parts(body: AsyncGenerator[bytes, None], send: AsgiSend) -> None:
    async with aclosing(body) as parts:
        async for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
    await send(_LAST)


#: The end of a body.
_LAST: Final[AsgiMessage] = {"type": "http.response.body", "body": b""}


def answer(body: Mapping[str, object], status: int = 200) -> Response:
    """Return a JSON answer; what JSON does not have, in some stranger's data, is told as text."""
    try:
        content = _encoder.encode(body)
    except (TypeError, ValueError, RecursionError):
        content = _encoder.encode(_plain(body))
    return Response(content, status)


def problem(error: D8Error | Refusal) -> Response:
    """Return the answer that tells of an error, with its code's status."""
    facts = error.facts if isinstance(error, Refusal) else {}
    body: dict[str, object] = {**facts, "error": str(error), "code": error.code}
    pruned_at = None if isinstance(error, Refusal) else error.details.get("pruned_at")
    if isinstance(pruned_at, (int, float)):
        body["pruned_at"] = pruned_at
    response = answer(body, STATUS.get(error.code, 500))
    response.headers |= error.headers if isinstance(error, Refusal) else _NONE
    if error.code in RETRY_AFTER_S:
        response.headers["Retry-After"] = str(RETRY_AFTER_S[error.code])
    return response


async def _in_parts(body: bytes) -> AsyncGenerator[bytes, None]:
    for at in range(0, len(body), PART_BYTES):
        yield body[at : at + PART_BYTES]


def _plain(value: object, depth: int = 0) -> object:
    """Return `value` with whatever JSON does not have as text."""
    if depth > MAX_DEPTH:
        return "…"
    if isinstance(value, Mapping):
        return {str(key)[:1000]: _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return repr(value)[:1000]
