"""Errors as Anthropic's API tells them: an object with a type, a request id, what to do next."""

from __future__ import annotations

import uuid
from typing import Any, Final

from d8mesh.errors import D8Error
from d8mesh.http.answers import STATUS, Refusal, Response, answer, problem

#: The type of an error by its status; of others it is `api_error`.
_ANTHROPIC_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "invalid_request_error",
    410: "not_found_error",
    411: "invalid_request_error",
    413: "request_too_large",
    414: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    503: "overloaded_error",
    504: "timeout_error",
}
#: Statuses that are others here: a failed task is no conflict with what its caller did.
_ANTHROPIC_STATUS: Final = {"task.failed": 500, "task.cancelled": 500}
#: Statuses after which the same request may do better: the mesh has tried each task anew itself.
_RETRIED_STATUSES: Final = frozenset({408, 429, 503, 504})
#: What a caller is told to wait who may come again and is not told another time.
_COME_AGAIN_S: Final = 2
#: What takes longer is told, but nobody is to sit it out.
MAX_RETRY_S: Final = 120


def request_id() -> str:
    """Return an id for a request."""
    return f"req_{uuid.uuid4().hex}"


def error_body(error: D8Error | Refusal, asked: str) -> dict[str, Any]:
    """Return the object that tells of an error; it names the task that it is about."""
    kind = _ANTHROPIC_TYPES.get(_status_of(error), "api_error")
    text = str(error)
    if (task_id := _task_of(error)) and task_id not in text:
        text = f"{text} (task {task_id})"
    return {"type": "error", "error": {"type": kind, "message": text}, "request_id": asked}


def anthropic_problem(error: D8Error | Refusal) -> Response:
    """Return the answer that tells of an error, with its code's status."""
    told, asked = problem(error), request_id()
    response = answer(error_body(error, asked), _status_of(error))
    response.headers |= told.headers
    wait_s = told.headers.get("Retry-After", "")
    is_long = wait_s.isdigit() and int(wait_s) > MAX_RETRY_S
    is_worth_it = response.status in _RETRIED_STATUSES and not is_long
    response.headers |= named(asked) | {"x-should-retry": "true" if is_worth_it else "false"}
    if is_worth_it:
        response.headers.setdefault("Retry-After", str(_COME_AGAIN_S))
    if task_id := _task_of(error):
        response.headers["X-D8-Task"] = task_id
    return response


def named(asked: str) -> dict[str, str]:
    """Return the headers that name a request: Anthropic's, and the one of the other doors."""
    return {"request-id": asked, "x-request-id": asked}


def _status_of(error: D8Error | Refusal) -> int:
    return _ANTHROPIC_STATUS.get(error.code) or STATUS.get(error.code, 500)


def _task_of(error: D8Error | Refusal) -> str:
    if isinstance(error, Refusal):
        return ""
    return str(error.details.get("task_id") or error.task_id)
