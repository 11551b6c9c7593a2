"""What a request of Anthropic's asks of a model."""

from __future__ import annotations

from typing import Any

import pytest

from d8mesh.doors.anthropic.message_request import AskedMessage, asked_of_message
from d8mesh.errors import InvalidTaskError

LEAST = {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}]}
TOOL = {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}
FUNCTION = {
    "type": "function",
    "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}},
}


def asked(**more: Any) -> AskedMessage:
    return asked_of_message(LEAST | more)


def data(**more: Any) -> dict[str, Any]:
    return dict(asked(**more).task.data)


def test_the_least_that_can_be_asked() -> None:
    assert asked().task.model == "m"
    assert not asked().is_streamed
    assert data() == {
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 100,
        "think": False,
        "model_defaults": True,
    }


def test_how_a_model_generates_is_handed_on() -> None:
    found = data(temperature=1, top_p=0.5, top_k=40, stop_sequences=["END"])
    assert (found["temperature"], found["top_p"], found["top_k"]) == (1, 0.5, 40)
    assert found["stop"] == ["END"]
    assert asked(stop_sequences=["END"]).stop_sequences == ("END",)


def test_what_only_tells_of_the_caller_is_ignored() -> None:
    ignored = {
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "container": "c",
        "cache_control": {"type": "ephemeral"},
        "never_heard_of": 1,
    }
    assert data(**ignored) == data()
    assert asked(**ignored).ignored == ("container", "metadata", "never_heard_of", "service_tier")


def test_tools_are_functions_of_a_task() -> None:
    found = data(tools=[TOOL, {"name": "go", "type": "custom", "input_schema": {}}])
    assert found["tools"][0] == FUNCTION
    assert [each["function"]["name"] for each in found["tools"]] == ["look", "go"]
    assert "tool_choice" not in found


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ({"type": "auto"}, None),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "look"}, {"type": "function", "function": {"name": "look"}}),
    ],
)
def test_the_choice_of_a_tool_is_that_of_a_task(choice: Any, wanted: Any) -> None:
    assert data(tools=[TOOL], tool_choice=choice).get("tool_choice") == wanted


def test_one_call_at_a_time_can_be_asked_for() -> None:
    choice = {"type": "any", "disable_parallel_tool_use": True}
    assert data(tools=[TOOL], tool_choice=choice)["parallel_tool_calls"] is False


@pytest.mark.parametrize(
    ("thinking", "think", "is_shown"),
    [
        (None, False, False),
        ({"type": "disabled"}, False, False),
        ({"type": "enabled", "budget_tokens": 2048}, True, True),
        ({"type": "enabled", "budget_tokens": 2048, "display": "omitted"}, True, False),
        ({"type": "adaptive"}, None, True),
    ],
)
def test_a_model_thinks_if_it_is_asked_to(thinking: Any, think: Any, is_shown: bool) -> None:
    assert data(thinking=thinking).get("think") == think
    assert asked(thinking=thinking).shows_thinking is is_shown


def test_effort_is_a_level_of_thinking() -> None:
    thinking = {"type": "enabled", "budget_tokens": 2048}
    assert data(thinking=thinking, output_config={"effort": "xhigh"})["think"] == "max"
    assert data(output_config={"effort": "xhigh"})["think"] is False


@pytest.mark.parametrize("where", ["output_config", "output_format"])
def test_an_answer_can_be_bound_to_a_schema(where: str) -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    wanted = {"format": form} if where == "output_config" else form
    assert data(**{where: wanted})["format"] == {"type": "object"}


@pytest.mark.parametrize("name", sorted(LEAST))
def test_what_must_be_there_is_named(name: str) -> None:
    with pytest.raises(InvalidTaskError, match=f"^{name} is required$"):
        asked_of_message({key: value for key, value in LEAST.items() if key != name})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 7),
        ("max_tokens", 0),
        ("max_tokens", "many"),
        ("temperature", 3),
        ("top_p", 1.5),
        ("top_k", -1),
        ("stop_sequences", "END"),
        ("stop_sequences", [""]),
        ("stream", "yes"),
        ("thinking", {"type": "deep"}),
        ("thinking", {"type": "enabled", "budget_tokens": -1}),
        ("output_config", {"format": {"type": "text"}}),
        ("output_format", {"type": "json_schema"}),
        ("mcp_servers", [{"type": "url"}]),
        ("tools", {}),
        ("tools", ["look"]),
        ("tools", [{"name": "look"}]),
        ("tools", [{"input_schema": {}}]),
        ("tools", [{"type": "web_search_20250305", "name": "web_search"}]),
        ("tool_choice", "any"),
        ("tool_choice", {"type": "any"}),
        ("tool_choice", {"type": "tool", "name": "fly"}),
    ],
)
def test_what_a_field_cannot_be_is_refused_by_its_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidTaskError, match=rf"^{field}\b"):
        asked(**{field: value})


def test_a_body_is_an_object() -> None:
    with pytest.raises(InvalidTaskError, match="JSON object"):
        asked_of_message([LEAST])
