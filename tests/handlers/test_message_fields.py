"""A conversation's messages: each part checked, pictures and calls of tools made plain."""

from __future__ import annotations

from typing import Any

import pytest

from d8mesh.errors import InvalidTaskError
from d8mesh.handlers.message_fields import MAX_MESSAGES, images_of, messages_of


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"audio": "x"}, r"messages\[0\]\.audio: a message has no such field"),
        ({"images": ["/etc/passwd"]}, r"messages\[0\]\.images\[0\]: expected a picture"),
        ({"images": ["http://x/y.png"]}, r"images\[0\]: expected a picture"),
        ({"images": "x"}, r"images: expected a list"),
        ({"images": [""]}, r"images\[0\]: expected a picture"),
        ({"tool_calls": [{"name": "x"}]}, r"tool_calls: expected a list"),
        ({"tool_calls": [{"function": {"name": "x", "arguments": "{"}}]}, r"tool_calls: expected"),
        ({"tool_calls": [{"function": {"name": "x", "arguments": '{"a": NaN}'}}]}, "tool_calls:"),
        (
            {"tool_calls": [{"function": {"name": "x", "arguments": '{"a": "\\ud83d"}'}}]},
            "tool_calls:",
        ),
        ({"tool_calls": [{"function": {"name": "x", "arguments": '{"a": 1e999}'}}]}, "tool_calls:"),
        ({"thinking": 1}, r"thinking: expected a text"),
        ({"content": [{"type": "text"}]}, r"content: expected a text"),
        ({"content": None}, r"content: expected a text"),
    ],
)
def test_what_a_message_cannot_carry_is_refused(message: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidTaskError, match=said):
        messages_of({"messages": [{"role": "user", "content": "x"} | message]})


def test_base64_may_be_folded_and_a_call_be_without_arguments() -> None:
    call = {"function": {"name": "now"}}
    message = {"role": "assistant", "images": ["aGVs\r\nbG8=\n"], "tool_calls": [call]}
    (checked,) = messages_of({"messages": [message]})
    assert checked["images"] == ["aGVsbG8="]
    assert checked["tool_calls"] == [{"function": {"name": "now", "arguments": {}}}]


def test_no_messages_and_too_many_are_refused() -> None:
    wrong: list[dict[str, Any]] = [{}, {"messages": []}, {"messages": [{}] * (MAX_MESSAGES + 1)}]
    for data in wrong:
        with pytest.raises(InvalidTaskError, match="messages"):
            messages_of(data)


def test_a_picture_may_be_a_data_address_and_is_sent_as_base64_alone() -> None:
    assert images_of(["data:image/png;base64,aGVsbG8="], "images") == ["aGVsbG8="]
