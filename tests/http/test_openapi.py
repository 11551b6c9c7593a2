"""The document says what routes and their types say."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from d8mesh.http.answers import Response, answer
from d8mesh.http.described import EVENTS, AboutCall, HttpReply
from d8mesh.http.openapi import document, path_of
from d8mesh.http.routes import Door, HttpRoute, Request, with_descriptions


class Thing(Struct):
    """A thing."""

    name: str
    size: Annotated[int, Meta(ge=1)] = 1


class Which(Struct):
    """Which things."""

    limit: Annotated[int, Meta(ge=1, le=9)] = 5


async def call(request: Request, **values: str) -> Response:
    return answer({})


def told(*routes: HttpRoute) -> dict[str, Any]:
    door = Door(routes=routes)
    return document([door], title="things", version="1")


def test_a_call_is_told_with_its_path_its_body_its_query_and_its_answers() -> None:
    post = HttpRoute("/things/<thing_id>", call, method="POST")
    get = HttpRoute("/things/<path:inner>/all", call)
    routes = with_descriptions(
        [post, get],
        {
            "POST /things/<thing_id>": AboutCall(
                what="Make it.", body=Thing, answers=(HttpReply(201, Thing),)
            ),
            "GET /things/<path:inner>/all": AboutCall(
                what="All.",
                query=Which,
                headers={"X-Key": str},
                answers=(HttpReply(200, None, EVENTS),),
            ),
        },
    )
    found = told(*routes)
    made = found["paths"]["/things/{thing_id}"]["post"]
    reference = {"$ref": "#/components/schemas/Thing"}
    assert made["summary"] == "Make it."
    assert [each["name"] for each in made["parameters"]] == ["thing_id"]
    assert made["requestBody"]["content"] == {"application/json": {"schema": reference}}
    assert made["responses"]["201"]["content"]["application/json"]["schema"] == reference
    assert set(made["responses"]) == {"201", "4XX", "5XX"}
    (inner, limit, key) = found["paths"]["/things/{inner}/all"]["get"]["parameters"]
    assert (inner["in"], limit["in"], key["in"]) == ("path", "query", "header")
    assert limit["schema"] == {"type": "integer", "minimum": 1, "maximum": 9, "default": 5}
    assert found["components"]["schemas"]["Thing"]["required"] == ["name"]


def test_a_call_of_which_nothing_is_said_is_told_all_the_same() -> None:
    assert "get" in told(HttpRoute("/x", call))["paths"]["/x"]


def test_errors_are_in_the_form_of_the_door() -> None:
    door = Door(routes=[HttpRoute("/x", call)], problem_kind=Thing)
    found = document([door], title="t", version="1")
    responses = found["paths"]["/x"]["get"]["responses"]
    schema = responses["4XX"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/Thing"}


def test_a_rule_becomes_a_path() -> None:
    assert path_of("/a/<b>/c/<path:d>") == "/a/{b}/c/{d}"
