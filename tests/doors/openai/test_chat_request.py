"""What a chat asks, in the words of the mesh's tasks."""

from __future__ import annotations

from typing import Any

import pytest

from d8mesh.doors.llm.asked import LlmTask
from d8mesh.doors.openai.chat_request import asked_of_chat
from d8mesh.doors.openai.sampling import OWN_DEFAULTS
from d8mesh.errors import InvalidTaskError

ASKED = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def data_of(**fields: Any) -> dict[str, Any]:
    (task,) = asked_of_chat({"model": "m", "messages": ASKED, **fields}).tasks
    return dict(task.data)


def test_a_plain_chat_says_nothing_but_what_was_said() -> None:
    asked = asked_of_chat({"model": "m:latest", "messages": ASKED})
    task = LlmTask(type="agent_action", data={"messages": ASKED, **OWN_DEFAULTS}, model="m:latest")
    assert asked.tasks == (task,)
    assert not asked.is_streamed
    assert asked.ignored == ()


def test_a_stream_may_end_with_its_usage() -> None:
    asked = asked_of_chat(
        {
            "model": "m",
            "messages": ASKED,
            "stream": True,
            "stream_options": {"include_usage": True, "include_obfuscation": False},
        }
    )
    assert (asked.is_streamed, asked.has_usage, asked.ignored) == (True, True, ())


def test_several_answers_are_several_tasks() -> None:
    asked = asked_of_chat({"model": "m", "messages": ASKED, "n": 3, "seed": 1})
    assert [task.data["seed"] for task in asked.tasks] == [1, 2, 3]


@pytest.mark.parametrize(
    ("wanted", "handed_on"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, "json"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}, SCHEMA),
        ({"type": "json_schema", "schema": SCHEMA}, SCHEMA),
    ],
)
def test_a_form_of_the_answer_is_handed_on(wanted: Any, handed_on: Any) -> None:
    assert data_of(response_format=wanted).get("format") == handed_on


@pytest.mark.parametrize(
    ("fields", "think"),
    [
        ({}, None),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, "low"),
        ({"reasoning_effort": "medium"}, "medium"),
        ({"reasoning_effort": "xhigh"}, "max"),
        ({"reasoning": {"effort": "high"}}, "high"),
        ({"reasoning": {"enabled": True}}, True),
        ({"reasoning": {"effort": "low"}, "reasoning_effort": "high"}, "high"),
        ({"think": False}, False),
        ({"think": "max"}, "max"),
    ],
)
def test_how_hard_to_think_is_handed_on(fields: dict[str, Any], think: Any) -> None:
    assert data_of(**fields).get("think") == think


def test_how_likely_the_tokens_were_is_asked_for() -> None:
    assert data_of(logprobs=True, top_logprobs=2) == {
        "messages": ASKED,
        "logprobs": True,
        "top_logprobs": 2,
        **OWN_DEFAULTS,
    }
    assert data_of(top_logprobs=2)["logprobs"] is True
    assert data_of(logprobs=False) == {"messages": ASKED, **OWN_DEFAULTS}


def test_what_has_no_effect_is_named() -> None:
    asked = asked_of_chat(
        {
            "model": "m",
            "messages": [{"role": "user", "content": "x", "name": "ann"}],
            "user": "ann",
            "store": True,
            "service_tier": "auto",
            "metadata": {"a": "b"},
            "options": {"num_ctx": 8192},
            "frobnicate": 1,
        }
    )
    assert asked.ignored == (
        "frobnicate", "metadata", "service_tier", "store", "user", "messages[].name",
        "options.num_ctx",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model": None}, "Missing field: model"),
        ({"model": 5}, "model: expected a text"),
        ({"model": "a b"}, "model: expected the name of a model"),
        ({"messages": []}, "messages: [] is too short"),
        ({"stream": "yes"}, "stream: expected true or false"),
        ({"stream_options": True}, "stream_options: expected an object"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage: expected"),
        ({"response_format": "json"}, "response_format: expected an object"),
        ({"response_format": {"type": "xml"}}, "response_format.type: expected text"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema: ex"),
        ({"reasoning_effort": "huge"}, "reasoning_effort: expected one of none"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort: expected one of none"),
        ({"think": "huge"}, "think: expected true, false or one of"),
        ({"top_logprobs": 21}, "top_logprobs: expected a whole number from 0 to 20"),
        ({"modalities": ["text", "audio"]}, "modalities: expected text alone"),
        ({"audio": {"voice": "x"}}, "audio: no model of a mesh answers with sound"),
        ({"keep_alive": "soon"}, "keep_alive: expected seconds"),
        ({"options": {"temperature": 9}}, "options.temperature: expected a number from 0"),
        ({"options": {"mirostat": {}}}, "options.mirostat: expected a number"),
    ],
)
def test_what_is_wrong_is_told_at_once(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidTaskError) as raised:
        data_of(**fields)
    assert str(raised.value).startswith(told)
