"""``agent_action`` and ``code_generation``: tasks that a language model answers.

Knows no service: it is given a `Backend`. While the answer grows its pieces are emitted,
so that whoever listens sees them, and a cancelled task stops the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from d8mesh.backends.backend import ChatRun, LlmService
from d8mesh.core.protocol.chat import ChatRequest, Completion, FinishReason, Piece
from d8mesh.core.protocol.model_names import plain_name
from d8mesh.handlers import Data, Handler, TaskContext
from d8mesh.handlers.chat_fields import (
    AGENT_FIELDS,
    CODE_FIELDS,
    EMBED_FIELDS,
    agent_request,
    code_request,
    embedding_request,
    ignored_fields,
)
from d8mesh.handlers.thoughts import unfenced

#: Warnings told once; beyond so many different ones, names are being made up.
MAX_TOLD_WARNINGS: Final = 1000
#: Names of ignored fields, as they are shown on a console.
MAX_IGNORED_CHARS: Final = 200

Warn = Callable[[str], None]


def llm_handlers(backend: LlmService, *, warn: Warn = lambda text: None) -> dict[str, Handler]:
    """Return the handlers of the task types that `backend` answers.

    The result of a chat holds ``success``, ``output`` (the text), ``model`` (which really ran),
    ``model_requested`` if that is another one, ``tokens_used``, ``usage`` (those of question and
    answer apart) and ``duration_s``; if there are any ``thinking``, ``tool_calls``, ``logprobs``
    and ``ignored`` (fields of the data that mean nothing here); and ``truncated`` (true) if the
    answer ended at its bound of tokens.

    Args:
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


def embedding_handlers(
    backend: LlmService, *, warn: Warn = lambda text: None
) -> dict[str, Handler]:
    """Return the handler of ``embed``: texts in, a vector for each in ``output``.

    Its result holds ``success``, ``output``, ``model``, ``tokens_used`` and ``duration_s``; if
    there are any ``ignored``. Args as of `llm_handlers`.
    """
    once = _once(warn)

    def embed(data: Data, context: TaskContext) -> object:
        request, started = embedding_request(data), time.monotonic()
        context.raise_if_cancelled()
        made = backend.embed(request, _run(context))
        result: dict[str, object] = {
            "success": True,
            "output": [list(vector) for vector in made.vectors],
            "model": made.model,
            "tokens_used": made.usage.total,
            "duration_s": round(time.monotonic() - started, 3),
        }
        return _with_ignored(result, ignored_fields(data, EMBED_FIELDS), "embed", once)

    return {"embed": embed}


def _once(warn: Warn) -> Warn:
    told: set[str] = set()

    def tell(text: str) -> None:
        if text not in told and len(told) < MAX_TOLD_WARNINGS:
            told.add(text)
            warn(text)

    return tell


def _answered(
    backend: LlmService, request: ChatRequest, context: TaskContext, warn: Warn
) -> dict[str, object]:
    def emit(piece: Piece) -> None:
        if piece.text:
            context.emit(piece.text)

    started = time.monotonic()
    completion = backend.chat(request, replace(_run(context), on_piece=emit))
    if request.model and plain_name(request.model) != plain_name(completion.model):
        warn(
            f"tasks wish for the model {request.model!r}, which no worker of the mesh offers: "
            f"{completion.model!r} answers in its place"
        )
    return _result(completion, request, time.monotonic() - started)


def _run(context: TaskContext) -> ChatRun:
    return ChatRun(
        is_cancelled=lambda: context.is_cancelled,
        deadline_s=context.remaining_s,
        placement=getattr(context, "placement", None),
    )


def _result(completion: Completion, request: ChatRequest, duration_s: float) -> dict[str, object]:
    usage = completion.ending.usage
    result: dict[str, object] = {
        "success": True,
        "output": completion.text,
        "model": completion.model,
        "tokens_used": usage.total,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
        },
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
    if completion.ending.finish_reason is FinishReason.LENGTH:
        result["truncated"] = True
    return result


def _with_ignored(
    result: dict[str, object], ignored: list[str], kind: str, warn: Warn
) -> dict[str, object]:
    if ignored:
        result["ignored"] = ignored
        warn(f"{kind} has no such fields in its data: {', '.join(ignored)[:MAX_IGNORED_CHARS]}")
    return result
