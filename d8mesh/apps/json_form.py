"""Whether a JSON value has the form that a JSON schema tells: the part that people write by hand.

A schema with a word that is not known here is refused before anything is compared with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

#: Schemas inside each other; deeper ones are a mistake.
MAX_SCHEMA_DEPTH: Final = 32
_JSON_KINDS: Final[dict[str, Callable[[Any], bool]]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: (
        not isinstance(value, bool)
        and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))
    ),
}
#: Words that say nothing about the value.
_NOTES: Final = frozenset({"$schema", "title", "description", "default", "examples"})
_BOUNDS: Final[dict[str, tuple[str, Callable[[Any, Any], bool]]]] = {
    "minimum": ("number", lambda value, bound: value >= bound),
    "maximum": ("number", lambda value, bound: value <= bound),
    "exclusiveMinimum": ("number", lambda value, bound: value > bound),
    "exclusiveMaximum": ("number", lambda value, bound: value < bound),
    "minLength": ("string", lambda value, bound: len(value) >= bound),
    "maxLength": ("string", lambda value, bound: len(value) <= bound),
    "minItems": ("array", lambda value, bound: len(value) >= bound),
    "maxItems": ("array", lambda value, bound: len(value) <= bound),
}
_WORDS: Final = frozenset(
    {"type", "enum", "const", "properties", "required", "additionalProperties", "items", "pattern",
     *_BOUNDS, *_NOTES}
)  # fmt: skip


def schema_fault(schema: object, path: str = "", depth: int = 0) -> str:
    """Return why `schema` can't be used; "" if it can."""
    where = path or "the schema"
    if not isinstance(schema, Mapping):
        return f"{where}: expected an object"
    if depth > MAX_SCHEMA_DEPTH:
        return f"{where}: nested deeper than {MAX_SCHEMA_DEPTH}"
    if unknown := sorted(set(schema) - _WORDS):
        return f"{where}: {', '.join(unknown)} is not known here"
    kinds = _listed(schema.get("type", []))
    if not all(isinstance(kind, str) and kind in _JSON_KINDS for kind in kinds):
        return f"{where}: type: expected of {', '.join(_JSON_KINDS)}"
    for name, (_, _compare) in _BOUNDS.items():
        if name in schema and not _JSON_KINDS["number"](schema[name]):
            return f"{where}: {name}: expected a number"
    if not isinstance(schema.get("enum", []), list):
        return f"{where}: enum: expected a list"
    names = schema.get("required", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return f"{where}: required: expected a list of names"
    return _pattern_fault(schema, where) or _inner_fault(schema, path, depth)


def _pattern_fault(schema: Mapping[str, Any], where: str) -> str:
    if "pattern" not in schema:
        return ""
    try:
        re.compile(schema["pattern"])
    except (re.error, TypeError) as error:
        return f"{where}: pattern: {error}"
    return ""


def _inner_fault(schema: Mapping[str, Any], path: str, depth: int) -> str:
    properties = schema.get("properties", {})
    if not isinstance(properties, Mapping):
        return f"{path or 'the schema'}: properties: expected an object"
    inner = {f"{path}.{name}": value for name, value in properties.items()}
    if "items" in schema:
        inner[f"{path}[]"] = schema["items"]
    if not isinstance(schema.get("additionalProperties", True), bool):
        inner[f"{path}.*"] = schema["additionalProperties"]
    faults = (schema_fault(each, name, depth + 1) for name, each in inner.items())
    return next((fault for fault in faults if fault), "")


def misfit(value: object, schema: Mapping[str, Any], path: str = "") -> str:
    """Return where `value` has not the form of a faultless `schema`; "" if it has."""
    where = path or "the value"
    kinds = _listed(schema.get("type", []))
    if kinds and not any(_JSON_KINDS[kind](value) for kind in kinds):
        return f"{where} is not of the type {' or '.join(kinds)}"
    if "enum" in schema and not any(_is_same(value, each) for each in schema["enum"]):
        return f"{where} is none of those that it may be"
    if "const" in schema and not _is_same(value, schema["const"]):
        return f"{where} is not {schema['const']!r}"
    for name, (kind, is_within) in _BOUNDS.items():
        if name in schema and _JSON_KINDS[kind](value) and not is_within(value, schema[name]):
            return f"{where}: {name} is {schema[name]}"
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        return f"{where} does not match {schema['pattern']}"
    return _inner_misfit(value, schema, path)


def _inner_misfit(value: object, schema: Mapping[str, Any], path: str) -> str:
    if isinstance(value, dict):
        known: Mapping[str, Any] = schema.get("properties", {})
        for name in schema.get("required", []):
            if name not in value:
                return f"{path or 'the value'} has no {name}"
        others = schema.get("additionalProperties", True)
        for name, inner in value.items():
            form = known.get(name, others)
            if form is False:
                return f"{path or 'the value'} has {name}, which it must not"
            if form is not True and (fault := misfit(inner, form, f"{path}.{name}")):
                return fault
    if isinstance(value, list) and "items" in schema:
        for index, inner in enumerate(value):
            if fault := misfit(inner, schema["items"], f"{path}[{index}]"):
                return fault
    return ""


def _is_same(one: object, two: object) -> bool:
    """Compare as JSON does: true is not 1."""
    return one == two and isinstance(one, bool) == isinstance(two, bool)


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]
