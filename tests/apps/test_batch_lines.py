"""From rows to tasks, and from their ends to lines of the answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest

from d8mesh.apps.batch_input import CHAT_ENDPOINT, AskedRow
from d8mesh.apps.batch_lines import RowRequests, is_failed
from d8mesh.core.client.submission import TaskOutcome
from d8mesh.core.protocol.messages import COMPLETED_STATE, FAILED_STATE
from d8mesh.doors.batches.asking import EndedLine, TaskEnd

PLACING = {"cloud", "model", "model_strict", "models"}
MESSAGES = [{"role": "user", "content": "Hi"}]
SAID: dict[str, Any] = {
    "success": True,
    "output": "Hello",
    "model": "m",
    "finish_reason": "stop",
    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    "service": "s",
    "machine": "pi",
}


def row(*, is_plain: bool = True, **body: Any) -> AskedRow:
    return AskedRow(4, "c4", CHAT_ENDPOINT, {"messages": MESSAGES, **body}, is_plain)


def requests(*models: str, cloud: str = "") -> RowRequests:
    return RowRequests("0a", models, cloud)


def data(found: RowRequests, row: AskedRow) -> Mapping[str, Any]:
    (task,) = found.asked(row).tasks
    return {name: task.data[name] for name in PLACING & task.data.keys()}


@pytest.mark.parametrize(
    ("models", "body", "placed"),
    [
        ((), {}, {}),
        (("a",), {}, {"model": "a", "model_strict": True}),
        (("a", "b"), {}, {"models": ["a", "b"]}),
        (("a", "b"), {"model": "own"}, {"model": "own", "model_strict": True}),
    ],
)
def test_who_may_run_a_row_is_as_it_says_or_as_the_options_do(
    models: Sequence[str], body: dict[str, Any], placed: dict[str, Any]
) -> None:
    assert data(requests(*models), row(**body)) == placed


def test_whether_it_may_leave_the_lan_is_handed_on() -> None:
    assert data(requests(cloud="never"), row()) == {"cloud": "never"}


def written(row: AskedRow, state: int, result: dict[str, Any]) -> dict[str, Any]:
    found = requests()
    line = found.asked(row)
    outcome = TaskOutcome(state, msgspec.msgpack.encode(result))
    ends = [TaskEnd(f"t-{n}", task.model, outcome) for n, task in enumerate(line.tasks)]
    ended = EndedLine(line.number, line.custom_id, line.form, line.error, ends)
    told = found.written(ended, frozenset(), 5)
    assert told.is_failed is is_failed(told.content)
    return dict(json.loads(told.content))


def test_a_plain_row_has_a_plain_answer() -> None:
    assert written(row(), COMPLETED_STATE, SAID) == {
        "n": 4,
        "id": "c4",
        "output": "Hello",
        "model": "m",
        "machine": "pi",
        "finish_reason": "stop",
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "error": None,
    }


def test_several_answers_are_a_list() -> None:
    assert written(row(n=2), COMPLETED_STATE, SAID)["output"] == ["Hello", "Hello"]


def test_a_plain_failure_has_its_reason() -> None:
    told = written(row(), FAILED_STATE, {"success": False, "error": "no memory"})
    assert (told["output"], "no memory" in told["error"]["message"]) == (None, True)


def test_a_row_as_openai_has_it_is_answered_so() -> None:
    told = written(row(is_plain=False, model="m"), COMPLETED_STATE, SAID)
    assert (told["id"], told["custom_id"], told["error"]) == ("batch_req_0a_4", "c4", None)
    assert told["response"]["body"]["choices"][0]["message"]["content"] == "Hello"
    failed = written(row(is_plain=False), FAILED_STATE, {"success": False, "error": "no"})
    assert (failed["response"]["status_code"], failed["error"]) == (502, None)
