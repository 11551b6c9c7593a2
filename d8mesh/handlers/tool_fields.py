"""The tools of a conversation: what they are, and which of them the model may or must call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from d8mesh.core.protocol.chat import NO_CALL, SOME_CALL
from d8mesh.errors import InvalidTaskError
from d8mesh.handlers import Data
from d8mesh.handlers.field_values import is_name, switch_of

#: What `tool_choice` says where the model itself is to choose, as without it.
_FREE: Final = "auto"


def tool_fields(data: Data) -> dict[str, Any]:
    """Return what is said of tools, None for what is not; see `ChatRequest.more`.

    Raises:
        InvalidTaskError: a field is not what it must be; names the field.
    """
    tools = None if data.get("tools") is None else _tools(data["tools"])
    is_parallel = switch_of(data, "parallel_tool_calls")
    return {
        "tools": tools,
        "tool_choice": _choice(data.get("tool_choice"), tools or []),
        "parallel_tool_calls": False if is_parallel is False else None,
    }


def _tools(tools: Any) -> list[Mapping[str, Any]]:
    if not isinstance(tools, list):
        raise InvalidTaskError("tools: expected a list")
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not is_name(function.get("name")):
            raise InvalidTaskError(
                f'tools[{i}]: expected {{"type": "function", "function": {{"name": …}}}}'
            )
    return tools


def _choice(choice: object, tools: list[Mapping[str, Any]]) -> object:
    """Return which call there shall be; None: the model chooses."""
    if choice in (None, _FREE) or (choice == NO_CALL and not tools):
        return None
    if not tools:
        raise InvalidTaskError("tool_choice: there are no tools to choose of")
    if choice in (NO_CALL, SOME_CALL):
        return choice
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not is_name(name):
        raise InvalidTaskError(
            "tool_choice: expected auto, none, required or "
            '{"type": "function", "function": {"name": …}}'
        )
    if all(tool["function"]["name"] != name for tool in tools):
        raise InvalidTaskError(f"tool_choice: there is no tool {name!r} among the tools")
    return {"type": "function", "function": {"name": name}}
