"""A finished answer as Anthropic's API has it: ids, content, why it ended, what it took."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from d8mesh.core.protocol.chat import Ending, FinishReason, JsonObject, Usage
from d8mesh.doors.anthropic.message_request import AskedMessage
from d8mesh.doors.llm.asked import LlmAnswer

#: Stands where Anthropic signs a model's thoughts: programs hand back none that has no signature.
SIGNATURE: Final = "d8mesh"
#: Where services say which stop sequence ended an answer, if they do.
_STOPPED_BY: Final = ("stop_sequence", "stop_reason", "stopping_word", "matched_stop")


def message_id(task_id: str) -> str:
    """Return the id of the message that a task writes."""
    return f"msg_{task_id}"


def message_body(asked: AskedMessage, answer: LlmAnswer) -> dict[str, Any]:
    """Return the message that answers a request."""
    said = answer.completion
    if said is None:
        raise ValueError("a message is what a model says")
    content: list[dict[str, Any]] = []
    if said.thinking and asked.shows_thinking:
        content.append({"type": "thinking", "thinking": said.thinking, "signature": SIGNATURE})
    if said.text:
        content.append({"type": "text", "text": said.text})
    for number, call in enumerate(said.tool_calls):
        content.append(tool_use(call, answer.task_id, number))
    has_calls = bool(said.tool_calls)
    return blank_message(answer.task_id, asked.task.model) | {
        "content": content,
        **ending_fields(said.ending, said.extra, asked, has_calls=has_calls),
        "usage": usage_fields(said.ending.usage),
    }


def blank_message(task_id: str, model: str) -> dict[str, Any]:
    """Return a message of which nothing is said yet."""
    return {
        "id": message_id(task_id),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage_fields(Usage()),
    }


def tool_use(call: JsonObject, task_id: str, number: int) -> dict[str, Any]:
    """Return the block of one call of a tool; one without an id is given one."""
    function = call.get("function")
    named = function if isinstance(function, Mapping) else {}
    made = f"toolu_{task_id}_{number}"
    return {
        "type": "tool_use",
        "id": str(call.get("id") or made),
        "name": str(named.get("name") or ""),
        "input": _input_of(named.get("arguments")),
    }


def ending_fields(
    ending: Ending, extra: JsonObject, asked: AskedMessage, *, has_calls: bool
) -> dict[str, Any]:
    """Return why an answer ended, and the stop sequence that ended it, if the service tells."""
    stopped_by = next(
        (extra[name] for name in _STOPPED_BY if extra.get(name) in asked.stop_sequences), None
    )
    if ending.finish_reason is FinishReason.LENGTH:
        reason = "max_tokens"
    elif has_calls or ending.finish_reason is FinishReason.TOOL_CALLS:
        reason = "tool_use"
    else:
        reason = "end_turn" if stopped_by is None else "stop_sequence"
    return {
        "stop_reason": reason,
        "stop_sequence": stopped_by if reason == "stop_sequence" else None,
    }


def usage_fields(usage: Usage) -> dict[str, Any]:
    """Return the tokens: those of the prompt that were in memory stand apart, and count once."""
    return {
        "input_tokens": max(usage.prompt_tokens - usage.cached_tokens, 0),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _input_of(arguments: object) -> dict[str, Any]:
    """Return the arguments as an object, whatever the model made of them."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return {"arguments": arguments}
    if isinstance(arguments, Mapping):
        return dict(arguments)
    return {} if arguments is None else {"arguments": arguments}
