"""Errors in Anthropic's form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from d8mesh.doors.anthropic.problems import anthropic_problem
from d8mesh.errors import (
    BackendUnavailableError,
    D8Error,
    InvalidTaskError,
    KeyConflictError,
    PayloadTooLargeError,
    QueueFullError,
    TaskFailedError,
    UnknownTaskError,
    WaitTimeoutError,
)
from d8mesh.http.answers import STATUS, Refusal


def told(error: D8Error | Refusal) -> tuple[int, dict[str, Any], dict[str, str]]:
    response = anthropic_problem(error)
    assert isinstance(response.body, bytes)
    return response.status, json.loads(response.body), response.headers


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidTaskError("x"), 400, "invalid_request_error"),
        (Refusal("access.token", "x"), 401, "authentication_error"),
        (Refusal("http.origin", "x"), 403, "permission_error"),
        (UnknownTaskError("x"), 404, "not_found_error"),
        (Refusal("http.method", "x"), 405, "invalid_request_error"),
        (Refusal("backend.missing", "x"), 404, "not_found_error"),
        (KeyConflictError("x"), 409, "invalid_request_error"),
        (Refusal("task.pruned", "x"), 410, "not_found_error"),
        (PayloadTooLargeError("x"), 413, "request_too_large"),
        (Refusal("http.media_type", "x"), 415, "invalid_request_error"),
        (QueueFullError("x"), 429, "rate_limit_error"),
        (D8Error("x"), 500, "api_error"),
        (BackendUnavailableError("x"), 503, "overloaded_error"),
        (WaitTimeoutError("x"), 504, "timeout_error"),
    ],
)
def test_a_status_has_its_type(error: D8Error | Refusal, status: int, kind: str) -> None:
    seen, body, headers = told(error)
    assert seen == status
    assert body == {
        "type": "error",
        "error": {"type": kind, "message": "x"},
        "request_id": headers["request-id"],
    }


@pytest.mark.parametrize("code", sorted(STATUS))
def test_who_may_come_again_is_told_so_and_when(code: str) -> None:
    status, _, headers = told(Refusal(code, "x"))
    may = status in (408, 429, 503, 504)
    assert headers["x-should-retry"] == ("true" if may else "false")
    assert not may or 0 < int(headers["Retry-After"]) <= 120


def test_headers_of_a_refusal_stay() -> None:
    _, _, headers = told(Refusal("http.method", "x", headers={"Allow": "POST"}))
    assert headers["Allow"] == "POST"


def test_the_task_that_failed_is_named_once() -> None:
    error = TaskFailedError("the model failed")
    error.details = {"task_id": "t-1"}
    assert told(error)[1]["error"]["message"] == "the model failed (task t-1)"
    assert told(error)[2]["X-D8-Task"] == "t-1"
    error = TaskFailedError("t-1 failed")
    error.task_id = "t-1"
    assert told(error)[1]["error"]["message"] == "t-1 failed"


def test_each_request_has_an_id_of_its_own() -> None:
    assert told(D8Error("x"))[2]["request-id"] != told(D8Error("x"))[2]["request-id"]
