"""The ASGI application: guards, matches, reads, calls, answers; the doors say what."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote

from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import Map, Rule

from d8mesh.errors import D8Error
from d8mesh.http.answers import CLOSES, Refusal, Response
from d8mesh.http.asgi import AsgiSend, Receive, Scope
from d8mesh.http.guard import Guard, Rejections
from d8mesh.http.off_loop import OFF_LOOP_BYTES, off_loop
from d8mesh.http.routes import Door, HttpRoute, Request

#: Longest path that is looked at, once it is decoded.
MAX_ADDRESS_CHARS: Final = 4096
#: Bytes of bodies and answers that are under way at the same time: of what comes beyond that,
#: what is large is refused.
MAX_HELD_BYTES: Final = 256 * 1024 * 1024
#: Names of the only charset of JSON, and of a part of it.
_UTF_8: Final = frozenset({"utf-8", "utf8", "us-ascii"})
_log: Final = logging.getLogger("d8mesh.http")


class Application:
    """Serves doors; in the form of the first it is told that there is no such path."""

    def __init__(self, doors: Sequence[Door], guard: Guard, rejections: Rejections) -> None:
        self._first = doors[0]
        self._guard = guard
        self._rejections = rejections
        self._held_bytes = 0
        rules = [
            Rule(route.rule, methods=[route.method], endpoint=(door, route))
            for door in doors
            for route in door.routes
        ]
        self._matcher = Map(rules, strict_slashes=False, merge_slashes=False).bind("d8")

    async def __call__(self, scope: Scope, receive: Receive, send: AsgiSend) -> None:
        """Serve one request (ASGI)."""
        request = Request(scope)
        door = self._first
        try:
            self._guard.check(request.remote_addr or "", request.http_version, request.fields)
            (door, route), values = self._match(request)
            # Our server cancels calls whose callers have left.
            scope["d8.runs_on"] = route.method != "GET" and not route.ends_with_caller
            if door.before is not None and not route.is_light:
                await door.before(request)
            response = await self._call(request, receive, route, values)
        except EOFError:
            return  # the caller has left in the middle of its body
        except (D8Error, Refusal) as error:
            response = self._told(request, door, error)
        except Exception as error:  # no traceback to a caller, whatever it is
            _log.exception("request failed")
            told = D8Error("something went wrong here; the log says what")
            response = self._told(request, door, told, why=type(error).__name__)
        size = len(response.body) if isinstance(response.body, bytes) else 0
        if size > OFF_LOOP_BYTES and self._held_bytes + size > MAX_HELD_BYTES:
            response, size = self._told(request, door, _flood("answers")), 0
        self._held_bytes += size
        try:
            await response.send(send, is_head=request.method == "HEAD")
        finally:
            self._held_bytes -= size

    def _match(self, request: Request) -> tuple[tuple[Door, HttpRoute], dict[str, Any]]:
        if len(request.path) > MAX_ADDRESS_CHARS or len(request.query_string) > MAX_ADDRESS_CHARS:
            raise Refusal("http.url_too_long", f"at most {MAX_ADDRESS_CHARS} characters")
        try:
            return self._matcher.match(request.path, method=request.method)  # type: ignore[return-value]
        except MethodNotAllowed as error:
            allowed = ", ".join(sorted(error.valid_methods or ()))
            raise Refusal(
                "http.method",
                f"{request.method[:20]} is not for this path: expected {allowed}",
                headers={"Allow": allowed},
            ) from error
        except HTTPException as error:
            path = quote(request.path[:100])
            raise Refusal("http.not_found", f"there is nothing at {path}") from error

    async def _call(
        self, request: Request, receive: Receive, route: HttpRoute, values: dict[str, Any]
    ) -> Response:
        if request.method in ("GET", "HEAD"):
            return await route.call(request, **values)
        is_taken = False
        try:
            await self._read(request, receive, route)
            if request.body:
                _check_type(request, route.takes)
            if route.schema is not None:
                request.value = await off_loop(len(request.body), route.schema, request.body)
            is_taken = True
            return await route.call(request, **values)
        except (D8Error, Refusal) as error:
            if not is_taken and route.on_untaken is not None and error.code != "access.flood":
                await route.on_untaken(request, error, **values)
            raise
        finally:
            self._held_bytes -= request.received_bytes

    async def _read(self, request: Request, receive: Receive, route: HttpRoute) -> None:
        """Take in the whole body, as much as the route allows; it counts as held from then on."""
        limit = route.max_body_bytes
        if int(request.fields.get("content-length", "0")) > limit:
            raise _too_large(limit)
        parts: list[bytes] = []
        has_more = True
        while has_more:
            message = await receive()
            if message["type"] != "http.request":
                raise EOFError
            parts.append(message.get("body", b""))
            request.received_bytes += len(parts[-1])
            self._held_bytes += len(parts[-1])
            if request.received_bytes > limit:
                raise _too_large(limit)
            if self._held_bytes > MAX_HELD_BYTES and request.received_bytes > OFF_LOOP_BYTES:
                raise _flood("bodies")
            has_more = message.get("more_body", False)
        request.body = b"".join(parts)

    def _told(
        self, request: Request, door: Door, error: D8Error | Refusal, *, why: str = ""
    ) -> Response:
        """Return the answer that tells of an error, and count it."""
        response = door.problem(error)
        self._rejections.add(
            error.code,
            request.remote_addr or "",
            why or str(error),
            level=logging.WARNING if error.code.startswith(("http.", "access.")) else logging.INFO,
            method=request.method,
            path=request.path,
            status=response.status,
        )
        return response


def _check_type(request: Request, wanted: str) -> None:
    coding = request.fields.get("content-encoding", "identity").strip().lower()
    if request.fields.get("content-type") == wanted and coding == "identity":
        return  # as nearly all do
    kind, charset = request.mimetype[:60], request.mimetype_params.get("charset", "utf-8")
    if kind != wanted:
        seen = f"is {kind!r}" if kind else "has no Content-Type"
        told = f"the body {seen}, expected {wanted}"
    elif charset.lower() not in _UTF_8:
        told = f"the body's charset is {charset[:60]!r}, expected utf-8"
    elif coding != "identity":
        told = f"the body's Content-Encoding is {coding[:60]!r}, expected none"
    else:
        return
    raise Refusal("http.media_type", told, headers={"Accept": wanted})


def _too_large(limit: int) -> Refusal:
    return Refusal("http.too_large", f"the body is larger than {limit} bytes", headers=CLOSES)


def _flood(what: str) -> Refusal:
    return Refusal("access.flood", f"too many large {what} at the same time: come again")
