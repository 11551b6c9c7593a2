"""Routes are rows: what they leave out is what most have."""

from __future__ import annotations

from d8mesh.http.answers import Response, answer, problem
from d8mesh.http.request import Request
from d8mesh.http.routes import MAX_BODY_BYTES, SMALL_BODY_BYTES, Door, HttpRoute


async def call(request: Request) -> Response:
    return answer({})


def test_a_route_takes_small_json_and_a_door_tells_errors_as_json() -> None:
    route = HttpRoute(rule="/", call=call)
    assert (route.method, route.takes, route.schema) == ("GET", "application/json", None)
    assert route.max_body_bytes == SMALL_BODY_BYTES < MAX_BODY_BYTES
    assert Door(name="d", routes=[route]).problem is problem
