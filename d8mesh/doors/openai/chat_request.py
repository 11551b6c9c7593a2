"""``POST /v1/chat/completions``: what is asked, in the words of the mesh's tasks. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from d8mesh.doors.llm.asked import LlmTask
from d8mesh.doors.openai.asked import AskedOfModels
from d8mesh.doors.openai.conversation import conversation_of
from d8mesh.doors.openai.fields import RequestFields
from d8mesh.doors.openai.sampling import OWN_DEFAULTS, choices_of, sampling_of, several
from d8mesh.doors.openai.tools import offered_tools
from d8mesh.errors import InvalidTaskError
from d8mesh.handlers.chat_fields import MAX_TOP_LOGPROBS, THINK_LEVELS, agent_request

CHAT_TASK_TYPE: Final = "agent_action"
#: How hard a model is to think, by OpenAI's words.
THINK_OF_EFFORT: Final[Mapping[str, bool | str]] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "max": "max",
}
#: Fields that would change the answer, and cannot be obeyed.
_REFUSED: Final[Mapping[str, str]] = {"audio": "no model of a mesh answers with sound"}


def asked_of_chat(body: object) -> AskedOfModels:
    """Return what a chat asks for.

    Raises:
        InvalidTaskError: a field is not what it must be, or cannot be done; names it.
    """
    fields = RequestFields(body)
    model = fields.required_text("model")
    conversation = conversation_of(fields.get("messages"))
    tools, has_functions = offered_tools(fields)
    sampling, ignored = sampling_of(fields)
    fields.refuse(_REFUSED)
    _check_modalities(fields)
    top_logprobs = fields.whole("top_logprobs", low=0, high=MAX_TOP_LOGPROBS)
    more = {
        "format": _format(fields),
        "think": _think(fields),
        "logprobs": fields.switch("logprobs") or bool(top_logprobs) or None,
        "top_logprobs": top_logprobs,
    }
    data = {"messages": conversation.messages, **sampling, **tools, **OWN_DEFAULTS}
    data |= {name: value for name, value in more.items() if value is not None}
    agent_request({**data, "model": model})  # so that all that is wrong is told at once
    has_usage = usage_wished(fields)
    count = choices_of(fields)
    return AskedOfModels(
        tasks=tuple(
            LlmTask(type=CHAT_TASK_TYPE, data=each, model=model) for each in several(data, count)
        ),
        model=model,
        is_streamed=bool(fields.switch("stream")),
        has_usage=has_usage,
        has_functions=has_functions,
        ignored=(*fields.unread(), *sorted(conversation.ignored | ignored)),
    )


def usage_wished(fields: RequestFields) -> bool:
    """Return whether a stream is to end with its usage."""
    options = RequestFields(fields.mapping("stream_options") or {}, "stream_options.")
    return bool(options.switch("include_usage"))


def _format(fields: RequestFields) -> object:
    """Return the form that the answer is to have; None if it is free."""
    wanted = fields.mapping("response_format")
    if wanted is None:
        return None
    inner = RequestFields(wanted, "response_format.")
    kind = inner.text("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return "json"
    if kind != "json_schema":
        raise inner.wrong("type", "text, json_object or json_schema")
    schema = inner.mapping("json_schema")
    # Some clients put the schema itself where its name, its schema and `strict` belong.
    found = (schema or {}).get("schema", inner.get("schema"))
    if not isinstance(found, Mapping):
        raise InvalidTaskError("response_format.json_schema.schema: expected a JSON schema")
    return found


def _think(fields: RequestFields) -> bool | str | None:
    """Return how hard to think: OpenAI's word, OpenRouter's object, or Ollama's own field."""
    reasoning = RequestFields(fields.mapping("reasoning") or {}, "reasoning.")
    own = fields.get("think")
    inner, is_enabled = reasoning.text("effort"), reasoning.switch("enabled")
    effort = fields.text("reasoning_effort") or inner
    if effort is not None:
        if effort not in THINK_OF_EFFORT:
            name = "reasoning_effort" if fields.text("reasoning_effort") else "reasoning.effort"
            raise InvalidTaskError(f"{name}: expected one of {', '.join(THINK_OF_EFFORT)}")
        return THINK_OF_EFFORT[effort]
    if is_enabled is not None:
        return is_enabled
    if own is None or isinstance(own, bool):
        return own
    if own not in THINK_LEVELS:
        raise fields.wrong("think", f"true, false or one of {', '.join(THINK_LEVELS)}")
    return str(own)


def _check_modalities(fields: RequestFields) -> None:
    if set(map(str, fields.rows("modalities") or ())) - {"text"}:
        raise fields.wrong("modalities", 'text alone (["text"]): models of a mesh answer with text')
