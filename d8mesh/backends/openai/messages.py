"""Turns the mesh's conversations, which have Ollama's form, into OpenAI's, and calls back.

Null fields of messages are never sent: Groq refuses them. A call's arguments are a text there
and an object here; every call has an id there, so one that has none gets one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from d8mesh.backends.openai.providers import Provider
from d8mesh.core.protocol.chat import JsonObject

#: How base64 of a picture begins, and what it then is.
_PICTURES: Final = {"iVBOR": "png", "/9j/": "jpeg", "R0lGOD": "gif", "UklGR": "webp"}
_JPEG: Final = "jpeg"
#: Fields of a message that have a place in OpenAI's form; ``thinking`` of earlier answers has none,
#: and no model needs it.
KNOWN_FIELDS: Final = frozenset(
    {"role", "content", "images", "tool_calls", "tool_name", "tool_call_id", "thinking"}
)


def sent_messages(provider: Provider, messages: Sequence[JsonObject]) -> list[dict[str, Any]]:
    """Return a conversation in OpenAI's form."""
    sent: list[dict[str, Any]] = []
    open_calls: list[tuple[str, str]] = []  #: id and name of each call without a result
    for message in messages:
        role, content = str(message.get("role")), message.get("content")
        if role == "tool":
            call_id = _answered(message, open_calls)
            sent.append({"role": role, "tool_call_id": call_id, "content": content or ""})
            continue
        calls = _sent_calls(provider, message.get("tool_calls"), before=len(sent))
        one: dict[str, Any] = {"role": role}
        images = message.get("images")
        if isinstance(images, Sequence) and images:
            one["content"] = _parts(str(content or ""), map(str, images))
        elif content or not calls:
            one["content"] = content or ""
        if calls:
            one["tool_calls"] = calls
            open_calls = [(call["id"], call["function"]["name"]) for call in calls]
        sent.append(one)
    return sent


def call_of(call: Mapping[str, Any], extras: Mapping[str, object]) -> dict[str, Any]:
    """Return a whole call of the service's in the mesh's form.

    Args:
        call: its ``id``, ``name``, and ``arguments``: a text of JSON.
        extras: what must come back with it.

    Raises:
        ValueError: the arguments are no JSON, or no object.
    """
    text = call["arguments"]
    arguments = json.loads(text or "{}") if isinstance(text, str) else text
    if not isinstance(arguments, dict):
        raise ValueError("the arguments of a call are no object")
    function = {"index": call["index"], "name": call["name"], "arguments": arguments}
    named = {"id": call["id"]} if call["id"] else {}
    return {**named, "function": function, **extras}


def _sent_calls(provider: Provider, calls: object, *, before: int) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []
    for i, call in enumerate(calls if isinstance(calls, Sequence) else ()):
        function = call["function"]
        one = {
            "id": str(call.get("id") or f"call_{before}_{i}"),
            "type": "function",
            "function": {
                "name": function["name"],
                "arguments": json.dumps(function.get("arguments") or {}, ensure_ascii=False),
            },
        }
        sent.append(one | {name: call[name] for name in provider.call_extras if name in call})
    return sent


def _answered(message: JsonObject, open_calls: list[tuple[str, str]]) -> str:
    """Return the id of the call whose result `message` is, and take it from the open ones."""
    told, name = message.get("tool_call_id"), message.get("tool_name")
    for each in open_calls:
        if told == each[0] if told else name in (None, each[1]):
            open_calls.remove(each)
            return each[0]
    return str(told or name or "call_0")


def _parts(text: str, images: Iterable[str]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    for image in images:
        kind = next((kind for head, kind in _PICTURES.items() if image.startswith(head)), _JPEG)
        url = f"data:image/{kind};base64,{image}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return parts
