"""Fields are read as what they must be; the rest is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from d8mesh.doors.openai.fields import RequestFields
from d8mesh.errors import InvalidTaskError


def test_what_nobody_read_has_no_effect_and_is_named() -> None:
    fields = RequestFields({"model": "m", "store": True, "metadata": {"a": 1}, "user": None})
    assert fields.required_text("model") == "m"
    assert fields.unread() == ("metadata", "store")


def test_what_asks_for_nothing_is_not_named() -> None:
    assert RequestFields({"store": False, "metadata": {}, "logit_bias": None}).unread() == ()


def test_null_counts_as_absent() -> None:
    fields = RequestFields(dict.fromkeys("abcdef"))
    assert [fields.text("a"), fields.switch("b"), fields.whole("c"), fields.mapping("d")] == [
        None
    ] * 4
    assert fields.rows("e") is None
    assert fields.number("f", low=0, high=1) is None


@pytest.mark.parametrize(
    ("read", "value", "told"),
    [
        (lambda f: f.text("x"), 5, "a.x: expected a text"),
        (lambda f: f.required_text("x"), "", "a.x: expected a text that is not empty"),
        (lambda f: f.required_text("x"), None, "Missing field: a.x"),
        (lambda f: f.switch("x"), "true", "a.x: expected true or false"),
        (lambda f: f.whole("x"), 1.5, "a.x: expected a whole number"),
        (lambda f: f.whole("x"), True, "a.x: expected a whole number"),
        (lambda f: f.whole("x", low=1, high=3), 4, "a.x: expected a whole number from 1 to 3"),
        (lambda f: f.number("x", low=0, high=2), "0.7", "a.x: expected a number from 0 to 2"),
        (lambda f: f.number("x", low=0, high=2), 3, "a.x: expected a number from 0 to 2"),
        (lambda f: f.mapping("x"), [], "a.x: expected an object"),
        (lambda f: f.rows("x"), {}, "a.x: expected a list"),
        (lambda f: f.refuse({"x": "it cannot be done"}), {"y": 1}, "a.x: it cannot be done"),
    ],
)
def test_what_is_wrong_names_its_field_first(
    read: Callable[[RequestFields], object], value: Any, told: str
) -> None:
    with pytest.raises(InvalidTaskError) as raised:
        read(RequestFields({"x": value}, "a."))
    assert str(raised.value) == told


def test_a_large_seed_keeps_all_its_digits() -> None:
    assert RequestFields({"seed": 2**63 + 1}).whole("seed") == 2**63 + 1
    assert RequestFields({"n": 3.0}).whole("n") == 3


@pytest.mark.parametrize("body", [[], "text", 5, None])
def test_a_body_that_is_no_object_is_refused(body: object) -> None:
    with pytest.raises(InvalidTaskError, match="the body: expected an object"):
        RequestFields(body)
