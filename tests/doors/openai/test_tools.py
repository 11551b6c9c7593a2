"""Tools, and which of them a model is to call."""

from __future__ import annotations

from typing import Any

import pytest

from d8mesh.doors.openai.fields import RequestFields
from d8mesh.doors.openai.tools import offered_tools
from d8mesh.errors import InvalidTaskError

LOOK = {"name": "look", "description": "looks", "parameters": {"type": "object"}}
WALK = {"name": "walk", "strict": True}


def tool(function: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": function}


def offered(**fields: Any) -> dict[str, Any]:
    return offered_tools(RequestFields(fields))[0]


def test_a_request_without_tools_offers_none() -> None:
    assert offered(tools=[], tool_choice="auto", parallel_tool_calls=False) == {}


def test_tools_are_handed_on_and_nothing_is_said_of_what_goes_without_saying() -> None:
    assert offered(tools=[tool(LOOK)], tool_choice="auto", parallel_tool_calls=True) == {
        "tools": [tool(LOOK)]
    }


@pytest.mark.parametrize(
    ("choice", "handed_on"),
    [
        ("none", "none"),
        ("required", "required"),
        ("any", "required"),
        (tool({"name": "walk"}), tool({"name": "walk"})),
        ({"type": "function", "name": "walk"}, tool({"name": "walk"})),
    ],
)
def test_a_choice_is_handed_on(choice: Any, handed_on: Any) -> None:
    assert offered(tools=[tool(LOOK), tool(WALK)], tool_choice=choice)["tool_choice"] == handed_on


def test_allowed_tools_are_those_that_are_offered() -> None:
    choice = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [tool({"name": "walk"})]},
    }
    assert offered(tools=[tool(LOOK), tool(WALK)], tool_choice=choice) == {
        "tools": [tool(WALK)],
        "tool_choice": "required",
    }


def test_one_call_at_a_time_is_handed_on() -> None:
    assert offered(tools=[tool(LOOK)], parallel_tool_calls=False)["parallel_tool_calls"] is False


def test_functions_are_tools_of_which_one_is_called() -> None:
    fields = RequestFields({"functions": [LOOK], "function_call": {"name": "look"}})
    assert offered_tools(fields) == (
        {
            "tools": [tool(LOOK)],
            "tool_choice": tool({"name": "look"}),
            "parallel_tool_calls": False,
        },
        True,
    )
    assert fields.unread() == ()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"tools": {}}, "tools: expected a list"),
        ({"tools": ["look"]}, "tools[0]: expected an object"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type: expected func"),
        ({"tools": [tool({"description": "x"})]}, "Missing field: tools[0].function.name"),
        ({"tools": [tool({"name": "x", "parameters": []})]}, "tools[0].function.parameters: exp"),
        ({"tools": [tool(LOOK)], "tool_choice": "walk"}, "tool_choice: expected none, auto"),
        ({"tools": [tool(LOOK)], "tool_choice": tool(WALK)}, "tool_choice: expected none, auto"),
        ({"tools": [tool(LOOK)], "tool_choice": {"type": "custom"}}, "tool_choice: expected none"),
        (
            {"tools": [tool(LOOK)], "tool_choice": {"type": "allowed_tools"}},
            "tool_choice: expected allowed_tools",
        ),
        ({"tool_choice": "required"}, "tool_choice: expected tools to choose from"),
        ({"tools": [tool(LOOK)], "parallel_tool_calls": 1}, "parallel_tool_calls: expected true"),
    ],
)
def test_what_cannot_be_offered_or_chosen_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidTaskError) as raised:
        offered(**fields)
    assert str(raised.value).startswith(told)
