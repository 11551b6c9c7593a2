"""``POST /v1/completions``: texts to go on with, in the words of the mesh's tasks. Pure."""

from __future__ import annotations

from typing import Any, Final

from d8mesh.doors.llm.asked import LlmTask
from d8mesh.doors.openai.asked import AskedOfModels
from d8mesh.doors.openai.chat_request import usage_wished
from d8mesh.doors.openai.fields import RequestFields
from d8mesh.doors.openai.sampling import MAX_CHOICES, OWN_DEFAULTS, choices_of, sampling_of, several
from d8mesh.errors import InvalidTaskError
from d8mesh.handlers.chat_fields import MAX_TOP_LOGPROBS, generate_request

COMPLETION_TASK_TYPE: Final = "generate"
#: Prompts of one request; each is as many tasks as it has choices.
MAX_PROMPTS: Final = 128
#: Why a list of numbers is refused.
TOKENS_REFUSED: Final = (
    "expected a text, or a list of texts: tokens as numbers mean something else to each model"
)


def asked_of_completion(body: object) -> AskedOfModels:
    """Return what a completion asks for: for each prompt as many answers as ``n`` says.

    Raises:
        InvalidTaskError: a field is not what it must be, or cannot be done; names it.
    """
    fields = RequestFields(body)
    model = fields.required_text("model")
    prompts = texts_of(fields, "prompt", most=MAX_PROMPTS)
    sampling, ignored = sampling_of(fields)
    data: dict[str, Any] = {**sampling, **_logprobs(fields), **OWN_DEFAULTS}
    if suffix := fields.text("suffix"):
        data["suffix"] = suffix
    for name in ("raw", "think"):  # Ollama's own
        if (value := fields.get(name)) is not None:
            data[name] = value
    count = choices_of(fields)
    if len(prompts) * count > MAX_PROMPTS:
        raise fields.wrong("n", f"at most {MAX_PROMPTS} answers to all prompts together")
    if fields.whole("best_of", low=1, high=MAX_CHOICES) not in (None, count):
        ignored.add("best_of")
    is_echoed = bool(fields.switch("echo"))
    tasks: list[LlmTask] = []
    for prompt in prompts:
        own = {"prompt": prompt, **data}
        generate_request({**own, "model": model})  # so that all that is wrong is told at once
        tasks += [
            LlmTask(type=COMPLETION_TASK_TYPE, data=each, model=model)
            for each in several(own, count)
        ]
    return AskedOfModels(
        tasks=tuple(tasks),
        model=model,
        is_streamed=bool(fields.switch("stream")),
        has_usage=usage_wished(fields),
        echoes=tuple(prompt for prompt in prompts for _ in range(count)) if is_echoed else (),
        ignored=(*fields.unread(), *sorted(ignored)),
    )


def texts_of(fields: RequestFields, name: str, *, most: int) -> list[str]:
    """Return one text, or several, as a list.

    Raises:
        InvalidTaskError: there is none, or they are tokens.
    """
    given = fields.get(name)
    if given is None:
        raise InvalidTaskError(f"Missing field: {name}")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise fields.wrong(name, "a text, or a list of one or more texts")
    if not all(isinstance(text, str) for text in texts):
        raise InvalidTaskError(f"{name}: {TOKENS_REFUSED}")
    if len(texts) > most:
        raise InvalidTaskError(f"{name}: {len(texts)} texts, at most {most} in one request")
    return texts


def _logprobs(fields: RequestFields) -> dict[str, Any]:
    """Return how many likely tokens are to be told at each place."""
    given = fields.get("logprobs")
    if given is None or isinstance(given, bool):  # as chats have it
        return {"logprobs": True} if given else {}
    count = fields.whole("logprobs", low=0, high=MAX_TOP_LOGPROBS)
    return {"logprobs": True, "top_logprobs": count}
