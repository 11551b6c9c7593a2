"""Blocks of Anthropic's messages become the messages of a task, or are refused by their path."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from d8mesh.doors.anthropic.content_blocks import (
    FAILED_TOOL,
    SHOWN_BY_TOOL,
    conversation_of,
)
from d8mesh.errors import InvalidTaskError
from d8mesh.handlers.chat_fields import agent_request

PICTURE = base64.b64encode(b"\x89PNG").decode()
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "sky"}}


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said} | more


def result(content: Any, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "toolu_1", "content": content} | more


def from_user(*blocks: Any) -> list[dict[str, Any]]:
    return conversation_of(None, [{"role": "user", "content": list(blocks)}])


def test_a_text_and_a_list_of_texts_say_the_same() -> None:
    plain = conversation_of("Be kind.", [{"role": "user", "content": "Hi"}])
    blocks = conversation_of([text("Be kind.")], [{"role": "user", "content": [text("Hi")]}])
    assert plain == blocks
    assert plain == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
    ]


def test_cache_marks_change_nothing() -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    system = [text("a", **mark), text("b")]
    assert conversation_of(system, [{"role": "user", "content": [text("c", **mark)]}]) == [
        {"role": "system", "content": "a\nb"},
        {"role": "user", "content": "c"},
    ]


def test_pictures_go_with_the_text_beside_them() -> None:
    assert from_user(text("What is this?"), IMAGE) == [
        {"role": "user", "content": "What is this?", "images": [PICTURE]}
    ]


def test_what_a_model_said_thought_and_called_is_one_message() -> None:
    said = [
        {"type": "thinking", "thinking": "Hm.", "signature": "any"},
        {"type": "redacted_thinking", "data": "unreadable"},
        text("Let me "),
        text("look."),
        CALL,
    ]
    assert conversation_of(None, [{"role": "assistant", "content": said}]) == [
        {
            "role": "assistant",
            "content": "Let me look.",
            "thinking": "Hm.",
            "tool_calls": [
                {
                    "id": "toolu_1",
                    "type": "function",
                    "function": {"name": "look", "arguments": {"at": "sky"}},
                }
            ],
        }
    ]


def test_the_result_of_a_tool_is_a_message_that_names_the_tool() -> None:
    messages = [
        {"role": "assistant", "content": [CALL]},
        {"role": "user", "content": [result("blue"), text("And now?")]},
    ]
    assert conversation_of(None, messages)[1:] == [
        {"role": "tool", "content": "blue", "tool_call_id": "toolu_1", "tool_name": "look"},
        {"role": "user", "content": "And now?"},
    ]


def test_the_failure_of_a_tool_is_told_to_the_model() -> None:
    (message,) = from_user(result([text("no sky")], is_error=True))
    assert message["content"] == FAILED_TOOL + "no sky"


def test_pictures_of_a_tool_are_shown_after_its_result() -> None:
    assert from_user(result([text("a photo"), IMAGE])) == [
        {"role": "tool", "content": "a photo", "tool_call_id": "toolu_1"},
        {"role": "user", "content": SHOWN_BY_TOOL, "images": [PICTURE]},
    ]


def test_a_tool_without_a_result_said_nothing() -> None:
    (message,) = from_user({"type": "tool_result", "tool_use_id": "toolu_1"})
    assert message["content"] == ""


def test_a_task_takes_all_that_comes_out() -> None:
    messages = conversation_of(
        "Be kind.",
        [
            {"role": "user", "content": [text("Hi"), IMAGE]},
            {"role": "assistant", "content": [CALL]},
            {"role": "user", "content": [result([IMAGE], is_error=True)]},
            {"role": "assistant", "content": []},
            {"role": "user", "content": []},
        ],
    )
    assert len(agent_request({"messages": messages}).messages) == len(messages)


@pytest.mark.parametrize(
    ("content", "path"),
    [
        ([text("a"), {"type": "document"}], "messages.0.content.1.type"),
        ([{"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}],
         "messages.0.content.0.source.type"),
        ([{"type": "image", "source": {"type": "base64", "data": "§"}}],
         "messages.0.content.0.source.data"),
        ([{"type": "text"}], "messages.0.content.0.text"),
        (["Hi"], "messages.0.content.0"),
        (7, "messages.0.content"),
        ([{"type": "tool_result", "content": "x"}], "messages.0.content.0.tool_use_id"),
        ([result([{"type": "search_result"}])], "messages.0.content.0.content.0.type"),
    ],
)  # fmt: skip
def test_what_no_model_is_shown_is_refused_by_its_path(content: Any, path: str) -> None:
    with pytest.raises(InvalidTaskError, match=rf"^{path}[:\[]"):
        conversation_of(None, [{"role": "user", "content": content}])


@pytest.mark.parametrize(
    "block",
    [
        {"type": "tool_use", "id": "x", "name": "look", "input": "sky"},
        {"type": "tool_use", "name": "look", "input": {}},
        {"type": "server_tool_use", "id": "x", "name": "web_search", "input": {}},
        IMAGE,
    ],
)
def test_what_no_model_says_is_refused(block: Any) -> None:
    with pytest.raises(InvalidTaskError, match=r"^messages\.0\.content\.0"):
        conversation_of(None, [{"role": "assistant", "content": [block]}])


@pytest.mark.parametrize("messages", [[], "Hi", [{"content": "Hi"}], [{"role": "tool"}], ["Hi"]])
def test_what_is_no_conversation_is_refused(messages: Any) -> None:
    with pytest.raises(InvalidTaskError, match=r"^messages"):
        conversation_of(None, messages)


def test_instructions_are_text() -> None:
    with pytest.raises(InvalidTaskError, match=r"^system\.0\.type"):
        conversation_of([IMAGE], [{"role": "user", "content": "Hi"}])
