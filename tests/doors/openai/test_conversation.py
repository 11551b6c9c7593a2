"""OpenAI's messages become the mesh's."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from d8mesh.doors.openai.conversation import conversation_of
from d8mesh.errors import InvalidTaskError
from d8mesh.handlers.chat_fields import agent_request

PICTURE = base64.b64encode(b"picture").decode()
OTHER = base64.b64encode(b"another").decode()


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def shown(picture: str, kind: str = "image/png") -> dict[str, Any]:
    url = f"data:{kind};base64,{picture}"
    return {"type": "image_url", "image_url": {"url": url, "detail": "low"}}


def user(*parts: Any) -> list[dict[str, Any]]:
    found = conversation_of([{"role": "user", "content": list(parts)}]).messages
    agent_request({"messages": found})  # the mesh takes it
    return found


def call(name: str, arguments: Any, call_id: str = "call_1") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "index": 0, "function": function}


def test_a_developer_speaks_as_the_system() -> None:
    found = conversation_of([{"role": "developer", "content": "be brief"}])
    assert found.messages == [{"role": "system", "content": "be brief"}]


def test_roles_may_be_written_large() -> None:
    assert conversation_of([{"role": "User", "content": "x"}]).messages[0]["role"] == "user"


def test_texts_are_joined_and_pictures_keep_their_order() -> None:
    assert user(text("what"), shown(PICTURE), shown(OTHER), text("is it?")) == [
        {"role": "user", "content": "what\nis it?", "images": [PICTURE, OTHER]}
    ]


def test_pictures_and_texts_that_take_turns_are_messages_of_their_own() -> None:
    assert user(text("first:"), shown(PICTURE), text("second:"), shown(OTHER)) == [
        {"role": "user", "content": "first:"},
        {"role": "user", "content": "second:", "images": [PICTURE]},
        {"role": "user", "content": "", "images": [OTHER]},
    ]


@pytest.mark.parametrize("kind", ["image/jpeg", "image/webp", "IMAGE/PNG", ""])
def test_a_picture_is_any_data_uri_of_one(kind: str) -> None:
    assert user(shown(PICTURE, kind))[0]["images"] == [PICTURE]


def test_the_address_of_a_picture_may_stand_alone() -> None:
    part = {"type": "image_url", "image_url": f"data:image/png;base64,{PICTURE}"}
    assert user(part)[0]["images"] == [PICTURE]


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (
            {"type": "image_url", "image_url": {"url": "http://192.168.0.1/cat.png"}},
            "messages[0].content[0].image_url.url: addresses are not fetched",
        ),
        (
            {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
            "messages[0].content[0].image_url.url: addresses are not fetched",
        ),
        (
            {"type": "image_url", "image_url": {"url": "data:text/html;base64,PGI+"}},
            "messages[0].content[0].image_url.url: expected data:image/png;base64",
        ),
        (
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%"}},
            "messages[0].content[0].image_url.url: expected a picture in base64",
        ),
        ({"type": "image_url"}, "messages[0].content[0].image_url: expected a picture"),
        (
            {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
            "messages[0].content[0].type: input_audio: models of this mesh are shown no sound",
        ),
        (
            {"type": "file", "file": {"file_id": "file-1"}},
            "messages[0].content[0].type: file: models of this mesh are shown no files",
        ),
        ({"type": "hologram"}, "messages[0].content[0].type: expected text or image_url"),
        ({"type": "text"}, "Missing field: messages[0].content[0].text"),
        (5, "messages[0].content[0]: expected an object"),
    ],
)
def test_a_part_that_no_model_would_see_is_refused(part: Any, told: str) -> None:
    with pytest.raises(InvalidTaskError) as raised:
        user(part)
    assert str(raised.value).startswith(told)


def test_a_call_without_content_and_its_result_keep_the_tools_name() -> None:
    found = conversation_of(
        [
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "content": None, "tool_calls": [call("look", '{"at": "Rome"}')]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        ]
    )
    _, asked, answered = found.messages
    assert asked["content"] == ""
    assert asked["tool_calls"] == [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "look", "arguments": {"at": "Rome"}},
        }
    ]
    assert answered == {
        "role": "tool", "content": "sunny", "tool_name": "look", "tool_call_id": "call_1",
    }  # fmt: skip
    agent_request({"messages": found.messages})


def test_the_older_form_of_calls_is_the_same() -> None:
    found = conversation_of(
        [
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}},
            {"role": "function", "name": "f", "content": "4"},
        ]
    )
    asked, answered = found.messages
    assert asked["tool_calls"] == [{"function": {"name": "f", "arguments": {}}}]
    assert answered == {"role": "tool", "content": "4", "tool_name": "f"}


@pytest.mark.parametrize("arguments", ["{", "[1]", 5, '"text"'])
def test_arguments_that_are_no_object_are_refused(arguments: Any) -> None:
    message = {"role": "assistant", "tool_calls": [call("f", arguments)]}
    expected = r"messages\[0\]\.tool_calls\[0\]\.function\.arguments: expected an object"
    with pytest.raises(InvalidTaskError, match=expected):
        conversation_of([message])


def test_what_a_call_brings_beside_goes_back_with_it() -> None:
    extra = {"google": {"thought_signature": "x"}}
    message = {"role": "assistant", "tool_calls": [call("f", "{}") | {"extra_content": extra}]}
    (found,) = conversation_of([message]).messages
    assert found["tool_calls"][0]["extra_content"] == extra


def test_thoughts_of_earlier_answers_come_by_any_of_their_names() -> None:
    for name in ("reasoning", "reasoning_content", "thinking"):
        (found,) = conversation_of([{"role": "assistant", "content": "x", name: "hm"}]).messages
        assert found["thinking"] == "hm"


def test_fields_of_messages_without_effect_are_named() -> None:
    found = conversation_of([{"role": "user", "content": "x", "name": "ann", "weight": 1}])
    assert found.ignored == {"messages[].name", "messages[].weight"}


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        (None, "Missing field: messages"),
        ("hello", "messages: expected a list"),
        ([], "messages: [] is too short"),
        (["hello"], "messages[0]: expected an object"),
        ([{"role": "user", "content": "x"}, {"role": "wizard"}], "messages[1].role: expected one"),
        ([{"content": "x"}], "messages[0].role: expected one"),
        ([{"role": "user"}], "messages[0].content: expected a text, or a list of parts"),
        ([{"role": "user", "content": 5}], "messages[0].content: expected a text, or a list"),
        ([{"role": "tool", "content": "x", "tool_call_id": 5}], "messages[0].tool_call_id: exp"),
        ([{"role": "user", "content": "x"}] * 1001, "messages: 1001 of them, at most 1000"),
    ],
)
def test_what_is_no_conversation_is_refused(messages: Any, told: str) -> None:
    with pytest.raises(InvalidTaskError) as raised:
        conversation_of(messages)
    assert str(raised.value).startswith(told)
