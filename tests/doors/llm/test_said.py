"""What a model says piece by piece, and what of its finished answer is not said yet."""

from __future__ import annotations

from typing import Any

import msgspec

from d8mesh.core.protocol.chat import Completion, Ending, FinishReason, Piece
from d8mesh.doors.llm.said import SaidSoFar, objects_of, pieces_of

ORIGIN = {"model": "m", "machine": "pi", "service": "s", "backend": "ollama", "is_cloud": False}


def packed(*told: Any) -> list[bytes]:
    return [msgspec.msgpack.encode(each) for each in told]


def test_texts_in_a_row_are_one_piece_and_what_else_there_is_keeps_its_place() -> None:
    found = pieces_of(
        packed(
            {"text": "a", "origin": ORIGIN},
            {"text": "b"},
            {"text": "c"},
            {"thinking": "hm"},
            {"tool_calls": [{"f": 1}]},
            {"text": "d"},
        )
    )
    assert list(found) == [
        (Piece(text="a"), ORIGIN),
        (Piece(text="bc"), None),
        (Piece(thinking="hm"), None),
        (Piece(tool_calls=({"f": 1},)), None),
        (Piece(text="d"), None),
    ]


def test_what_is_no_piece_is_left_to_the_finished_answer() -> None:
    assert list(pieces_of([b"\xc1", *packed("text", 5, {"text": "a"})])) == [
        (Piece(text="a"), None)
    ]


def test_a_task_that_does_not_speak_tells_how_far_it_is() -> None:
    found = objects_of([b"\xc1", *packed("text", {"status": "pulling"})])
    assert list(found) == [(Piece(extra={"status": "pulling"}, is_working=True), None)]


def completed(text: str, **more: Any) -> Completion:
    return Completion(text=text, model="m", ending=Ending(FinishReason.LENGTH), **more)


def test_the_rest_is_what_was_not_said() -> None:
    said = SaidSoFar()
    said.add(Piece(thinking="hm"))
    said.add(Piece(text="one ", logprobs=(1,)))
    said.add(Piece(text="two", tool_calls=({"f": 1},)))
    whole = completed(
        "one two three", thinking="hm, yes", logprobs=(1, 2), tool_calls=({"f": 1}, {"f": 2}),
        extra={"context": [1]},
    )  # fmt: skip
    assert said.rest_of(whole) == Piece(
        text=" three",
        thinking=", yes",
        tool_calls=({"f": 2},),
        logprobs=(2,),
        ending=Ending(FinishReason.LENGTH),
        extra={"context": [1]},
    )


def test_another_ones_answer_has_no_rest() -> None:
    said = SaidSoFar()
    said.add(Piece(text="one"))
    assert said.rest_of(completed("two")) is None
    assert said.rest_of(completed("on")) is None
    said = SaidSoFar()
    said.add(Piece(tool_calls=({"f": 1},)))
    assert said.rest_of(completed("")) is None


def test_who_says_it_is_known_from_its_first_piece() -> None:
    said = SaidSoFar()
    said.begun_by(ORIGIN)
    assert said.origin is not None
    assert (said.origin.machine, said.model) == ("pi", "m")
