"""The input of /v1/responses as the messages of a task."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from d8mesh.doors.openai.responses_items import conversation_of_items
from d8mesh.errors import InvalidTaskError

PICTURE = base64.b64encode(b"\x89PNG").decode()
CALL = {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": '{"at": "sky"}'}
RESULT = {"type": "function_call_output", "call_id": "call_1", "output": "blue"}


def said(*items: Any, instructions: str | None = None) -> list[dict[str, Any]]:
    return conversation_of_items(instructions, list(items)).messages


def test_a_text_is_what_the_user_says() -> None:
    assert conversation_of_items("Be kind.", "Hi").messages == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
    ]


def test_a_message_may_leave_out_that_it_is_one() -> None:
    item = {"role": "developer", "content": [{"type": "input_text", "text": "Be kind."}]}
    assert said(item) == said(item | {"type": "message"})
    assert said(item) == [{"role": "system", "content": "Be kind."}]


def test_a_picture_is_part_of_its_message() -> None:
    shown = {"type": "input_image", "image_url": f"data:image/png;base64,{PICTURE}"}
    assert said({"role": "user", "content": [shown, {"type": "input_text", "text": "What?"}]}) == [
        {"role": "user", "content": "What?", "images": [PICTURE]}
    ]


def test_thoughts_text_and_calls_of_one_turn_are_one_message() -> None:
    thought = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "Hm."}],
    }
    text = {"role": "assistant", "content": [{"type": "output_text", "text": "I look."}]}
    turn, *rest = said(thought, text, CALL, CALL | {"call_id": "call_2"}, RESULT, text)
    assert turn["content"] == "I look."
    assert turn["thinking"] == "Hm."
    assert [each["id"] for each in turn["tool_calls"]] == ["call_1", "call_2"]
    assert turn["tool_calls"][0]["function"] == {"name": "look", "arguments": {"at": "sky"}}
    assert rest == [
        {"role": "tool", "content": "blue", "tool_call_id": "call_1", "tool_name": "look"},
        {"role": "assistant", "content": "I look."},
    ]


def test_all_of_a_thought_goes_before_its_summary() -> None:
    thought = {
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": "short"}],
        "content": [{"type": "reasoning_text", "text": "long"}],
    }
    assert said(thought)[0]["thinking"] == "long"


@pytest.mark.parametrize(
    ("item", "path"),
    [
        ("Hi", "input[0]"),
        ({"type": "item_reference", "id": "msg_1"}, "input[0].type"),
        ({"type": "web_search_call", "id": "ws_1"}, "input[0].type"),
        ({"role": "robot", "content": "Hi"}, "input[0].role"),
        ({"role": "user", "content": [{"type": "input_file"}]}, "input[0].content[0].type"),
        ({"role": "user", "content": [{"type": "input_image", "image_url": "http://x/y.png"}]},
         "input[0].content[0].image_url"),
        ({"type": "function_call", "name": "look"}, "input[0].call_id"),
        ({"type": "function_call_output", "output": "blue"}, "input[0].call_id"),
        ({"type": "reasoning", "summary": "Hm."}, "input[0].summary"),
    ],
)  # fmt: skip
def test_what_no_model_is_shown_is_refused_by_its_path(item: Any, path: str) -> None:
    with pytest.raises(InvalidTaskError) as refused:
        said(item)
    assert str(refused.value).removeprefix("Missing field: ").partition(":")[0] == path


@pytest.mark.parametrize("given", [None, [], 7, {}])
def test_an_input_is_a_text_or_items(given: Any) -> None:
    with pytest.raises(InvalidTaskError, match="input"):
        conversation_of_items(None, given)
