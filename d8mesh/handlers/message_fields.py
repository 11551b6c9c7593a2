"""The messages of a conversation in a task's data: each part checked and made plain.

Nothing is fetched or read: pictures are base64, and nothing else.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, Final

from d8mesh.errors import InvalidTaskError
from d8mesh.handlers import Data
from d8mesh.handlers.field_values import is_name

#: A conversation of a long day; more is a mistake.
MAX_MESSAGES: Final = 1000
ROLES: Final = ("system", "user", "assistant", "tool")
MESSAGE_FIELDS: Final = frozenset(
    {"role", "content", "thinking", "images", "tool_calls", "tool_name", "tool_call_id"}
)
#: Of a message, what the model would have to see and Ollama has no place for.
_NO_PLACE: Final = frozenset({"audio", "files", "function_call", "parts"})


def messages_of(data: Data) -> tuple[Mapping[str, Any], ...]:
    """Return the conversation as it is handed on.

    Raises:
        InvalidTaskError: a part is not what it must be; names it.
    """
    if "messages" not in data:
        raise InvalidTaskError("Missing field: messages")
    messages = data["messages"]
    if not isinstance(messages, list | tuple) or not messages:
        raise InvalidTaskError("messages: expected a list of one or more messages")
    if len(messages) > MAX_MESSAGES:
        raise InvalidTaskError(f"messages: {len(messages)} of them, at most {MAX_MESSAGES}")
    return tuple(_message(message, f"messages[{i}]") for i, message in enumerate(messages))


def _message(message: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidTaskError(f"{path}: expected an object with role and content")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidTaskError(f"{path}.role: expected one of {', '.join(ROLES)}")
    given = {key: value for key, value in message.items() if value is not None}
    if role == "tool" and "name" in given:  # as other interfaces call it
        given.setdefault("tool_name", given.pop("name"))
    for field in sorted(given.keys() & _NO_PLACE):
        known = ", ".join(sorted(MESSAGE_FIELDS))
        raise InvalidTaskError(
            f"{path}.{field}: a message has no such field and the model would not see it; "
            f"there are {known}"
        )
    if content is None and given.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        raise InvalidTaskError(
            f"{path}.content: expected a text (pictures go to images, base64 of each)"
        )
    checked: dict[str, Any] = {"role": role, "content": content}
    for field in ("thinking", "tool_name", "tool_call_id"):
        if field in given:
            if not isinstance(given[field], str):
                raise InvalidTaskError(f"{path}.{field}: expected a text")
            checked[field] = given[field]
    if "images" in given:
        checked["images"] = images_of(given["images"], f"{path}.images")
    if "tool_calls" in given:
        checked["tool_calls"] = _tool_calls(given["tool_calls"], f"{path}.tool_calls")
    return checked


def images_of(images: Any, path: str) -> list[str]:
    """Return pictures as Ollama takes them: base64 alone. Nothing is fetched or read."""
    if not isinstance(images, list):
        raise InvalidTaskError(f"{path}: expected a list of pictures in base64")
    found: list[str] = []
    for i, image in enumerate(images):
        text = image if isinstance(image, str) else ""
        if text.startswith("data:"):
            text = text.partition("base64,")[2]
        text = "".join(text.split())  # as tools that write base64 fold its lines
        try:
            is_picture = bool(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError):
            is_picture = False
        if not is_picture:
            raise InvalidTaskError(
                f"{path}[{i}]: expected a picture in base64 (no address, no file name)"
            )
        found.append(text)
    return found


def _tool_calls(calls: Any, path: str) -> list[dict[str, Any]]:
    """Return calls as Ollama takes them; arguments as a text of JSON become the object."""
    expected = f'{path}: expected a list of {{"function": {{"name": …, "arguments": {{…}}}}}}'
    if not isinstance(calls, list):
        raise InvalidTaskError(expected)
    found: list[dict[str, Any]] = []
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not is_name(function.get("name")):
            raise InvalidTaskError(expected)
        arguments = function.get("arguments")
        if arguments is None or isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
                # Python reads NaN, infinity and halves of characters, but cannot send them.
                json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode()
            except (ValueError, RecursionError):
                arguments = None
        if not isinstance(arguments, Mapping):
            raise InvalidTaskError(expected)
        found.append({**call, "function": {**function, "arguments": arguments}})
    return found
