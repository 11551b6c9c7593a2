"""From a request to an answer: who may ask, what is matched, read, called, and how it fails."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

import pytest

from d8mesh.core.protocol.access_tokens import ALL_SCOPES, RateLimit, TokenScope
from d8mesh.errors import D8Error, InvalidTaskError, UnknownTaskError
from d8mesh.http import application as module
from d8mesh.http.access import KnownTokens
from d8mesh.http.answers import Refusal, Response, answer
from d8mesh.http.application import Application
from d8mesh.http.asgi import SINK, AsgiMessage
from d8mesh.http.guard import Guard, Rejections
from d8mesh.http.origins import Origins
from d8mesh.http.proxies import TrustedProxies
from d8mesh.http.routes import Door, HttpRoute, Request
from d8mesh.http.strict import parse_json
from tests.http.calls import Answer, call, scope_of
from tests.http.tokens import token_of

_T = TypeVar("_T")
LIMIT = 1000


class Rooms:
    """An application with two doors, and what its calls saw."""

    def __init__(
        self,
        key: str | None = None,
        tokens: KnownTokens | None = None,
        proxies: Sequence[str] = (),
    ) -> None:
        self.untaken: list[tuple[bytes, str]] = []
        self.asked_before = 0
        self.is_waiting = False
        self.rejections = Rejections()
        rest = Door(
            before=self.before,
            routes=[
                HttpRoute(
                    rule="/health",
                    call=self.hello,
                    is_light=True,
                    scopes=ALL_SCOPES,
                    known_to_all=self.known,
                ),
                HttpRoute(rule="/things/<thing>", call=self.thing),
                HttpRoute(
                    rule="/things",
                    call=self.take,
                    method="POST",
                    schema=parse_json,
                    on_untaken=self.not_taken,
                    max_body_bytes=LIMIT,
                ),
                HttpRoute(rule="/poll", call=self.hello, is_for_programs=True),
                HttpRoute(rule="/until-ended", call=self.wait),
                HttpRoute(rule="/answer", call=self.large),
                HttpRoute(rule="/large", call=self.size, method="POST", max_body_bytes=5_000_000),
                HttpRoute(rule="/until-left", call=self.size, method="POST", ends_with_caller=True),
                HttpRoute(rule="/raw", call=self.size, method="POST", takes="application/x-raw"),
            ],
        )
        post = partial(HttpRoute, method="POST", takes=None, max_body_bytes=LIMIT)
        other = Door(
            problem=lambda error: Response(b"no: " + error.code.encode(), 418),
            prefixes=("/other", "/things/other"),
            origins=Origins(),
            routes=[
                HttpRoute(rule="/other", call=self.fail),
                HttpRoute(rule="/other/hello", call=self.hello),
                HttpRoute(rule="/other/empty", call=self.empty),
                post(rule="/other/any", call=self.size),
                post(rule="/other/any", call=self.size, method="DELETE"),
                post(rule="/other/packed", call=self.size, decodes=True),
                post(rule="/other/parts", call=self.in_parts, is_streamed=True),
                post(rule="/other/unread", call=self.fail, is_streamed=True),
            ],
        )
        keys = [] if key is None else [key]
        guard = Guard(keys=keys, tokens=tokens)
        self.application = Application(
            [rest, other], guard, self.rejections, TrustedProxies(proxies)
        )

    async def wait(self, request: Request) -> Response:
        self.is_waiting = True
        await asyncio.Event().wait()
        raise AssertionError

    async def known(self) -> dict[str, object]:
        return {"mesh": "d8"}

    async def before(self, request: Request) -> None:
        self.asked_before += 1

    async def not_taken(self, request: Request, error: D8Error | Refusal) -> None:
        self.untaken.append((request.body, error.code))

    async def hello(self, request: Request) -> Response:
        return answer({"hello": request.args.get("name", "")})

    async def thing(self, request: Request, thing: str) -> Response:
        if thing == "broken":
            raise RuntimeError("secret detail")
        if thing == "none":
            raise UnknownTaskError
        return answer({"thing": thing})

    async def take(self, request: Request) -> Response:
        if request.value == {"bad": True}:
            raise InvalidTaskError("not by the schema")
        return answer({"took": request.value}, 201)

    async def large(self, request: Request) -> Response:
        return Response(b"x" * 3_000_000)

    async def size(self, request: Request) -> Response:
        return answer({"bytes": len(request.body)})

    async def empty(self, request: Request) -> Response:
        return Response(b"", 204, headers={"X-Request-Id": "7"})

    async def in_parts(self, request: Request) -> Response:
        return answer({"parts": [len(part) async for part in request.parts]})

    async def fail(self, request: Request) -> Response:
        raise UnknownTaskError

    def call(self, method: str, path: str, **more: Any) -> Answer:
        return run(call(self.application, method, path, **more))


def run(work: Coroutine[Any, Any, _T]) -> _T:
    return asyncio.run(work)


@pytest.fixture
def rooms() -> Rooms:
    return Rooms()


def test_a_call_is_given_its_values_and_the_query(rooms: Rooms) -> None:
    assert rooms.call("GET", "/things/a%20b").json == {"thing": "a b"}
    assert rooms.call("GET", "/health?name=%C3%B1").json == {"hello": "ñ"}


def test_only_what_is_not_light_waits_for_what_comes_before(rooms: Rooms) -> None:
    rooms.call("GET", "/health")
    assert rooms.asked_before == 0
    rooms.call("GET", "/things/x")
    assert rooms.asked_before == 1


def test_the_guard_stands_before_every_path(rooms: Rooms) -> None:
    for path in ("/health", "/nothing"):
        refused = rooms.call("GET", path, headers={"Host": "evil.com"})
        assert (refused.status_code, refused.json["code"]) == (403, "http.host")
    assert rooms.call("GET", "/health", peer="8.8.8.8").status_code == 403
    assert rooms.rejections.counts() == {"http.host": 2, "http.peer": 1}


def test_a_trusted_proxy_asks_for_whom_it_says_and_nobody_else_does() -> None:
    """Bad input 16."""
    rooms = Rooms("a-key-of-a-mesh", proxies=["127.0.0.1"])
    told = {"X-Forwarded-For": "10.1.1.1", "X-Forwarded-Host": "127.0.0.1:7001"}
    asked = {"Host": "127.0.0.1", **told}
    shown = {"Authorization": "Bearer a-key-of-a-mesh"}
    assert rooms.call("GET", "/health", headers=asked).status_code == 401
    assert rooms.call("GET", "/health", headers=asked | shown).status_code == 200
    public = asked | shown | {"X-Forwarded-For": "10.1.1.1, 8.8.8.8"}
    assert rooms.call("GET", "/health", headers=public).json["code"] == "http.peer"
    host = asked | shown | {"X-Forwarded-Host": "evil.example"}
    assert rooms.call("GET", "/health", headers=host).json["code"] == "http.host"
    rebound = asked | shown | {"Host": "evil.example"}  # a proxy tells what it was told
    assert rooms.call("GET", "/health", headers=rebound).json["code"] == "http.host"
    # through the proxy, as if from this machine; past the proxy, as if through it
    near = told | {"X-Forwarded-For": "127.0.0.1"}
    assert rooms.call("GET", "/health", headers=near).status_code == 401
    for headers in (told, near, {"X-Real-IP": "127.0.0.1"}):
        past = rooms.call("GET", "/health", headers=headers, peer="10.1.1.9")
        assert past.json["code"] == "access.token"
    past = rooms.call("GET", "/health", headers=rebound, peer="10.1.1.9")
    assert past.json["code"] == "http.host"
    assert rooms.call("GET", "/health").status_code == 200


def test_what_is_not_there_is_a_404_and_what_may_not_be_asked_so_a_405(rooms: Rooms) -> None:
    assert rooms.call("GET", "/nothing").json["code"] == "http.not_found"
    refused = rooms.call("DELETE", "/things")
    assert (refused.status_code, refused.headers["Allow"]) == (405, "POST")
    assert rooms.call("POST", "/health").headers["Allow"] == "GET, HEAD"
    assert rooms.call("GET", "/" + "x" * 5000).status_code == 414
    assert rooms.call("GET", "/health?" + "x" * 5000).status_code == 414


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/ask", "/v1/ask"),
        ("/v1/v1/ask", "/v1/ask"),
        ("/v1/api/tags", "/api/tags"),
        ("/api/v1/ask", "/v1/ask"),
        ("/a/b/v1/ask", "/v1/ask"),
        ("/tags", "/api/tags"),
    ],
)
def test_a_base_url_that_is_wrong_is_told_with_what_is_meant_by_its_door(
    path: str, meant: str
) -> None:
    async def called(request: Request) -> Response:
        return answer({})

    first = Door(routes=[HttpRoute("/health", called)])
    asked = Door(
        routes=[HttpRoute("/v1/ask", called, method="POST"), HttpRoute("/api/tags", called)],
        problem=lambda error: answer({"told": str(error)}, 404),
        prefixes=("/v1", "/api/tags"),
    )
    application = Application([first, asked], Guard(), Rejections())
    expected = f"there is nothing at {path}: expected {meant}; is the base URL right?"
    for method in ("GET", "POST"):
        assert run(call(application, method, path)).json == {"told": expected}
    assert "expected" not in run(call(application, "GET", "/asks")).json["error"]


def test_nothing_that_is_answered_may_be_stored_on_the_way(rooms: Rooms) -> None:
    for path in ("/health", "/nothing"):
        headers = rooms.call("GET", path).headers
        assert (headers["Cache-Control"], headers["X-Accel-Buffering"]) == ("no-store", "no")


def test_a_head_is_answered_where_a_get_is(rooms: Rooms) -> None:
    found = rooms.call("HEAD", "/health")
    assert (found.status_code, found.data) == (200, b"")
    assert int(found.headers["Content-Length"]) > 0


def test_an_error_is_told_in_the_form_of_its_door(rooms: Rooms) -> None:
    assert rooms.call("GET", "/things/none").json["code"] == "task.unknown"
    other = rooms.call("GET", "/other")
    assert (other.status_code, other.data) == (418, b"no: task.unknown")


@pytest.mark.parametrize(
    ("method", "path", "headers", "code"),
    [
        ("GET", "/other/nothing", {}, "http.not_found"),
        ("GET", "/things/other/nothing/there", {}, "http.not_found"),
        ("PUT", "/other/hello", {}, "http.method"),
        ("OPTIONS", "/other/hello", {}, "http.method"),
        ("GET", "/other/" + "x" * 5000, {}, "http.url_too_long"),
        ("GET", "/other/hello", {"Host": "evil.com"}, "http.host"),
        ("GET", "/other/hello", {"Host": "a b"}, "http.bad_request"),
        ("GET", "/other/hello", {"Origin": "http://evil.com"}, "http.origin"),
        ("OPTIONS", "/other/hello", {"Origin": "http://evil.com"}, "http.origin"),
        ("POST", "/other/any", {"Content-Length": "9999"}, "http.too_large"),
    ],
)
def test_what_is_refused_below_a_doors_prefixes_is_told_in_its_form(
    rooms: Rooms, method: str, path: str, headers: dict[str, str], code: str
) -> None:
    found = rooms.call(method, path, headers=headers)
    assert (found.status_code, found.data) == (418, f"no: {code}".encode())
    assert rooms.rejections.counts() == {code: 1}


@pytest.mark.parametrize("path", ["/others", "/things/others/x", "/", "", "/thing/other"])
def test_what_is_below_no_prefix_is_told_as_the_first_door_does(rooms: Rooms, path: str) -> None:
    assert rooms.call("GET", path).json["code"] == "http.not_found"


def test_the_key_is_asked_for_in_the_doors_form() -> None:
    rooms = Rooms(key="0123456789abcdef")
    far = {"peer": "192.168.1.9"}
    assert rooms.call("GET", "/other/hello", **far).data == b"no: access.token"
    assert rooms.call("GET", "/other/nothing", **far).data == b"no: access.token"
    headers = {"x-api-key": "0123456789abcdef"}
    assert rooms.call("GET", "/other/hello", headers=headers, **far).status_code == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/things", "/things/a", "/nothing", "/large", "/poll"])
def test_nothing_is_told_before_the_key_is_shown(method: str, path: str) -> None:
    rooms = Rooms(key="0123456789abcdef")
    found = rooms.call(method, path, peer="192.168.1.9")
    assert found.status_code == 401
    assert found.headers["WWW-Authenticate"] == "Bearer"
    assert "Allow" not in found.headers
    assert rooms.asked_before == 0


def test_who_is_refused_is_told_what_a_route_tells_everybody() -> None:
    rooms = Rooms(key="0123456789abcdef")
    told = rooms.call("GET", "/health", peer="192.168.1.9")
    assert told.status_code == 401
    assert told.json["mesh"] == "d8"
    assert told.json["code"] == "access.token"
    assert "mesh" not in rooms.call("GET", "/poll", peer="192.168.1.9").json
    assert "mesh" not in rooms.call("POST", "/health", peer="192.168.1.9").json


def with_token(*scopes: TokenScope, **more: Any) -> tuple[Rooms, dict[str, Any]]:
    """Return an application that knows a token, and what a call that shows it has."""
    tokens = KnownTokens([token_of("alice", *scopes, **more)])
    rooms = Rooms(tokens=tokens)
    return rooms, {"headers": {"Authorization": "Bearer alice"}, "peer": "192.168.1.9"}


def test_a_token_opens_the_routes_that_it_is_for() -> None:
    rooms, shown = with_token(TokenScope.CHAT)
    assert rooms.call("GET", "/health", **shown).status_code == 200
    refused = rooms.call("GET", "/things/a", **shown)
    assert (refused.status_code, refused.json["code"]) == (403, "access.scope")
    assert rooms.call("GET", "/nothing", **shown).status_code == 404
    rooms, shown = with_token(TokenScope.ADMIN)
    assert rooms.call("GET", "/things/a", **shown).status_code == 200


def test_beyond_its_limit_a_token_is_told_when_to_come_again() -> None:
    rooms, shown = with_token(TokenScope.ADMIN, limit=RateLimit(2, 3600))
    assert rooms.call("GET", "/health", **shown).status_code == 200
    assert rooms.call("GET", "/nothing", **shown).status_code == 404
    refused = rooms.call("GET", "/health", **shown)
    assert (refused.status_code, refused.json["code"]) == (429, "access.limit")
    assert int(refused.headers["Retry-After"]) in (3599, 3600)


def test_what_is_under_way_with_a_token_that_ends_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rooms, shown = with_token(TokenScope.ADMIN)
    ended: list[str] = []

    class Sink:
        def abort(self) -> None:
            ended.append("aborted")

    async def program() -> None:
        scope = scope_of("GET", "/until-ended", **shown)
        scope[SINK] = Sink()
        calling = asyncio.create_task(rooms.application(scope, waiting, nowhere))
        while not rooms.is_waiting:
            await asyncio.sleep(0)
        monkeypatch.setattr(module, "TOKEN_END_S", 0.0)
        rooms.application.end_token("somebody else's")
        await asyncio.sleep(0.01)
        assert ended == []
        rooms.application.end_token(token_of("alice").id)
        while not ended:
            await asyncio.sleep(0)
        calling.cancel()  # as the server does when a connection is lost
        await asyncio.gather(calling, return_exceptions=True)
        rooms.application.end_token(token_of("alice").id)
        await asyncio.sleep(0.01)
        assert ended == ["aborted"]

    asyncio.run(program())


async def waiting() -> AsgiMessage:
    await asyncio.Event().wait()
    raise AssertionError


async def nowhere(message: AsgiMessage) -> None:
    pass


PAGE = {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"}
PREFLIGHT = PAGE | {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type,x-d8-priority",
}


def test_a_page_that_may_use_a_door_is_shown_its_answers_and_its_errors(rooms: Rooms) -> None:
    for method, path in (("GET", "/other/hello"), ("GET", "/other"), ("GET", "/other/nothing")):
        found = rooms.call(method, path, headers=PAGE)
        assert found.headers["Access-Control-Allow-Origin"] == PAGE["Origin"]
        assert found.headers["Vary"] == "Origin"
    assert "Access-Control-Allow-Origin" not in rooms.call("GET", "/other/hello").headers


def test_a_page_that_asks_first_is_told_what_it_may_whatever_it_asks_for() -> None:
    rooms = Rooms(key="0123456789abcdef")  # which no browser shows with a preflight
    for path in ("/other/any", "/other/nothing"):
        found = rooms.call("OPTIONS", path, headers=PREFLIGHT, peer="192.168.1.9")
        assert (found.status_code, found.data) == (204, b"")
        assert found.headers["Access-Control-Allow-Origin"] == PAGE["Origin"]
        assert found.headers["Access-Control-Allow-Headers"] == "content-type,x-d8-priority"
        assert "Content-Length" not in found.headers
    told = rooms.call("POST", "/other/any", headers=PAGE, peer="192.168.1.9")
    assert told.data == b"no: access.token"
    assert told.headers["Access-Control-Allow-Origin"] == PAGE["Origin"]


@pytest.mark.parametrize("origin", ["http://evil.com", "null"])
def test_no_other_page_is_told_anything(rooms: Rooms, origin: str) -> None:
    for path in ("/other/any", "/things", "/nothing"):
        found = rooms.call("OPTIONS", path, headers=PREFLIGHT | {"Origin": origin})
        assert found.status_code in (403, 418)
        assert not any(name.startswith("Access-Control") for name, _ in found.headers)


def test_a_door_that_is_for_no_pages_is_for_none_of_this_machine_either(rooms: Rooms) -> None:
    for method, headers in (("OPTIONS", PREFLIGHT), ("POST", PAGE), ("GET", PAGE)):
        found = rooms.call(method, "/things", headers=headers)
        assert (found.status_code, found.json["code"]) == (403, "http.origin")
        assert "Access-Control-Allow-Origin" not in found.headers


def test_what_a_get_changes_no_browser_may_have_changed(rooms: Rooms) -> None:
    for agent in ("python-requests/2.32", "curl/8", ""):
        assert rooms.call("GET", "/poll", headers={"User-Agent": agent}).status_code == 200
    browser = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/140.0"}
    assert rooms.call("GET", "/poll", headers=browser).json["code"] == "http.origin"
    assert rooms.call("GET", "/health", headers=browser).status_code == 200


def test_an_answer_without_a_body_has_no_length_but_its_own_headers(rooms: Rooms) -> None:
    found = rooms.call("GET", "/other/empty")
    assert (found.status_code, found.data, found.headers["X-Request-Id"]) == (204, b"", "7")
    assert "Content-Length" not in found.headers


def test_what_never_became_a_request_is_told_in_the_form_of_its_path(rooms: Rooms) -> None:
    refusal = Refusal("http.headers_too_large", "too large")
    assert rooms.application.refused("/other/any", None, refusal).status == 418
    assert rooms.application.refused("", None, refusal).status == 431
    shown = rooms.application.refused("/other/any", PAGE["Origin"], refusal)
    assert shown.headers["Access-Control-Allow-Origin"] == PAGE["Origin"]


def test_an_error_of_ours_is_told_without_its_traceback(rooms: Rooms) -> None:
    found = rooms.call("GET", "/things/broken")
    assert (found.status_code, found.json["code"]) == (500, "d8.error")
    assert "secret" not in found.text


def test_a_body_is_what_the_schema_makes_of_it(rooms: Rooms) -> None:
    assert rooms.call("POST", "/things", body={"a": [1]}).json == {"took": {"a": [1]}}
    large = {"x": "y" * 900}
    assert rooms.call("POST", "/things", body=large).json == {"took": large}
    assert rooms.untaken == []


def test_a_body_that_is_refused_is_told_to_its_route_first(rooms: Rooms) -> None:
    assert rooms.call("POST", "/things", body=b"{}").json["code"] == "http.media_type"
    headers = {"Content-Type": "application/json"}
    refused = rooms.call("POST", "/things", body=b"{", headers=headers)
    assert refused.json["code"] == "task.invalid"
    assert rooms.untaken == [(b"{}", "http.media_type"), (b"{", "task.invalid")]
    assert rooms.call("POST", "/things", body={"bad": True}).json["code"] == "task.invalid"
    assert len(rooms.untaken) == 2


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, "the body has no Content-Type, expected application/json"),
        ({"Content-Type": "text/plain"}, "the body is 'text/plain', expected application/json"),
        ({"Content-Type": "application/json; charset=latin1"}, "charset is 'latin1'"),
        (
            {"Content-Type": "application/json", "Content-Encoding": "gzip"},
            "Content-Encoding is 'gzip', expected none",
        ),
    ],
)
def test_a_body_in_other_clothes_is_told_what_it_is(
    rooms: Rooms, headers: dict[str, str], said: str
) -> None:
    refused = rooms.call("POST", "/things", body=b"{}", headers=headers)
    assert (refused.status_code, refused.headers["Accept"]) == (415, "application/json")
    assert said in refused.json["error"]


def test_names_of_utf_8_and_of_no_encoding_pass(rooms: Rooms) -> None:
    for charset in ("UTF-8", '"utf-8"', "utf8", "us-ascii"):
        headers = {"Content-Type": f"application/json; charset={charset}"}
        assert rooms.call("POST", "/things", body=b"{}", headers=headers).status_code == 201
    headers = {"Content-Type": "application/json", "Content-Encoding": "identity"}
    assert rooms.call("POST", "/things", body=b"{}", headers=headers).status_code == 201


def test_each_route_takes_its_own_media_type(rooms: Rooms) -> None:
    headers = {"Content-Type": "application/x-raw"}
    assert rooms.call("POST", "/raw", body=b"abc", headers=headers).json == {"bytes": 3}
    assert rooms.call("POST", "/raw", body={}).status_code == 415
    assert rooms.call("POST", "/raw").json == {"bytes": 0}


@pytest.mark.parametrize(
    "kind",
    [None, "application/json", "application/x-www-form-urlencoded", "text/plain", "a; b=\xff"],
)
@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_where_any_media_type_is_taken_a_body_is_a_body(
    rooms: Rooms, method: str, kind: str | None
) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    found = rooms.call(method, "/other/any", body=b"{}", headers=headers)
    assert (found.status_code, found.json) == (200, {"bytes": 2})


def test_a_get_may_say_of_which_type_its_body_would_be(rooms: Rooms) -> None:
    headers = {"Content-Type": "application/json"}
    assert rooms.call("GET", "/other/hello", headers=headers).status_code == 200


def test_a_compressed_body_is_what_it_was_where_a_route_takes_it(rooms: Rooms) -> None:
    headers = {"Content-Encoding": "GZIP", "Content-Type": "application/json"}
    body = gzip.compress(b"x" * LIMIT)
    assert rooms.call("POST", "/other/packed", body=body, headers=headers).json == {"bytes": LIMIT}
    assert rooms.call("POST", "/other/packed", body=b"{}").json == {"bytes": 2}
    more = gzip.compress(b"x" * (LIMIT + 1))
    for path, packed, code in (
        ("/other/packed", more, b"no: http.too_large"),
        ("/other/packed", b"no gzip", b"no: http.bad_request"),
        ("/other/any", body, b"no: http.media_type"),
        ("/other/parts", body, b"no: http.media_type"),
    ):
        assert rooms.call("POST", path, body=packed, headers=headers).data == code
    brotli = rooms.call("POST", "/other/packed", body=b"x", headers={"Content-Encoding": "br"})
    assert brotli.data == b"no: http.media_type"
    assert rooms.application._held_bytes == 0


def pieces(size: int, declared: int | None = None) -> tuple[dict[str, Any], list[AsgiMessage]]:
    fields = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    if declared is not None:
        fields.append((b"content-length", b"%d" % declared))
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/things",
        "query_string": b"",
        "headers": fields,
        "client": ("127.0.0.1", 1),
    }
    parts = [{"type": "http.request", "body": b"x" * 100, "more_body": True}] * (size // 100)
    return scope, [*parts, {"type": "http.disconnect"}]


def sent(
    rooms: Rooms, size: int, declared: int | None = None, path: str = "/things"
) -> tuple[list[AsgiMessage], int]:
    """Send that many bytes and leave; return what was answered, and how much was not read."""
    scope, parts = pieces(size, declared)
    scope["path"] = path
    told: list[AsgiMessage] = []

    async def receive() -> AsgiMessage:
        return parts.pop(0)

    async def send(message: AsgiMessage) -> None:
        told.append(message)

    run(rooms.application(scope, receive, send))
    return told, len(parts)


def test_a_body_over_the_limit_is_not_read(rooms: Rooms) -> None:
    told, unread = sent(rooms, 5000, declared=LIMIT + 1)
    assert (told[0]["status"], unread) == (413, 51)
    told, unread = sent(rooms, 5000)
    assert (told[0]["status"], unread) == (413, 40)
    assert (b"Connection", b"close") in told[0]["headers"]
    assert rooms.untaken == [(b"", "http.too_large")] * 2


def test_a_streamed_body_is_the_calls_to_read_within_the_limit(rooms: Rooms) -> None:
    assert rooms.call("POST", "/other/parts", body=b"abc").json == {"parts": [3]}
    assert rooms.call("POST", "/other/parts").json == {"parts": []}
    told, unread = sent(rooms, 5000, path="/other/parts")
    assert (told[1]["body"], unread) == (b"no: http.too_large", 40)
    assert sent(rooms, 500, path="/other/parts") == ([], 0)  # its caller has left
    told, unread = sent(rooms, 5000, declared=LIMIT + 1, path="/other/parts")
    assert (told[1]["body"], unread) == (b"no: http.too_large", 51)
    told, unread = sent(rooms, 500, path="/other/unread")
    assert (told[1]["body"], unread) == (b"no: task.unknown", 6)


def test_a_body_that_is_cut_off_is_nobodys(rooms: Rooms) -> None:
    assert sent(rooms, 300) == ([], 0)
    assert rooms.untaken == []


def test_bodies_together_are_bounded(rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HELD_BYTES", 200_000)
    headers = {"Content-Type": "application/json"}
    refused = rooms.call("POST", "/large", body=b"x" * 300_000, headers=headers)
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    assert rooms.call("POST", "/large", body=b"x" * 190_000, headers=headers).status_code == 200
    assert rooms.application._held_bytes == 0


@pytest.mark.parametrize(
    ("method", "path", "runs_on"),
    [("GET", "/health", False), ("POST", "/things", True), ("POST", "/until-left", False)],
)
def test_what_changes_something_runs_on_unless_it_says_so(
    rooms: Rooms, method: str, path: str, runs_on: bool
) -> None:
    scope = pieces(0)[0] | {"method": method, "path": path}

    async def receive() -> AsgiMessage:
        return {"type": "http.request"}

    async def send(message: AsgiMessage) -> None:
        pass

    run(rooms.application(scope, receive, send))
    assert scope["d8.runs_on"] is runs_on


def test_large_answers_together_are_bounded(rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(rooms.call("GET", "/answer").data) == 3_000_000
    monkeypatch.setattr(module, "MAX_HELD_BYTES", 2_000_000)
    assert rooms.call("GET", "/answer").status_code == 429
    assert rooms.application._held_bytes == 0
