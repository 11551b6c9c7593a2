"""What a line of an answer means, and which is the last."""

from __future__ import annotations

import math
from typing import Any

import pytest

from d8mesh.backends.ollama.chat import AnswerLines
from d8mesh.core.protocol.chat import Ending, FinishReason, Piece, Timing, Usage
from d8mesh.errors import BackendAnswerError, BackendBusyError, BackendError

LAST = {"done": True, "done_reason": "stop"}


def piece(line: Any) -> Piece:
    return AnswerLines().piece_of(line)


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "m", "message": {"role": "assistant", "content": "x"}, "done": False} | more


def prompt(**more: Any) -> dict[str, Any]:
    return {"model": "m", "created_at": "now", "response": "x", "done": False} | more


@pytest.mark.parametrize("line", [chat(), prompt()])
def test_both_kinds_of_answers_say_a_text(line: dict[str, Any]) -> None:
    assert piece(line) == Piece("x")


def test_a_prompt_is_thought_about_too() -> None:
    said = piece(prompt(response="", thinking="hm", logprobs=[{"token": "hm"}]))
    assert (said.text, said.thinking, said.logprobs) == ("", "hm", ({"token": "hm"},))


def test_the_last_line_may_say_something_and_has_the_figures() -> None:
    said = piece(
        prompt(
            done=True, done_reason="length", prompt_eval_count=7, eval_count=5,
            prompt_eval_cached_count=3, load_duration=500_000_000,
            prompt_eval_duration=1_000_000_000, eval_duration=2_000_000_000,
            total_duration=3_500_000_000,
        )
    )  # fmt: skip
    assert said.text == "x"
    assert said.ending == Ending(
        FinishReason.LENGTH,
        Usage(prompt_tokens=7, completion_tokens=5, cached_tokens=3),
        Timing(load_s=0.5, prompt_s=1.0, output_s=2.0, total_s=3.5),
    )
    assert said.extra == {}


@pytest.mark.parametrize("done", [False, None, "true", 1, [], {}])
def test_nothing_but_true_is_done(done: object) -> None:
    assert piece(chat(done=done)).ending is None


@pytest.mark.parametrize("reason", ["load", "unload"])
def test_a_load_is_no_answer(reason: str) -> None:
    with pytest.raises(BackendAnswerError, match=f"'{reason}'"):
        piece(chat(done=True, done_reason=reason))


@pytest.mark.parametrize("reason", ["stop", "", None, "whatever"])
def test_an_end_for_any_other_reason_is_a_stop(reason: str | None) -> None:
    ending = piece(chat(done=True, done_reason=reason)).ending
    assert ending is not None
    assert ending.finish_reason is FinishReason.STOP


def test_an_error_in_a_line_is_what_it_says() -> None:
    with pytest.raises(BackendBusyError):
        piece({"error": "llm busy - no slots available"})
    with pytest.raises(BackendError, match="it broke"):
        piece({"error": "it broke"})


def test_fields_that_are_new_are_handed_on_as_a_result_can_hold_them() -> None:
    said = piece(prompt(**LAST, context=[1, 2], remote_model="big", odd=[math.nan, "\ud800"]))
    assert said.extra == {"context": [1, 2], "remote_model": "big", "odd": [None, "?"]}
    message = {"role": "assistant", "content": "", "mood": "good"}
    assert piece(chat(message=message)).extra == {"message": {"mood": "good"}}


def test_calls_are_numbered_through_the_whole_answer() -> None:
    lines = AnswerLines()
    call = {"function": {"index": 0, "name": "add", "arguments": {}}}
    told = [
        lines.piece_of(chat(message={"content": "", "tool_calls": calls})).tool_calls
        for calls in ([call, call], [call])
    ]
    numbers = [each["function"]["index"] for calls in told for each in calls]  # type: ignore[index]
    assert numbers == [0, 1, 2]


@pytest.mark.parametrize(
    "line", [[], "x", None, {}, {"done": True}, {"message": []}, chat(message=1)]
)
def test_what_is_no_line_of_an_answer_is_an_error_that_the_reader_knows(line: Any) -> None:
    with pytest.raises((TypeError, LookupError, AttributeError)):
        piece(line)
