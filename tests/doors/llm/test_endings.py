"""How a task of a request ended: its answer, or the error that is told in its place."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from d8mesh.core.client.submission import TaskOutcome
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.chat import FinishReason, Origin, Timing, Usage
from d8mesh.doors.llm.asked import LlmTask
from d8mesh.doors.llm.endings import answer_of, named, result_of
from d8mesh.errors import (
    BackendAnswerError,
    BackendError,
    BackendMemoryError,
    D8Error,
    InvalidTaskError,
    PrunedTaskError,
    TaskCancelledError,
    UnknownTaskError,
)

CHAT = LlmTask(type="agent_action", data={}, model="M")
RESULT: dict[str, Any] = {
    "success": True, "output": "yes", "model": "m:latest", "finish_reason": "length",
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "cached_tokens": 1},
    "timing": {"load_s": 0.5, "prompt_s": 0.1, "output_s": 0.2, "total_s": 0.8},
    "machine": "pi", "service": "s", "backend": "ollama", "is_cloud": True,
    "thinking": "hm", "tool_calls": [{"function": {"name": "f"}}], "logprobs": [1],
    "context": [7, 8], "extra": {"x": 1}, "ignored": ["y"],
}  # fmt: skip


def ended(state: int, **result: Any) -> TaskOutcome:
    return TaskOutcome(state, msgspec.msgpack.encode(result) if result else b"")


def failed(**result: Any) -> TaskOutcome:
    return ended(m.FAILED_STATE, success=False, error="x", **result)


def test_a_result_is_what_the_model_said() -> None:
    answer = answer_of("t", CHAT, ended(m.COMPLETED_STATE, **RESULT))
    said = answer.completion
    assert said is not None
    assert (answer.model, said.model, said.text, said.thinking) == ("M", "m:latest", "yes", "hm")
    assert said.ending.finish_reason is FinishReason.LENGTH
    assert said.ending.usage == Usage(3, 2, 1)
    assert said.ending.timing == Timing(load_s=0.5, prompt_s=0.1, output_s=0.2, total_s=0.8)
    assert said.origin == Origin(service="s", machine="pi", backend="ollama", is_cloud=True)
    assert said.extra == {"x": 1, "context": [7, 8]}
    assert (said.tool_calls, said.logprobs, said.ignored) == (
        ({"function": {"name": "f"}},),
        (1,),
        ("y",),
    )


def test_vectors_are_an_answer_and_so_is_what_no_model_said() -> None:
    told = {"success": True, "output": [[1.0, 2.0]], "model": "e", "tokens_used": 4}
    vectors = LlmTask(type="embed", data={}, model="e")
    found = answer_of("t", vectors, ended(m.COMPLETED_STATE, **told)).embeddings
    assert found is not None
    assert (found.vectors, found.usage.prompt_tokens) == (((1.0, 2.0),), 4)
    pull = LlmTask(type="model_pull", data={}, model="m")
    answer = answer_of("t", pull, ended(m.COMPLETED_STATE, success=True, output="done"))
    assert (answer.completion, answer.embeddings, answer.result["output"]) == (None, None, "done")


def test_thoughts_that_used_up_the_callers_bound_are_an_answer_that_was_cut() -> None:
    told = RESULT | {"success": False, "output": "", "error": "thinking used all tokens"}
    said = answer_of("t", CHAT, ended(m.FAILED_STATE, **told)).completion
    assert said is not None
    assert (said.text, said.thinking, said.ending.finish_reason) == ("", "hm", "length")


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (
            failed(code="backend.memory"),
            BackendMemoryError,
        ),
        (failed(code="task.invalid"), InvalidTaskError),
        (failed(code="of.others"), BackendError),
        (failed(), BackendError),
        (failed(finish_reason="stop"), BackendAnswerError),
        (ended(m.COMPLETED_STATE, success=False, error="x"), BackendError),
        (ended(m.COMPLETED_STATE, success=True, erased=True), PrunedTaskError),
        (ended(m.CANCELLED_STATE), TaskCancelledError),
        (ended(m.PRUNED_STATE), UnknownTaskError),
        (ended(m.UNKNOWN_STATE), UnknownTaskError),
    ],
)
def test_what_did_not_end_well_is_an_error_that_names_its_task(
    outcome: TaskOutcome, kind: type[D8Error]
) -> None:
    with pytest.raises(kind) as raised:
        result_of("s-1", outcome)
    assert type(raised.value) is kind
    assert (raised.value.task_id, raised.value.details["task_id"]) == ("s-1", "s-1")


def test_what_an_error_tells_beside_its_task_stays() -> None:
    error = BackendError("x")
    error.details = {"more": 1}
    assert named(error, "t").details == {"more": 1, "task_id": "t"}
