"""Single values of a request to Ollama, checked as Ollama does it and refused in its words."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from d8mesh.config import is_model_name
from d8mesh.core.protocol.keep_alive import keep_alive_s
from d8mesh.errors import InvalidTaskError, ModelUnknownError
from d8mesh.handlers.chat_fields import MAX_TOP_LOGPROBS, THINK_LEVELS
from d8mesh.http.strict import parse_lenient_json

#: The fields of a request, without those that are null.
Fields = Mapping[str, Any]
#: Of a value in what a person reads.
SHOWN_VALUE_CHARS: Final = 60
_BASE64_CHARS: Final = re.compile(r"[A-Za-z0-9+/]*")
#: What Go calls JSON's kinds.
_GO_KINDS: Final[Mapping[type, str]] = {
    dict: "object", list: "array", str: "string", bool: "bool", int: "number", float: "number"
}  # fmt: skip


def object_in(content: bytes) -> dict[str, Any]:
    """Return the object that a body is, without what is null, whatever its media type says.

    A key that stands twice counts as it stands last, as at Ollama.

    Raises:
        InvalidTaskError: there is no body, or it is no JSON object.
    """
    if not content:
        raise InvalidTaskError("missing request body")
    found = parse_lenient_json(content)
    if not isinstance(found, dict):
        raise InvalidTaskError(f"the body is not JSON of an object: saw {_kind(found)}")
    return {name: value for name, value in found.items() if value is not None}


def name_in(body: Fields, *fields: str) -> str:
    """Return the name of a model as it is spelled; "" if there is none.

    Raises:
        InvalidTaskError: it is not a valid name.
    """
    name = next((text_in(body, each) for each in fields if body.get(each)), "")
    if name.strip() and not is_model_name(name.strip()):
        raise InvalidTaskError("invalid model name")
    return name


def unknown_model(name: str) -> ModelUnknownError:
    """Return what is said of a model that nobody has."""
    return ModelUnknownError(f"model '{name}' not found")


def text_in(body: Fields, field: str) -> str:
    """Return a text; "" if there is none."""
    value = body.get(field, "")
    if not isinstance(value, str):
        raise wrong_kind(field, value, "string")
    return value


def switch_in(body: Fields, field: str, *, default: bool) -> bool:
    """Return true or false."""
    value = body.get(field, default)
    if not isinstance(value, bool):
        raise wrong_kind(field, value, "bool")
    return value


def keep_alive_in(body: Fields) -> float | str | None:
    """Return for how long the model is to stay in memory; None: that is not said."""
    value = body.get("keep_alive")
    if value is None:
        return None
    if keep_alive_s(value) is not None:
        return float(value) if isinstance(value, float) else value
    if not isinstance(value, str):
        raise InvalidTaskError(f"keep_alive: invalid value {_shown(value)}: seconds or a duration")
    what = "missing unit in" if re.fullmatch(r"[+-]?[0-9.]+", value) else "invalid"
    raise InvalidTaskError(f"time: {what} duration {_shown(value)}")


def images_in(body: Fields, field: str) -> list[str]:
    """Return pictures, base64 of each."""
    images = body.get("images") or []
    if not isinstance(images, list):
        raise wrong_kind(field, images, "list of base64")
    for image in images:
        if not isinstance(image, str):
            raise wrong_kind(field, image, "base64")
        _check_base64(image)
    return images


def _check_base64(image: str) -> None:
    """Refuse what is none, and say where; a prefix ``data:`` and folded lines are let pass."""
    text = image.partition("base64,")[2] if image.startswith("data:") else image
    text = "".join(text.split())
    try:
        is_picture = bool(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        is_picture = False
    if not is_picture:
        found = _BASE64_CHARS.match(text)
        at = found.end() if found is not None else 0
        raise InvalidTaskError(f"illegal base64 data at input byte {at}")


def think_in(body: Fields) -> bool | str | None:
    """Return whether, or how hard, the model is to think; None: that is not said."""
    value = body.get("think")
    if value is None or isinstance(value, bool) or value in THINK_LEVELS:
        return value
    raise InvalidTaskError(
        f'invalid think value: {_shown(value)} (must be "high", "medium", "low", "max", '
        "true, or false)"
    )


def format_in(body: Fields) -> object:
    """Return the form that the answer is to have; None: it is free."""
    value = body.get("format")
    if value is None or value == "":
        return None
    if value == "json" or isinstance(value, dict):
        return value
    raise InvalidTaskError(
        f'invalid format: {_shown(value)}; expected "json" or a valid JSON Schema object'
    )


def top_logprobs_in(body: Fields) -> int:
    """Return how many other tokens are to be told for each; 0: none."""
    value = body.get("top_logprobs", 0)
    if type(value) is not int or not 0 <= value <= MAX_TOP_LOGPROBS:
        raise InvalidTaskError(f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}")
    return value


def wrong_kind(field: str, value: object, expected: str) -> InvalidTaskError:
    """Return what is said of a value of another kind than the field's."""
    return InvalidTaskError(
        f"json: cannot unmarshal {_kind(value)} into field {field} of type {expected}"
    )


def _kind(value: object) -> str:
    return _GO_KINDS.get(type(value), "null")


def _shown(value: object) -> str:
    return json.dumps(value)[:SHOWN_VALUE_CHARS]
