"""A finished answer in Anthropic's form."""

from __future__ import annotations

from typing import Any

import pytest

from d8mesh.core.protocol.chat import Completion, Ending, FinishReason, Usage
from d8mesh.doors.anthropic.message_answer import SIGNATURE, message_body
from d8mesh.doors.anthropic.message_request import asked_of_message
from d8mesh.doors.llm.asked import LlmAnswer
from tests.doors.anthropic.test_message_request import LEAST

TASK = "1f0e4c6a-0000-4000-8000-000000000001"
THINKS = {"thinking": {"type": "enabled", "budget_tokens": 2048}}
CALL = {"function": {"name": "look", "arguments": {"at": "sky"}}}


def body(asked: dict[str, Any], **said: Any) -> dict[str, Any]:
    completion = Completion(**{"text": "Yes.", "model": "m:latest"} | said)
    answer = LlmAnswer(task_id=TASK, model="m", completion=completion, result={})
    return message_body(asked_of_message(LEAST | asked), answer)


def ended(reason: FinishReason) -> Ending:
    return Ending(reason, Usage(30, 7, 10))


def test_a_text() -> None:
    assert body({}, ending=ended(FinishReason.STOP)) == {
        "id": f"msg_{TASK}",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "Yes."}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 20,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 10,
            "output_tokens": 7,
        },
    }


def test_thoughts_stand_apart_before_the_text_and_are_signed() -> None:
    thought, text = body(THINKS, thinking="Hm.")["content"]
    assert thought == {"type": "thinking", "thinking": "Hm.", "signature": SIGNATURE}
    assert text["text"] == "Yes."


def test_thoughts_that_nobody_asked_for_are_left_out() -> None:
    assert [each["type"] for each in body({}, thinking="Hm.")["content"]] == ["text"]


def test_each_call_has_an_id_of_its_own() -> None:
    calls = (CALL, CALL, CALL | {"id": "call_9"})
    found = body({}, text="", tool_calls=calls)
    assert found["stop_reason"] == "tool_use"
    assert [each["input"] for each in found["content"]] == [{"at": "sky"}] * 3
    first, second, third = (each["id"] for each in found["content"])
    assert first != second
    assert third == "call_9"


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ('{"at": "sky"}', {"at": "sky"}),
        ("", {}),
        (None, {}),
        ("sky", {"arguments": "sky"}),
        ([1], {"arguments": [1]}),
    ],
)
def test_the_input_of_a_call_is_an_object(arguments: Any, wanted: Any) -> None:
    call = {"function": {"name": "look", "arguments": arguments}}
    assert body({}, tool_calls=(call,))["content"][-1]["input"] == wanted


def test_a_bound_that_is_used_up_is_told() -> None:
    assert body({}, ending=ended(FinishReason.LENGTH))["stop_reason"] == "max_tokens"


def test_the_sequence_that_ended_it_is_told_where_the_service_tells_it() -> None:
    found = body({"stop_sequences": ["END"]}, extra={"stop_reason": "END"})
    assert (found["stop_reason"], found["stop_sequence"]) == ("stop_sequence", "END")
    found = body({"stop_sequences": ["END"]}, extra={"stop_reason": "other"})
    assert (found["stop_reason"], found["stop_sequence"]) == ("end_turn", None)


def test_what_is_no_text_of_a_model_is_no_message() -> None:
    with pytest.raises(ValueError, match="message"):
        message_body(asked_of_message(LEAST), LlmAnswer(task_id=TASK, model="m", result={}))
