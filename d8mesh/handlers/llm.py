"""The tasks that LLM services do: ``agent_action``, ``code_generation``, ``generate``, ``embed``.

Knows no service: it is given one, or a pool of them. While an answer grows its pieces are
emitted, so that whoever listens sees them, and a cancelled task stops the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from d8mesh.backends.backend import ChatRun, LlmService
from d8mesh.core.protocol.chat import ChatRequest, Completion, FinishReason, Origin, Piece, Timing
from d8mesh.core.protocol.model_names import plain_name
from d8mesh.errors import TaskFailedError
from d8mesh.handlers import Data, Handler, TaskContext
from d8mesh.handlers.chat_fields import (
    AGENT_FIELDS,
    CODE_FIELDS,
    EMBED_FIELDS,
    GENERATE_FIELDS,
    agent_request,
    code_request,
    embedding_request,
    generate_request,
    ignored_fields,
    reloading_fields,
    wants_pieces,
)
from d8mesh.handlers.thoughts import unfenced

#: Warnings told once; beyond so many different ones, names are being made up.
MAX_TOLD_WARNINGS: Final = 1000
#: Names of ignored fields, as they are shown on a console.
MAX_IGNORED_CHARS: Final = 200

Warn = Callable[[str], None]
LlmResult = dict[str, object]


def llm_handlers(service: LlmService, *, warn: Warn = lambda text: None) -> dict[str, Handler]:
    """Return the handlers of the task types that `service` answers with text.

    The result holds ``success``, ``output`` (the text), ``model`` (which really ran),
    ``model_requested`` if that is another one, ``finish_reason``, ``tokens_used``, ``usage``,
    ``timing`` and ``duration_s``; where it ran, if a pool was asked; if there are any ``thinking``,
    ``tool_calls``, ``logprobs``, ``context``, ``extra`` and ``ignored``; and ``truncated`` (true)
    if the answer ended at its bound of tokens. What is no answer is a failure that holds the same.

    Args:
        warn: told what people should know, each sentence once: another model than the one
            wished for has answered, or data was ignored.
    """
    once = _once(warn)

    def agent_action(data: Data, context: TaskContext) -> object:
        result = _answered(service, agent_request(data), data, context, once)
        return _with_ignored(result, data, AGENT_FIELDS, "agent_action", once)

    def code_generation(data: Data, context: TaskContext) -> object:
        result = _answered(service, code_request(data), data, context, once)
        result["output"] = unfenced(str(result["output"]))
        return _with_ignored(result, data, CODE_FIELDS, "code_generation", once)

    def generate(data: Data, context: TaskContext) -> object:
        result = _answered(service, generate_request(data), data, context, once)
        return _with_ignored(result, data, GENERATE_FIELDS, "generate", once)

    return {"agent_action": agent_action, "code_generation": code_generation, "generate": generate}


def embedding_handlers(
    service: LlmService, *, warn: Warn = lambda text: None
) -> dict[str, Handler]:
    """Return the handler of ``embed``: texts in, a vector for each in ``output``.

    Its result holds ``success``, ``output``, ``model``, ``tokens_used`` and ``duration_s``; where
    it ran, if a pool was asked; if there are any ``timing`` and ``ignored``. Args as of
    `llm_handlers`.
    """
    once = _once(warn)

    def embed(data: Data, context: TaskContext) -> object:
        request, started = embedding_request(data), time.monotonic()
        context.raise_if_cancelled()
        made = service.embed(request, _run(context, _TextsTold(context)))
        result: LlmResult = {
            "success": True,
            "output": [list(vector) for vector in made.vectors],
            "model": made.model,
            "tokens_used": made.usage.total,
            "duration_s": round(time.monotonic() - started, 3),
            **_where(made.origin),
        }
        if made.timing != Timing():
            result["timing"] = _timing(made.timing)
        if request.model != made.model:
            result["model_requested"] = request.model
        if made.extra:
            result["extra"] = dict(made.extra)
        if made.ignored:
            result["ignored"] = list(made.ignored)
        return _with_ignored(result, data, EMBED_FIELDS, "embed", once)

    return {"embed": embed}


def is_worth_retrying(error: BaseException) -> bool:
    """Return whether a failed task of these types may end better another time.

    An answer that used up its bound of tokens before it began would do so again.
    """
    result = error.result if isinstance(error, TaskFailedError) else {}
    return result.get("finish_reason") != FinishReason.LENGTH


def _once(warn: Warn) -> Warn:
    told: set[str] = set()

    def tell(text: str) -> None:
        if text not in told and len(told) < MAX_TOLD_WARNINGS:
            told.add(text)
            warn(text)

    return tell


def _answered(
    service: LlmService, request: ChatRequest, data: Data, context: TaskContext, warn: Warn
) -> LlmResult:
    started = time.monotonic()
    telling = _PiecesTold(context) if wants_pieces(data) else _TextsTold(context)
    completion = service.chat(request, _run(context, telling))
    is_another = request.model and plain_name(request.model) != plain_name(completion.model)
    if is_another and not request.is_model_strict:
        warn(
            f"tasks wish for the model {request.model!r}, which no worker of the mesh offers: "
            f"{completion.model!r} answers in its place"
        )
    result = _result(completion, request, time.monotonic() - started)
    if lacking := _lacking(completion, request):
        result |= {"success": False, "error": lacking}
    return result


def _run(context: TaskContext, telling: _TextsTold | _PiecesTold) -> ChatRun:
    return ChatRun(
        is_cancelled=lambda: context.is_cancelled,
        on_cancel=context.on_cancel,
        deadline_s=context.remaining_s,
        placement=context.placement,
        on_piece=telling.hear,
        on_start=telling.start,
    )


class _TextsTold:
    """Emits the text of an answer as it grows."""

    def __init__(self, context: TaskContext) -> None:
        self._context = context

    def start(self, model: str, origin: Origin | None) -> None:
        """Note who answers: a text cannot say it."""

    def hear(self, piece: Piece) -> None:
        if piece.text:
            self._context.emit(piece.text)


class _PiecesTold:
    """Emits each piece of an answer as an object; the first one says who answers."""

    def __init__(self, context: TaskContext) -> None:
        self._context = context
        self._origin: LlmResult = {}

    def start(self, model: str, origin: Origin | None) -> None:
        told: LlmResult = {"model": model}
        if origin is not None:
            told["service"], told["machine"] = origin.service, origin.machine
            told["backend"], told["is_cloud"] = origin.backend, origin.is_cloud
        self._origin = {"origin": told}

    def hear(self, piece: Piece) -> None:
        if told := _told(piece):
            self._context.emit(told | self._origin)
            self._origin = {}


def _told(piece: Piece) -> LlmResult:
    """Return a piece as partial output."""
    found: LlmResult = {"text": piece.text, "thinking": piece.thinking}
    found["tool_calls"] = [dict(call) for call in piece.tool_calls]
    found["logprobs"] = list(piece.logprobs)
    return {name: value for name, value in found.items() if value}


def _lacking(completion: Completion, request: ChatRequest) -> str:
    """Say why this is no answer; "" if it is one."""
    if completion.text or completion.tool_calls:
        return ""
    if completion.ending.finish_reason is FinishReason.LENGTH:
        spent = "thinking" if completion.thinking else "something that is no text"
        return f"{spent} used all tokens before the answer began: raise max_tokens, or think less"
    if completion.thinking:
        return "the model thought and then answered nothing"
    return "the answer is empty, though a format is asked for" if request.more.get("format") else ""


def _result(completion: Completion, request: ChatRequest, duration_s: float) -> LlmResult:
    ending, extra = completion.ending, dict(completion.extra)
    result: LlmResult = {
        "success": True,
        "output": completion.text,
        "model": completion.model,
        "finish_reason": str(ending.finish_reason),
        "tokens_used": ending.usage.total,
        "usage": _usage(completion),
        "duration_s": round(duration_s, 3),
        **_where(completion.origin),
    }
    if request.model is not None and request.model != completion.model:
        result["model_requested"] = request.model
    if ending.timing != Timing():
        result["timing"] = _timing(ending.timing)
    if ending.finish_reason is FinishReason.LENGTH:
        result["truncated"] = True
    more: LlmResult = {
        "thinking": completion.thinking,
        "tool_calls": [dict(call) for call in completion.tool_calls],
        "logprobs": list(completion.logprobs),
        "context": extra.pop("context", None),
        "extra": extra,
        "ignored": list(completion.ignored),
    }
    return result | {name: value for name, value in more.items() if value}


def _timing(timing: Timing) -> LlmResult:
    return {
        "load_s": timing.load_s,
        "prompt_s": timing.prompt_s,
        "output_s": timing.output_s,
        "total_s": timing.total_s,
    }


def _usage(completion: Completion) -> LlmResult:
    usage = completion.ending.usage
    told: LlmResult = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
    }
    return told | ({"cached_tokens": usage.cached_tokens} if usage.cached_tokens else {})


def _where(origin: Origin | None) -> LlmResult:
    if origin is None:
        return {}
    found: LlmResult = {
        "machine": origin.machine,
        "service": origin.service,
        "backend": origin.backend,
    }
    return found | ({"is_cloud": True} if origin.is_cloud else {})


def _with_ignored(
    result: LlmResult, data: Data, known: frozenset[str], kind: str, warn: Warn
) -> LlmResult:
    unknown, reloading = ignored_fields(data, known), reloading_fields(data)
    if unknown:
        warn(f"{kind} has no such fields in its data: {', '.join(unknown)[:MAX_IGNORED_CHARS]}")
    if reloading:
        warn(f"{kind}: not used: {', '.join(reloading)}")
    if unknown or reloading:
        by_service = result.get("ignored")
        dropped = by_service if isinstance(by_service, list) else []
        result["ignored"] = [*dropped, *unknown, *reloading]
    return result
