"""The messages of Anthropic's API in the words of a task: every block taken, or refused by path.

Source: Anthropic, Messages API, ``MessageParam`` and ``ContentBlockParam``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from d8mesh.errors import InvalidTaskError
from d8mesh.handlers.field_values import is_name
from d8mesh.handlers.message_fields import images_of

#: Before what a tool says of its own failure.
FAILED_TOOL: Final = "Error: "
#: Before pictures that came out of a tool: those of a tool's message not every model is shown.
SHOWN_BY_TOOL: Final = "(shown by the tool)"
#: Pieces of one text that a person or a tool wrote; those of a model are joined as they are.
_BETWEEN: Final = "\n"


def conversation_of(system: Any, messages: Any) -> list[dict[str, Any]]:
    """Return what was said so far, as `agent_action` takes it.

    Raises:
        InvalidTaskError: something is not what it must be, or of a kind that no model here is
            shown; names its path.
    """
    if not isinstance(messages, list) or not messages:
        raise InvalidTaskError("messages: expected a list of one or more messages")
    found: list[dict[str, Any]] = []
    if instructions := _text_of(system, "system"):
        found.append({"role": "system", "content": instructions})
    tools: dict[str, str] = {}  # the name of the tool of each call
    for i, message in enumerate(messages):
        path = f"messages.{i}"
        role = message.get("role") if isinstance(message, Mapping) else None
        if role == "user":
            found += _from_user(message.get("content"), f"{path}.content", tools)
        elif role == "assistant":
            found.append(_from_model(message.get("content"), f"{path}.content", tools))
        elif role == "system":
            text = _text_of(message.get("content"), f"{path}.content")
            found.append({"role": "system", "content": text})
        else:
            raise InvalidTaskError(f"{path}.role: expected user or assistant")
    return found


def _from_user(content: Any, path: str, tools: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a message for the result of each tool, and one for each stretch of what else is said.

    In the order in which they stand.
    """
    found: list[dict[str, Any]] = []
    said: list[tuple[str, str]] = []  # (text or image, what it is), up to the next result

    def flush() -> None:
        if said:
            found.append({"role": "user"} | _joined(said))
            said.clear()

    for at, kind, block in _blocks(content, path):
        if kind == "tool_result":
            flush()
            result, shown = _tool_result(block, at, tools)
            found.append(result)
            if shown:
                said.append(("text", SHOWN_BY_TOOL))
                said += shown
        else:
            said.append(_said(block, kind, at))
    flush()
    return found or [{"role": "user", "content": ""}]


def _from_model(content: Any, path: str, tools: dict[str, str]) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for at, kind, block in _blocks(content, path):
        if kind == "text":
            texts.append(_field(block, "text", at))
        elif kind == "thinking":
            thoughts.append(_field(block, "thinking", at))
        elif kind == "tool_use":
            calls.append(_call(block, at))
            tools[calls[-1]["id"]] = calls[-1]["function"]["name"]
        elif kind != "redacted_thinking":  # of that there is nothing that can be read
            raise _unknown(kind, at, "text, thinking, redacted_thinking, tool_use")
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if any(thoughts):
        message["thinking"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _tool_result(
    block: Mapping[str, Any], path: str, tools: Mapping[str, str]
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return the tool's message, and the pictures in it."""
    called = _field(block, "tool_use_id", path)
    said = [
        _said(each, kind, at) for at, kind, each in _blocks(block.get("content"), f"{path}.content")
    ]
    text = _BETWEEN.join(what for kind, what in said if kind == "text")
    if block.get("is_error") is True:
        text = f"{FAILED_TOOL}{text}"
    message: dict[str, Any] = {"role": "tool", "content": text, "tool_call_id": called}
    if called in tools:
        message["tool_name"] = tools[called]
    return message, [each for each in said if each[0] == "image"]


def _call(block: Mapping[str, Any], path: str) -> dict[str, Any]:
    arguments = block.get("input")
    if not is_name(block.get("id")) or not is_name(block.get("name")):
        raise InvalidTaskError(f"{path}: expected an id and a name")
    if not isinstance(arguments, Mapping):
        raise InvalidTaskError(f"{path}.input: expected an object")
    return {
        "id": block["id"],
        "type": "function",
        "function": {"name": block["name"], "arguments": dict(arguments)},
    }


def _blocks(content: Any, path: str) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Return (path, type, block) of each; a text is a block of text, nothing is none."""
    if isinstance(content, str):
        return [(path, "text", {"type": "text", "text": content})]
    if not isinstance(content, list | None):
        raise InvalidTaskError(f"{path}: expected a text or a list of blocks")
    found = []
    for i, block in enumerate(content or ()):
        kind = block.get("type") if isinstance(block, Mapping) else None
        if not isinstance(kind, str):
            raise InvalidTaskError(f"{path}.{i}: expected a block with a type")
        found.append((f"{path}.{i}", kind, block))
    return found


def _text_of(content: Any, path: str) -> str:
    texts = []
    for at, kind, block in _blocks(content, path):
        if kind != "text":
            raise _unknown(kind, at, "text")
        texts.append(_field(block, "text", at))
    return _BETWEEN.join(texts)


def _said(block: Mapping[str, Any], kind: str, path: str) -> tuple[str, str]:
    if kind == "text":
        return kind, _field(block, "text", path)
    if kind == "image":
        return kind, _picture(block.get("source"), f"{path}.source")
    raise _unknown(kind, path, "text, image, tool_result")


def _picture(source: Any, path: str) -> str:
    kind = source.get("type") if isinstance(source, Mapping) else None
    if kind != "base64":
        raise InvalidTaskError(
            f"{path}.type: saw {str(kind)[:40]!r}, expected base64: pictures travel inside the "
            "request, none is fetched"
        )
    (picture,) = images_of([source.get("data")], f"{path}.data")
    return picture


def _joined(said: Sequence[tuple[str, str]]) -> dict[str, Any]:
    message: dict[str, Any] = {
        "content": _BETWEEN.join(what for kind, what in said if kind == "text")
    }
    if pictures := [what for kind, what in said if kind == "image"]:
        message["images"] = pictures
    return message


def _field(block: Mapping[str, Any], name: str, path: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise InvalidTaskError(f"{path}.{name}: expected a text")
    return value


def _unknown(kind: str, path: str, known: str) -> InvalidTaskError:
    return InvalidTaskError(f"{path}.type: saw {kind[:60]!r}, expected one of {known}")
