"""A single value of a task's data is what it must be, or the error names its field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from d8mesh.errors import InvalidTaskError
from d8mesh.handlers.field_values import (
    format_of,
    given,
    is_name,
    keep_alive_of,
    model_name,
    number_of,
    switch_of,
    text_of_field,
    whole_number_of,
)


@pytest.mark.parametrize(
    ("ask", "value", "found"),
    [
        (lambda data: model_name(data["x"]), "hf.co/a/b:Q4", "hf.co/a/b:Q4"),
        (lambda data: model_name(data["x"]), "", None),
        (lambda data: number_of(data, "x", low=0, high=2), 2, 2.0),
        (lambda data: number_of(data, "x", low=0, high=2), None, None),
        (lambda data: whole_number_of(data, "x", low=0, high=9), 3.0, 3),
        (lambda data: switch_of(data, "x"), False, False),
        (lambda data: switch_of(data, "x"), None, None),
        (lambda data: text_of_field(data, "x"), "y", "y"),
        (lambda data: format_of({"format": data["x"]}), "", None),
        (lambda data: format_of({"format": data["x"]}), {"type": "object"}, {"type": "object"}),
        (lambda data: keep_alive_of({"keep_alive": data["x"]}), "1h30m", "1h30m"),
        (lambda data: keep_alive_of({"keep_alive": data["x"]}), -1, -1),
    ],
)
def test_a_value_of_its_kind_is_taken(
    ask: Callable[[dict[str, Any]], object], value: object, found: object
) -> None:
    assert ask({"x": value}) == found


@pytest.mark.parametrize(
    ("ask", "value"),
    [
        (lambda data: model_name(data["x"], "x"), "http://evil/x"),
        (lambda data: model_name(data["x"], "x"), "a\n"),
        (lambda data: number_of(data, "x", low=0, high=2), float("nan")),
        (lambda data: number_of(data, "x", low=0, high=2), True),
        (lambda data: number_of(data, "x", low=0, high=2), 2.1),
        (lambda data: whole_number_of(data, "x", low=0, high=9), 1.5),
        (lambda data: switch_of(data, "x"), 1),
        (lambda data: text_of_field(data, "x"), 1),
    ],
)
def test_a_value_of_another_kind_is_refused_by_its_field(
    ask: Callable[[dict[str, Any]], object], value: object
) -> None:
    with pytest.raises(InvalidTaskError, match=r"^x: expected"):
        ask({"x": value})


def test_what_is_null_is_not_given_and_a_name_has_a_length() -> None:
    assert given({"a": None, "b": 0, "c": False}) == {"b": 0, "c": False}
    assert [is_name(each) for each in ("a", "", "x" * 257, 1)] == [True, False, False, False]
