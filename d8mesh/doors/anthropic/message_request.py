"""What a request of Anthropic's Messages API asks.

What would change the answer and cannot be done is refused with its path; what only tells of the
caller or of how Anthropic runs it is ignored and named: ``metadata``, ``service_tier``,
``thinking.budget_tokens``, fields that are unknown; and ``cache_control``, in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from d8mesh.doors.anthropic.content_blocks import conversation_of
from d8mesh.doors.llm.asked import LlmTask
from d8mesh.errors import InvalidTaskError
from d8mesh.handlers.chat_fields import MAX_TEMPERATURE, MAX_TOKENS
from d8mesh.handlers.field_values import (
    format_of,
    given,
    is_name,
    model_name,
    number_of,
    switch_of,
    whole_number_of,
)

#: Those that have an effect, or whose absence is none.
MESSAGE_REQUEST_FIELDS: Final = frozenset(
    {"cache_control", "max_tokens", "messages", "model", "output_config", "output_format",
     "stop_sequences", "stream", "system", "temperature", "thinking", "tool_choice", "tools",
     "top_k", "top_p"}
)  # fmt: skip
#: Of `top_k`: more tokens than any vocabulary has.
MAX_TOP_K: Final = 10_000_000
#: `output_config.effort` -> `think`, for models that know levels.
_ANTHROPIC_EFFORTS: Final = {
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "max": "max",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedMessage:
    """A message that a model is to write."""

    task: LlmTask
    is_streamed: bool
    stop_sequences: tuple[str, ...] = ()
    #: thoughts are part of the answer; if not, those of a model that cannot but think are left out
    shows_thinking: bool = False
    #: fields of the request that have no effect
    ignored: tuple[str, ...] = ()


def asked_of_message(body: Any) -> AskedMessage:
    """Return what the body of ``POST /v1/messages`` asks.

    Raises:
        InvalidTaskError: a field is missing, or is not what it must be; names its path.
    """
    if not isinstance(body, Mapping):
        raise InvalidTaskError("the body: expected a JSON object")
    model = model_name(body.get("model"))
    if model is None:
        raise InvalidTaskError("model is required")
    if body.get("max_tokens") is None:
        raise InvalidTaskError("max_tokens is required")
    if body.get("messages") is None:
        raise InvalidTaskError("messages is required")
    if body.get("mcp_servers"):
        raise InvalidTaskError("mcp_servers: no server is asked from here: give the tools in tools")
    stops = _stop_sequences(body.get("stop_sequences"))
    think, shows_thinking = _thinking(body)
    data = {
        "messages": conversation_of(body.get("system"), body["messages"]),
        "max_tokens": whole_number_of(body, "max_tokens", low=1, high=MAX_TOKENS),
        "temperature": number_of(body, "temperature", low=0, high=MAX_TEMPERATURE),
        "top_p": number_of(body, "top_p", low=0, high=1),
        "top_k": whole_number_of(body, "top_k", low=0, high=MAX_TOP_K),
        "stop": list(stops) or None,
        "format": _format(body),
        "think": think,
        "model_defaults": True,
        **_tools(body),
    }
    return AskedMessage(
        task=LlmTask(type="agent_action", data=given(data), model=model),
        is_streamed=switch_of(body, "stream") or False,
        stop_sequences=stops,
        shows_thinking=shows_thinking,
        ignored=_ignored(body),
    )


def _ignored(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return which fields say something that changes nothing, in order."""
    thinking = body.get("thinking")
    has_budget = isinstance(thinking, Mapping) and thinking.get("budget_tokens") is not None
    unknown = [
        str(name) for name, value in body.items() if name not in MESSAGE_REQUEST_FIELDS and value
    ]
    return tuple(sorted(unknown)) + (("thinking.budget_tokens",) if has_budget else ())


def _stop_sequences(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise InvalidTaskError("stop_sequences: expected a list of texts")
    return tuple(value)


def _thinking(body: Mapping[str, Any]) -> tuple[bool | str | None, bool]:
    """Return `think` of the task, and whether the answer shows it. Without the field: neither."""
    wanted = body.get("thinking")
    if wanted is None:
        return False, False
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "disabled":
        return False, False
    if kind not in ("enabled", "adaptive", "between_tools"):
        raise InvalidTaskError("thinking.type: expected enabled, adaptive or disabled")
    whole_number_of(wanted, "budget_tokens", "thinking.", low=1, high=MAX_TOKENS)
    shows = wanted.get("display") != "omitted"
    if kind != "enabled":  # the model's own choice: on, if it can think at all
        return None, shows
    config = body.get("output_config")
    effort = config.get("effort") if isinstance(config, Mapping) else None
    return _ANTHROPIC_EFFORTS.get(effort, True) if isinstance(effort, str) else True, shows


def _format(body: Mapping[str, Any]) -> Any:
    """Return the JSON schema that the answer is to have."""
    config = body.get("output_config")
    wanted = config.get("format") if isinstance(config, Mapping) else None
    path = "output_config.format"
    if wanted is None:
        path, wanted = "output_format", body.get("output_format")
    if wanted is None:
        return None
    is_schema = isinstance(wanted, Mapping) and wanted.get("type") == "json_schema"
    if not is_schema or not isinstance(wanted.get("schema"), Mapping):
        raise InvalidTaskError(f'{path}: expected {{"type": "json_schema", "schema": {{…}}}}')
    return format_of({"format": wanted["schema"]})


def _tools(body: Mapping[str, Any]) -> dict[str, Any]:
    tools = [] if body.get("tools") is None else body["tools"]
    if not isinstance(tools, list):
        raise InvalidTaskError("tools: expected a list")
    found = [_tool(tool, f"tools.{i}") for i, tool in enumerate(tools)]
    choice, is_single = _tool_choice(body.get("tool_choice"))
    names = {tool["function"]["name"] for tool in found}
    if isinstance(choice, Mapping) and choice["function"]["name"] not in names:
        raise InvalidTaskError("tool_choice.name: there is no such tool in tools")
    if not found:
        if choice == "required":
            raise InvalidTaskError("tool_choice: there are no tools to choose from")
        return {}
    return {
        "tools": found,
        "tool_choice": None if choice == "auto" else choice,
        "parallel_tool_calls": False if is_single else None,
    }


def _tool(tool: Any, path: str) -> dict[str, Any]:
    if not isinstance(tool, Mapping):
        raise InvalidTaskError(f"{path}: expected an object")
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise InvalidTaskError(
            f"{path}.type: saw {str(kind)[:60]!r}: there are no tools but those of the caller, "
            "with name, description and input_schema"
        )
    if not is_name(tool.get("name")):
        raise InvalidTaskError(f"{path}.name: expected the name of a tool")
    schema = tool.get("input_schema")
    if not isinstance(schema, Mapping):
        raise InvalidTaskError(f"{path}.input_schema: expected a JSON schema (an object)")
    function = {"name": tool["name"], "parameters": dict(schema)}
    if isinstance(tool.get("description"), str):
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _tool_choice(choice: Any) -> tuple[Any, bool]:
    """Return the choice as tasks have it, and whether one call at most is wanted."""
    if choice is None:
        return None, False
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind not in ("auto", "any", "tool", "none"):
        raise InvalidTaskError("tool_choice.type: expected auto, any, tool or none")
    is_single = choice.get("disable_parallel_tool_use") is True
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}, is_single
    return {"auto": "auto", "any": "required", "none": "none"}[kind], is_single
