"""Single values of a task's data: each is what it must be, or the error names its field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from d8mesh.core.protocol.keep_alive import keep_alive_s
from d8mesh.errors import InvalidTaskError
from d8mesh.handlers import Data
from d8mesh.setting_forms import MODEL_PATTERN

#: The name of a tool, of an option, an id of a call.
MAX_NAME_CHARS: Final = 256


def model_name(model: object, field: str = "model") -> str | None:
    """Return the name of a model; None if there is none."""
    if model is None or model == "":
        return None
    if not isinstance(model, str) or not re.fullmatch(MODEL_PATTERN, model):
        raise InvalidTaskError(f"{field}: expected the name of a model, such as deepseek-r1:8b")
    return model


def number_of(data: Data, field: str, path: str = "", *, low: float, high: float) -> float | None:
    """Return a number within its bounds; None if there is none."""
    value = data.get(field)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:  # also true for NaN
        raise InvalidTaskError(f"{path}{field}: expected a number from {low} to {high}")
    return float(value)


def whole_number_of(data: Data, field: str, path: str = "", *, low: int, high: int) -> int | None:
    """Return a whole number within its bounds; None if there is none."""
    value = number_of(data, field, path, low=low, high=high)
    if value is not None and value != int(value):
        raise InvalidTaskError(f"{path}{field}: expected a whole number, not {value}")
    return None if value is None else int(value)


def switch_of(data: Data, field: str) -> bool | None:
    """Return true or false; None if neither is said."""
    value = data.get(field)
    if not (value is None or isinstance(value, bool)):
        raise InvalidTaskError(f"{field}: expected true or false")
    return value


def format_of(data: Data) -> object:
    """Return the form that the answer is to have; None if it is free."""
    wanted = data.get("format")
    if wanted not in (None, "", "json") and not isinstance(wanted, Mapping):
        raise InvalidTaskError('format: expected "json" or a JSON schema (an object)')
    return None if wanted == "" else wanted


def keep_alive_of(data: Data) -> float | str | None:
    """Return for how long the model is to stay in memory."""
    value: float | str | None = data.get("keep_alive")
    if value is not None and keep_alive_s(value) is None:
        raise InvalidTaskError('keep_alive: expected seconds, or a text such as "10m"')
    return value


def text_of_field(data: Data, field: str) -> str | None:
    """Return a text; None if there is none."""
    value = data.get(field)
    if not (value is None or isinstance(value, str)):
        raise InvalidTaskError(f"{field}: expected a text")
    return value


def given(more: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is there of some fields."""
    return {field: value for field, value in more.items() if value is not None}


def is_name(value: object) -> bool:
    """Return whether it is a text that can be a name."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARS
