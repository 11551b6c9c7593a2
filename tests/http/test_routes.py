"""Routes are rows, and requests are what the calls of a door see of one."""

from __future__ import annotations

from typing import Any

from d8mesh.http.answers import Response, answer, problem
from d8mesh.http.routes import MAX_BODY_BYTES, SMALL_BODY_BYTES, Door, HttpRoute, Request


async def call(request: Request) -> Response:
    return answer({})


def test_a_route_takes_small_json_and_a_door_tells_errors_as_json() -> None:
    route = HttpRoute(rule="/", call=call)
    assert (route.method, route.takes, route.schema) == ("GET", "application/json", None)
    assert route.max_body_bytes == SMALL_BODY_BYTES < MAX_BODY_BYTES
    assert Door(routes=[route]).problem is problem


def request(**more: Any) -> Request:
    scope = {
        "http_version": "1.1",
        "method": "GET",
        "path": "/things",
        "query_string": b"",
        "headers": [],
        "client": ("10.0.0.1", 5),
    }
    return Request(scope | more)


def test_it_has_a_caller_a_query_and_headers() -> None:
    asked = request(query_string=b"a=1&b=%C3%B1", headers=[(b"idempotency-key", b"k")])
    assert (asked.remote_addr, asked.method, asked.path) == ("10.0.0.1", "GET", "/things")
    assert (asked.args["a"], asked.args["b"]) == ("1", "ñ")
    assert asked.headers["Idempotency-Key"] == asked.fields["idempotency-key"] == "k"
    assert (asked.body, asked.value) == (b"", None)


def test_a_caller_without_an_address_has_an_empty_one() -> None:
    assert request(client=None).remote_addr == ""
