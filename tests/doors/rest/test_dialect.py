"""Polling workers read flattened tasks, and what they report becomes what clients read."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from d8mesh.doors.rest.dialect import decoded, lacks_output, reported, status_body, task_body

pack = msgspec.msgpack.encode


def test_the_keys_of_data_stand_inside_the_task_and_the_named_four_win() -> None:
    data = {"messages": [1], "task_id": "mine", "type": "x", "priority": 99, "data": 5}
    task = {"task_id": "t-1", "type": "agent_action", "data": pack(data), "priority": 5}
    assert task_body({**task, "attempt": 2}) == {
        "messages": [1],
        "task_id": "t-1",
        "type": "agent_action",
        "data": data,
        "priority": 5,
        "attempt": 2,
    }


def report(result: Any, task_type: str = "agent_action") -> tuple[bool, dict[str, Any]]:
    is_success, payload = reported(result, worker_id="w", task_type=task_type)
    return is_success, msgspec.msgpack.decode(payload)


@pytest.mark.parametrize("kind", ["agent_action", "code_generation"])
@pytest.mark.parametrize("key", ["result", "response"])
def test_output_is_filled_from_where_older_workers_put_it(kind: str, key: str) -> None:
    is_success, body = report({"success": True, key: "hello"}, kind)
    assert is_success
    assert body == {"success": True, key: "hello", "output": "hello", "worker_id": "w"}


def test_an_output_that_is_there_stays() -> None:
    assert report({"success": True, "output": "a", "result": "b"})[1]["output"] == "a"
    assert report({"success": True, "output": "", "result": "b"})[1]["output"] == ""


def test_other_types_are_left_alone() -> None:
    assert "output" not in report({"success": True, "result": "b"}, "other")[1]


@pytest.mark.parametrize("result", [None, [], "text", 7, True])
def test_what_is_no_object_is_a_failure(result: Any) -> None:
    is_success, body = report(result)
    assert (is_success, body["success"]) == (False, False)
    assert body["error"]


@pytest.mark.parametrize("result", [{}, {"success": False}, {"success": "yes"}, {"success": 1}])
def test_what_says_no_success_is_a_failure_with_an_error(result: dict[str, Any]) -> None:
    is_success, body = report(result)
    assert (is_success, body["success"]) == (False, False)
    assert body["error"]


def test_a_failure_keeps_its_error() -> None:
    assert report({"success": False, "error": "no model"})[1]["error"] == "no model"


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"success": False, "error": 5}, "5"),
        ({"success": False, "error": {"code": [0]}}, '{"code":[0]}'),
        ({"success": False, "error": ""}, "without saying why"),
        ({"success": "yes"}, "success 'yes': expected true or false"),
        ({"success": 1}, "success '1': expected true or false"),
        ({"success": None}, "success 'null': expected true or false"),
        ({"output": "x"}, "has no success"),
        ({"success": "no", "error": "no model"}, "no model"),
    ],
)
def test_the_error_of_a_failure_is_a_text_that_says_why(result: Any, said: str) -> None:
    error = report(result)[1]["error"]
    assert isinstance(error, str)
    assert said in error


def test_a_result_that_is_too_large_is_a_failure() -> None:
    is_success, body = report({"success": True, "output": "x" * (33 * 1024 * 1024)})
    assert not is_success
    assert body["error"].startswith("result_too_large")


def test_a_stored_result_is_decoded() -> None:
    assert status_body({"result": pack({"success": True})}) == {"result": {"success": True}}
    assert status_body({"result": None}) == {"result": None}
    assert decoded(b"\xc1")["success"] is False


def test_only_results_without_output_need_the_type_of_their_task() -> None:
    assert lacks_output({"result": "x"})
    assert not lacks_output({"output": "x", "result": "y"})
    assert not lacks_output({"success": True})
    assert not lacks_output(None)


@pytest.mark.parametrize(("status", "is_own"), [("completed", True), ("failed", False)])
def test_tracebacks_of_earlier_attempts_are_left_out_however_the_task_ended(
    status: str, is_own: bool
) -> None:
    result = {"success": is_own, "traceback": "t"}
    body = {"status": status, "result": pack(result), "history": [{"n": 1, "traceback": "t"}]}
    told = status_body(body)
    assert told["history"] == [{"n": 1}]
    assert ("traceback" in told["result"]) is is_own  # a key of the user's, then
