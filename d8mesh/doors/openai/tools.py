"""The tools that a request offers to a model, in their newer form and in the older one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from d8mesh.doors.openai.fields import RequestFields
from d8mesh.errors import InvalidTaskError

AUTO: Final = "auto"
#: What a choice is called elsewhere, and here.
_CHOICES: Final[Mapping[str, str]] = {
    "auto": AUTO,
    "none": "none",
    "required": "required",
    "any": "required",  # Mistral's name, which many clients send
}


def offered_tools(fields: RequestFields) -> tuple[dict[str, Any], bool]:
    """Return what the data says of tools, and whether they were called ``functions``.

    Raises:
        InvalidTaskError: a field is not what it must be, or cannot be done; names it.
    """
    tools = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(fields.rows("tools") or ())]
    functions = fields.rows("functions") or ()
    has_functions = bool(functions) and not tools
    if has_functions:
        tools = [_function(each, f"functions[{i}]") for i, each in enumerate(functions)]
        choice = _function_choice(fields)
    else:
        choice = fields.get("tool_choice")
    chosen, tools = _chosen(fields, choice, tools)
    are_parallel = fields.switch("parallel_tool_calls")
    if not tools:
        if chosen not in (None, AUTO, "none"):
            raise InvalidTaskError("tool_choice: expected tools to choose from, and there are none")
        return {}, False
    data: dict[str, Any] = {"tools": tools}
    if chosen not in (None, AUTO):
        data["tool_choice"] = chosen
    if are_parallel is False or has_functions:
        data["parallel_tool_calls"] = False
    return data, has_functions


def _tool(tool: object, path: str) -> Mapping[str, Any]:
    fields = RequestFields(tool, f"{path}.")
    if fields.text("type") not in (None, "function"):
        raise fields.wrong("type", "function: no other kind of tool can be offered to these models")
    return _function(fields.get("function"), f"{path}.function")


def _function(function: object, path: str) -> Mapping[str, Any]:
    fields = RequestFields(function, f"{path}.")
    fields.required_text("name")
    fields.text("description")
    fields.mapping("parameters")
    assert isinstance(function, Mapping)
    given = {key: value for key, value in function.items() if value is not None}
    return {"type": "function", "function": given}


def _function_choice(fields: RequestFields) -> object:
    """Return the older form's choice as the newer one has it."""
    choice = fields.get("function_call")
    if isinstance(choice, Mapping):
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice


def _chosen(
    fields: RequestFields, choice: object, tools: list[Mapping[str, Any]]
) -> tuple[object, list[Mapping[str, Any]]]:
    """Return a choice as the data has it, and the tools that it leaves."""
    if choice is None or (isinstance(choice, str) and choice in _CHOICES):
        return _CHOICES.get(str(choice)), tools
    expected = "none, auto, required, or the name of one of the tools as {type, function: {name}}"
    if not isinstance(choice, Mapping):
        raise fields.wrong("tool_choice", expected)
    if choice.get("type") == "allowed_tools":
        return _allowed(fields, choice, tools)
    function = choice.get("function")
    name = function.get("name") if isinstance(function, Mapping) else choice.get("name")
    if choice.get("type") not in (None, "function") or name not in _names(tools):
        raise fields.wrong("tool_choice", expected)
    return {"type": "function", "function": {"name": name}}, tools


def _allowed(
    fields: RequestFields, choice: Mapping[str, Any], tools: list[Mapping[str, Any]]
) -> tuple[object, list[Mapping[str, Any]]]:
    allowed = choice.get("allowed_tools", choice)
    listed = allowed.get("tools") if isinstance(allowed, Mapping) else None
    mode = allowed.get("mode", AUTO) if isinstance(allowed, Mapping) else None
    functions = [
        each.get("function", each)
        for each in (listed if isinstance(listed, list) else ())
        if isinstance(each, Mapping)
    ]
    names = {each.get("name") for each in functions if isinstance(each, Mapping)}
    if mode not in (AUTO, "required") or not names or not names <= _names(tools):
        raise fields.wrong("tool_choice", "allowed_tools {mode: auto or required, tools: […]}")
    return mode, [tool for tool in tools if tool["function"]["name"] in names]


def _names(tools: list[Mapping[str, Any]]) -> set[Any]:
    return {tool["function"]["name"] for tool in tools}
