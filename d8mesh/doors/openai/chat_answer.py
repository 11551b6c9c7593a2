"""Answers to ``/v1/chat/completions`` in OpenAI's form: whole, and parts of any. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from d8mesh.core.protocol.chat import FinishReason, JsonObject, Usage
from d8mesh.doors.llm.asked import LlmAnswer
from d8mesh.doors.openai.asked import AskedOfModels

#: Before the first task's id, in an answer's own.
CHAT_ID: Final = "chatcmpl-"
#: How an answer ended that calls ``functions``.
FUNCTION_CALL: Final = "function_call"


def chat_body(asked: AskedOfModels, answers: Sequence[LlmAnswer], created: int) -> dict[str, Any]:
    """Return a whole answer.

    Args:
        created: Unix seconds.
    """
    return {
        "id": CHAT_ID + answers[0].task_id,
        "object": "chat.completion",
        "created": created,
        "model": asked.model,
        "choices": [_choice(asked, i, answer) for i, answer in enumerate(answers)],
        "usage": usage_body(each.completion.ending.usage for each in answers if each.completion),
    }


def usage_body(usages: Iterable[Usage]) -> dict[str, Any]:
    """Return the tokens of all tasks of a request together."""
    listed = list(usages)
    body: dict[str, Any] = {
        "prompt_tokens": sum(each.prompt_tokens for each in listed),
        "completion_tokens": sum(each.completion_tokens for each in listed),
        "total_tokens": sum(each.total for each in listed),
    }
    if cached := sum(each.cached_tokens for each in listed):
        body["prompt_tokens_details"] = {"cached_tokens": cached}
    return body


def reason_of(reason: FinishReason, *, has_calls: bool, has_functions: bool) -> str:
    """Return how an answer ended: what calls tools has not come to its end."""
    if has_calls and reason is not FinishReason.LENGTH:
        return FUNCTION_CALL if has_functions else str(FinishReason.TOOL_CALLS)
    return str(reason)


def call_body(call: JsonObject, index: int, task_id: str) -> dict[str, Any]:
    """Return a call of a tool, its arguments as a text of JSON.

    Args:
        index: which call of its answer it is, from 0.
        task_id: makes the id of one that has none.
    """
    function = call["function"]
    assert isinstance(function, Mapping)
    extras = {name: value for name, value in call.items() if name not in ("id", "type", "function")}
    return {
        "id": str(call.get("id") or f"call_{task_id}_{index}"),
        "type": "function",
        "function": {
            "name": str(function.get("name")),
            "arguments": json.dumps(function.get("arguments") or {}, ensure_ascii=False),
        },
        **extras,
    }


def logprobs_body(logprobs: Sequence[object]) -> dict[str, Any] | None:
    """Return how likely the tokens of a text were; None if that was not told."""
    rows = [_token(each) for each in logprobs if isinstance(each, Mapping)]
    return {"content": rows, "refusal": None} if rows else None


def thoughts_body(thinking: str) -> dict[str, str]:
    """Return what was thought, by both names that readers look for; each reads one of them.

    OpenAI has no field for it. ``reasoning`` is Ollama's and newer vLLM's, ``reasoning_content``
    DeepSeek's, llama.cpp's, LM Studio's and LiteLLM's.
    """
    return {"reasoning": thinking, "reasoning_content": thinking} if thinking else {}


def _choice(asked: AskedOfModels, index: int, answer: LlmAnswer) -> dict[str, Any]:
    said = answer.completion
    assert said is not None
    calls = [call_body(call, n, answer.task_id) for n, call in enumerate(said.tool_calls)]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": said.text if said.text or not calls else None,
        "refusal": None,
        **thoughts_body(said.thinking),
    }
    if calls and asked.has_functions:
        message["function_call"] = calls[0]["function"]
    elif calls:
        message["tool_calls"] = calls
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs_body(said.logprobs),
        "finish_reason": reason_of(
            said.ending.finish_reason, has_calls=bool(calls), has_functions=asked.has_functions
        ),
    }


def _token(row: Mapping[str, Any]) -> dict[str, Any]:
    token = str(row.get("token", ""))
    found = {
        "token": token,
        "logprob": row.get("logprob", 0.0),
        "bytes": row.get("bytes") or list(token.encode("utf-8", "replace")),
    }
    top = row.get("top_logprobs")
    rows = [each for each in top if isinstance(each, Mapping)] if isinstance(top, list) else []
    return found | {"top_logprobs": [_alternative(each) for each in rows]}


def _alternative(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in _token(row).items() if name != "top_logprobs"}
