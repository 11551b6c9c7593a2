"""What a door is made of: its routes, the requests that they are given, and how it tells errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

from werkzeug.datastructures import Headers
from werkzeug.sansio.request import Request as SansIoRequest

from d8mesh.core.protocol.access_tokens import ADMIN_ONLY, TokenScope
from d8mesh.errors import D8Error
from d8mesh.http.access import ANYBODY, Access
from d8mesh.http.answers import JSON, Refusal, Response, ToldProblem, problem
from d8mesh.http.asgi import Scope, fields_of
from d8mesh.http.described import AboutCall, AboutCalls
from d8mesh.http.origins import no_origin

#: Largest body where no data or results travel.
SMALL_BODY_BYTES: Final = 1_048_576
#: Largest body of all: a batch of tasks, or a result, at the broker's own limit, in its JSON.
MAX_BODY_BYTES: Final = 41 * 1024 * 1024
_NO_HEADERS: Final = Headers()


class Request(SansIoRequest):
    """One request; `args`, `headers`, `mimetype` and the like are Werkzeug's.

    fields: the headers by lower-case name.
    body: what came with it, whole and within the route's limit.
    value: what the route's schema made of it.
    parts: of a route that is streamed, what comes of the body, in turn.
    access: what the guard lets it do.
    """

    access: Access = ANYBODY
    body: bytes = b""
    received_bytes: int = 0
    value: Any = None
    parts: AsyncIterator[bytes]

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.http_version: str = scope["http_version"]
        self.fields = fields_of(scope)
        client = scope.get("client")
        super().__init__(
            method=scope["method"],
            scheme="http",
            server=None,
            root_path="",
            path=scope["path"],
            query_string=scope["query_string"],
            headers=_NO_HEADERS,
            remote_addr=client[0] if client else "",
        )
        del self.headers  # so that they are made if they are asked for

    @cached_property
    def headers(self) -> Headers:  # type: ignore[override]  # making them is a quarter of the cost
        """The headers as Werkzeug has them; `fields` serves who knows a name in lower case."""
        return Headers(list(self.fields.items()))


@dataclass(frozen=True, slots=True)
class HttpRoute:
    """One call of a door.

    rule: a path as Werkzeug's rules have it, ``/api/tasks/<task_id>/wait``.
    call: ``async def call(request, **values of the rule) -> Response``
    schema: makes of a body what the call finds in `request.value`; it may run on a thread.
    method: GET serves HEAD too.
    on_untaken: ``(request, error, **values of the rule)``; told, before that is answered, when
        the body is refused for what it is.
    takes: the media type of bodies; None: any or none is good.
    decodes: bodies may be compressed (`codings`); else none may.
    is_streamed: the call itself reads the body, `request.parts`, or answers without it; those
        raise a `Refusal` beyond `max_body_bytes`, and EOFError when the caller has left.
    is_light: answers without `Door.before`.
    ends_with_caller: the call is cancelled when its caller leaves, as that of a GET always is;
        else it runs to its end.
    is_for_programs: a GET that changes something: not for browsers.
    scopes: whoever may one of these may call it; None: as the door says.
    asks_always: a key or a token is needed in an open mesh and on this machine, too.
    known_to_all: what whoever is refused for want of a key is told all the same.
    described: what it takes and answers ; None: nobody says.
    """

    rule: str
    call: Callable[..., Awaitable[Response]]
    schema: Callable[[bytes], Any] | None = None
    method: str = "GET"
    on_untaken: Callable[..., Awaitable[None]] | None = None
    takes: str | None = JSON
    decodes: bool = False
    is_streamed: bool = False
    max_body_bytes: int = SMALL_BODY_BYTES
    is_light: bool = False
    ends_with_caller: bool = False
    is_for_programs: bool = False
    scopes: frozenset[TokenScope] | None = None
    asks_always: bool = False
    known_to_all: Callable[[], Awaitable[Mapping[str, object]]] | None = None
    described: AboutCall | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Door:
    """Some routes and how they fail.

    before: awaited before each call that is not light; what it raises is the answer.
    prefixes: paths whose errors are told in this door's form also where there is no such route,
        each with all that is below it; the longest that fits counts.
    origins: whether pages of this origin may use the door, beside our own.
    scopes: of its routes that say nothing else.
    problem_kind: the type of the bodies that `problem` makes.
    """

    routes: Sequence[HttpRoute]
    problem: Callable[[D8Error | Refusal], Response] = problem
    before: Callable[[Request], Awaitable[None]] | None = None
    prefixes: Sequence[str] = ()
    origins: Callable[[str], bool] = no_origin
    scopes: frozenset[TokenScope] = ADMIN_ONLY
    problem_kind: type = ToldProblem


def called(route: HttpRoute) -> str:
    """Return what a route is called in `AboutCalls`."""
    return f"{route.method} {route.rule}"


def with_descriptions(routes: Iterable[HttpRoute], told: AboutCalls) -> list[HttpRoute]:
    """Return the routes, each with what is said of it."""
    return [replace(route, described=told.get(called(route))) for route in routes]
