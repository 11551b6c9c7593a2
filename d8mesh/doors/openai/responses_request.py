"""What a request to ``/v1/responses`` asks for. Pure.

Nothing is kept: a request must bring the whole conversation, and ``store`` has no effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from d8mesh.doors.llm.asked import LlmTask
from d8mesh.doors.openai.asked import AskedOfModels
from d8mesh.doors.openai.chat_request import CHAT_TASK_TYPE, THINK_OF_EFFORT
from d8mesh.doors.openai.fields import RequestFields
from d8mesh.doors.openai.responses_items import INPUT, conversation_of_items
from d8mesh.doors.openai.tools import offered_tools
from d8mesh.errors import InvalidTaskError
from d8mesh.handlers.chat_fields import MAX_TEMPERATURE, MAX_TOKENS, MAX_TOP_LOGPROBS, agent_request

#: Fields that would change the answer, and why they cannot be obeyed.
_NOT_KEPT: Final = "nothing is kept here: send the whole conversation in input"
REFUSED_IN_RESPONSES: Final[Mapping[str, str]] = {
    "previous_response_id": _NOT_KEPT,
    "conversation": _NOT_KEPT,
    "prompt": "there are no stored prompts here: send instructions and input",
    "background": "an answer comes when it is there: send the request as a task instead",
}
#: Asks for the likelihood of each token.
_LOGPROBS: Final = "message.output_text.logprobs"


def asked_of_response(body: object) -> AskedOfModels:
    """Return what a request asks for.

    Raises:
        InvalidTaskError: a field is not what it must be, or cannot be done; names it.
    """
    fields = RequestFields(body)
    model = fields.required_text("model")
    fields.refuse(REFUSED_IN_RESPONSES)
    conversation = conversation_of_items(fields.text("instructions"), fields.get(INPUT))
    functions, left_out = _functions(fields)
    tools, _ = offered_tools(functions)
    top_logprobs = fields.whole("top_logprobs", low=0, high=MAX_TOP_LOGPROBS)
    has_logprobs = _LOGPROBS in (fields.rows("include") or ()) or bool(top_logprobs)
    truncation = fields.text("truncation")
    more = {
        "temperature": fields.number("temperature", low=0, high=MAX_TEMPERATURE),
        "top_p": fields.number("top_p", low=0, high=1),
        "max_tokens": fields.whole("max_output_tokens", low=1, high=MAX_TOKENS),
        "format": _text_format(fields),
        "think": _think(fields),
        "logprobs": has_logprobs or None,
        "top_logprobs": top_logprobs,
        "truncate": None if truncation is None else truncation == "auto",
    }
    data = {"messages": conversation.messages, "model_defaults": True, **tools}
    data |= {name: value for name, value in more.items() if value is not None}
    agent_request({**data, "model": model})  # so that all that is wrong is told at once
    is_streamed = bool(fields.switch("stream"))
    return AskedOfModels(
        tasks=(LlmTask(type=CHAT_TASK_TYPE, data=data, model=model),),
        model=model,
        is_streamed=is_streamed,
        repeated=_repeated(fields, tools),
        ignored=(*fields.unread(), *sorted(conversation.ignored), *left_out),
    )


def _functions(fields: RequestFields) -> tuple[RequestFields, list[str]]:
    """Return the tools as a chat offers them, and the names of those that run at OpenAI alone.

    A model may choose whether to use those: it answers without them.
    """
    kept: list[object] = []
    left_out: list[str] = []
    for i, tool in enumerate(fields.rows("tools") or ()):
        inner = RequestFields(tool, f"tools[{i}].")
        kind = inner.required_text("type")
        if kind == "function":
            given = {name: inner.get(name) for name in ("name", "description", "parameters")}
            kept.append({"type": kind, "function": given})
        else:
            left_out.append(f"tools[{i}]: {kind[:60]}")
    chat = {
        "tools": kept,
        "tool_choice": fields.get("tool_choice"),
        "parallel_tool_calls": fields.switch("parallel_tool_calls"),
    }
    return RequestFields(chat), left_out


def _text_format(fields: RequestFields) -> object:
    """Return the form that the answer is to have; None if it is free."""
    text = RequestFields(fields.mapping("text") or {}, "text.")
    wanted = text.mapping("format")
    if wanted is None:
        return None
    inner = RequestFields(wanted, "text.format.")
    kind = inner.text("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return "json"
    if kind != "json_schema":
        raise inner.wrong("type", "text, json_object or json_schema")
    schema = inner.mapping("schema")
    if schema is None:
        raise InvalidTaskError("Missing field: text.format.schema")
    return schema


def _think(fields: RequestFields) -> bool | str | None:
    reasoning = RequestFields(fields.mapping("reasoning") or {}, "reasoning.")
    effort = reasoning.text("effort")
    if effort is None:
        return None
    if effort not in THINK_OF_EFFORT:
        raise reasoning.wrong("effort", f"one of {', '.join(THINK_OF_EFFORT)}")
    return THINK_OF_EFFORT[effort]


def _repeated(fields: RequestFields, tools: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an answer repeats of its request: of its tools those that were offered."""
    offered = [each["function"] for each in tools.get("tools", ())]
    text, reasoning = fields.mapping("text") or {}, fields.mapping("reasoning") or {}
    return {
        "instructions": fields.get("instructions"),
        "max_output_tokens": fields.get("max_output_tokens"),
        "metadata": fields.mapping("metadata") or {},
        "parallel_tool_calls": fields.get("parallel_tool_calls") is not False,
        "previous_response_id": None,
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "store": False,
        "temperature": fields.get("temperature"),
        "text": {"format": text.get("format") or {"type": "text"}},
        "tool_choice": fields.get("tool_choice") or "auto",
        "tools": [{"type": "function", "strict": None, **each} for each in offered],
        "top_logprobs": fields.get("top_logprobs") or 0,
        "top_p": fields.get("top_p"),
        "truncation": fields.get("truncation") or "disabled",
        "user": fields.text("user"),
    }
