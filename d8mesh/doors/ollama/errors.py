"""Errors in Ollama's form: a status and ``{"error": text}``, in its words where it has some."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Final

from d8mesh.errors import D8Error
from d8mesh.http.answers import Refusal, Response, answer, problem

#: Of every answer: support asks for it.
REQUEST_ID: Final = "X-Request-Id"
#: What a client that waits for a place is told; with two blanks, as programs look for it.
BUSY_TEXT: Final = "server busy, please try again.  maximum pending requests exceeded"
CANCELLED_TEXT: Final = "request canceled"
#: Statuses that differ from those of REST: a task is what was asked here, not a thing of its own.
_STATUS_AT_OLLAMA: Final[Mapping[str, int]] = {
    "queue.full": 503,
    "access.flood": 503,
    "task.failed": 500,
    "wait.timeout": 504,
}
#: Nothing else would be told to come again: what is full now is so for a moment.
_BUSY_CODES: Final = frozenset({"queue.full", "access.flood"})
_WORTH_WAITING: Final[Mapping[str, int]] = {
    "backend.busy": 5,
    "backend.unavailable": 5,
    "backend.limit": 30,
}


def ollama_problem(error: D8Error | Refusal) -> Response:
    """Return the answer that tells of an error."""
    told = problem(error)
    response = answer({"error": error_text(error)}, _STATUS_AT_OLLAMA.get(error.code, told.status))
    response.headers |= told.headers
    response.headers |= {REQUEST_ID: request_id(), "X-D8-Code": error.code}
    if not isinstance(error, Refusal) and (task_id := task_of(error)):
        response.headers["X-D8-Task"] = task_id
    if wait_s := _WORTH_WAITING.get(error.code):
        response.headers["Retry-After"] = str(wait_s)
    return response


def error_text(error: D8Error | Refusal) -> str:
    """Return what is said of an error; it names the task, if there is one."""
    if error.code in _BUSY_CODES:
        return BUSY_TEXT
    text = CANCELLED_TEXT if error.code == "task.cancelled" else str(error)
    task_id = "" if isinstance(error, Refusal) else task_of(error)
    return f"{text} (task {task_id})" if task_id and task_id not in text else text


def task_of(error: D8Error) -> str:
    """Return the id of the task that an error is about; "" if it is about none."""
    return error.task_id or str(error.details.get("task_id") or "")


def request_id() -> str:
    """Return a name for one request."""
    return f"req_{secrets.token_hex(12)}"
