"""What a request to the stand-in asks for, checked as Ollama does it, in its words."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tests.standin.machine import FOR_EVER_S, LOAD_OPTIONS

_NAME: Final = re.compile(r"(?:[\w.-]+(?::\d+)?/)?(?:[\w.-]+/)?[\w.-]+(?::[\w.-]+)?")
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h)")
_UNITS_S: Final = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
THINK_LEVELS: Final = ("low", "medium", "high", "max")
#: Options that are numbers and are looked at here.
_INTEGERS: Final = ("num_predict", "num_ctx", "num_batch", "num_gpu", "num_thread", "seed", "top_k")

Body = Mapping[str, Any]


class WrongRequestError(Exception):
    """A request that Ollama refuses."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request for a text; `messages` of a generate holds its prompt as the user's."""

    model: str
    is_chat: bool
    messages: list[dict[str, Any]]
    is_streamed: bool
    keep_alive_s: float | None
    load_options: dict[str, object]
    max_tokens: int
    tools: list[dict[str, Any]] = field(default_factory=list)
    format: object = None
    think: bool | str | None = None
    top_logprobs: int | None = None
    suffix: str = ""
    is_raw: bool = False

    @property
    def prompt(self) -> str:
        """All that the model reads, in one text."""
        return "\n".join(str(each.get("content", "")) for each in self.messages)

    @property
    def prompt_tokens(self) -> int:
        """Words of the prompt."""
        return max(1, len(self.prompt.split()))


def body_of(content: bytes) -> dict[str, Any]:
    """Return a request's JSON object, whatever its content type was."""
    if not content:
        raise WrongRequestError(400, "missing request body")
    try:
        found = json.loads(content)
    except ValueError as error:
        raise WrongRequestError(400, f"invalid character: {error}") from error
    if not isinstance(found, dict):
        raise WrongRequestError(400, "json: cannot unmarshal into Go value of type api.Request")
    return {name: value for name, value in found.items() if value is not None}


def full_name(text: str) -> str:
    """Return the shortest form of a model's name, in lower case, with its tag.

    Raises:
        WrongRequestError: it is no name.
    """
    name = text.strip()
    if not _NAME.fullmatch(name):
        raise WrongRequestError(400, "invalid model name")
    for prefix in ("registry.ollama.ai/", "library/"):
        name = name.removeprefix(prefix)
    return (name if ":" in name.rpartition("/")[2] else f"{name}:latest").lower()


def keep_alive_of(body: Body) -> float | None:
    """Return seconds, `FOR_EVER_S` for a negative value; None: the request does not say."""
    told = body.get("keep_alive")
    if told is None:
        return None
    if isinstance(told, bool) or not isinstance(told, (int, float, str)):
        raise WrongRequestError(400, "invalid keep_alive")
    seconds = _go_seconds(told) if isinstance(told, str) else float(told)
    return FOR_EVER_S if seconds < 0 else seconds


def _go_seconds(text: str) -> float:
    number = text.removeprefix("-")
    if number == "0":
        return 0.0
    parts = _DURATION.findall(number)
    if not parts or "".join(a + b for a, b in parts) != number:
        raise WrongRequestError(400, f'time: missing unit in duration "{text}"')
    seconds = sum(float(a) * _UNITS_S[b] for a, b in parts)
    return -seconds if text.startswith("-") else seconds


def load_options_of(body: Body) -> dict[str, object]:
    """Return the options that decide whether the model is loaded again."""
    options = _options(body)
    return {
        name: options[name]
        for name in LOAD_OPTIONS
        if name in options and not (name == "num_ctx" and options[name] == 0)
    }


def _options(body: Body) -> dict[str, Any]:
    told = body.get("options", {})
    if not isinstance(told, dict):
        raise WrongRequestError(400, "options must be an object")
    options = {name: value for name, value in told.items() if value is not None}
    for name in _INTEGERS:
        value = options.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise WrongRequestError(400, f'option "{name}" must be of type integer')
    return options


def asked_of(body: Body, *, is_chat: bool) -> Asked:
    """Return what a chat or generate asks for.

    Raises:
        WrongRequestError: Ollama would refuse it, but for what depends on the model.
    """
    if is_chat and not body.get("model"):
        raise WrongRequestError(400, "model is required")
    _refuse_raw(body)
    messages = _messages(body) if is_chat else _prompt(body)
    for message in messages:
        _refuse_images(message.get("images", ()))
    return Asked(
        model=str(body.get("model", "")),
        is_chat=is_chat,
        messages=messages,
        is_streamed=bool(body.get("stream", True)),
        keep_alive_s=keep_alive_of(body),
        load_options=load_options_of(body),
        max_tokens=int(_options(body).get("num_predict", -1)),
        tools=list(body.get("tools", ())),
        format=_format(body.get("format")),
        think=_think(body.get("think")),
        top_logprobs=_logprobs(body),
        suffix=str(body.get("suffix", "")),
        is_raw=bool(body.get("raw")),
    )


def _messages(body: Body) -> list[dict[str, Any]]:
    return [each | {"role": str(each.get("role", "")).lower()} for each in body.get("messages", ())]


def _prompt(body: Body) -> list[dict[str, Any]]:
    if not body.get("prompt"):
        return []
    told = {"role": "user", "content": body["prompt"], "images": body.get("images", ())}
    system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
    return [*system, told]


def _refuse_raw(body: Body) -> None:
    if body.get("raw") and any(body.get(name) for name in ("template", "system", "context")):
        raise WrongRequestError(400, "raw mode does not support template, system, or context")


def _refuse_images(images: object) -> None:
    for image in images if isinstance(images, (list, tuple)) else ():
        try:
            base64.b64decode(image, validate=True)
        except binascii.Error as error:
            raise WrongRequestError(400, "illegal base64 data at input byte 4") from error


def _format(told: object) -> object:
    if told in (None, ""):
        return None
    if told == "json" or isinstance(told, dict):
        return told
    raise WrongRequestError(
        500, f'invalid format: {json.dumps(told)}; expected "json" or a valid JSON Schema object'
    )


def _think(told: object) -> bool | str | None:
    if told is None or isinstance(told, bool):
        return told
    if isinstance(told, str) and told in THINK_LEVELS:
        return told
    raise WrongRequestError(
        400, f'invalid think value: {told!r} (must be "high", "medium", "low", true, or false)'
    )


def _logprobs(body: Body) -> int | None:
    top = body.get("top_logprobs", 0)
    if not isinstance(top, int) or not 0 <= top <= 20:
        raise WrongRequestError(400, "top_logprobs must be between 0 and 20")
    return top if body.get("logprobs") else None
