"""Answers to completions, whole and growing, as the official client reads them."""

from __future__ import annotations

from typing import Any

from openai.types import Completion as OfficialCompletion

from d8mesh.core.protocol.chat import FinishReason, Piece
from d8mesh.doors.openai.asked import AskedOfModels
from d8mesh.doors.openai.completion_answer import CompletionForm, completion_body
from d8mesh.errors import BackendStalledError
from tests.doors.openai.said import CREATED, LOGPROB, answered, ending
from tests.doors.openai.test_chat_stream import DONE, events

LIKELY = {
    "tokens": ["hé"],
    "token_logprobs": [-0.5],
    "top_logprobs": [{"ho": -2.0}],
    "text_offset": [4],
}


def asked(**fields: Any) -> AskedOfModels:
    return AskedOfModels(tasks=(), model="m", **fields)


def chunks(*pieces: Piece, **fields: Any) -> list[Any]:
    form = CompletionForm(asked(**fields), CREATED)
    written = form.begin(["t-0"])
    written += b"".join(form.piece(0, piece, None) for piece in pieces) + form.end()
    *found, last = events(written)
    assert last == DONE
    for chunk in found:
        told = [choice for choice in chunk["choices"] if choice["finish_reason"]]
        OfficialCompletion.model_validate(chunk | {"choices": told}, strict=True)
    return found


def test_an_answer_has_all_that_openai_says() -> None:
    body = completion_body(asked(), [answered("there was")], CREATED)
    OfficialCompletion.model_validate(body, strict=True)
    assert body == {
        "id": "cmpl-t-0",
        "object": "text_completion",
        "created": CREATED,
        "model": "m",
        "choices": [{"text": "there was", "index": 0, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


def test_an_echo_stands_before_the_text_and_moves_its_tokens() -> None:
    answer = answered("hé", logprobs=(LOGPROB,))
    (choice,) = completion_body(asked(echoes=("say ",)), [answer], CREATED)["choices"]
    assert (choice["text"], choice["logprobs"]) == ("say hé", LIKELY)


def test_a_stream_has_one_id_one_reason_and_no_usage_that_was_not_wished_for() -> None:
    found = chunks(Piece("there"), Piece(" was", ending=ending(FinishReason.LENGTH)))
    assert {each["id"] for each in found} == {"cmpl-t-0"}
    assert [each["choices"][0]["text"] for each in found] == ["there", " was", ""]
    assert [each["choices"][0]["finish_reason"] for each in found] == [None, None, "length"]
    assert all("usage" not in each for each in found)


def test_a_stream_may_end_with_its_usage() -> None:
    *others, last = chunks(Piece("x", ending=ending()), has_usage=True)
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 5)
    assert all(each["usage"] is None for each in others)


def test_an_echo_comes_with_the_first_piece() -> None:
    first, *_ = chunks(Piece("hé", logprobs=(LOGPROB,)), Piece(ending=ending()), echoes=("say ",))
    assert first["choices"][0]["text"] == "say hé"


def test_a_break_is_an_error_without_reason_or_end() -> None:
    form = CompletionForm(asked(), CREATED)
    form.begin(["t-0"])
    first, last = events(
        form.piece(0, Piece("x"), None) + form.broken(BackendStalledError("silent"))
    )
    assert first["choices"][0]["finish_reason"] is None
    assert last["error"]["message"] == "silent"
