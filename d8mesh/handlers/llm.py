"""``agent_action`` and ``code_generation``: tasks that a language model answers.

Knows no service: it is given a `Backend`. While the answer grows its pieces are emitted,
so that whoever listens sees them, and a cancelled task stops the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from d8mesh.backends import Backend, ChatRequest, Completion
from d8mesh.core.protocol.model_names import plain_name
from d8mesh.handlers import Data, Handler, TaskContext
from d8mesh.handlers.chat_fields import (
    AGENT_FIELDS,
    CODE_FIELDS,
    agent_request,
    code_request,
    ignored_fields,
)
from d8mesh.handlers.thoughts import unfenced

#: Warnings told once; beyond so many different ones, names are being made up.
MAX_WARNINGS: Final = 1000
#: Names of ignored fields, as they are shown on a console.
MAX_IGNORED_CHARS: Final = 200

Warn = Callable[[str], None]


def llm_handlers(backend: Backend, *, warn: Warn = lambda text: None) -> dict[str, Handler]:
    """Return the handlers of the task types that `backend` answers, by type.

    Their result holds ``success``, ``output`` (the text), ``model`` (which really ran),
    ``model_requested`` if that is another one, ``tokens_used`` and ``duration_s``; if there
    are any ``thinking``, ``tool_calls``, ``logprobs`` and ``ignored`` (fields of the data that
    mean nothing here); and ``truncated`` (true) if the answer ended at its bound of tokens.

    Args:
        backend: the service.
        warn: told what people should know, each sentence once: another model than the one
            wished for has answered, or data was ignored.
    """
    once = _once(warn)

    def agent_action(data: Data, context: TaskContext) -> object:
        result = _answered(backend, agent_request(data), context, once)
        return _with_ignored(result, ignored_fields(data, AGENT_FIELDS), "agent_action", once)

    def code_generation(data: Data, context: TaskContext) -> object:
        result = _answered(backend, code_request(data), context, once)
        result["output"] = unfenced(str(result["output"]))
        return _with_ignored(result, ignored_fields(data, CODE_FIELDS), "code_generation", once)

    return {"agent_action": agent_action, "code_generation": code_generation}


def _once(warn: Warn) -> Warn:
    told: set[str] = set()

    def tell(text: str) -> None:
        if text not in told and len(told) < MAX_WARNINGS:
            told.add(text)
            warn(text)

    return tell


def _answered(
    backend: Backend, request: ChatRequest, context: TaskContext, warn: Warn
) -> dict[str, object]:
    started = time.monotonic()
    completion = backend.chat(
        request,
        on_text=context.emit,
        is_cancelled=lambda: context.is_cancelled,
        deadline_s=context.remaining_s,
    )
    if request.model and plain_name(request.model) != plain_name(completion.model):
        warn(
            f"tasks wish for the model {request.model!r}, which no worker of the mesh offers: "
            f"{completion.model!r} answers in its place"
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
    if completion.thinking:
        result["thinking"] = completion.thinking
    if completion.tool_calls:
        result["tool_calls"] = [dict(call) for call in completion.tool_calls]
    if completion.logprobs:
        result["logprobs"] = list(completion.logprobs)
    if completion.is_cut:
        result["truncated"] = True
    return result


def _with_ignored(
    result: dict[str, object], ignored: list[str], kind: str, warn: Warn
) -> dict[str, object]:
    if ignored:
        result["ignored"] = ignored
        warn(f"{kind} has no such fields in its data: {', '.join(ignored)[:MAX_IGNORED_CHARS]}")
    return result
