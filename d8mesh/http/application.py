"""The ASGI application: guards, matches, reads, calls, answers; the doors say what."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import Map, Rule

from d8mesh.errors import D8Error
from d8mesh.http.access import Access
from d8mesh.http.answers import CLOSES, NO_CONTENT, Refusal, Response
from d8mesh.http.asgi import SINK, AsgiMessage, AsgiSend, Receive, Scope
from d8mesh.http.codings import CODINGS, MAX_DECODED_BYTES, decoder_of
from d8mesh.http.guard import Guard, Rejections
from d8mesh.http.off_loop import OFF_LOOP_BYTES, off_loop
from d8mesh.http.origins import is_preflight, no_origin, preflight_headers, shared_with
from d8mesh.http.proxies import TrustedProxies
from d8mesh.http.routes import Door, HttpRoute, Request

#: Longest path that is looked at, once it is decoded.
MAX_ADDRESS_CHARS: Final = 4096
#: Bytes of bodies and answers that are under way at the same time: of what comes beyond that,
#: what is large is refused.
MAX_HELD_BYTES: Final = 256 * 1024 * 1024
#: What is under way with a token that is revoked has so long for its last words.
TOKEN_END_S: Final = 0.5
#: What programs leave out of a base URL, and how many parts of a path they may have too much.
BASES: Final = ("/v1", "/api")
MAX_TOO_MUCH: Final = 3
#: Names of the only charset of JSON, and of a part of it.
_UTF_8: Final = frozenset({"utf-8", "utf8", "us-ascii"})
_log: Final = logging.getLogger("d8mesh.http")

#: A route and the values of its rule.
_Matched: TypeAlias = tuple[HttpRoute, dict[str, Any]]


class Application:
    """Serves doors; what is refused below none of their prefixes is told as the first does."""

    def __init__(
        self,
        doors: Sequence[Door],
        guard: Guard,
        rejections: Rejections,
        proxies: TrustedProxies | None = None,
    ) -> None:
        self._first, self._proxies = doors[0], proxies or TrustedProxies()
        self._guard = guard
        self._rejections = rejections
        self._held_bytes = 0
        #: an access token -> the requests under way with it
        self._of_token: dict[str, set[Request]] = {}
        prefixes = [(prefix, door) for door in doors for prefix in door.prefixes]
        self._prefixes = sorted(prefixes, key=lambda each: -len(each[0]))
        rules = [
            Rule(route.rule, methods=[route.method], endpoint=(door, route))
            for door in doors
            for route in door.routes
        ]
        self._matcher = Map(rules, strict_slashes=False, merge_slashes=False).bind("d8")
        #: of paths without variables: found at once
        self._plain = {
            (route.method, route.rule): (door, route)
            for door in reversed(doors)
            for route in reversed(door.routes)
            if "<" not in route.rule
        }

    async def __call__(self, scope: Scope, receive: Receive, send: AsgiSend) -> None:
        """Serve one request (ASGI)."""
        request = Request(scope)
        try:
            await self._serve(request, receive, send)
        finally:
            self._forget(request)

    async def _serve(self, request: Request, receive: Receive, send: AsgiSend) -> None:
        door, found = self._find(request)
        try:
            response = await self._answer(request, receive, door, found)
            if response.error is not None:
                self._count(request, response.error, response.status)
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
        _share(response, door, request.fields.get("origin"))
        self._held_bytes += size
        try:
            await response.send(
                send, is_head=request.method == "HEAD", sink=request.scope.get(SINK)
            )
        finally:
            self._held_bytes -= size

    def refused(self, path: str, origin: str | None, refusal: Refusal) -> Response:
        """Return what tells of a request that was refused before it was one; "": no path yet."""
        door = self._door_at(path)
        response = door.problem(refusal)
        _share(response, door, origin)
        return response

    def _find(self, request: Request) -> tuple[Door, _Matched | Refusal]:
        """Return what is asked for, or why there is none, and the door whose business that is."""
        path = request.path
        plain = self._plain.get((request.method, path))
        if plain is not None and len(request.query_string) <= MAX_ADDRESS_CHARS:
            return plain[0], (plain[1], {})
        if len(path) > MAX_ADDRESS_CHARS or len(request.query_string) > MAX_ADDRESS_CHARS:
            refusal = Refusal("http.url_too_long", f"at most {MAX_ADDRESS_CHARS} characters")
            return self._door_at(path), refusal
        try:
            (door, route), values = self._matcher.match(path, method=request.method)
            return door, (route, values)  # type: ignore[return-value]
        except MethodNotAllowed as error:
            methods = sorted(error.valid_methods or ())
            (door, _), _ = self._matcher.match(path, method=methods[0])
            allowed = ", ".join(methods)
            return door, Refusal(
                "http.method",
                f"{request.method[:20]} is not for this path: expected {allowed}",
                headers={"Allow": allowed},
            )
        except HTTPException:
            told, near = f"there is nothing at {quote(path[:100])}", self._near(path)
            if near:
                told += f": expected {quote(near[:100])}; is the base URL right?"
            return self._door_at(near or path), Refusal("http.not_found", told)

    def _near(self, path: str) -> str:
        """Return the path that is meant where a base URL has too little or too much; or ""."""
        parts = path.strip("/").split("/", MAX_TOO_MUCH + 1)
        less = ["/" + "/".join(parts[start:]) for start in range(1, len(parts))]
        more = [base + path for base in BASES]
        meant = [each for each in less if each.startswith(BASES)] + more
        return next((each for each in meant if self._is_there(each)), "")

    def _is_there(self, path: str) -> bool:
        try:
            self._matcher.match(path, method="GET")
        except MethodNotAllowed:
            return True
        except HTTPException:
            return False
        return True

    def _door_at(self, path: str) -> Door:
        for prefix, door in self._prefixes:
            if path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/"):
                return door
        return self._first

    async def _answer(
        self, request: Request, receive: Receive, door: Door, found: _Matched | Refusal
    ) -> Response:
        self._look_through(request)
        fields, peer = request.fields, request.remote_addr or ""
        self._guard.check(peer, request.http_version, fields, door.origins)
        if door.origins is not no_origin and is_preflight(request.method, fields):
            return Response(b"", NO_CONTENT, headers=preflight_headers(fields))
        request.access = await self._access(request, peer, found)  # a preflight shows no key
        if isinstance(found, Refusal):
            raise found
        route, values = found
        request.access.require(route.scopes or door.scopes, asks_always=route.asks_always)
        if route.is_for_programs:
            self._guard.check_program(fields)
        # Our server cancels calls whose callers have left.
        request.scope["d8.runs_on"] = route.method != "GET" and not route.ends_with_caller
        if door.before is not None and not route.is_light:
            await door.before(request)
        if request.method in ("GET", "HEAD"):
            return await route.call(request, **values)
        if route.is_streamed:
            _check_length(request, route.max_body_bytes)
            _check_type(request, route)
            async with aclosing(_parts(request, receive, route.max_body_bytes)) as request.parts:
                return await route.call(request, **values)
        return await self._call(request, receive, route, values)

    def _look_through(self, request: Request) -> None:
        """Make it the request of whom a trusted proxy asks for."""
        told = self._proxies.read(request.remote_addr or "", request.fields)
        if told is None:
            return
        request.remote_addr = told.peer
        request.scheme = told.scheme or request.scheme
        if told.host:
            # a proxy tells what it was told: the name that it asked by counts as well
            self._guard.check_host(request.http_version, request.fields)
            request.fields = {**request.fields, "host": told.host}

    async def _access(self, request: Request, peer: str, found: _Matched | Refusal) -> Access:
        """Return what a request may do; it is ended when its token is revoked."""
        try:
            access = self._guard.access_of(peer, request.fields)
        except Refusal as refusal:
            if refusal.code == "access.token" and not isinstance(found, Refusal):
                known_to_all = found[0].known_to_all
                refusal.facts = {} if known_to_all is None else await known_to_all()
            raise
        if access.token:
            self._of_token.setdefault(access.token, set()).add(request)
        return access

    def end_token(self, token: str) -> None:
        """End what is under way with a token that is revoked; what can say why does so first."""
        asyncio.get_running_loop().call_later(TOKEN_END_S, self._abort, token)

    def _abort(self, token: str) -> None:
        for request in self._of_token.get(token, ()):
            sink = request.scope.get(SINK)
            if sink is not None:
                sink.abort()

    def _forget(self, request: Request) -> None:
        token = request.access.token
        under_way = self._of_token.get(token)
        if under_way is not None:
            under_way.discard(request)
            if not under_way:
                del self._of_token[token]

    async def _call(
        self, request: Request, receive: Receive, route: HttpRoute, values: dict[str, Any]
    ) -> Response:
        is_taken = False
        try:
            await self._read(request, receive, route.max_body_bytes)
            if request.body:
                _check_type(request, route)
                await self._decode(request, route.max_body_bytes)
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

    async def _read(self, request: Request, receive: Receive, limit: int) -> None:
        """Take in the whole body, as much as the route allows; it counts as held from then on."""
        _check_length(request, limit)
        parts: list[bytes] = []
        has_more = True
        while has_more:
            message = await receive()
            parts.append(_part_of(message))
            request.received_bytes += len(parts[-1])
            self._held_bytes += len(parts[-1])
            if request.received_bytes > limit:
                raise _too_large(limit)
            self._check_held(request)
            has_more = message.get("more_body", False)
        request.body = b"".join(parts)

    async def _decode(self, request: Request, limit: int) -> None:
        """Make of a compressed body, which the route takes, what it was."""
        decode = decoder_of(_coding_of(request))
        if decode is None:
            return
        # However little comes, it may become much.
        request.body = await off_loop(MAX_DECODED_BYTES, decode, request.body)
        request.received_bytes += len(request.body)
        self._held_bytes += len(request.body)
        if len(request.body) > limit:
            raise _too_large(limit)
        self._check_held(request)

    def _check_held(self, request: Request) -> None:
        if self._held_bytes > MAX_HELD_BYTES and request.received_bytes > OFF_LOOP_BYTES:
            raise _flood("bodies")

    def _told(
        self, request: Request, door: Door, error: D8Error | Refusal, *, why: str = ""
    ) -> Response:
        """Return the answer that tells of an error, and count it."""
        response = door.problem(error)
        self._count(request, error, response.status, why=why)
        return response

    def _count(
        self, request: Request, error: D8Error | Refusal, status: int, *, why: str = ""
    ) -> None:
        self._rejections.add(
            error.code,
            request.remote_addr or "",
            why or str(error),
            level=logging.WARNING if error.code.startswith(("http.", "access.")) else logging.INFO,
            method=request.method,
            path=request.path,
            status=status,
        )


async def _parts(request: Request, receive: Receive, limit: int) -> AsyncGenerator[bytes, None]:
    """Yield what comes of a body, within the limit."""
    has_more = True
    while has_more:
        message = await receive()
        part = _part_of(message)
        request.received_bytes += len(part)
        if request.received_bytes > limit:
            raise _too_large(limit)
        has_more = message.get("more_body", False)
        if part:
            yield part


def _part_of(message: AsgiMessage) -> bytes:
    if message["type"] != "http.request":
        raise EOFError
    part: bytes = message.get("body", b"")
    return part


def _share(response: Response, door: Door, origin: str | None) -> None:
    """Let a page see an answer, also one that refuses it, of a door that it may use."""
    if origin is not None and door.origins(origin):
        response.headers |= shared_with(origin)


def _check_length(request: Request, limit: int) -> None:
    if int(request.fields.get("content-length", "0")) > limit:
        raise _too_large(limit)


def _coding_of(request: Request) -> str:
    return request.fields.get("content-encoding", "identity").strip().lower()


def _check_type(request: Request, route: HttpRoute) -> None:
    wanted, coding = route.takes, _coding_of(request)
    is_read = coding == "identity" or (route.decodes and decoder_of(coding) is not None)
    if is_read and (wanted is None or request.fields.get("content-type") == wanted):
        return  # as nearly all do
    kind, charset = request.mimetype[:60], request.mimetype_params.get("charset", "utf-8")
    if wanted is not None and kind != wanted:
        seen = f"is {kind!r}" if kind else "has no Content-Type"
        told = f"the body {seen}, expected {wanted}"
    elif wanted is not None and charset.lower() not in _UTF_8:
        told = f"the body's charset is {charset[:60]!r}, expected utf-8"
    elif not is_read:
        expected = ", ".join(CODINGS) if route.decodes else "none"
        told = f"the body's Content-Encoding is {coding[:60]!r}, expected {expected}"
    else:
        return
    accepted = {"Accept": wanted} if wanted is not None else {"Accept-Encoding": "identity"}
    raise Refusal("http.media_type", told, headers=accepted)


def _too_large(limit: int) -> Refusal:
    return Refusal("http.too_large", f"the body is larger than {limit} bytes", headers=CLOSES)


def _flood(what: str) -> Refusal:
    return Refusal("access.flood", f"too many large {what} at the same time: come again")
