"""The `options` of a request to Ollama, as a task's data has them.

Those that a model is loaded with are not applied: there is one set for each model in the pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from d8mesh.core.protocol.chat import LOAD_OPTIONS
from d8mesh.doors.ollama.values import Fields
from d8mesh.errors import InvalidTaskError
from d8mesh.handlers.chat_fields import MAX_TEMPERATURE, MAX_TOKENS

_INTEGER: Final = "integer"
_NUMBER: Final = "float32"
_SWITCH: Final = "boolean"
_TEXT_LIST: Final = "[]string"
#: What Ollama knows, and of which kind each is. Source: Ollama, ``api/types.go``.
_OPTION_KINDS: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("draft_num_predict", "main_gpu", "num_batch", "num_ctx", "num_gpu", "num_keep",
         "num_predict", "num_thread", "repeat_last_n", "seed", "top_k"),
        _INTEGER,
    ),
    **dict.fromkeys(
        ("frequency_penalty", "min_p", "presence_penalty", "repeat_penalty", "temperature",
         "top_p", "typical_p"),
        _NUMBER,
    ),
    "use_mmap": _SWITCH,
    "stop": _TEXT_LIST,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class AskedOptions:
    """The options of a request.

    data: fields of a task's data.
    ignored: what is not applied, as the caller spelled it.
    """

    data: Mapping[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


def options_in(body: Fields) -> AskedOptions:
    """Return the options of a request.

    Raises:
        InvalidTaskError: they are no object, or one is of the wrong type.
    """
    told = body.get("options", {})
    if not isinstance(told, dict):
        raise InvalidTaskError("options: expected an object")
    options: dict[str, Any] = {}
    ignored: list[str] = []
    for name, value in told.items():
        if value is None:
            continue
        if name in LOAD_OPTIONS or name not in _OPTION_KINDS:
            ignored.append(f"options.{name}")
        if name in _OPTION_KINDS:
            options[name] = _checked(name, value)
    data: dict[str, Any] = {}
    _take_bound(options, data)
    _take_temperature(options, data, ignored)
    data |= {"options": kept} if (kept := _applied(options)) else {}
    return AskedOptions(data, tuple(ignored))


def _applied(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in LOAD_OPTIONS}


def _checked(name: str, value: object) -> object:
    kind, is_switch = _OPTION_KINDS[name], isinstance(value, bool)
    if kind is _TEXT_LIST:
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, list) and all(isinstance(each, str) for each in texts):
            return texts
    elif kind is _SWITCH:
        if is_switch:
            return value
    elif isinstance(value, int | float) and not is_switch:
        if kind is _NUMBER:
            return value
        if value == int(value):
            return int(value)
    raise InvalidTaskError(f'option "{name}" must be of type {kind}')


def _take_bound(options: dict[str, Any], data: dict[str, Any]) -> None:
    """Move the bound of tokens; zero and what is below mean none."""
    bound = options.pop("num_predict", -1)
    if bound > 0:
        data["max_tokens"] = min(bound, MAX_TOKENS)


def _take_temperature(options: dict[str, Any], data: dict[str, Any], ignored: list[str]) -> None:
    """Move the temperature, within the bounds that a task has."""
    if "temperature" not in options:
        return
    wished = options.pop("temperature")
    data["temperature"] = min(max(wished, 0), MAX_TEMPERATURE)
    if data["temperature"] != wished:
        ignored.append(f"options.temperature={wished:g}, which is beyond {data['temperature']:g}")
