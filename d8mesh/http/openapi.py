"""The document that describes all calls (OpenAPI 3.1), made from the routes themselves.

Paths, methods and bounds are the routes'; bodies, queries and answers the types that `AboutCall`
names; errors the form of each door. So it says what is served, and nothing else.

Source: OpenAPI Specification 3.1.1; JSON Schema 2020-12
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct

from d8mesh.http.answers import JSON
from d8mesh.http.described import EVENTS, LINES, PLAIN_TEXT, AboutCall, HttpReply
from d8mesh.http.routes import Door, HttpRoute

OPENAPI_VERSION: Final = "3.1.1"
_REFERENCE: Final = "#/components/schemas/{name}"
_RULE_VARIABLE: Final = re.compile(r"<(?:(?P<kind>\w+):)?(?P<name>\w+)>")
#: The two ways to show a key or a token; none is needed where the orchestrator asks for none.
_SECURITY: Final[dict[str, Any]] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
_BYTES_SCHEMA: Final = {"type": "string", "format": "binary"}
_TEXT_SCHEMA: Final = {"type": "string"}
#: What errors are told for, whatever the call.
_ERROR_RANGES: Final = {
    "4XX": "The request is refused: nothing has changed.",
    "5XX": "It could not be done, or not now.",
}


def document(doors: Sequence[Door], *, title: str, version: str) -> dict[str, Any]:
    """Return the document.

    Args:
        doors: in the order in which the application asks them.
        title: of the whole.
        version: of the program.
    """
    schemas = _Schemas(doors)
    paths: dict[str, dict[str, Any]] = {}
    for door in doors:
        for route in door.routes:
            methods = paths.setdefault(path_of(route.rule), {})
            methods.setdefault(route.method.lower(), _operation(door, route, schemas))
    return {
        "openapi": OPENAPI_VERSION,
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {"schemas": schemas.components, "securitySchemes": _SECURITY},
        "security": [{}, *({name: []} for name in _SECURITY)],
    }


def path_of(rule: str) -> str:
    """Return a rule of Werkzeug's as a path of OpenAPI's."""
    return _RULE_VARIABLE.sub(r"{\g<name>}", rule)


def described(route: HttpRoute) -> AboutCall:
    """Return what is said of a route; of one of which nothing is said, that it answers."""
    return route.described or AboutCall(what="", answers=(HttpReply(200, None, ""),))


class _Schemas:
    """The schemas of all types, each once."""

    def __init__(self, doors: Sequence[Door]) -> None:
        kinds = list(_kinds(doors))
        told, self.components = msgspec.json.schema_components(kinds, ref_template=_REFERENCE)
        self._schemas = {repr(kind): schema for kind, schema in zip(kinds, told, strict=True)}

    def of(self, kind: object) -> dict[str, Any]:
        """Return the schema of a type: mostly a reference to it."""
        return self._schemas[repr(kind)]


def _kinds(doors: Sequence[Door]) -> Iterator[object]:
    for door in doors:
        yield door.problem_kind
        for route in door.routes:
            told = described(route)
            yield from (each.kind for each in told.answers if each.kind is not None)
            if told.body is not None:
                yield told.body
            if told.query is not None:
                yield from (each.type for each in _parameters(told.query))


def _parameters(query: type) -> tuple[msgspec.structs.FieldInfo, ...]:
    assert issubclass(query, Struct)
    return msgspec.structs.fields(query)


def _operation(door: Door, route: HttpRoute, schemas: _Schemas) -> dict[str, Any]:
    told = described(route)
    words = re.findall(r"\w+", route.rule)
    operation: dict[str, Any] = {
        "operationId": "_".join((route.method.lower(), *words)),
        "summary": told.what,
        "parameters": [*_in_path(route), *_in_query(told, schemas), *_in_head(told)],
        "responses": _responses(door, told, schemas),
    }
    if route.method != "GET" and (told.body is not None or told.media):
        media = told.media or route.takes or JSON
        schema = _BYTES_SCHEMA if told.body is None else schemas.of(told.body)
        operation["requestBody"] = {
            "required": not told.may_be_empty,
            "content": {media: {"schema": schema}},
        }
    return operation


def _in_path(route: HttpRoute) -> Iterator[dict[str, Any]]:
    for found in _RULE_VARIABLE.finditer(route.rule):
        schema: dict[str, Any] = {"type": "string", "minLength": 1}
        parameter = {"name": found["name"], "in": "path", "required": True, "schema": schema}
        if found["kind"] == "path":
            parameter["description"] = "May have slashes."
        yield parameter


def _in_query(told: AboutCall, schemas: _Schemas) -> Iterator[dict[str, Any]]:
    for field in () if told.query is None else _parameters(told.query):
        schema = dict(schemas.of(field.type))
        if field.default is not msgspec.NODEFAULT and field.default is not UNSET:
            schema["default"] = field.default
        yield {"name": field.encode_name, "in": "query", "required": False, "schema": schema}


def _in_head(told: AboutCall) -> Iterator[dict[str, Any]]:
    for name, what in (told.headers or {}).items():
        schema = {"type": "string"}
        yield {"name": name, "in": "header", "description": what, "schema": schema}


def _responses(door: Door, told: AboutCall, schemas: _Schemas) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for each in told.answers:
        response = responses.setdefault(str(each.status), {"description": "Done."})
        if each.media:
            content = response.setdefault("content", {})
            content[each.media] = {"schema": _answer_schema(each, schemas)}
    problem = {JSON: {"schema": schemas.of(door.problem_kind)}}
    for statuses, what in _ERROR_RANGES.items():
        responses[statuses] = {"description": what, "content": problem}
    return responses


def _answer_schema(answered: HttpReply, schemas: _Schemas) -> dict[str, Any]:
    if answered.media in (PLAIN_TEXT, EVENTS, LINES):
        return _TEXT_SCHEMA
    if answered.media == JSON:
        return {} if answered.kind is None else schemas.of(answered.kind)
    return _BYTES_SCHEMA
