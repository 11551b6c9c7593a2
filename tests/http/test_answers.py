"""Every error has a status, and every answer is JSON."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from d8mesh import errors
from d8mesh.errors import PrunedTaskError, QueueFullError, UnknownTaskError
from d8mesh.http.answers import CLOSES, RETRY_AFTER_S, STATUS, Refusal, Response, answer, problem

CODES = sorted(
    {
        kind.code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.D8Error)
    }
)


def told(response: Response) -> Any:
    assert isinstance(response.body, bytes)
    return json.loads(response.body)


@pytest.mark.parametrize("code", CODES)
def test_every_error_code_has_a_status(code: str) -> None:
    assert 400 <= STATUS[code] < 600


def test_no_status_stands_for_a_code_that_does_not_exist() -> None:
    own = ("http.", "access.")
    assert [code for code in STATUS if code not in CODES and not code.startswith(own)] == []
    assert set(RETRY_AFTER_S) <= set(STATUS)


def test_an_error_is_told_with_its_code() -> None:
    response = problem(UnknownTaskError())
    assert response.status == 404
    assert told(response) == {"error": "Task not found", "code": "task.unknown"}


def test_a_full_queue_says_when_to_come_again() -> None:
    response = problem(QueueFullError())
    assert (response.status, response.headers["Retry-After"]) == (429, "1")


def test_a_pruned_task_says_since_when() -> None:
    error = PrunedTaskError()
    error.details = {"error": "x", "pruned_at": 12.5}
    response = problem(error)
    assert response.status == 410
    assert told(response)["pruned_at"] == 12.5


def test_a_refusal_brings_its_headers() -> None:
    response = problem(Refusal("http.method", "no", headers={"Allow": "GET", **CLOSES}))
    assert response.status == 405
    assert (response.headers["Allow"], response.headers["Connection"]) == ("GET", "close")


def test_answers_are_utf8_json() -> None:
    response = answer({"text": "ñ"}, 201)
    assert response.headers["Content-Type"] == "application/json"
    assert told(response) == {"text": "ñ"}


def test_what_json_does_not_have_is_told_as_text() -> None:
    deep: object = 1
    for _ in range(5000):
        deep = [deep]
    strange = {b"key": msgspec.msgpack.Ext(5, b"x"), "deep": deep, "plain": [1.5, None]}
    body = told(answer({"result": strange}))
    assert body["result"]["plain"] == [1.5, None]
    assert "Ext" in body["result"]["b'key'"]
