"""What is asked of a service: a request of the mesh's as a body of OpenAI's API.

What a service does not take is left out, and named: nothing is dropped in silence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from d8mesh.backends.openai.faults import ServiceFault
from d8mesh.backends.openai.messages import sent_messages
from d8mesh.backends.openai.providers import Provider
from d8mesh.core.protocol.chat import BYTES_PER_TOKEN, ChatRequest, EmbeddingRequest, Prompt
from d8mesh.errors import InvalidTaskError

CHAT_PATH: Final = "/chat/completions"
COMPLETION_PATH: Final = "/completions"
#: Of `ChatRequest.more`, what says how a local model is kept: it means nothing here and changes no
#: answer.
_ONLY_LOCAL: Final = frozenset({"keep_alive", "truncate", "shift"})
#: Of it, what says which tools are called; it means something beside tools alone.
_OF_TOOLS: Final = frozenset({"tool_choice", "parallel_tool_calls"})
#: What may be left out if a service refuses it by name, and what it stands for in a task's data.
DROPPABLE: Final[Mapping[str, str]] = {
    "chat_template_kwargs": "think",
    "reasoning_effort": "think",
    "reasoning_format": "think",
    "response_format": "format",
    "stream_options": "",
    "logit_bias": "logit_bias",
    "min_tokens": "min_tokens",
    "parallel_tool_calls": "parallel_tool_calls",
    "logprobs": "logprobs",
    "top_logprobs": "top_logprobs",
    "seed": "options.seed",
    "top_k": "options.top_k",
    "min_p": "options.min_p",
    "typical_p": "options.typical_p",
    "repeat_penalty": "options.repeat_penalty",
    "repeat_last_n": "options.repeat_last_n",
    "frequency_penalty": "options.frequency_penalty",
    "presence_penalty": "options.presence_penalty",
    "stop": "options.stop",
    "top_p": "options.top_p",
    "dimensions": "dimensions",
    "encoding_format": "",
}
#: What a refusal says where it does not name the field itself.
_ALSO_SAID: Final[Mapping[str, str]] = {
    "reasoning_effort": r"|thinking|reasoning",
    "chat_template_kwargs": r"|thinking",
    "response_format": r"|response format",
}
#: Of a picture.
TOKENS_PER_IMAGE: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedBody:
    """A request as it is sent."""

    path: str
    fields: dict[str, Any]
    #: fields of the task's data that the service does not take
    ignored: tuple[str, ...]
    #: about how many tokens the account is charged with
    tokens: int

    def without(self, names: frozenset[str]) -> AskedBody:
        """Return it without fields that the service has refused by name."""
        gone = [name for name in self.fields if name in names]
        named = {DROPPABLE[name] for name in gone} - {""}
        return AskedBody(
            path=self.path,
            fields={name: value for name, value in self.fields.items() if name not in gone},
            ignored=tuple(sorted({*self.ignored, *named})),
            tokens=self.tokens,
        )


def chat_body(
    provider: Provider, request: ChatRequest, *, model: str, temperature: float, max_tokens: int
) -> AskedBody:
    """Return a chat, or a completion where the request needs one.

    Raises:
        InvalidTaskError: the service can do nothing of the kind.
    """
    ignored: set[str] = set()
    bound = request.max_tokens if request.max_tokens is not None else max_tokens
    warmth = request.temperature if request.temperature is not None else temperature
    fields: dict[str, Any] = {"model": model, "stream": True}
    if request.max_tokens is not None or not request.has_model_defaults:
        fields[provider.max_tokens] = bound
    if request.temperature is not None or not request.has_model_defaults:
        fields["temperature"] = max(warmth, provider.least_temperature)
    prompt = request.prompt
    if prompt is not None and not _is_chat(prompt):
        path = COMPLETION_PATH
        fields |= _completion_fields(provider, prompt, ignored)
        if provider.max_tokens in fields:
            fields["max_tokens"] = fields.pop(provider.max_tokens)
    else:
        path = CHAT_PATH
        fields["messages"] = sent_messages(provider, request.conversation)
        ignored |= _no_place(prompt)
    _add_options(provider, request.options, fields, ignored)
    _add_more(provider, request.more, fields, ignored)
    if provider.has_usage_option and fields["stream"]:
        fields["stream_options"] = {"include_usage": True}
    tokens = _prompt_tokens(request) + (bound if provider.counts_max_tokens else 0)
    return AskedBody(path=path, fields=fields, ignored=tuple(sorted(ignored)), tokens=tokens)


def embedding_body(provider: Provider, request: EmbeddingRequest, *, model: str) -> AskedBody:
    """Return what asks for vectors.

    Raises:
        InvalidTaskError: the service makes none.
    """
    if not provider.has_embeddings:
        raise InvalidTaskError(f"{provider.title} makes no embeddings")
    fields: dict[str, Any] = {
        "model": model,
        "input": list(request.texts),
        "encoding_format": "float",
    }
    if request.dimensions is not None:
        fields["dimensions"] = request.dimensions
    ignored = {*(f"options.{name}" for name in request.options)}
    ignored |= {name for name in request.more if name not in _ONLY_LOCAL}
    size = sum(len(text.encode("utf-8", "replace")) for text in request.texts)
    return AskedBody(
        path="/embeddings",
        fields=fields,
        ignored=tuple(sorted(ignored)),
        tokens=size // BYTES_PER_TOKEN + len(request.texts),
    )


def refused_fields(fault: ServiceFault, body: AskedBody) -> frozenset[str]:
    """Return which fields of `body` a service refuses by name; it can do without them.

    Many say only what they do not know ("Unknown name \"seed\"", "'logprobs' is not supported").
    """
    if fault.status not in (400, 422):
        return frozenset()
    return frozenset(
        name
        for name in body.fields.keys() & DROPPABLE.keys()
        if re.search(
            rf"(?<![A-Za-z0-9_]){name}(?![A-Za-z0-9_]){_ALSO_SAID.get(name, '')}", fault.text
        )
    )


def _is_chat(prompt: Prompt) -> bool:
    return not (prompt.suffix or prompt.is_raw)


def _no_place(prompt: Prompt | None) -> set[str]:
    """Return what of a prompt that is asked as a chat has no place in one."""
    if prompt is None:
        return set()
    found = {"context"} if prompt.context else set()
    return found | ({"template"} if prompt.template is not None else set())


def _completion_fields(provider: Provider, prompt: Prompt, ignored: set[str]) -> dict[str, Any]:
    what = "suffix" if prompt.suffix else "raw"
    if not provider.has_completions:
        raise InvalidTaskError(f"{what}: {provider.title} has chats only")
    if prompt.images:
        ignored.add("images")
    if prompt.system is not None:
        ignored.add("system")
    ignored |= _no_place(prompt)
    found: dict[str, Any] = {"prompt": prompt.text}
    return found | ({"suffix": prompt.suffix} if prompt.suffix else {})


def _add_options(
    provider: Provider, options: Mapping[str, object], fields: dict[str, Any], ignored: set[str]
) -> None:
    for name, value in options.items():
        if name in provider.options:
            fields[provider.options[name]] = value
        else:
            ignored.add(f"options.{name}")


def _add_more(
    provider: Provider, more: Mapping[str, object], fields: dict[str, Any], ignored: set[str]
) -> None:
    is_chat = "messages" in fields
    tools = more.get("tools") if is_chat else None
    if tools:
        fields["tools"] = tools
        fields |= {name: more[name] for name in _OF_TOOLS if name in more}
    wanted = more.get("format")
    if wanted is not None:
        if tools and not provider.has_formats_with_tools:
            ignored.add("format")
        else:
            fields["response_format"] = _response_format(provider, wanted)
            fields["stream"] = provider.streams_formats
    think = more.get("think")
    if think is not None:
        if think in provider.thinking and is_chat:
            fields |= provider.thinking[think]
        else:
            ignored.add("think")
    for name in ("logprobs", "top_logprobs"):
        if more.get(name) and provider.has_logprobs and is_chat:
            fields[name] = more[name]
        elif more.get(name):
            ignored.add(name)
    fields |= {name: more[name] for name in provider.extras if name in more}
    known = {"tools", "format", "think", "logprobs", "top_logprobs"} | _OF_TOOLS | provider.extras
    ignored |= more.keys() - known - _ONLY_LOCAL


def _response_format(provider: Provider, wanted: object) -> Mapping[str, object]:
    if wanted == "json":
        return provider.any_json
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted}}


def _prompt_tokens(request: ChatRequest) -> int:
    """Return about how many tokens a question has: more rather than fewer."""
    size = len(str(request.more.get("tools") or "")) + len(str(request.more.get("format") or ""))
    images = 0
    for message in request.conversation if request.messages or request.prompt else ():
        size += len(str(message.get("content") or "").encode("utf-8", "replace"))
        size += len(str(message.get("tool_calls") or ""))
        shown = message.get("images")
        images += len(shown) if isinstance(shown, list | tuple) else 0
    each = 4 * len(request.messages)  # what stands around a message
    return size // BYTES_PER_TOKEN + images * TOKENS_PER_IMAGE + each + 1
