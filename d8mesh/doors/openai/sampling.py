"""How a model is to generate: the fields that chats and completions share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from d8mesh.core.protocol.chat import LOAD_OPTIONS
from d8mesh.doors.openai.fields import RequestFields
from d8mesh.handlers.chat_fields import MAX_TEMPERATURE, MAX_TOKENS, OPTION_FIELDS

#: Answers to one question; each is a task.
MAX_CHOICES: Final = 16
#: Of a penalty, either way.
MAX_PENALTY: Final = 2
#: Texts that end an answer; OpenAI takes 4.
MAX_STOPS: Final = 64
#: What is absent is left to the model, and not to the settings of a worker.
OWN_DEFAULTS: Final[Mapping[str, Any]] = {"model_defaults": True}
#: Also written so, by servers whose clients come here too.
_ALSO_NAMED: Final[Mapping[str, str]] = {"repetition_penalty": "repeat_penalty"}
#: What ``options`` call what has another name beside them.
_INNER_NAMES: Final[Mapping[str, str]] = {"num_predict": "max_tokens"}
#: What may stand in ``options`` too, and counts more beside them.
_ALSO_INSIDE: Final = OPTION_FIELDS | {"temperature", "max_tokens"}


def sampling_of(fields: RequestFields) -> tuple[dict[str, Any], set[str]]:
    """Return the data that says how to generate, and which of its fields have no effect.

    What is absent stays absent; see `OWN_DEFAULTS`.

    Raises:
        InvalidTaskError: a field is not what it must be; names it.
    """
    data: dict[str, Any] = {
        "temperature": fields.number("temperature", low=0, high=MAX_TEMPERATURE),
        "max_tokens": _max_tokens(fields),
        "top_p": fields.number("top_p", low=0, high=1),
        "min_p": fields.number("min_p", low=0, high=1),
        "top_k": fields.whole("top_k"),
        "seed": fields.whole("seed"),
        "stop": _stops(fields),
        "keep_alive": fields.get("keep_alive"),
        "truncate": fields.switch("truncate"),
        "min_tokens": fields.whole("min_tokens", low=0, high=MAX_TOKENS) or None,
        "logit_bias": fields.mapping("logit_bias") or None,
    }
    for name in ("frequency_penalty", "presence_penalty"):
        data[name] = fields.number(name, low=-MAX_PENALTY, high=MAX_PENALTY)
    data["repeat_penalty"] = fields.number("repeat_penalty", low=0, high=MAX_PENALTY)
    for other, name in _ALSO_NAMED.items():
        also = fields.number(other, low=0, high=MAX_PENALTY)
        data[name] = also if data[name] is None else data[name]
    data = {name: value for name, value in data.items() if value is not None}
    options, ignored = _options(fields, data)
    return data | ({"options": options} if options else {}), ignored


def choices_of(fields: RequestFields) -> int:
    """Return how many answers are wished for."""
    return fields.whole("n", low=1, high=MAX_CHOICES) or 1


def several(data: Mapping[str, Any], count: int) -> list[Mapping[str, Any]]:
    """Return the data of each of `count` answers: a seed is another for each."""
    if count == 1 or "seed" not in data:
        return [data] * count
    return [{**data, "seed": data["seed"] + i} for i in range(count)]


def _max_tokens(fields: RequestFields) -> int | None:
    """Return the bound of the answer; the newer name wins, -1 is none."""
    found = None
    for name in ("max_tokens", "max_completion_tokens"):
        value = fields.whole(name, low=-1, high=MAX_TOKENS)
        if value == 0:
            raise fields.wrong(name, f"a whole number from 1 to {MAX_TOKENS}")
        found = value if value is not None else found
    return None if found == -1 else found


def _stops(fields: RequestFields) -> list[str] | None:
    stop = fields.get("stop")
    stops = [stop] if isinstance(stop, str) else stop
    if stops is None or stops == []:
        return None
    are_texts = isinstance(stops, list) and all(isinstance(each, str) for each in stops)
    if not are_texts or len(stops) > MAX_STOPS:
        raise fields.wrong("stop", f"a text, or a list of at most {MAX_STOPS} texts")
    return [each for each in stops if each] or None


def _options(fields: RequestFields, data: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Return Ollama's ``options`` that have an effect, and the names of the others."""
    options = fields.mapping("options") or {}
    kept: dict[str, Any] = {}
    ignored: set[str] = set()
    for name, value in options.items():
        beside = _INNER_NAMES.get(name, name)
        is_said = beside in data and beside in _ALSO_INSIDE
        if is_said or name in LOAD_OPTIONS:
            ignored.add(f"options.{name}")
        elif name == "num_predict" and value in (-1, -2):
            continue  # no bound, as when it is left out
        elif value is not None:
            kept[name] = value
    return kept, ignored
