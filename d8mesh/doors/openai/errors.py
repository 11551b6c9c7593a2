"""Errors in OpenAI's form: ``{"error": {"message", "type", "param", "code"}}``, with its statuses.

The official clients try again at 408, 409, 429 and from 500 on; ``x-should-retry`` tells them
where that would help, and ``Retry-After`` when. Pure but for the answer's id.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Any, Final

from d8mesh.core.protocol.chat import INSERT, THINKING, TOOLS, VISION
from d8mesh.errors import D8Error
from d8mesh.http.answers import RETRY_AFTER_S, STATUS, Refusal, Response, answer

#: Statuses that are others here: a failed task is no conflict with what a caller did.
_OPENAI_STATUS: Final[Mapping[str, int]] = {"task.failed": 502}
#: The codes that OpenAI has a name for; all others keep their own.
_OPENAI_CODES: Final[Mapping[str, str]] = {
    "access.token": "invalid_api_key",
    "access.revoked": "invalid_api_key",
    "access.limit": "rate_limit_exceeded",
    "access.flood": "rate_limit_exceeded",
    "queue.full": "rate_limit_exceeded",
    "model.unknown": "model_not_found",
    "backend.missing": "model_not_found",
    "model.unfit": "unsupported_parameter",
    "task.invalid": "invalid_value",
    "http.bad_request": "invalid_value",
}
_MISSING_CODE: Final = "missing_required_parameter"
_TOO_LONG_CODE: Final = "context_length_exceeded"
_LONGER_THAN_CONTEXT: Final = re.compile(r"longer than the context of the model")
#: Codes after which the same request may end better, a little later. Of the others the mesh
#: has tried again itself, on other machines, or trying again cannot help.
_WORTH_RETRYING: Final = frozenset(
    {"access.flood", "backend.busy", "backend.limit", "backend.unavailable", "broker.draining",
     "broker.unavailable", "disk.low", "http.timeout", "node.closed", "queue.full",
     "task.unacknowledged", "wait.timeout"}
)  # fmt: skip
#: The field by which what a model lacks was asked for; by the name of the model itself else.
_PARAM_OF: Final[Mapping[str, str]] = {
    TOOLS: "tools",
    VISION: "messages",
    THINKING: "reasoning_effort",
    INSERT: "suffix",
}
#: Seconds, where nothing better is known; the clients obey at most `MAX_RETRY_S`.
DEFAULT_RETRY_S: Final = 5
MAX_RETRY_S: Final = 120
#: How a message begins that is about a field.
_FIELD: Final = re.compile(r"(Missing field: )?([a-z_]\w*(?:\[\d+\]|\.\w+)*)(?::|$| \()", re.ASCII)


def status_of(error: D8Error | Refusal) -> int:
    """Return the HTTP status of an error."""
    return _OPENAI_STATUS.get(error.code) or STATUS.get(error.code, 500)


def error_body(error: D8Error | Refusal) -> dict[str, Any]:
    """Return an error as it stands in an answer, in a stream, and in a batch's line."""
    status, text = status_of(error), str(error)
    about = _FIELD.match(text) if status < 500 else None
    param = about[2] if about else None
    code = _OPENAI_CODES.get(error.code, error.code)
    if _OPENAI_CODES.get(error.code) == "model_not_found" or error.code.startswith("model."):
        param = _PARAM_OF.get(_lacks(error), "model")
    elif error.code.startswith("task.") and _LONGER_THAN_CONTEXT.search(text):
        param, code = "messages", _TOO_LONG_CODE
    elif about and about[1]:
        code = _MISSING_CODE
    task_id = _task_of(error)
    if task_id and task_id not in text:
        text = f"{text} (task {task_id})"
    told = {"message": text, "type": _type_of(status), "param": param, "code": code}
    return {"error": told}


def openai_problem(error: D8Error | Refusal) -> Response:
    """Return the answer that tells of an error."""
    response = answer(error_body(error), status_of(error))
    if isinstance(error, Refusal):
        response.headers |= error.headers
    response.headers |= named() | _advice(error)
    if task_id := _task_of(error):
        response.headers["X-D8-Task"] = task_id
    return response


def named() -> dict[str, str]:
    """Return the header that names an answer, as clients show it and log it."""
    return {"x-request-id": f"req_{uuid.uuid4().hex}"}


def _type_of(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def _advice(error: D8Error | Refusal) -> dict[str, str]:
    """Return the headers that say whether to try again, and when."""
    if error.code == "access.limit" and isinstance(error, Refusal):
        wait_s = error.headers.get("Retry-After", "")  # up to an hour: nobody should sit it out
        is_short = wait_s.isdigit() and int(wait_s) <= MAX_RETRY_S
        return {"x-should-retry": "true" if is_short else "false"}
    if error.code not in _WORTH_RETRYING:
        return {"x-should-retry": "false"}
    seconds = RETRY_AFTER_S.get(error.code, DEFAULT_RETRY_S)
    return {"x-should-retry": "true", "Retry-After": str(min(seconds, MAX_RETRY_S))}


def _lacks(error: D8Error | Refusal) -> str:
    return "" if isinstance(error, Refusal) else str(error.details.get("lacks") or "")


def _task_of(error: D8Error | Refusal) -> str:
    if isinstance(error, Refusal):
        return ""
    return error.task_id or str(error.details.get("task_id") or "")
