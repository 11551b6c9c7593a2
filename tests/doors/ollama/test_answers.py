"""Answers in Ollama's form: exactly its fields, in its order, with its omissions."""

from __future__ import annotations

import json
import re
from typing import Any

from ollama import ChatResponse, EmbedResponse, GenerateResponse

from d8mesh.core.protocol.chat import (
    Completion,
    Embeddings,
    Ending,
    FinishReason,
    Piece,
    Timing,
    Usage,
)
from d8mesh.doors.ollama.answers import (
    TextLines,
    created_at,
    loaded_body,
    text_body,
    vector_body,
    vectors_body,
)
from d8mesh.errors import BackendStalledError

TIMING = Timing(load_s=0.5, prompt_s=0.25, output_s=1.0, total_s=2.0)
ENDING = Ending(FinishReason.STOP, Usage(3, 4), TIMING)
FIGURES = ["total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration",
           "eval_count", "eval_duration"]  # fmt: skip
CALL = {"function": {"name": "add", "arguments": {"a": 1}}}


def lines_of(*pieces: Piece, is_chat: bool = True, is_raw: bool = False) -> list[dict[str, Any]]:
    form = TextLines("M", is_chat=is_chat, is_raw=is_raw)
    written = form.begin(["t"]) + b"".join(form.piece(0, each, None) for each in pieces)
    written += form.end()
    assert written == b"" or written.endswith(b"\n")
    return [json.loads(line) for line in written.split(b"\n")[:-1]]


def test_a_chat_is_told_in_lines_of_which_the_last_has_the_figures() -> None:
    first, last = lines_of(Piece("hello"), Piece("", ending=ENDING))
    assert list(first) == ["model", "created_at", "message", "done"]
    assert first["message"] == {"role": "assistant", "content": "hello"}
    assert (first["model"], first["done"]) == ("M", False)
    assert list(last) == ["model", "created_at", "message", "done", "done_reason", *FIGURES]
    assert (last["done"], last["done_reason"]) == (True, "stop")
    assert last["message"] == {"role": "assistant", "content": ""}
    assert (last["total_duration"], last["eval_duration"]) == (2_000_000_000, 1_000_000_000)
    assert ChatResponse(**last).eval_count == 4


def test_a_generate_has_a_response_and_its_context_unless_it_is_raw() -> None:
    pieces = (Piece("hello"), Piece(" you", ending=ENDING, extra={"context": [1, 2]}))
    first, last = lines_of(*pieces, is_chat=False)
    assert list(first) == ["model", "created_at", "response", "done"]
    assert (first["response"], last["response"]) == ("hello", " you")
    assert list(last)[3:6] == ["done", "done_reason", "context"]
    assert GenerateResponse(**last).context == [1, 2]
    assert "context" not in lines_of(*pieces, is_chat=False, is_raw=True)[-1]
    assert "context" not in lines_of(*pieces)[-1]


def test_figures_that_are_0_are_left_out() -> None:
    (last,) = lines_of(Piece("", ending=Ending()))
    assert list(last) == ["model", "created_at", "message", "done", "done_reason"]


def test_thinking_stands_apart_from_the_text_and_is_not_there_when_it_is_empty() -> None:
    thought, said = lines_of(Piece(thinking="hm"), Piece("yes"))
    assert thought["message"] == {"role": "assistant", "content": "", "thinking": "hm"}
    assert "thinking" not in said["message"]
    (thought,) = lines_of(Piece(thinking="hm"), is_chat=False)
    assert (thought["response"], thought["thinking"]) == ("", "hm")


def test_calls_of_tools_have_an_object_for_arguments_an_id_and_a_number() -> None:
    ending = Ending(FinishReason.TOOL_CALLS, Usage(3, 4))
    own = {"id": "call_own", **CALL}
    *lines, last = lines_of(
        Piece(tool_calls=(CALL,)), Piece(tool_calls=(own,)), Piece(ending=ending)
    )
    first, second = (line["message"]["tool_calls"][0] for line in lines)
    assert first["function"] == {"index": 0, "name": "add", "arguments": {"a": 1}}
    assert second["function"]["index"] == 1
    assert re.fullmatch(r"call_[0-9a-f]{8}", first["id"])
    assert second["id"] == "call_own"
    assert last["done_reason"] == "stop"


def test_the_last_line_may_carry_text_too() -> None:
    (last,) = lines_of(Piece("all", "thought", (CALL,), ending=ENDING))
    assert (last["message"]["content"], last["message"]["thinking"]) == ("all", "thought")
    assert last["message"]["tool_calls"]


def test_a_piece_that_says_nothing_is_no_line() -> None:
    assert lines_of(Piece(), Piece(is_working=True)) == []


def test_a_separator_of_lines_inside_a_text_ends_no_line() -> None:
    form = TextLines("M", is_chat=True, is_raw=False)
    written = form.piece(0, Piece("a\u2028b\nc\x85d"), None)
    assert len(written.decode().splitlines()) == 1
    assert json.loads(written)["message"]["content"] == "a\u2028b\nc\x85d"


def test_an_answer_that_breaks_ends_in_an_error_that_names_the_task() -> None:
    error = BackendStalledError("silent")
    error.task_id = "t-1"
    written = TextLines("M", is_chat=True, is_raw=False).broken(error)
    assert json.loads(written) == {"error": "silent (task t-1)"}


def test_a_bound_that_was_reached_is_told() -> None:
    (last,) = lines_of(Piece("a", ending=Ending(FinishReason.LENGTH)))
    assert last["done_reason"] == "length"


def test_what_else_the_service_said_is_passed_on() -> None:
    extra = {"remote_model": "far", "remote_host": "https://x", "new": 1, "message": {"more": 2}}
    (last,) = lines_of(Piece("a", ending=ENDING, extra=extra))
    assert list(last)[:4] == ["model", "remote_model", "remote_host", "created_at"]
    assert (last["new"], last["message"]["more"]) == (1, 2)


def test_an_answer_that_is_not_streamed_is_the_last_object_with_all_of_it() -> None:
    said = Completion(
        text="hello", model="x", thinking="hm", tool_calls=(CALL,), logprobs=({"token": "h"},),
        ending=ENDING, extra={"context": [1]},
    )  # fmt: skip
    body = text_body("M", said, is_chat=True, is_raw=False)
    assert body["message"]["content"] == "hello"
    assert body["message"]["thinking"] == "hm"
    assert (body["model"], body["done"], body["logprobs"]) == ("M", True, [{"token": "h"}])
    assert text_body("M", said, is_chat=False, is_raw=False)["context"] == [1]


def test_a_model_that_is_loaded_or_let_go_of_is_one_object() -> None:
    loaded = loaded_body("M", is_chat=False, is_unload=False)
    assert list(loaded) == ["model", "created_at", "response", "done", "done_reason"]
    assert (loaded["response"], loaded["done_reason"]) == ("", "load")
    gone = loaded_body("M", is_chat=True, is_unload=True)
    assert gone["message"] == {"role": "assistant", "content": ""}
    assert gone["done_reason"] == "unload"


def test_vectors_of_several_tasks_are_one_answer_in_their_order() -> None:
    made = [
        Embeddings(vectors=((1.0, 2.0),), model="e", usage=Usage(2), timing=Timing(total_s=1.0)),
        Embeddings(vectors=((3.0, 4.0),), model="e", usage=Usage(3), timing=Timing(total_s=2.0)),
    ]
    body = vectors_body("E", made)
    assert body["embeddings"] == [(1.0, 2.0), (3.0, 4.0)]
    assert (body["model"], body["prompt_eval_count"]) == ("E", 5)
    assert body["total_duration"] == 2_000_000_000
    assert EmbedResponse(**body).embeddings[1] == (3.0, 4.0)
    assert vectors_body("E", []) == {"model": "E", "embeddings": []}


def test_the_old_form_has_one_vector_or_none() -> None:
    assert vector_body([Embeddings(vectors=((1.0,),), model="e")]) == {"embedding": (1.0,)}
    assert vector_body([]) == {"embedding": []}


def test_a_time_is_told_in_utc_with_a_fraction() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", created_at())
