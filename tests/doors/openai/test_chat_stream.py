"""A chat's answer as it grows, chunk by chunk."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletionChunk

from d8mesh.core.protocol.chat import FinishReason, Piece
from d8mesh.doors.openai.asked import AskedOfModels
from d8mesh.doors.openai.chat_stream import ChatForm
from d8mesh.errors import BackendStalledError
from tests.doors.openai.said import CALL, CREATED, LOGPROB, ending

DONE = "[DONE]"


def events(written: bytes) -> list[Any]:
    """Return the data of each event; whatever else stands there fails."""
    assert written.endswith(b"\n\n")
    lines = written.decode().removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [DONE if line[6:] == DONE else json.loads(line[6:]) for line in lines]


def chunks(written: bytes) -> list[Any]:
    """Return the events but for the end, each as the official client takes it."""
    *found, last = events(written)
    assert last == DONE
    for chunk in found:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    return found


def form(*pieces: Piece, **asked: Any) -> bytes:
    made = ChatForm(AskedOfModels(tasks=(), model="m", **asked), CREATED)
    assert made.begin(["t-0"]) == b""  # so that only comments stand before the first piece
    return b"".join([made.piece(0, piece, None) for piece in pieces]) + made.end()


def test_the_role_comes_once_the_reason_last_and_all_have_one_id() -> None:
    found = chunks(form(Piece("hel"), Piece("lo"), Piece(ending=ending())))
    assert {(each["id"], each["created"], each["model"], each["object"]) for each in found} == {
        ("chatcmpl-t-0", CREATED, "m", "chat.completion.chunk")
    }
    assert [each["choices"][0]["delta"] for each in found] == [
        {"role": "assistant", "content": ""},
        {"content": "hel"},
        {"content": "lo"},
        {},
    ]
    reasons = [each["choices"][0]["finish_reason"] for each in found]
    assert reasons == [None, None, None, "stop"]
    assert all("usage" not in each for each in found)


def test_the_last_piece_may_have_text_too() -> None:
    found = chunks(form(Piece("all", ending=ending())))
    assert [each["choices"][0]["delta"] for each in found[1:]] == [{"content": "all"}, {}]


def test_usage_comes_in_a_chunk_of_its_own_if_it_is_wished_for() -> None:
    *others, last = chunks(form(Piece("x"), Piece(ending=ending()), has_usage=True))
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert [each["usage"] for each in others] == [None] * 3


def test_a_call_is_whole_in_one_delta_and_its_index_counts() -> None:
    other = {"function": {"name": "walk", "arguments": {}}}
    *_, first, second, last = chunks(
        form(Piece(tool_calls=(CALL,)), Piece(tool_calls=(other,)), Piece(ending=ending()))
    )
    (call,) = first["choices"][0]["delta"]["tool_calls"]
    assert (call["index"], call["id"], call["type"]) == (0, "call_a", "function")
    assert json.loads(call["function"]["arguments"]) == {"at": "Köln"}
    (call,) = second["choices"][0]["delta"]["tool_calls"]
    assert (call["index"], call["id"]) == (1, "call_t-0_1")
    assert last["choices"][0]["finish_reason"] == "tool_calls"


def test_who_asks_with_functions_is_sent_a_function_call() -> None:
    *_, call, last = chunks(
        form(Piece(tool_calls=(CALL, CALL)), Piece(ending=ending()), has_functions=True)
    )
    assert call["choices"][0]["delta"]["function_call"]["name"] == "look"
    assert last["choices"][0]["finish_reason"] == "function_call"


def test_thoughts_are_apart_from_the_text() -> None:
    _, thought, text, _ = chunks(form(Piece("4", "2 + 2"), Piece(ending=ending())))
    delta = thought["choices"][0]["delta"]
    assert delta == {"reasoning": "2 + 2", "reasoning_content": "2 + 2"}
    assert text["choices"][0]["delta"] == {"content": "4"}


def test_how_likely_the_tokens_were_stands_beside_their_text() -> None:
    piece = Piece("hé", logprobs=(LOGPROB,))
    found = chunks(form(piece, Piece(ending=ending(FinishReason.LENGTH))))
    assert found[1]["choices"][0]["logprobs"]["content"][0]["token"] == "hé"
    assert found[-1]["choices"][0]["finish_reason"] == "length"


def test_choices_may_take_turns_and_each_has_its_role_and_its_reason() -> None:
    made = ChatForm(AskedOfModels(tasks=(), model="m", has_usage=True), CREATED)
    made.begin(["t-0", "t-1"])
    said = [(0, Piece("a")), (1, Piece("b")), (1, Piece(ending=ending())), (0, Piece("c"))]
    said.append((0, Piece(ending=ending())))
    *found, usage = chunks(
        b"".join(made.piece(index, piece, None) for index, piece in said) + made.end()
    )
    assert usage["usage"]["completion_tokens"] == 4
    assert {each["id"] for each in found} == {"chatcmpl-t-0"}
    choices = [each["choices"][0] for each in found]
    for index, text in enumerate(("ac", "b")):
        own = [each for each in choices if each["index"] == index]
        assert ["role" in each["delta"] for each in own] == [True] + [False] * (len(own) - 1)
        assert "".join(each["delta"].get("content", "") for each in own) == text
        assert [each["finish_reason"] for each in own][-1] == "stop"


@pytest.mark.parametrize("before", [[], [Piece("hel")]])
def test_a_break_is_an_error_without_reason_or_end(before: list[Piece]) -> None:
    made = ChatForm(AskedOfModels(tasks=(), model="m"), CREATED)
    made.begin(["t-0"])
    written = b"".join(made.piece(0, piece, None) for piece in before)
    error = BackendStalledError("the machine fell silent")
    error.task_id = "t-0"
    *found, last = events(written + made.broken(error))
    assert last == {
        "error": {
            "message": "the machine fell silent (task t-0)",
            "type": "server_error",
            "param": None,
            "code": "backend.stalled",
        }
    }
    assert all(each["choices"][0]["finish_reason"] is None for each in found)


def test_no_text_ends_a_line_early() -> None:
    (_, text, _) = chunks(form(Piece("a\u2028b\x85c\nd\r"), Piece(ending=ending())))
    assert text["choices"][0]["delta"]["content"] == "a\u2028b\x85c\nd\r"
    written = form(Piece("a\u2028b\x85c"), Piece(ending=ending()))
    assert "\u2028".encode() not in written


def test_what_tells_that_we_live_is_a_comment() -> None:
    made = ChatForm(AskedOfModels(tasks=(), model="m"), CREATED)
    assert made.comment.startswith(b":")
    assert made.comment.endswith(b"\n\n")
    assert made.media_type == "text/event-stream"
