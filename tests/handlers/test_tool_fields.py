"""What is said of tools, and of the calls that there shall be."""

from __future__ import annotations

from typing import Any

import pytest

from d8mesh.errors import InvalidTaskError
from d8mesh.handlers.tool_fields import tool_fields

ADD: dict[str, Any] = {"type": "function", "function": {"name": "add"}}
THE_ADD = {"type": "function", "function": {"name": "add"}}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"tools": {}}, "tools: expected a list"),
        ({"tools": [{"name": "x"}]}, r"tools\[0\]: expected"),
        ({"tool_choice": "required"}, "tool_choice: there are no tools"),
        ({"tools": [ADD], "tool_choice": "some"}, "tool_choice: expected auto, none, required"),
        ({"tools": [ADD], "tool_choice": {"function": "add"}}, "tool_choice: expected auto"),
        ({"tools": [ADD], "tool_choice": {"function": {"name": "sub"}}}, "no tool 'sub'"),
        ({"tools": [ADD], "parallel_tool_calls": 1}, "parallel_tool_calls: expected true or false"),
    ],
)
def test_what_is_no_choice_of_tools_is_refused(data: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidTaskError, match=said):
        tool_fields(data)


@pytest.mark.parametrize(
    ("data", "choice"),
    [
        ({"tools": [ADD]}, None),
        ({"tools": [ADD], "tool_choice": "auto"}, None),
        ({"tool_choice": "none"}, None),
        ({"tools": [ADD], "tool_choice": "none"}, "none"),
        ({"tools": [ADD], "tool_choice": "required"}, "required"),
        ({"tools": [ADD], "tool_choice": {"function": {"name": "add"}, "x": 1}}, THE_ADD),
    ],
)
def test_a_choice_that_says_something_is_handed_on(data: dict[str, Any], choice: object) -> None:
    assert tool_fields(data)["tool_choice"] == choice


def test_several_calls_at_once_are_allowed_unless_they_are_not() -> None:
    assert tool_fields({"parallel_tool_calls": True})["parallel_tool_calls"] is None
    assert tool_fields({"parallel_tool_calls": False})["parallel_tool_calls"] is False
