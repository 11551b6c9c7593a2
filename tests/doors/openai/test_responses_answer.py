"""A finished answer of /v1/responses."""

from __future__ import annotations

from typing import Any

from openai.types.responses import Response

from d8mesh.core.protocol.chat import Completion, Ending, FinishReason, Usage
from d8mesh.doors.llm.asked import LlmAnswer
from d8mesh.doors.openai.responses_answer import response_body
from d8mesh.doors.openai.responses_request import asked_of_response
from tests.doors.openai.test_responses_request import LEAST, TOOL

TASK = "1f0e4c6a-0000-4000-8000-000000000001"
CREATED = 1_700_000_000
CALL = {"function": {"name": "look", "arguments": {"at": "sky"}}}


def body(asked: dict[str, Any], **said: Any) -> dict[str, Any]:
    completion = Completion(**{"text": "Yes.", "model": "m:latest"} | said)
    answer = LlmAnswer(task_id=TASK, model="m", completion=completion, result={})
    return response_body(asked_of_response(LEAST | asked), [answer], CREATED)


def test_it_is_what_the_client_reads() -> None:
    told = body({"tools": [TOOL]}, thinking="Hm.", tool_calls=(CALL,))
    read = Response.model_validate(told)
    assert read.output_text == "Yes."
    assert [each.type for each in read.output] == ["reasoning", "message", "function_call"]
    assert len({each.id for each in read.output}) == 3


def test_it_repeats_what_was_asked() -> None:
    told = body({"instructions": "Be kind.", "temperature": 0.5, "metadata": {"a": "b"}})
    assert (told["instructions"], told["temperature"]) == ("Be kind.", 0.5)
    assert told["metadata"] == {"a": "b"}
    assert (told["model"], told["created_at"], told["status"]) == ("m", CREATED, "completed")
    assert told["id"] == f"resp_{TASK}"


def test_tokens_are_counted() -> None:
    told = body({}, ending=Ending(FinishReason.STOP, Usage(30, 7, 10)))["usage"]
    assert (told["input_tokens"], told["output_tokens"], told["total_tokens"]) == (30, 7, 37)
    assert told["input_tokens_details"]["cached_tokens"] == 10


def test_a_bound_that_is_used_up_makes_it_incomplete() -> None:
    told = body({}, ending=Ending(FinishReason.LENGTH))
    assert told["status"] == "incomplete"
    assert told["incomplete_details"] == {"reason": "max_output_tokens"}
    assert told["output"][0]["status"] == "incomplete"


def test_arguments_are_a_text_of_json_and_calls_have_ids() -> None:
    (call,) = body({}, text="", tool_calls=(CALL,))["output"]
    assert (call["name"], call["arguments"]) == ("look", '{"at": "sky"}')
    assert call["call_id"]


def test_how_likely_each_token_was_stands_beside_the_text() -> None:
    told = body({}, logprobs=({"token": "Yes.", "logprob": -0.5},))
    assert told["output"][0]["content"][0]["logprobs"][0]["token"] == "Yes."
