"""JSON's model, checked where values come in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d8mesh.core.json_model import MAX_DEPTH, MAX_INT, MIN_INT, check_json, error_as_text
from d8mesh.errors import InvalidTaskError

PLAIN = st.none() | st.booleans() | st.text() | st.integers(MIN_INT, MAX_INT)
NUMBERS = PLAIN | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    NUMBERS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)
LOOP: list[object] = []
LOOP.append(LOOP)


@given(VALUES)
def test_what_json_has_is_taken(value: object) -> None:
    check_json(value, "data")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": float("nan")}, r"data\.a: nan"),
        ({"a": [1, float("inf")]}, r"data\.a: inf"),
        ({5: 1}, "key of type int"),
        ({"a": b"x"}, r"data\.a: saw bytes"),
        ({"a": {1, 2}}, "saw set"),
        ([2**64], "beyond 64 bits"),
        ([-(2**63) - 1], "beyond 64 bits"),
        ({"a": {"b": {"c": object()}}}, r"data\.a\.b\.c: saw object"),
    ],
)
def test_what_json_has_not_is_refused_with_its_path(value: object, said: str) -> None:
    with pytest.raises(InvalidTaskError, match=said):
        check_json(value, "data")


def test_nesting_is_bounded() -> None:
    value: object = 1.0
    for _ in range(MAX_DEPTH + 2):
        value = [value]
    with pytest.raises(InvalidTaskError, match="nested deeper"):
        check_json(value, "data")
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(InvalidTaskError):
        check_json(loop, "data")


def test_subclasses_of_plain_kinds_are_plain() -> None:
    class Text(str):
        __slots__ = ()

    check_json({"a": Text("x"), "b": (1, 2)}, "data")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (None, ""),
        ("", ""),
        ("why", "why"),
        (5, "5"),
        (False, "false"),
        ({"code": [1]}, '{"code":[1]}'),
        ("\ud800", "\ud800"),
        (2**70, str(2**70)),
        (LOOP, "list that cannot be shown"),
    ],
)
def test_an_error_is_told_as_text_whatever_it_is(error: object, text: str) -> None:
    assert error_as_text(error) == text
