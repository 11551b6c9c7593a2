"""``agent_action`` and ``code_generation``: tasks that a language model answers.

Knows no service: it is given a `Backend`. While the answer grows its pieces are emitted,
so that whoever listens sees them, and a cancelled task stops the model.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, Final

from d8mesh.backends import Backend, ChatRequest, Completion
from d8mesh.config import MODEL_PATTERN
from d8mesh.errors import InvalidTaskError
from d8mesh.handlers import Data, Handler, TaskContext

#: A conversation of a long day; more is a mistake.
MAX_MESSAGES: Final = 1000
ROLES: Final = ("system", "user", "assistant", "tool")
#: The same bounds as of the settings TEMPERATURE and MAX_TOKENS.
MAX_TEMPERATURE: Final = 2.0
MAX_TOKENS: Final = 10_000_000
#: The name of a programming language.
MAX_LANGUAGE_CHARS: Final = 64
DEFAULT_LANGUAGE: Final = "python"

_CODE_SYSTEM: Final = (
    "You write {language} code. Answer with the code alone: complete and ready to run, "
    "no explanation before or after it."
)
#: What reasoning models think before they answer, where the service does not part it.
_THOUGHTS: Final = re.compile(r"\A\s*<think>.*?</think>\s*", re.DOTALL)
_FENCE: Final = "```"


def llm_handlers(backend: Backend) -> dict[str, Handler]:
    """Return the handlers of the task types that `backend` answers, by type.

    Their result holds ``success``, ``output`` (the text), ``model`` (which really ran),
    ``model_requested`` if that is another one, ``tokens_used`` and ``duration_s``, and
    ``truncated`` (true) if the answer ended at its bound of tokens.
    """

    def agent_action(data: Data, context: TaskContext) -> object:
        return _answered(backend, _request(data, _messages(data)), context)

    def code_generation(data: Data, context: TaskContext) -> object:
        result = _answered(backend, _request(data, _code_messages(data)), context)
        result["output"] = unfenced(str(result["output"]))
        return result

    return {"agent_action": agent_action, "code_generation": code_generation}


def unfenced(text: str) -> str:
    """Return the code in `text` if all of it is one Markdown fence, else `text` itself."""
    answer = _THOUGHTS.sub("", text)
    inner = answer.strip()
    is_fenced = inner.startswith(_FENCE) and inner.endswith(_FENCE) and "\n" in inner
    if not is_fenced or inner.count(_FENCE) != 2:
        return answer
    return inner[inner.index("\n") + 1 : -len(_FENCE)].removesuffix("\n")


def _answered(backend: Backend, request: ChatRequest, context: TaskContext) -> dict[str, object]:
    started = time.monotonic()
    completion = backend.chat(
        request,
        on_text=context.emit,
        is_cancelled=lambda: context.is_cancelled,
        deadline_s=context.remaining_s,
    )
    return _result(completion, request, time.monotonic() - started)


def _result(completion: Completion, request: ChatRequest, duration_s: float) -> dict[str, object]:
    result: dict[str, object] = {
        "success": True,
        "output": completion.text,
        "model": completion.model,
        "tokens_used": completion.tokens_used,
        "duration_s": round(duration_s, 3),
    }
    if request.model is not None and request.model != completion.model:
        result["model_requested"] = request.model
    if completion.is_cut:
        result["truncated"] = True
    return result


# --- the fields -----------------------------------------------------------------------


def _request(data: Data, messages: tuple[Mapping[str, str], ...]) -> ChatRequest:
    max_tokens = _number(data, "max_tokens", low=1, high=MAX_TOKENS)
    if max_tokens is not None and max_tokens != int(max_tokens):
        raise InvalidTaskError(f"max_tokens: expected a whole number, not {max_tokens}")
    return ChatRequest(
        messages=messages,
        model=_model(data),
        temperature=_number(data, "temperature", low=0, high=MAX_TEMPERATURE),
        max_tokens=None if max_tokens is None else int(max_tokens),
    )


def _messages(data: Data) -> tuple[Mapping[str, str], ...]:
    if "messages" not in data:
        raise InvalidTaskError("Missing field: messages")
    messages = data["messages"]
    if not isinstance(messages, list | tuple) or not messages:
        raise InvalidTaskError("messages: expected a list of one or more messages")
    if len(messages) > MAX_MESSAGES:
        raise InvalidTaskError(f"messages: {len(messages)} of them, at most {MAX_MESSAGES}")
    return tuple(_message(message, f"messages[{i}]") for i, message in enumerate(messages))


def _message(message: Any, path: str) -> Mapping[str, str]:
    if not isinstance(message, Mapping):
        raise InvalidTaskError(f"{path}: expected an object with role and content")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise InvalidTaskError(f"{path}.role: expected one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise InvalidTaskError(f"{path}.content: expected a text")
    return {"role": str(role), "content": content}


def _code_messages(data: Data) -> tuple[Mapping[str, str], ...]:
    if "prompt" not in data:
        raise InvalidTaskError("Missing field: prompt")
    prompt, language = data["prompt"], data.get("language", DEFAULT_LANGUAGE)
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


def _model(data: Data) -> str | None:
    model = data.get("model")
    if model is None or model == "":
        return None
    if not isinstance(model, str) or not re.fullmatch(MODEL_PATTERN, model):
        raise InvalidTaskError("model: expected the name of a model, such as deepseek-r1:8b")
    return model


def _number(data: Data, field: str, *, low: float, high: float) -> float | None:
    value = data.get(field)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:  # also true for NaN
        raise InvalidTaskError(f"{field}: expected a number from {low:g} to {high:g}")
    return float(value)
