"""OpenAI's messages as the mesh's own: parts of content made one text and its pictures.

Nothing is fetched: a picture is a ``data:`` URI. What a model would have to see and cannot (sound,
files) is refused, never left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from d8mesh.doors.openai.fields import RequestFields
from d8mesh.errors import InvalidTaskError
from d8mesh.handlers.message_fields import MAX_MESSAGES, images_of

#: What each role is here; ``function`` is an older name of ``tool``.
_ROLE_CALLED: Final[Mapping[str, str]] = {
    "developer": "system",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
#: Parts that are text, and the field in which it stands.
_TEXT_PARTS: Final[Mapping[str, str]] = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
_PICTURE_PARTS: Final = frozenset({"image_url", "input_image"})
#: What no model of a mesh is sent, by its part's type.
_UNSEEN_PARTS: Final[Mapping[str, str]] = {
    "input_audio": "sound",
    "audio": "sound",
    "file": "files",
    "input_file": "files",
    "video_url": "films",
}
#: Between the texts of one message.
_BETWEEN: Final = "\n"


@dataclass(slots=True)
class Conversation:
    """The messages of a request, as they are handed on."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    #: fields of messages that have no effect
    ignored: set[str] = field(default_factory=set)
    #: the name of each tool that was called, by the id of its call
    called: dict[str, str] = field(default_factory=dict)


def conversation_of(messages: object, name: str = "messages") -> Conversation:
    """Return what was said so far.

    Args:
        name: of the field in which it stands.

    Raises:
        InvalidTaskError: a part is not what it must be; names it.
    """
    if messages is None:
        raise InvalidTaskError(f"Missing field: {name}")
    if not isinstance(messages, list):
        raise InvalidTaskError(f"{name}: expected a list of messages")
    if not messages:
        raise InvalidTaskError(f"{name}: [] is too short: expected one or more")
    if len(messages) > MAX_MESSAGES:
        raise InvalidTaskError(f"{name}: {len(messages)} of them, at most {MAX_MESSAGES}")
    found = Conversation()
    for i, message in enumerate(messages):
        path = f"{name}[{i}]."
        fields = RequestFields(message, path)
        found.messages += _messages(fields, path, found.called)
        found.ignored |= {f"{name}[].{each}" for each in fields.unread()}
    return found


def _messages(fields: RequestFields, path: str, called: dict[str, str]) -> list[dict[str, Any]]:
    """Return what one message is: several, if pictures and texts take turns in it."""
    asked = (fields.text("role") or "").lower()
    role = _ROLE_CALLED.get(asked)
    if role is None:
        raise fields.wrong("role", f"one of {', '.join(_ROLE_CALLED)}")
    more: dict[str, Any] = {}
    if role == "assistant":
        more = _said_beside(fields, path, called)
    elif role == "tool":
        more = _answered(fields, called)
    contents = list(_contents(fields, path, may_be_empty=role in ("assistant", "tool")))
    if images := fields.get("images"):
        contents[-1].setdefault("images", []).extend(images_of(images, f"{path}images"))
    return [{"role": role, **content} for content in contents[:-1]] + [
        {"role": role, **contents[-1], **more}
    ]


def _contents(fields: RequestFields, path: str, *, may_be_empty: bool) -> Iterator[dict[str, Any]]:
    """Yield text, and pictures before it, as often as they take turns; at least one."""
    content = fields.get("content")
    refusal = fields.text("refusal")
    if content is None and may_be_empty:
        yield {"content": refusal or ""}
        return
    if isinstance(content, str):
        yield {"content": content}
        return
    if not isinstance(content, list):
        raise fields.wrong("content", "a text, or a list of parts")
    parts = [_part(part, f"{path}content[{i}]") for i, part in enumerate(content)]
    if not _takes_turns(parts):
        parts.sort(key=lambda part: not part[0])  # their order among themselves stays
    texts: list[str] = []
    images: list[str] = []
    for is_picture, said in parts:
        if is_picture and texts:
            yield _joined(texts, images)
            texts, images = [], []
        (images if is_picture else texts).append(said)
    yield _joined(texts, images)


def _joined(texts: list[str], images: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"content": _BETWEEN.join(texts)}
    return found | ({"images": images} if images else {})


def _takes_turns(parts: list[tuple[bool, str]]) -> bool:
    """Return whether there are pictures, then text, then pictures again."""
    kinds = [is_picture for is_picture, _ in parts]
    starts = [i for i, kind in enumerate(kinds) if kind and (i == 0 or not kinds[i - 1])]
    return len(starts) > 1


def _part(part: object, path: str) -> tuple[bool, str]:
    """Return whether a part is a picture, and the text or the base64 that it holds."""
    if isinstance(part, str):
        return False, part
    fields = RequestFields(part, f"{path}.")
    kind = fields.text("type") or ("text" if fields.get("text") is not None else "")
    if kind in _TEXT_PARTS:
        text = fields.text(_TEXT_PARTS[kind])
        if text is None:
            raise InvalidTaskError(f"Missing field: {path}.{_TEXT_PARTS[kind]}")
        return False, text
    if kind in _PICTURE_PARTS:
        return True, _picture(fields, path)
    if kind in _UNSEEN_PARTS:
        raise InvalidTaskError(
            f"{path}.type: {kind}: models of this mesh are shown no {_UNSEEN_PARTS[kind]}; "
            "expected text or image_url"
        )
    raise fields.wrong("type", "text or image_url")


def _picture(fields: RequestFields, path: str) -> str:
    """Return the base64 of a picture."""
    shown, place = fields.get("image_url"), f"{path}.image_url"
    if isinstance(shown, Mapping):
        shown, place = shown.get("url"), f"{place}.url"
    if not isinstance(shown, str) or not shown:
        raise InvalidTaskError(f"{place}: expected a picture as data:image/png;base64,…")
    head, _, coded = shown.partition(",")
    if head.lower().startswith("data:"):
        kind, *parameters = head[5:].lower().split(";")
        if "base64" not in parameters or not (kind in ("", "image") or kind.startswith("image/")):
            raise InvalidTaskError(f"{place}: expected data:image/png;base64,…, or another picture")
        shown = coded
    elif "://" in shown[:16]:
        raise InvalidTaskError(
            f"{place}: addresses are not fetched: expected the picture itself, as "
            "data:image/png;base64,…"
        )
    try:
        return images_of([shown], place)[0]
    except InvalidTaskError as error:
        raise InvalidTaskError(f"{place}: expected a picture in base64") from error


def _said_beside(fields: RequestFields, path: str, called: dict[str, str]) -> dict[str, Any]:
    """Return what a model thought and called, and remember the names of the calls."""
    more: dict[str, Any] = {}
    thoughts = [fields.text(name) for name in ("reasoning_content", "reasoning", "thinking")]
    if thought := next((each for each in thoughts if each), None):
        more["thinking"] = thought
    calls = [
        _call(call, f"{path}tool_calls[{i}]")
        for i, call in enumerate(fields.rows("tool_calls") or ())
    ]
    if (function := fields.mapping("function_call")) is not None:
        calls.append(_call({"function": function}, f"{path}function_call"))
    if calls:
        more["tool_calls"] = calls
    for call in calls:
        called[str(call.get("id"))] = call["function"]["name"]
    return more


def _call(call: object, path: str) -> dict[str, Any]:
    """Return a call of a tool with its arguments as an object, and all else as it came."""
    fields = RequestFields(call, f"{path}.")
    fields.text("id")
    if fields.text("type") not in (None, "", "function"):
        raise fields.wrong("type", "function")
    function = fields.mapping("function")
    if function is None:
        raise InvalidTaskError(f"Missing field: {path}.function")
    inner = RequestFields(function, f"{path}.function.")
    name, arguments = inner.required_text("name"), inner.get("arguments")
    if arguments is None or isinstance(arguments, str):
        try:
            arguments = json.loads(arguments.strip() or "{}") if arguments else {}
        except (ValueError, RecursionError) as error:
            raise inner.wrong("arguments", "an object as JSON text") from error
    if not isinstance(arguments, Mapping):
        raise inner.wrong("arguments", "an object as JSON text")
    assert isinstance(call, Mapping)
    kept = {key: value for key, value in call.items() if key != "index" and value is not None}
    return {**kept, "function": {"name": name, "arguments": arguments}}


def _answered(fields: RequestFields, called: Mapping[str, str]) -> dict[str, Any]:
    """Return whose result a message of a tool is."""
    call_id, name = fields.text("tool_call_id"), fields.text("name")
    name = called.get(call_id or "") or name or fields.text("tool_name")
    more = {"tool_name": name, "tool_call_id": call_id}
    return {key: value for key, value in more.items() if value}
