"""The lines of output and error files, in OpenAI's form, and known again."""

from __future__ import annotations

import json

from d8mesh.doors.batches.answer_lines import (
    EXPIRED,
    TokenCounts,
    answered,
    number_in,
    unanswered,
    usage_in,
)


def test_an_answer_is_a_line_that_tells_its_number_again() -> None:
    body = {"usage": {"prompt_tokens": 3}}
    line = answered("0a", 12, 'x"y', status=200, task_id="t-1", body=body)
    assert json.loads(line.content) == {
        "id": "batch_req_0a_12",
        "custom_id": 'x"y',
        "response": {"status_code": 200, "request_id": "t-1", "body": body},
        "error": None,
    }
    assert (number_in(line.content), line.is_failed) == (12, False)
    assert usage_in(line.content) == body["usage"]


def test_an_error_over_http_is_a_failure_with_its_status() -> None:
    line = answered("0a", 1, "x", status=404, task_id="", body={"error": {"code": "c"}})
    told = json.loads(line.content)
    assert line.is_failed
    assert (told["response"]["status_code"], told["error"]) == (404, None)


def test_what_was_not_asked_has_no_response_and_a_code() -> None:
    line = unanswered("0a", 5, "x", EXPIRED)
    told = json.loads(line.content)
    assert (told["response"], told["error"]["code"], line.is_failed) == (None, EXPIRED, True)
    assert number_in(line.content) == 5


def test_a_strangers_line_has_no_number() -> None:
    assert number_in(b'{"id":"batch_req_x"}') == 0
    assert usage_in(b"[]") is None


def test_tokens_of_both_forms_add_up() -> None:
    tokens = TokenCounts()
    tokens.add({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7})
    tokens.add(
        {
            "input_tokens": 1,
            "output_tokens": 4,
            "input_tokens_details": {"cached_tokens": 1},
            "output_tokens_details": {"reasoning_tokens": 3},
        }
    )
    tokens.add(None)
    assert tokens.told() == {
        "input_tokens": 6,
        "input_tokens_details": {"cached_tokens": 1},
        "output_tokens": 6,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 12,
    }
