"""What the bodies of /api/chat and /api/generate ask, field by field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from d8mesh.doors.ollama.text_requests import AskedText, chat_in, generate_in
from d8mesh.errors import InvalidTaskError, ModelUnknownError

HELLO = [{"role": "user", "content": "hello"}]
PICTURE = "aGVsbG8="
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def chat(**more: Any) -> AskedText:
    return chat_in(json.dumps({"model": "m", "messages": HELLO} | more).encode())


def generate(**more: Any) -> AskedText:
    return generate_in(json.dumps({"model": "m", "prompt": "hello"} | more).encode())


def test_a_chat_is_a_task_with_its_messages_and_the_models_own_settings() -> None:
    asked = chat()
    assert (asked.model, asked.type, asked.is_streamed) == ("m", "agent_action", True)
    assert asked.data == {"messages": HELLO, "model_defaults": True}
    assert asked.ignored == ()


def test_a_generate_is_a_task_with_its_prompt() -> None:
    asked = generate(suffix="end", system="be brief", images=[PICTURE], context=[1, 2])
    assert asked.type == "generate"
    assert asked.data == {
        "prompt": "hello",
        "suffix": "end",
        "system": "be brief",
        "images": [PICTURE],
        "context": [1, 2],
        "model_defaults": True,
    }


@pytest.mark.parametrize(
    ("fields", "is_streamed"),
    [({}, True), ({"stream": None}, True), ({"stream": True}, True), ({"stream": False}, False)],
)
def test_it_is_streamed_unless_the_body_says_no(fields: dict[str, Any], is_streamed: bool) -> None:
    assert chat(**fields).is_streamed is is_streamed
    assert generate(**fields).is_streamed is is_streamed


def test_what_is_null_is_not_there() -> None:
    nulls = ("format", "think", "keep_alive", "options", "tools", "truncate", "shift", "logprobs")
    assert chat(**dict.fromkeys(nulls)).data == chat().data
    assert generate(**dict.fromkeys((*nulls, "system", "images", "context"))) == generate()


def test_every_field_that_a_task_knows_is_handed_on() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    given = {"format": schema, "think": "high", "keep_alive": "5m", "truncate": False}
    asked = chat(**given, tools=[TOOL], logprobs=True, top_logprobs=3)
    more = {"logprobs": True, "top_logprobs": 3, "tools": [TOOL]}
    assert asked.data == {**chat().data, **given, **more}
    assert asked.ignored == ()


def test_what_is_not_applied_is_named_and_nothing_of_it_is_handed_on() -> None:
    asked = chat(
        options={"num_ctx": 8192, "mirostat": 2, "seed": 7},
        shift=False,
        tool_choice="auto",
        messages=[{"role": "user", "content": "hello", "name": "eve"}],
    )
    assert asked.ignored == (
        "tool_choice",
        "shift",
        "messages[].name",
        "options.num_ctx",
        "options.mirostat",
    )
    assert asked.data == {**chat().data, "options": {"seed": 7}}


def test_a_role_is_lower_cased_and_a_developer_is_the_system() -> None:
    told = [{"role": "Developer", "content": "be brief"}, {"role": "USER", "content": "hello"}]
    assert [each["role"] for each in chat(messages=told).data["messages"]] == ["system", "user"]


def test_calls_of_tools_and_their_results_keep_their_names() -> None:
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    told = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "name": "add"},
        {"role": "tool", "content": "2", "tool_name": "add", "tool_call_id": "call_1"},
    ]
    _, said, named, whole = chat(messages=told).data["messages"]
    assert said == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert named == {"role": "tool", "content": "2", "tool_name": "add"}
    assert whole == told[3]


def test_pictures_of_messages_are_handed_on_and_needed_to_be_seen() -> None:
    asked = chat(messages=[{"role": "user", "content": "what?", "images": [PICTURE]}])
    assert asked.data["messages"][0]["images"] == [PICTURE]
    assert asked.needs == ("completion", "vision")


def test_what_the_model_must_be_capable_of_is_known() -> None:
    assert generate(suffix="end").needs == ("completion", "insert")
    assert chat(tools=[TOOL], think=True).needs == ("completion", "tools", "thinking")
    assert chat(think=False).needs == ("completion",)


@pytest.mark.parametrize("fields", [{"messages": []}, {"messages": None}])
def test_a_chat_without_messages_only_loads_the_model(fields: dict[str, Any]) -> None:
    asked = chat(**fields)
    assert (asked.is_load, asked.is_unload) == (True, False)
    assert chat(**fields, keep_alive=0).is_unload


@pytest.mark.parametrize("kept", [0, 0.0, "0", "0s"])
def test_a_generate_without_a_prompt_and_without_time_lets_the_model_go(kept: Any) -> None:
    asked = generate(prompt="", keep_alive=kept)
    assert (asked.is_load, asked.is_unload) == (True, True)
    assert not generate(keep_alive=kept).is_load


@pytest.mark.parametrize("kept", [30, 0.5, -1, "5m", "1h30m", "-1s"])
def test_how_long_a_model_stays_is_a_number_of_seconds_or_a_duration(kept: Any) -> None:
    asked = generate(keep_alive=kept)
    assert asked.data["keep_alive"] == kept
    assert not asked.is_unload


def test_a_raw_prompt_has_no_template_around_it() -> None:
    assert generate(raw=True).is_raw
    assert generate(raw=True).data["raw"] is True


def test_a_name_is_kept_as_it_is_spelled() -> None:
    for name in ("M:1B", " m ", "registry.ollama.ai/library/m:latest", "hf.co/User/Repo:Q4_K_M"):
        assert chat(model=name).model == name


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model": ""}, "model is required"),
        ({"model": "   "}, "model is required"),
        ({"model": "a b"}, "invalid model name"),
        ({"model": 5}, "cannot unmarshal number into field model of type string"),
        ({"messages": "hello"}, "cannot unmarshal string into field messages"),
        ({"messages": [{"role": "user", "content": [1]}]}, "cannot unmarshal array"),
        ({"messages": [{"role": "eve", "content": ""}]}, "role 'eve'"),
        ({"format": "xml"}, 'expected "json" or a valid JSON Schema object'),
        ({"think": "hard"}, "invalid think value"),
        ({"stream": "no"}, "cannot unmarshal string into field stream of type bool"),
        ({"top_logprobs": 21}, "top_logprobs must be between 0 and 20"),
        ({"keep_alive": "-1"}, 'time: missing unit in duration "-1"'),
        ({"keep_alive": "soon"}, 'time: invalid duration "soon"'),
        ({"options": {"seed": "x"}}, 'option "seed" must be of type integer'),
        ({"tools": [{"function": {}}]}, "tools: expected a list"),
        (
            {"messages": [{"role": "user", "content": "", "images": ["aGV_"]}]},
            "illegal base64 data at input byte 3",
        ),
    ],
)
def test_what_is_wrong_in_a_chat_is_told_in_ollamas_words(
    fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidTaskError) as caught:
        chat(**fields)
    assert told in str(caught.value)


def test_a_raw_prompt_with_a_system_or_template_or_context_is_refused() -> None:
    for more in ({"system": "s"}, {"template": "t"}, {"context": [1]}):
        with pytest.raises(InvalidTaskError, match="raw mode does not support"):
            generate(raw=True, **more)


def test_a_generate_without_a_model_names_a_model_that_is_not_there() -> None:
    with pytest.raises(ModelUnknownError, match="model '' not found"):
        generate(model=None)


@pytest.mark.parametrize(
    ("body", "told"),
    [(b"", "missing request body"), (b"{", "not JSON"), (b"[]", "not JSON of an object")],
)
def test_a_body_that_is_no_object_is_refused(body: bytes, told: str) -> None:
    for read in (chat_in, generate_in):
        with pytest.raises(InvalidTaskError, match=told):
            read(body)


def test_a_key_that_stands_twice_counts_as_it_stands_last() -> None:
    body = b'{"model": "m", "model": "n", "messages": [{"role": "user", "content": "hello"}]}'
    assert chat_in(body).model == "n"
