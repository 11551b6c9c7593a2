"""Whole answers to chats, as the official client reads them."""

from __future__ import annotations

import json
from typing import Any

from openai.types.chat import ChatCompletion

from d8mesh.core.protocol.chat import FinishReason
from d8mesh.doors.llm.asked import LlmAnswer
from d8mesh.doors.openai.asked import AskedOfModels
from d8mesh.doors.openai.chat_answer import chat_body
from tests.doors.openai.said import CALL, CREATED, LOGPROB, answered, ending

ASKED = AskedOfModels(tasks=(), model="m")


def told(*answers: LlmAnswer, asked: AskedOfModels = ASKED) -> dict[str, Any]:
    body = chat_body(asked, answers, CREATED)
    ChatCompletion.model_validate(body, strict=True)
    return body


def test_an_answer_has_all_that_openai_says() -> None:
    assert told(answered("hello")) == {
        "id": "chatcmpl-t-0",
        "object": "chat.completion",
        "created": CREATED,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


def test_choices_are_numbered_and_their_usage_is_summed() -> None:
    body = told(
        answered("a"),
        answered("b", task_id="t-1", ending=ending(FinishReason.LENGTH, 4, 7, 2)),
    )
    assert [(each["index"], each["finish_reason"]) for each in body["choices"]] == [
        (0, "stop"),
        (1, "length"),
    ]
    assert body["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 9,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def test_a_call_has_its_arguments_as_text_and_no_content_beside_it() -> None:
    (choice,) = told(answered(tool_calls=(CALL,)))["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert (call["id"], call["type"], call["function"]["name"]) == ("call_a", "function", "look")
    assert json.loads(call["function"]["arguments"]) == {"at": "Köln"}


def test_calls_without_an_id_get_different_ones() -> None:
    nameless = {"function": {"name": "f", "arguments": {}}}
    (choice,) = told(answered(tool_calls=(nameless, nameless)))["choices"]
    assert [call["id"] for call in choice["message"]["tool_calls"]] == ["call_t-0_0", "call_t-0_1"]


def test_who_asks_with_functions_is_answered_with_a_function_call() -> None:
    asked = AskedOfModels(tasks=(), model="m", has_functions=True)
    (choice,) = told(answered(tool_calls=(CALL,)), asked=asked)["choices"]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"]["name"] == "look"
    assert "tool_calls" not in choice["message"]


def test_an_answer_cut_at_its_bound_is_no_call() -> None:
    answer = answered(tool_calls=(CALL,), ending=ending(FinishReason.LENGTH))
    assert told(answer)["choices"][0]["finish_reason"] == "length"


def test_thoughts_stand_beside_the_text_by_both_names() -> None:
    message = told(answered("four", thinking="2 + 2"))["choices"][0]["message"]
    assert message["content"] == "four"
    assert message["reasoning"] == message["reasoning_content"] == "2 + 2"


def test_how_likely_the_tokens_were_is_told() -> None:
    assert told(answered("hé", logprobs=(LOGPROB,)))["choices"][0]["logprobs"] == {
        "content": [
            {
                "token": "hé",
                "logprob": -0.5,
                "bytes": [104, 195, 169],
                "top_logprobs": [{"token": "ho", "logprob": -2.0, "bytes": [104, 111]}],
            }
        ],
        "refusal": None,
    }
