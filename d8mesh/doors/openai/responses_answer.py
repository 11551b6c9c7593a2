"""Answers of ``/v1/responses``: whole, and the items and counts that growing ones share. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from d8mesh.core.protocol.chat import Ending, FinishReason, JsonObject, Usage
from d8mesh.doors.llm.asked import LlmAnswer
from d8mesh.doors.openai.asked import AskedOfModels
from d8mesh.doors.openai.chat_answer import call_body, logprobs_body

#: Before the task's id, in an answer's own.
RESPONSE_ID: Final = "resp_"
#: Before it, and before the number of an item, in the ids of items.
_ITEM_IDS: Final = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
COMPLETED: Final = "completed"
INCOMPLETE: Final = "incomplete"


def response_body(
    asked: AskedOfModels, answers: Sequence[LlmAnswer], created: int
) -> dict[str, Any]:
    """Return a whole answer.

    Args:
        created: Unix seconds.
    """
    (answer,) = answers
    said = answer.completion
    assert said is not None
    status = status_of_ending(said.ending)
    output: list[dict[str, Any]] = []
    if said.thinking:
        output.append(reasoning_item(answer.task_id, 0, said.thinking))
    if said.text:
        item = message_item(answer.task_id, len(output), said.text, status)
        item["content"][0]["logprobs"] = rows_of_logprobs(said.logprobs)
        output.append(item)
    for call in said.tool_calls:
        output.append(call_item(answer.task_id, len(output), call))
    blank = blank_response(asked, answer.task_id, created)
    return blank | ended_fields(said.ending) | {"output": output}


def blank_response(asked: AskedOfModels, task_id: str, created: int) -> dict[str, Any]:
    """Return an answer of which nothing is said yet."""
    return {
        "id": RESPONSE_ID + task_id,
        "object": "response",
        "created_at": created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": asked.model,
        "output": [],
        "usage": None,
        **asked.repeated,
    }


def ended_fields(ending: Ending) -> dict[str, Any]:
    """Return what tells that an answer is at its end, and why, and what it took."""
    status = status_of_ending(ending)
    why = None if status == COMPLETED else {"reason": "max_output_tokens"}
    return {"status": status, "incomplete_details": why, "usage": usage_of(ending.usage)}


def status_of_ending(ending: Ending) -> str:
    """Return whether an answer is complete: one whose bound of tokens was used up is not."""
    return INCOMPLETE if ending.finish_reason is FinishReason.LENGTH else COMPLETED


def usage_of(usage: Usage) -> dict[str, Any]:
    """Return the tokens; thoughts are among those of the output, how many is not told."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total,
    }


def item_id(kind: str, task_id: str, index: int) -> str:
    """Return the id of an item of an answer."""
    return f"{_ITEM_IDS[kind]}_{task_id}_{index}"


def reasoning_item(task_id: str, index: int, thinking: str) -> dict[str, Any]:
    """Return what a model thought before it answered."""
    return {
        "id": item_id("reasoning", task_id, index),
        "type": "reasoning",
        "status": COMPLETED,
        "summary": [summary_part(thinking)],
    }


def message_item(task_id: str, index: int, text: str, status: str = COMPLETED) -> dict[str, Any]:
    """Return what a model says."""
    return {
        "id": item_id("message", task_id, index),
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": [text_part(text)],
    }


def call_item(task_id: str, index: int, call: JsonObject) -> dict[str, Any]:
    """Return a call of a tool; one without an id is given one."""
    body = call_body(call, index, task_id)
    return {
        "id": item_id("function_call", task_id, index),
        "type": "function_call",
        "status": COMPLETED,
        "call_id": body["id"],
        "name": body["function"]["name"],
        "arguments": body["function"]["arguments"],
    }


def text_part(text: str) -> dict[str, Any]:
    """Return a text as content of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def summary_part(text: str) -> dict[str, Any]:
    """Return thoughts as part of a summary, which here is all of them."""
    return {"type": "summary_text", "text": text}


def rows_of_logprobs(logprobs: Sequence[object]) -> list[Mapping[str, Any]]:
    """Return how likely the tokens of a text were; empty if that was not told."""
    told = logprobs_body(logprobs)
    return [] if told is None else list(told["content"])
