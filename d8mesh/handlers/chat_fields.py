"""The data of ``agent_action`` and ``code_generation``: each field checked, none lost in silence.

What Ollama's chat knows is handed on. What it does not know and would change the answer is
refused with where it belongs; other fields are named in the result as ``ignored``.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from d8mesh.config import MODEL_PATTERN
from d8mesh.core.protocol.chat import ChatRequest, EmbeddingRequest
from d8mesh.errors import InvalidTaskError
from d8mesh.handlers import Data

#: A conversation of a long day; more is a mistake.
MAX_MESSAGES: Final = 1000
ROLES: Final = ("system", "user", "assistant", "tool")
#: The same bounds as of the settings TEMPERATURE and MAX_TOKENS.
MAX_TEMPERATURE: Final = 2
MAX_TOKENS: Final = 10_000_000
#: The name of a programming language.
MAX_LANGUAGE_CHARS: Final = 64
DEFAULT_LANGUAGE: Final = "python"
#: The name of a tool, of an option, an id of a call.
MAX_NAME_CHARS: Final = 256
MAX_TOP_LOGPROBS: Final = 20
#: Of a vector; the largest models have 8,192.
MAX_DIMENSIONS: Final = 65_536
THINK_LEVELS: Final = ("low", "medium", "high", "max")

_COMMON: Final = frozenset(
    {"model", "model_strict", "temperature", "max_tokens", "options", "think", "keep_alive",
     "truncate", "shift"}
)  # fmt: skip
AGENT_FIELDS: Final = _COMMON | {"messages", "tools", "format", "logprobs", "top_logprobs"}
CODE_FIELDS: Final = _COMMON | {"prompt", "language"}
EMBED_FIELDS: Final = frozenset(
    {"model", "model_strict", "input", "dimensions", "options", "truncate", "keep_alive"}
)
MESSAGE_FIELDS: Final = frozenset(
    {"role", "content", "thinking", "images", "tool_calls", "tool_name", "tool_call_id"}
)
#: Of a message, what the model would have to see and Ollama has no place for.
_NO_PLACE: Final = frozenset({"audio", "files", "function_call", "parts"})
#: Ollama's options that may stand beside the other fields too, as other interfaces have them.
OPTION_FIELDS: Final = frozenset(
    {"frequency_penalty", "min_p", "num_ctx", "presence_penalty", "repeat_penalty", "seed", "stop",
     "top_k", "top_p"}
)  # fmt: skip
#: Names of other interfaces, and what says the same here.
_ELSEWHERE: Final = {
    "content": "a message in messages",
    "functions": "tools",
    "function_call": "no such choice: leave the tools out that shall not be called",
    "images": "images of a message in messages",
    "max_completion_tokens": "max_tokens",
    "num_predict": "max_tokens",
    "n": "several tasks",
    "prompt": "a message in messages",
    "reasoning_effort": "think",
    "response_format": "format",
    "system": "a message of the role system in messages",
    "tool_choice": "no such choice: leave the tools out that shall not be called",
}

_CODE_SYSTEM: Final = (
    "You write {language} code. Answer with the code alone: complete and ready to run, "
    "no explanation before or after it."
)


def agent_request(data: Data) -> ChatRequest:
    """Return what an ``agent_action`` asks.

    Raises:
        InvalidTaskError: a field is missing or is not what it must be; names the field.
    """
    _refuse_elsewhere(data, AGENT_FIELDS)
    more = {
        "tools": None if data.get("tools") is None else _tools(data["tools"]),
        "format": _format(data),
        "logprobs": _switch(data, "logprobs"),
        "top_logprobs": _whole_number(data, "top_logprobs", low=0, high=MAX_TOP_LOGPROBS),
    }
    return _request(data, _messages(data), more)


def code_request(data: Data) -> ChatRequest:
    """Return what a ``code_generation`` asks.

    Raises:
        InvalidTaskError: a field is missing or is not what it must be; names the field.
    """
    for field in sorted(AGENT_FIELDS - CODE_FIELDS):
        if data.get(field) is not None:
            raise InvalidTaskError(f"{field}: code_generation has no such field, agent_action has")
    _refuse_elsewhere(data, CODE_FIELDS)
    return _request(data, _code_messages(data), {})


def embedding_request(data: Data) -> EmbeddingRequest:
    """Return what an ``embed`` asks.

    Raises:
        InvalidTaskError: a field is missing or is not what it must be; names the field.
    """
    if "input" not in data:
        raise InvalidTaskError("Missing field: input")
    wanted = data["input"]
    texts = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(texts, list) or not texts or not all(isinstance(each, str) for each in texts):
        raise InvalidTaskError("input: expected a text, or a list of one or more texts")
    if len(texts) > MAX_MESSAGES:
        raise InvalidTaskError(f"input: {len(texts)} texts, at most {MAX_MESSAGES} in one task")
    model = _model(data)
    if model is None:
        raise InvalidTaskError("Missing field: model (vectors of two models cannot be compared)")
    more = {
        "options": _options(data) or None,
        "truncate": _switch(data, "truncate"),
        "keep_alive": _keep_alive(data),
    }
    dimensions = _whole_number(data, "dimensions", low=1, high=MAX_DIMENSIONS)
    given = _given(more)
    return EmbeddingRequest(texts=tuple(texts), model=model, dimensions=dimensions, more=given)


def ignored_fields(data: Data, known: frozenset[str]) -> list[str]:
    """Return the fields of `data`, and of the messages in it, that mean nothing here, in order."""
    found = {str(field)[:MAX_NAME_CHARS] for field in data if field not in known | OPTION_FIELDS}
    for message in data["messages"] if "messages" in known else ():
        foreign = (
            message.keys() - MESSAGE_FIELDS - ({"name"} if message["role"] == "tool" else set())
        )
        found |= {f"messages[].{str(key)[:MAX_NAME_CHARS]}" for key in foreign}
    return sorted(found)


def _request(
    data: Data, messages: tuple[Mapping[str, Any], ...], more: dict[str, Any]
) -> ChatRequest:
    max_tokens = _whole_number(data, "max_tokens", low=1, high=MAX_TOKENS)
    model = _model(data)
    is_strict = _switch(data, "model_strict") or False
    if is_strict and model is None:
        raise InvalidTaskError("model_strict: there is no model in the data that is a must")
    more |= {field: _switch(data, field) for field in ("truncate", "shift")}
    more |= {"keep_alive": _keep_alive(data), "think": data.get("think")}
    if not (isinstance(more["think"], bool | None) or more["think"] in THINK_LEVELS):
        levels = ", ".join(THINK_LEVELS)
        raise InvalidTaskError(f"think: expected true, false or one of {levels}")
    temperature = _number(data, "temperature", low=0, high=MAX_TEMPERATURE)
    options = _options(data)
    if "temperature" in options:
        _refuse_twice("temperature", temperature)
        temperature = _number(options, "temperature", "options.", low=0, high=MAX_TEMPERATURE)
    if "num_predict" in options:
        _refuse_twice("max_tokens", max_tokens)
        max_tokens = _whole_number(options, "num_predict", "options.", low=1, high=MAX_TOKENS)
    return ChatRequest(
        messages=messages,
        model=model,
        is_model_strict=is_strict,
        temperature=temperature,
        max_tokens=max_tokens,
        options={k: v for k, v in options.items() if k not in ("temperature", "num_predict")},
        more=_given(more),
    )


def _refuse_elsewhere(data: Data, known: frozenset[str]) -> None:
    for field in data:
        if field in _ELSEWHERE and field not in known and data[field] is not None:
            raise InvalidTaskError(f"{field}: expected here: {_ELSEWHERE[field]}")


def _refuse_twice(field: str, value: object) -> None:
    if value is not None:
        raise InvalidTaskError(f"{field}: given twice, in the data and in options")


def _options(data: Data) -> Mapping[str, Any]:
    options = {} if data.get("options") is None else data["options"]
    if not isinstance(options, Mapping) or not all(_is_name(key) for key in options):
        raise InvalidTaskError('options: expected an object, such as {"top_p": 0.9}')
    beside = {
        field: data[field] for field in OPTION_FIELDS & data.keys() if data[field] is not None
    }
    for field in sorted(beside.keys() & options.keys()):
        _refuse_twice(field, beside[field])
    options = {**options, **beside}
    for key, value in options.items():
        is_list = isinstance(value, list) and all(isinstance(item, str) for item in value)
        if not (value is None or is_list or isinstance(value, bool | int | float | str)):
            raise InvalidTaskError(f"options.{key}: expected a number, a text or a list of texts")
    return {key: value for key, value in options.items() if value is not None}


def _tools(tools: Any) -> list[Mapping[str, Any]]:
    if not isinstance(tools, list):
        raise InvalidTaskError("tools: expected a list")
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not _is_name(function.get("name")):
            raise InvalidTaskError(
                f'tools[{i}]: expected {{"type": "function", "function": {{"name": …}}}}'
            )
    return tools


# --- messages -------------------------------------------------------------------------


def _messages(data: Data) -> tuple[Mapping[str, Any], ...]:
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
        checked["images"] = _images(given["images"], f"{path}.images")
    if "tool_calls" in given:
        checked["tool_calls"] = _tool_calls(given["tool_calls"], f"{path}.tool_calls")
    return checked


def _images(images: Any, path: str) -> list[str]:
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
        if not isinstance(function, Mapping) or not _is_name(function.get("name")):
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


def _code_messages(data: Data) -> tuple[Mapping[str, Any], ...]:
    if "prompt" not in data:
        raise InvalidTaskError("Missing field: prompt")
    prompt, language = data["prompt"], data.get("language")
    language = DEFAULT_LANGUAGE if language is None else language
    if not isinstance(prompt, str) or not prompt.strip():
        raise InvalidTaskError("prompt: expected a text that is not empty")
    is_name = isinstance(language, str) and language.isprintable() and language.strip()
    if not is_name or len(language) > MAX_LANGUAGE_CHARS:
        raise InvalidTaskError(
            f"language: expected a name of at most {MAX_LANGUAGE_CHARS} characters"
        )
    return (
        {"role": "system", "content": _CODE_SYSTEM.format(language=language)},
        {"role": "user", "content": prompt},
    )


# --- single fields --------------------------------------------------------------------


def _model(data: Data) -> str | None:
    model = data.get("model")
    if model is None or model == "":
        return None
    if not isinstance(model, str) or not re.fullmatch(MODEL_PATTERN, model):
        raise InvalidTaskError("model: expected the name of a model, such as deepseek-r1:8b")
    return model


def _number(data: Data, field: str, path: str = "", *, low: float, high: float) -> float | None:
    value = data.get(field)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:  # also true for NaN
        raise InvalidTaskError(f"{path}{field}: expected a number from {low} to {high}")
    return float(value)


def _whole_number(data: Data, field: str, path: str = "", *, low: int, high: int) -> int | None:
    value = _number(data, field, path, low=low, high=high)
    if value is not None and value != int(value):
        raise InvalidTaskError(f"{path}{field}: expected a whole number, not {value}")
    return None if value is None else int(value)


def _switch(data: Data, field: str) -> bool | None:
    value = data.get(field)
    if not (value is None or isinstance(value, bool)):
        raise InvalidTaskError(f"{field}: expected true or false")
    return value


def _format(data: Data) -> object:
    wanted = data.get("format")
    if wanted not in (None, "", "json") and not isinstance(wanted, Mapping):
        raise InvalidTaskError('format: expected "json" or a JSON schema (an object)')
    return None if wanted == "" else wanted


def _keep_alive(data: Data) -> float | str | None:
    value = data.get("keep_alive")
    if isinstance(value, bool) or not isinstance(value, int | float | str | None):
        raise InvalidTaskError('keep_alive: expected seconds, or a text such as "10m"')
    return value


def _given(more: Mapping[str, Any]) -> dict[str, Any]:
    return {field: value for field, value in more.items() if value is not None}


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARS
