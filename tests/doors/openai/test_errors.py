"""Errors in OpenAI's form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from d8mesh.doors.openai.errors import MAX_RETRY_S, error_body, openai_problem, status_of
from d8mesh.errors import (
    BackendBusyError,
    D8Error,
    InvalidTaskError,
    QueueFullError,
    TaskFailedError,
    error_of,
)
from d8mesh.http.answers import STATUS, Refusal, Response


def told(response: Response) -> dict[str, Any]:
    assert isinstance(response.body, bytes)
    body = json.loads(response.body)
    assert body.keys() == {"error"}
    found: dict[str, Any] = body["error"]
    return found


@pytest.mark.parametrize("code", sorted(STATUS))
def test_every_code_is_told_in_full_and_says_whether_to_try_again(code: str) -> None:
    response = openai_problem(Refusal(code, "words"))
    error = told(response)
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"] == "words"
    assert isinstance(error["code"], str)
    assert 400 <= response.status < 600
    assert (error["type"] == "server_error") == (response.status >= 500)
    assert response.headers["x-should-retry"] in ("true", "false")
    is_retried = response.headers["x-should-retry"] == "true"
    assert is_retried == ("Retry-After" in response.headers)
    assert 0 < int(response.headers.get("Retry-After", "1")) <= MAX_RETRY_S
    assert response.headers["x-request-id"].startswith("req_")


def test_each_answer_has_an_id_of_its_own() -> None:
    ids = {openai_problem(QueueFullError()).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("code", "status", "kind", "name"),
    [
        ("access.token", 401, "invalid_request_error", "invalid_api_key"),
        ("http.origin", 403, "invalid_request_error", "http.origin"),
        ("http.not_found", 404, "invalid_request_error", "http.not_found"),
        ("backend.missing", 404, "invalid_request_error", "model_not_found"),
        ("model.unknown", 404, "invalid_request_error", "model_not_found"),
        ("task.pruned", 410, "invalid_request_error", "task.pruned"),
        ("key.conflict", 409, "invalid_request_error", "key.conflict"),
        ("queue.full", 429, "rate_limit_error", "rate_limit_exceeded"),
        ("task.failed", 502, "server_error", "task.failed"),
        ("backend.busy", 503, "server_error", "backend.busy"),
    ],
)
def test_well_known_errors_have_openais_names(code: str, status: int, kind: str, name: str) -> None:
    response = openai_problem(Refusal(code, "x"))
    assert (response.status, told(response)["type"], told(response)["code"]) == (
        status, kind, name,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "param", "code"),
    [
        ("Missing field: messages", "messages", "missing_required_parameter"),
        ("messages[0].role: expected one of …", "messages[0].role", "invalid_value"),
        ("messages[1].content[0].image_url.url: no", "messages[1].content[0].image_url.url",
         "invalid_value"),
        ("the body is not JSON: x at 5", None, "invalid_value"),
        ("Ollama refuses this (does not support tools)", None, "invalid_value"),
        ("longer than the context of the model, and truncate is false", "messages",
         "context_length_exceeded"),
    ],
)  # fmt: skip
def test_a_bad_request_names_its_field(text: str, param: str | None, code: str) -> None:
    error = error_body(InvalidTaskError(text))["error"]
    assert (error["param"], error["code"]) == (param, code)


def test_a_failed_task_is_named() -> None:
    failed = TaskFailedError("the model said nothing")
    failed.task_id = "abc-1"
    response = openai_problem(failed)
    assert told(response)["message"] == "the model said nothing (task abc-1)"
    assert response.headers["X-D8-Task"] == "abc-1"


def test_a_failed_task_is_named_by_the_details_of_its_error() -> None:
    failed = BackendBusyError("busy: task abc-2 waits")
    failed.details = {"task_id": "abc-2"}
    assert told(openai_problem(failed))["message"] == "busy: task abc-2 waits"


def test_a_refusal_brings_its_headers() -> None:
    response = openai_problem(Refusal("http.method", "no", headers={"Allow": "POST"}))
    assert (response.status, response.headers["Allow"]) == (405, "POST")


def test_a_code_that_nobody_knows_is_an_error_of_ours() -> None:
    assert status_of(D8Error("?")) == 500
    assert status_of(error_of("made.up", "?")) == 500
