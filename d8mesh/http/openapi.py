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
#: Of a call: an access token with any of these scopes may call it.
SCOPES_FIELD: Final = "x-d8-scopes"
_REFERENCE: Final = "#/components/schemas/{name}"
_RULE_VARIABLE: Final = re.compile(r"<(?:(?P<kind>\w+):)?(?P<name>\w+)>")
#: The two ways to show a key or a token; none is needed where the orchestrator asks for none.
_SECURITY: Final[dict[str, Any]] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
_BYTES_SCHEMA: Final = {"type": "string", "format": "binary"}
_TEXT_SCHEMA: Final = {"type": "string"}
_NULL: Final = {"type": "null"}
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
        for door in doors:
            for each in map(described, door.routes):
                if each.takes_nulls:
                    self._allow_nulls(self.of(each.body), set())

    def of(self, kind: object) -> dict[str, Any]:
        """Return the schema of a type: mostly a reference to it."""
        return self._schemas[repr(kind)]

    def _allow_nulls(self, schema: dict[str, Any], seen: set[str]) -> None:
        """Let fields that may be left out be null, in a type and in those that it is made of."""
        name = _name_in(schema)
        if name is None or name in seen:
            return
        seen.add(name)
        component = self.components[name]
        for field, kind in component.get("properties", {}).items():
            self._allow_nulls(kind.get("items", kind), seen)
            if field not in component.get("required", ()) and _NULL not in kind.get("anyOf", ()):
                component["properties"][field] = {"anyOf": [kind, _NULL]}


def _name_in(schema: dict[str, Any]) -> str | None:
    """Return which component a schema refers to."""
    return str(schema["$ref"]).rpartition("/")[2] if "$ref" in schema else None


def _kinds(doors: Sequence[Door]) -> Iterator[object]:
    for door in doors:
        yield door.problem_kind
        for route in door.routes:
            told = described(route)
            yield from (each.kind for each in told.answers if each.kind is not None)
            yield from told.problem_kinds
            if told.body is not None:
                yield told.body
            if told.query is not None:
                yield from (each.type for each in _parameters(told.query))
            yield from told.headers.values()


def _parameters(query: type) -> tuple[msgspec.structs.FieldInfo, ...]:
    assert issubclass(query, Struct)
    return msgspec.structs.fields(query)


def _operation(door: Door, route: HttpRoute, schemas: _Schemas) -> dict[str, Any]:
    told = described(route)
    words = re.findall(r"\w+", route.rule)
    operation: dict[str, Any] = {
        "operationId": "_".join((route.method.lower(), *words)),
        "summary": told.what,
        "parameters": [*_in_path(route), *_in_query(told, schemas), *_in_head(told, schemas)],
        "responses": _responses(door, told, schemas),
        SCOPES_FIELD: sorted(each.value for each in route.scopes or door.scopes),
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


def _in_head(told: AboutCall, schemas: _Schemas) -> Iterator[dict[str, Any]]:
    for name, kind in told.headers.items():
        yield {"name": name, "in": "header", "required": False, "schema": schemas.of(kind)}


def _responses(door: Door, told: AboutCall, schemas: _Schemas) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for each in told.answers:
        response = responses.setdefault(str(each.status), {"description": "Done."})
        if each.media:
            kinds = response.setdefault("content", {}).setdefault(each.media, [])
            kinds.append(_answer_schema(each, schemas))
    for response in responses.values():
        for media, found in response.get("content", {}).items():
            response["content"][media] = {"schema": _any_of(found)}
    problems = [schemas.of(kind) for kind in (door.problem_kind, *told.problem_kinds)]
    problem = {JSON: {"schema": _any_of(problems)}}
    for statuses, what in _ERROR_RANGES.items():
        responses[statuses] = {"description": what, "content": problem}
    return responses


def _any_of(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _answer_schema(answered: HttpReply, schemas: _Schemas) -> dict[str, Any]:
    if answered.media == EVENTS:
        return {}
    if answered.media in (PLAIN_TEXT, LINES):
        return _TEXT_SCHEMA
    if answered.media == JSON:
        return {} if answered.kind is None else schemas.of(answered.kind)
    return _BYTES_SCHEMA
