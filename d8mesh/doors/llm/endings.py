"""How a task of a request ended: its answer, or the error that is told in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from d8mesh.core.client.submission import TaskOutcome
from d8mesh.core.protocol.chat import (
    Completion,
    Embeddings,
    Ending,
    FinishReason,
    Origin,
    Timing,
    Usage,
)
from d8mesh.core.protocol.messages import CANCELLED_STATE, COMPLETED_STATE, FAILED_STATE
from d8mesh.doors.llm.asked import LlmAnswer, LlmTask
from d8mesh.doors.llm.wanted import SPEAKING_TYPES
from d8mesh.errors import (
    BackendAnswerError,
    BackendError,
    D8Error,
    PrunedTaskError,
    TaskCancelledError,
    UnknownTaskError,
    error_of,
)
from d8mesh.nodes.client.results import decoded
from d8mesh.nodes.client.wishes import EMBED_TYPE

TaskResult = Mapping[str, Any]
#: Who asks again so late with the same key is told what will help.
_ASK_ANEW: Final = (
    "the answer was delivered, and erased after it: ask again with another Idempotency-Key"
)
_ENDINGS: Final = {str(each): each for each in FinishReason}


def answer_of(task_id: str, asked: LlmTask, outcome: TaskOutcome) -> LlmAnswer:
    """Return the answer that a task ended with.

    Raises:
        D8Error: it did not end well; the error names the task.
    """
    result = result_of(task_id, outcome)
    completion = completion_of_result(result) if asked.type in SPEAKING_TYPES else None
    embeddings = embeddings_of_result(result) if asked.type == EMBED_TYPE else None
    return LlmAnswer(
        task_id=task_id,
        model=asked.model,
        completion=completion,
        embeddings=embeddings,
        result=result,
    )


def result_of(task_id: str, outcome: TaskOutcome) -> TaskResult:
    """Return the result of a task that ended well, or with an answer that its bound cut short.

    Raises:
        D8Error: it did not; the error names the task.
    """
    result = decoded(outcome.payload) if outcome.state in (COMPLETED_STATE, FAILED_STATE) else {}
    if outcome.state == COMPLETED_STATE and result.get("success") is not False:
        if not result.get("erased"):
            return result
        raise named(PrunedTaskError(_ASK_ANEW), task_id)
    if outcome.state == FAILED_STATE or result:
        if result.get("finish_reason") == FinishReason.LENGTH:
            return result  # thoughts used up all tokens: the caller has set the bound
        raise named(_failure(result), task_id)
    if outcome.state == CANCELLED_STATE:
        raise named(TaskCancelledError(), task_id)
    raise named(UnknownTaskError(f"the orchestrator does not know {task_id}"), task_id)


def _failure(result: TaskResult) -> D8Error:
    text, code = str(result.get("error") or "failed"), result.get("code")
    if isinstance(code, str) and code:
        error = error_of(code, text)
        if type(error) is not D8Error:
            return error
    if "finish_reason" in result:  # a model has answered, and said nothing
        return BackendAnswerError(text)
    return BackendError(text)


def named(error: D8Error, task_id: str) -> D8Error:
    """Return an error that names the task it is about."""
    error.task_id = task_id
    error.details = {**error.details, "task_id": task_id}
    return error


def completion_of_result(result: TaskResult) -> Completion:
    """Return what a model said, as the result of its task has it."""
    extra = dict(result.get("extra") or {})
    if result.get("context"):
        extra["context"] = result["context"]
    return Completion(
        text=str(result.get("output") or ""),
        model=str(result.get("model") or ""),
        thinking=str(result.get("thinking") or ""),
        tool_calls=tuple(result.get("tool_calls") or ()),
        logprobs=tuple(result.get("logprobs") or ()),
        ending=ending_of(result),
        extra=extra,
        origin=origin_of(result),
        ignored=tuple(result.get("ignored") or ()),
    )


def tokens_of_result(result: TaskResult) -> tuple[int, int]:
    """Return how many tokens a model has read and written for this, as far as it tells."""
    usage = result.get("usage")
    if isinstance(usage, Mapping):
        return _natural(usage.get("prompt_tokens")), _natural(usage.get("completion_tokens"))
    return _natural(result.get("tokens_used")), 0


def ending_of(result: TaskResult) -> Ending:
    """Return why an answer ended, and what it took."""
    usage, timing = result.get("usage") or {}, result.get("timing") or {}
    return Ending(
        _ENDINGS.get(str(result.get("finish_reason")), FinishReason.STOP),
        Usage(
            usage.get("prompt_tokens", 0),
            usage.get("completion_tokens", 0),
            usage.get("cached_tokens", 0),
        ),
        _timing(timing),
    )


def embeddings_of_result(result: TaskResult) -> Embeddings:
    """Return the vectors that a model made, as the result of its task has them."""
    return Embeddings(
        vectors=tuple(map(tuple, result.get("output") or ())),
        model=str(result.get("model") or ""),
        usage=Usage(int(result.get("tokens_used") or 0)),
        timing=_timing(result.get("timing") or {}),
        extra=dict(result.get("extra") or {}),
        origin=origin_of(result),
        ignored=tuple(result.get("ignored") or ()),
    )


def origin_of(told: TaskResult) -> Origin | None:
    """Return who answered, if that is told."""
    if "service" not in told:
        return None
    return Origin(
        service=str(told["service"]),
        machine=str(told.get("machine") or ""),
        backend=str(told.get("backend") or ""),
        is_cloud=bool(told.get("is_cloud")),
    )


def _natural(value: object) -> int:
    return value if type(value) is int and value > 0 else 0


def _timing(told: TaskResult) -> Timing:
    return msgspec.convert(told, Timing) if told else Timing()
