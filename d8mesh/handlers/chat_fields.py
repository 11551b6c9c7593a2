"""The data of the tasks that language models do: each field checked, none lost in silence.

What Ollama's chat knows is handed on. What it does not know and would change the answer is
refused with where it belongs; other fields are named in the result as ``ignored``, and so are
options that a model is loaded with: of these there is one set for each model in the whole pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from d8mesh.core.protocol.chat import LOAD_OPTIONS, ChatRequest, EmbeddingRequest, Prompt
from d8mesh.core.protocol.wish import MAX_MODELS, Cloud, is_place
from d8mesh.errors import InvalidTaskError
from d8mesh.handlers import Data
from d8mesh.handlers.field_values import (
    MAX_NAME_CHARS,
    format_of,
    given,
    is_name,
    keep_alive_of,
    model_name,
    number_of,
    switch_of,
    text_of_field,
    whole_number_of,
)
from d8mesh.handlers.message_fields import (
    MAX_MESSAGES,
    MESSAGE_FIELDS,
    images_of,
    messages_of,
)
from d8mesh.handlers.tool_fields import tool_fields

#: The same bounds as of the settings TEMPERATURE and MAX_TOKENS.
MAX_TEMPERATURE: Final = 2
MAX_TOKENS: Final = 10_000_000
#: The name of a programming language.
MAX_LANGUAGE_CHARS: Final = 64
DEFAULT_LANGUAGE: Final = "python"
MAX_TOP_LOGPROBS: Final = 20
#: Of the context of an earlier answer: the longest models' is a million tokens.
MAX_CONTEXT: Final = 2_000_000
#: Of a vector; the largest models have 8,192.
MAX_DIMENSIONS: Final = 65_536
#: Of `logit_bias`: tokens, and by how much, as OpenAI bounds them.
MAX_BIASED: Final = 1024
MOST_BIAS: Final = 100
THINK_LEVELS: Final = ("low", "medium", "high", "max")

_COMMON: Final = frozenset(
    {"cloud", "keep_alive", "logit_bias", "machine", "max_tokens", "min_tokens", "model",
     "model_defaults", "model_strict", "models", "options", "pieces", "shift", "temperature",
     "think", "truncate"}
)  # fmt: skip
AGENT_FIELDS: Final = _COMMON | {
    "messages", "tools", "tool_choice", "parallel_tool_calls", "format", "logprobs", "top_logprobs"
}  # fmt: skip
CODE_FIELDS: Final = _COMMON | {"prompt", "language"}
PROMPT_FIELDS: Final = frozenset(
    {"prompt", "suffix", "raw", "images", "context", "system", "template"}
)
GENERATE_FIELDS: Final = _COMMON | PROMPT_FIELDS | {"format", "logprobs", "top_logprobs"}
EMBED_FIELDS: Final = frozenset(
    {"cloud", "dimensions", "input", "keep_alive", "machine", "model", "model_strict", "options",
     "truncate"}
)  # fmt: skip
#: Ollama's options that may stand beside the other fields too, as other interfaces have them.
OPTION_FIELDS: Final = frozenset(
    {"frequency_penalty", "min_p", "presence_penalty", "repeat_penalty", "seed", "stop", "top_k",
     "top_p"}
)  # fmt: skip
#: Why fields are not used that would load the model anew, and what to do instead.
_RELOADS: Final = "would load the model anew: set D8_LOAD_OPTIONS of the orchestrator"
_SHIFTS: Final = "would load the model anew: truncate says whether what is too long is cut"
#: Names of other interfaces, and what says the same here.
_ELSEWHERE: Final = {
    "content": "a message in messages",
    "functions": "tools",
    "function_call": "tool_choice",
    "images": "images of a message in messages",
    "max_completion_tokens": "max_tokens",
    "num_predict": "max_tokens",
    "n": "several tasks",
    "prompt": "a message in messages",
    "reasoning_effort": "think",
    "response_format": "format",
    "system": "a message of the role system in messages",
    "tool_choice": "only agent_action has tools",
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
    messages = messages_of(data)
    return _request(data, tool_fields(data) | _formed(data), messages=messages)


def code_request(data: Data) -> ChatRequest:
    """Return what a ``code_generation`` asks.

    Raises:
        InvalidTaskError: a field is missing or is not what it must be; names the field.
    """
    for field in sorted(AGENT_FIELDS - CODE_FIELDS):
        if data.get(field) is not None:
            raise InvalidTaskError(f"{field}: code_generation has no such field, agent_action has")
    _refuse_elsewhere(data, CODE_FIELDS)
    return _request(data, {}, messages=_code_messages(data))


def generate_request(data: Data) -> ChatRequest:
    """Return what a ``generate`` asks.

    Raises:
        InvalidTaskError: a field is missing or is not what it must be; names the field.
    """
    for field in ("messages", "tools"):
        if data.get(field) is not None:
            raise InvalidTaskError(f"{field}: generate has no such field, agent_action has")
    _refuse_elsewhere(data, GENERATE_FIELDS)
    return _request(data, _formed(data), prompt=_prompt(data))


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
    model = model_name(data.get("model"))
    if model is None:
        raise InvalidTaskError("Missing field: model (vectors of two models cannot be compared)")
    _check_where(data)
    more = {"truncate": switch_of(data, "truncate"), "keep_alive": keep_alive_of(data)}
    return EmbeddingRequest(
        texts=tuple(texts),
        model=model,
        dimensions=whole_number_of(data, "dimensions", low=1, high=MAX_DIMENSIONS),
        options=_options(data),
        more=given(more),
    )


def wants_pieces(data: Data) -> bool:
    """Return whether partial output is to come as objects, thoughts and calls of tools included.

    Raises:
        InvalidTaskError: the field is no boolean.
    """
    return switch_of(data, "pieces") or False


def ignored_fields(data: Data, known: frozenset[str]) -> list[str]:
    """Return the fields of `data`, and of the messages in it, that mean nothing here, in order."""
    used = known | OPTION_FIELDS | LOAD_OPTIONS
    found = {str(field)[:MAX_NAME_CHARS] for field in data if field not in used}
    for message in data["messages"] if "messages" in known else ():
        foreign = (
            message.keys() - MESSAGE_FIELDS - ({"name"} if message["role"] == "tool" else set())
        )
        found |= {f"messages[].{str(key)[:MAX_NAME_CHARS]}" for key in foreign}
    return sorted(found)


def reloading_fields(data: Data) -> list[str]:
    """Return what of `data` is not used because it would load the model anew, and what to do."""
    options = data.get("options")
    inside = options if isinstance(options, Mapping) else {}
    found = [f"{name} ({_RELOADS})" for name in LOAD_OPTIONS & data.keys()]
    found += [f"options.{name} ({_RELOADS})" for name in LOAD_OPTIONS & inside.keys()]
    found += [f"shift ({_SHIFTS})"] if data.get("shift") is not None else []
    return sorted(found)


def _request(
    data: Data,
    more: Mapping[str, Any],
    *,
    messages: tuple[Mapping[str, Any], ...] = (),
    prompt: Prompt | None = None,
) -> ChatRequest:
    max_tokens = whole_number_of(data, "max_tokens", low=1, high=MAX_TOKENS)
    models, is_strict = _models(data)
    _check_where(data)
    switch_of(data, "shift")
    wants_pieces(data)
    rest = {
        "logit_bias": _logit_bias(data.get("logit_bias")),
        "min_tokens": whole_number_of(data, "min_tokens", low=1, high=MAX_TOKENS),
        "truncate": switch_of(data, "truncate"),
        "keep_alive": keep_alive_of(data),
        "think": data.get("think"),
    }
    if not (isinstance(rest["think"], bool | None) or rest["think"] in THINK_LEVELS):
        levels = ", ".join(THINK_LEVELS)
        raise InvalidTaskError(f"think: expected true, false or one of {levels}")
    temperature = number_of(data, "temperature", low=0, high=MAX_TEMPERATURE)
    options = dict(_options(data))
    if "temperature" in options:
        _refuse_twice("temperature", temperature)
        temperature = number_of(options, "temperature", "options.", low=0, high=MAX_TEMPERATURE)
        del options["temperature"]
    if "num_predict" in options:
        _refuse_twice("max_tokens", max_tokens)
        max_tokens = whole_number_of(options, "num_predict", "options.", low=1, high=MAX_TOKENS)
        del options["num_predict"]
    return ChatRequest(
        messages=messages,
        prompt=prompt,
        model=models[0] if models else None,
        fallbacks=models[1:],
        is_model_strict=is_strict,
        temperature=temperature,
        max_tokens=max_tokens,
        options=options,
        has_model_defaults=switch_of(data, "model_defaults") or False,
        more=given({**more, **rest}),
    )


def _models(data: Data) -> tuple[tuple[str, ...], bool]:
    """Return the models wished for, in order, and whether no others will do."""
    model, is_strict = model_name(data.get("model")), switch_of(data, "model_strict") or False
    listed = data.get("models")
    if listed is not None:
        expected = f"models: expected a list of 1 to {MAX_MODELS} names, the first goes first"
        if not isinstance(listed, list) or not 0 < len(listed) <= MAX_MODELS:
            raise InvalidTaskError(expected)
        if model is not None:
            raise InvalidTaskError("models: name the model there, or in model, not in both")
        names = [model_name(each, "models") for each in listed]
        if None in names:
            raise InvalidTaskError(expected)
        if data.get("model_strict") is False:
            raise InvalidTaskError("model_strict: expected true, for models are always a must")
        return tuple(name for name in names if name), True
    if is_strict and model is None:
        raise InvalidTaskError("model_strict: there is no model in the data that is a must")
    return (model,) if model else (), is_strict


def _check_where(data: Data) -> None:
    """Look at the fields that say where it may run: the orchestrator obeys them."""
    cloud = data.get("cloud")
    if cloud is not None and cloud not in tuple(Cloud):
        raise InvalidTaskError(f"cloud: expected one of {', '.join(Cloud)}")
    machine = data.get("machine")
    if machine not in (None, "") and not is_place(machine):
        raise InvalidTaskError("machine: expected the name of a machine, a worker or a service")


def _prompt(data: Data) -> Prompt:
    if "prompt" not in data:
        raise InvalidTaskError("Missing field: prompt")
    text, is_raw = data["prompt"], switch_of(data, "raw") or False
    if not isinstance(text, str) or not text:
        raise InvalidTaskError("prompt: expected a text that is not empty")
    context = data.get("context") or ()
    is_context = isinstance(context, list | tuple) and all(type(each) is int for each in context)
    if not is_context or len(context) > MAX_CONTEXT:
        raise InvalidTaskError("context: expected the list of integers of an earlier answer")
    prompt = Prompt(
        text=text,
        suffix=text_of_field(data, "suffix") or "",
        images=tuple(images_of(data["images"], "images")) if data.get("images") else (),
        system=text_of_field(data, "system"),
        template=text_of_field(data, "template"),
        context=tuple(context),
        is_raw=is_raw,
    )
    for field in ("system", "template", "context"):
        if is_raw and data.get(field):
            raise InvalidTaskError(f"raw: a raw prompt goes to the model without {field}")
    return prompt


def _formed(data: Data) -> dict[str, Any]:
    return {
        "format": format_of(data),
        "logprobs": switch_of(data, "logprobs"),
        "top_logprobs": whole_number_of(data, "top_logprobs", low=0, high=MAX_TOP_LOGPROBS),
    }


def _refuse_elsewhere(data: Data, known: frozenset[str]) -> None:
    for field in data:
        if field in _ELSEWHERE and field not in known and data[field] is not None:
            raise InvalidTaskError(f"{field}: expected here: {_ELSEWHERE[field]}")


def _refuse_twice(field: str, value: object) -> None:
    if value is not None:
        raise InvalidTaskError(f"{field}: given twice, in the data and in options")


def _options(data: Data) -> Mapping[str, Any]:
    options = {} if data.get("options") is None else data["options"]
    if not isinstance(options, Mapping) or not all(is_name(key) for key in options):
        raise InvalidTaskError('options: expected an object, such as {"top_p": 0.9}')
    options = {key: value for key, value in options.items() if key not in LOAD_OPTIONS}
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


def _logit_bias(bias: object) -> Mapping[str, Any] | None:
    """Return by how much single tokens are made more likely, or less."""
    expected = f"logit_bias: expected an object of up to {MAX_BIASED} numbers from -100 to 100"
    if bias is None or bias == {}:
        return None
    if not isinstance(bias, Mapping) or len(bias) > MAX_BIASED:
        raise InvalidTaskError(expected)
    for token, by in bias.items():
        is_number = isinstance(by, int | float) and not isinstance(by, bool)
        if not (is_name(token) and is_number and abs(by) <= MOST_BIAS):
            raise InvalidTaskError(expected)
    return bias


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
