"""A value has the form of a schema, or it is said where it has not."""

from __future__ import annotations

from typing import Any

import pytest

from d8mesh.apps.json_form import misfit, schema_fault

CITY = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2, "pattern": "^[A-Z]"},
        "people": {"type": "integer", "minimum": 1, "exclusiveMaximum": 10},
        "kinds": {"type": "array", "items": {"enum": ["port", 1]}, "maxItems": 2},
        "sea": {"type": ["boolean", "null"]},
    },
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({"name": "Rome", "people": 3, "kinds": ["port"], "sea": None}, ""),
        ({"name": "Rome", "people": 3.0}, ""),
        ([], "the value is not of the type object"),
        ({}, "the value has no name"),
        ({"name": "R"}, ".name: minLength is 2"),
        ({"name": "rome"}, ".name does not match ^[A-Z]"),
        ({"name": "Rome", "people": True}, ".people is not of the type integer"),
        ({"name": "Rome", "people": 10}, ".people: exclusiveMaximum is 10"),
        ({"name": "Rome", "kinds": [True]}, ".kinds[0] is none of those that it may be"),
        ({"name": "Rome", "kinds": [1, 1, 1]}, ".kinds: maxItems is 2"),
        ({"name": "Rome", "sea": 0}, ".sea is not of the type boolean or null"),
        ({"name": "Rome", "x": 0}, "the value has x, which it must not"),
    ],
)
def test_a_misfit_is_told_with_its_place(value: Any, fault: str) -> None:
    assert misfit(value, CITY) == fault


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        (CITY, ""),
        ({"oneOf": []}, "the schema: oneOf is not known here"),
        ({"type": "text"}, "the schema: type: expected of"),
        ({"minimum": "1"}, "the schema: minimum: expected a number"),
        ({"enum": 1}, "enum: expected a list"),
        ({"required": "name"}, "required: expected a list of names"),
        ({"pattern": "("}, "pattern: "),
        ({"properties": []}, "properties: expected an object"),
        ({"properties": {"a": {"items": {"not": {}}}}}, ".a[]: not is not known here"),
        ({"additionalProperties": {"x": 1}}, ".*: x is not known here"),
        ([], "the schema: expected an object"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(schema: Any, fault: str) -> None:
    assert fault in schema_fault(schema)
    assert bool(schema_fault(schema)) is bool(fault)


def test_a_schema_without_end_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"items": deep}
    assert "nested deeper" in schema_fault(deep)
