"""The input of ``/v1/responses``: each item as the message of a chat that says the same. Pure.

Source: OpenAI, Responses API, ``ResponseInputItem``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from d8mesh.doors.openai.conversation import Conversation, conversation_of
from d8mesh.doors.openai.fields import RequestFields
from d8mesh.errors import InvalidTaskError

#: The field of a request that is read here.
INPUT: Final = "input"
_TAKEN_ITEMS: Final = "message, function_call, function_call_output or reasoning"


def conversation_of_items(instructions: str | None, given: object) -> Conversation:
    """Return what was said so far.

    Thoughts, text and calls of one turn of a model are items here, and one message of a task.

    Raises:
        InvalidTaskError: an item is not what it must be, or of a kind that no model is shown;
            names it.
    """
    if given is None:
        raise InvalidTaskError(f"Missing field: {INPUT}")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise InvalidTaskError(f"{INPUT}: expected a text, or a list of one or more items")
    messages = [_message(item, f"{INPUT}[{i}].") for i, item in enumerate(given)]
    found = conversation_of(messages, INPUT)
    found.messages = _in_turns(found.messages)
    if instructions:
        found.messages.insert(0, {"role": "system", "content": instructions})
    return found


def _message(item: object, path: str) -> Mapping[str, Any]:
    """Return the message of a chat that says what an item says."""
    fields = RequestFields(item, path)
    kind = fields.text("type") or "message"
    if kind == "message":
        return {"role": fields.get("role"), "content": fields.get("content")}
    if kind == "reasoning":
        return _turn(reasoning=_thoughts(fields))
    if kind == "function_call":
        called = {"name": fields.get("name"), "arguments": fields.get("arguments")}
        return _turn(tool_calls=[{"id": fields.required_text("call_id"), "function": called}])
    if kind == "function_call_output":
        called_id, output = fields.required_text("call_id"), fields.get("output")
        return {"role": "tool", "tool_call_id": called_id, "content": output}
    if kind == "item_reference":
        raise fields.wrong("type", "the item itself: nothing is kept here that it could refer to")
    raise fields.wrong("type", f"{_TAKEN_ITEMS}, not {kind[:60]!r}")


def _turn(**said: object) -> dict[str, Any]:
    return {"role": "assistant", "content": None, **said}


def _thoughts(fields: RequestFields) -> str:
    """Return what a model thought: all of it, or else its summary."""
    for name in ("content", "summary"):
        parts = fields.rows(name) or ()
        texts = [str(part.get("text") or "") for part in parts if isinstance(part, Mapping)]
        if any(texts):
            return "\n".join(texts)
    return ""


def _in_turns(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with those of each turn of a model made one."""
    found: list[dict[str, Any]] = []
    for message in messages:
        last = found[-1] if found else {}
        if not message["role"] == last.get("role") == "assistant":
            found.append(message)
            continue
        last["content"] = "\n".join(each["content"] for each in (last, message) if each["content"])
        if thinking := last.get("thinking", "") + message.get("thinking", ""):
            last["thinking"] = thinking
        if calls := [*last.get("tool_calls", ()), *message.get("tool_calls", ())]:
            last["tool_calls"] = calls
    return found
