"""`/api/chat` and `/api/generate`: what their bodies ask, as a task's data has it.

Fields that Ollama does not know are passed over and named, as are those that would load the
model anew; nothing is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from d8mesh.core.protocol.chat import COMPLETION, INSERT, THINKING, TOOLS, VISION
from d8mesh.core.protocol.keep_alive import keep_alive_s
from d8mesh.doors.ollama.options import options_in
from d8mesh.doors.ollama.values import (
    Fields,
    format_in,
    images_in,
    keep_alive_in,
    name_in,
    object_in,
    switch_in,
    text_in,
    think_in,
    top_logprobs_in,
    unknown_model,
    wrong_kind,
)
from d8mesh.errors import InvalidTaskError
from d8mesh.handlers.chat_fields import agent_request, generate_request
from d8mesh.handlers.message_fields import MESSAGE_FIELDS, ROLES

CHAT_TYPE: Final = "agent_action"
GENERATE_TYPE: Final = "generate"
_OF_BOTH: Final = frozenset(
    {"format", "keep_alive", "logprobs", "model", "options", "shift", "stream", "think",
     "top_logprobs", "truncate"}
)  # fmt: skip
CHAT_FIELDS: Final = _OF_BOTH | {"messages", "tools"}
PROMPT_PARTS: Final = frozenset(
    {"context", "images", "prompt", "raw", "suffix", "system", "template"}
)
#: Roles of other interfaces, and what they are here.
_ROLES_ELSEWHERE: Final[Mapping[str, str]] = {"developer": "system", "function": "tool"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedText:
    """What a chat or a generate asks."""

    #: as it is spelled
    model: str
    is_chat: bool
    is_streamed: bool
    #: of the task, without the model
    data: Mapping[str, Any]
    #: asks nothing: the model is to be loaded, or with this also let go of
    is_load: bool = False
    is_unload: bool = False
    #: the text goes to the model as it is
    is_raw: bool = False
    #: what is not applied, as it is spelled
    ignored: tuple[str, ...] = ()

    @property
    def type(self) -> str:
        """The task's type."""
        return CHAT_TYPE if self.is_chat else GENERATE_TYPE

    @property
    def needs(self) -> tuple[str, ...]:
        """What the model must be capable of, as Ollama looks for it, in that order."""
        data = self.data
        has_images = any(each.get("images") for each in data.get("messages", ()))
        wanted = (
            (COMPLETION, True),
            (INSERT, bool(data.get("suffix"))),
            (TOOLS, bool(data.get("tools"))),
            (THINKING, bool(data.get("think"))),
            (VISION, has_images or bool(data.get("images"))),
        )
        return tuple(name for name, is_needed in wanted if is_needed)


def chat_in(content: bytes) -> AskedText:
    """Return what the body of a chat asks.

    Raises:
        InvalidTaskError: it is not what it must be, in Ollama's words.
    """
    body = object_in(content)
    name = name_in(body, "model")
    if not name.strip():
        raise InvalidTaskError("model is required")
    messages, foreign = _messages(body)
    data = _shared(body)
    if tools := _tools(body):
        data["tools"] = tools
    return _asked(body, CHAT_FIELDS, {**data, "messages": messages}, name, foreign)


def generate_in(content: bytes) -> AskedText:
    """Return what the body of a generate asks; raises as `chat_in`, and if no model is named.

    Raises:
        ModelUnknownError: no model is named.
    """
    body = object_in(content)
    name = name_in(body, "model")
    if not name.strip():
        raise unknown_model("")
    is_raw = switch_in(body, "raw", default=False)
    if is_raw and any(body.get(each) for each in ("template", "system", "context")):
        raise InvalidTaskError("raw mode does not support template, system, or context")
    data = _shared(body)
    for field in ("prompt", "suffix", "system", "template"):
        if text := text_in(body, field):
            data[field] = text
    if images := images_in(body, "images"):
        data["images"] = images
    if context := _context(body):
        data["context"] = context
    return _asked(body, _OF_BOTH | PROMPT_PARTS, data | ({"raw": True} if is_raw else {}), name, ())


def _asked(
    body: Fields,
    known: frozenset[str],
    data: dict[str, Any],
    name: str,
    foreign: tuple[str, ...],
) -> AskedText:
    options = options_in(body)
    kept = keep_alive_in(body)
    is_load = not (data.get("messages") or data.get("prompt"))
    shift = () if switch_in(body, "shift", default=True) else ("shift",)
    unknown = tuple(sorted(field[:60] for field in body if field not in known))
    whole = {**data, **options.data} | ({} if kept is None else {"keep_alive": kept})
    is_chat = "messages" in data
    if not is_load:  # what the task would be refused for is told at once
        _ = agent_request(whole) if is_chat else generate_request(whole)
    return AskedText(
        model=name,
        is_chat=is_chat,
        is_streamed=switch_in(body, "stream", default=True),
        data=whole,
        is_load=is_load,
        is_unload=is_load and keep_alive_s(kept) == 0.0,
        is_raw=bool(data.get("raw")),
        ignored=(*unknown, *shift, *foreign, *options.ignored),
    )


def _shared(body: Fields) -> dict[str, Any]:
    """Return what both have, but for the options; what a task does not say is the model's own."""
    data: dict[str, Any] = {"model_defaults": True}
    truncate, think, wanted = body.get("truncate"), think_in(body), format_in(body)
    if truncate is not None:
        data["truncate"] = switch_in(body, "truncate", default=True)
    if think is not None:
        data["think"] = think
    if wanted is not None:
        data["format"] = wanted
    top = top_logprobs_in(body)
    if switch_in(body, "logprobs", default=False):
        data |= {"logprobs": True} | ({"top_logprobs": top} if top else {})
    return data


def _messages(body: Fields) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Return the messages, and the fields in them that mean nothing."""
    told = body.get("messages", [])
    if not isinstance(told, list):
        raise wrong_kind("messages", told, "[]Message")
    messages: list[dict[str, Any]] = []
    foreign: set[str] = set()
    for message in told:
        if not isinstance(message, dict):
            raise wrong_kind("messages", message, "Message")
        given = {name: value for name, value in message.items() if value is not None}
        made = {name: value for name, value in given.items() if name in MESSAGE_FIELDS}
        role = text_in(given, "role").lower()
        made["role"] = _ROLES_ELSEWHERE.get(role, role)
        if made["role"] not in ROLES:
            raise InvalidTaskError(f"messages: role {role[:60]!r}: expected {', '.join(ROLES)}")
        made["content"] = text_in(given, "content")
        if images := images_in(given, "messages.images"):
            made["images"] = images
        if made["role"] == "tool" and "name" in given:
            made.setdefault("tool_name", given.pop("name"))
        foreign |= {f"messages[].{name[:60]}" for name in given if name not in MESSAGE_FIELDS}
        messages.append(made)
    return messages, tuple(sorted(foreign))


def _tools(body: Fields) -> list[Any]:
    tools = body.get("tools", [])
    if not isinstance(tools, list):
        raise wrong_kind("tools", tools, "[]Tool")
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidTaskError(
                'tools: expected a list of {"type": "function", "function": {"name": …}}'
            )
    return tools


def _context(body: Fields) -> list[int]:
    context = body.get("context", [])
    if not isinstance(context, list) or not all(type(each) is int for each in context):
        raise wrong_kind("context", context, "[]int")
    return context
