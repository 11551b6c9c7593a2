"""What is asked of llama.cpp, and what its lines mean."""

from __future__ import annotations

from typing import Any

import pytest

from d8mesh.backends.embedded.chat import _chat_form, _message, _Pieces, refused
from d8mesh.backends.streaming import RefusedAnswer
from d8mesh.core.protocol.chat import Ending, FinishReason, Timing, Usage
from d8mesh.errors import BackendError, BackendUnavailableError, InvalidTaskError

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}


def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def test_a_call_that_comes_in_parts_is_one_call_with_an_object() -> None:
    pieces = _Pieces()
    function = {"name": "weather", "arguments": ""}
    assert not pieces.piece_of(
        chunk({"tool_calls": [{"index": 0, "id": "c1", "function": function}]})
    ).tool_calls
    for part in ('{"city":', '"Rome"}'):
        pieces.piece_of(chunk({"tool_calls": [{"index": 0, "function": {"arguments": part}}]}))
    ended = pieces.piece_of(chunk({}, "tool_calls"))
    assert ended.tool_calls == (
        {"id": "c1", "function": {"name": "weather", "arguments": {"city": "Rome"}}},
    )
    timings = {"prompt_ms": 1500, "predicted_ms": 500.0}
    last = pieces.piece_of({"choices": [], "usage": USAGE, "timings": timings})
    assert last.ending == Ending(
        FinishReason.TOOL_CALLS, Usage(7, 3, 2), Timing(prompt_s=1.5, output_s=0.5, total_s=2.0)
    )


def test_thoughts_are_told_from_the_answer() -> None:
    piece = _Pieces().piece_of(chunk({"reasoning_content": "hm"}))
    assert (piece.text, piece.thinking, piece.ending) == ("", "hm", None)


def test_the_last_chunk_of_a_raw_prompt_ends_it() -> None:
    last = {"choices": [{"text": "", "finish_reason": "length"}], "usage": USAGE}
    ending = _Pieces().piece_of(last).ending
    assert ending is not None
    assert ending.finish_reason is FinishReason.LENGTH


def test_an_error_in_the_middle_of_an_answer_is_one() -> None:
    with pytest.raises(BackendError, match="out of cheese"):
        _Pieces().piece_of({"error": {"code": 500, "message": "out of cheese"}})


ADD: dict[str, Any] = {"type": "function", "function": {"name": "add", "parameters": {}}}
SUB: dict[str, Any] = {"type": "function", "function": {"name": "sub", "parameters": {}}}


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (None, {"tools": [ADD, SUB]}),
        ("none", {"tools": [ADD, SUB], "tool_choice": "none"}),
        ("required", {"tools": [ADD, SUB], "tool_choice": "required"}),
        ({"function": {"name": "sub"}}, {"tools": [SUB], "tool_choice": "required"}),
    ],
)
def test_the_tool_that_must_be_called_is_the_only_one_told(
    choice: object, told: dict[str, Any]
) -> None:
    more = {"tools": [ADD, SUB]} | ({} if choice is None else {"tool_choice": choice})
    assert _chat_form(more) == told
    single = more | {"parallel_tool_calls": False}
    assert _chat_form(single) == told | {"parallel_tool_calls": False}


def test_a_message_of_ollamas_form_is_told_in_llama_cpps() -> None:
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    assert _message({"role": "assistant", "content": "", "tool_calls": [call]}) == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
        ],
    }
    told = _message({"role": "tool", "content": "4", "tool_name": "f", "tool_call_id": "call_0"})
    assert told == {"role": "tool", "content": "4", "tool_call_id": "call_0"}


def test_how_the_answer_is_to_look_is_told_in_llama_cpps_words() -> None:
    schema = {"type": "object"}
    assert _chat_form({"format": schema, "think": False, "keep_alive": "5m"}) == {
        "response_format": {"type": "json_schema", "json_schema": {"schema": schema}},
        "chat_template_kwargs": {"enable_thinking": False},
    }


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, InvalidTaskError), (503, BackendUnavailableError), (500, BackendError)],
)
def test_a_refusal_says_what_llama_cpp_said(status: int, kind: type[Exception]) -> None:
    body = b'{"error":{"code":0,"message":"no way","type":"x"}}'
    error = refused(RefusedAnswer(status, {}, body), is_must=False)
    assert type(error) is kind
    assert "no way" in str(error)
