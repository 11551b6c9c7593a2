"""What a request to /v1/responses asks of a model."""

from __future__ import annotations

from typing import Any

import pytest

from d8mesh.doors.openai.asked import AskedOfModels
from d8mesh.doors.openai.responses_request import asked_of_response
from d8mesh.errors import InvalidTaskError

LEAST = {"model": "m", "input": "Hi"}
TOOL = {
    "type": "function",
    "name": "look",
    "description": "Looks.",
    "parameters": {},
    "strict": True,
}


def asked(**more: Any) -> AskedOfModels:
    return asked_of_response(LEAST | more)


def data(**more: Any) -> dict[str, Any]:
    (task,) = asked(**more).tasks
    return dict(task.data)


def test_the_least_that_can_be_asked() -> None:
    assert data() == {"messages": [{"role": "user", "content": "Hi"}], "model_defaults": True}
    assert not asked().is_streamed
    assert asked().model == "m"


def test_how_a_model_generates_is_handed_on() -> None:
    found = data(temperature=1, top_p=0.5, max_output_tokens=9, truncation="disabled")
    assert (found["temperature"], found["top_p"], found["max_tokens"]) == (1, 0.5, 9)
    assert found["truncate"] is False


def test_tools_are_functions_of_a_task() -> None:
    found = data(tools=[TOOL])
    assert found["tools"] == [
        {
            "type": "function",
            "function": {"name": "look", "description": "Looks.", "parameters": {}},
        }
    ]


def test_the_choice_of_a_tool_is_that_of_a_task() -> None:
    found = data(tools=[TOOL], tool_choice={"type": "function", "name": "look"})
    assert found["tool_choice"] == {"type": "function", "function": {"name": "look"}}
    assert data(tools=[TOOL], tool_choice="required")["tool_choice"] == "required"
    assert data(tools=[TOOL], parallel_tool_calls=False)["parallel_tool_calls"] is False


def test_tools_that_run_at_openai_are_left_out_and_named() -> None:
    found = asked(tools=[{"type": "web_search"}, TOOL])
    assert [each["function"]["name"] for each in found.tasks[0].data["tools"]] == ["look"]
    assert "tools[0]: web_search" in found.ignored
    assert [each["name"] for each in found.repeated["tools"]] == ["look"]


@pytest.mark.parametrize(
    ("effort", "think"), [("none", False), ("minimal", "low"), ("high", "high"), ("xhigh", "max")]
)
def test_effort_is_a_level_of_thinking(effort: str, think: Any) -> None:
    assert data(reasoning={"effort": effort})["think"] == think
    assert "think" not in data(reasoning={"summary": "auto"})


@pytest.mark.parametrize(
    ("form", "wanted"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, "json"),
        ({"type": "json_schema", "name": "n", "schema": {"type": "object"}}, {"type": "object"}),
    ],
)
def test_an_answer_can_be_bound_to_a_form(form: Any, wanted: Any) -> None:
    assert data(text={"format": form, "verbosity": "low"}).get("format") == wanted


@pytest.mark.parametrize(
    "more", [{"top_logprobs": 2}, {"include": ["message.output_text.logprobs"]}]
)
def test_how_likely_each_token_was_can_be_asked_for(more: Any) -> None:
    assert data(**more)["logprobs"] is True


def test_what_has_no_effect_is_named() -> None:
    more = {"store": True, "prompt_cache_key": "k", "never_heard_of": 1}
    assert data(**more) == data()
    assert {"store", "prompt_cache_key", "never_heard_of"} <= set(asked(**more).ignored)
    assert asked(**more).repeated["store"] is False


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""),
        ("model", None),
        ("input", None),
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("prompt", {"id": "p"}),
        ("background", True),
        ("instructions", 7),
        ("max_output_tokens", 0),
        ("temperature", 3),
        ("top_logprobs", 21),
        ("tools", ["look"]),
        ("tools", [{"name": "look"}]),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "web_search"}),
        ("text", {"format": {"type": "xml"}}),
        ("text", {"format": {"type": "json_schema"}}),
        ("reasoning", {"effort": "wild"}),
        ("stream", "yes"),
        ("metadata", "m"),
    ],
)
def test_what_a_field_cannot_be_is_refused_by_its_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidTaskError, match=rf"^(Missing field: )?{field}\b"):
        asked(**{field: value})
