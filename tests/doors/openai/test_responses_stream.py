"""A growing answer of /v1/responses, event by event."""

from __future__ import annotations

import json
from typing import Any

import pytest

from d8mesh.core.protocol.chat import Completion, Ending, FinishReason, Piece, Usage
from d8mesh.doors.llm.asked import LlmAnswer
from d8mesh.doors.openai.asked import AskedOfModels
from d8mesh.doors.openai.responses_answer import response_body
from d8mesh.doors.openai.responses_request import asked_of_response
from d8mesh.doors.openai.responses_stream import ResponseForm
from d8mesh.errors import BackendStalledError, D8Error, FloodError, InvalidTaskError
from tests.doors.openai.test_responses_request import LEAST, TOOL

TASK = "1f0e4c6a-0000-4000-8000-000000000001"
CREATED = 1_700_000_000
CALL = {"id": "call_1", "function": {"name": "look", "arguments": {"at": "the sky"}}}
ENDING = Ending(FinishReason.STOP, Usage(30, 7))
LOGPROB = {"token": "I", "logprob": -0.5}
PIECES = (
    Piece(thinking="H"),
    Piece(thinking="m."),
    Piece("I lo", logprobs=(LOGPROB,)),
    Piece("ok.\u2028"),
    Piece(tool_calls=(CALL, CALL | {"id": ""})),
    Piece(ending=ENDING),
)


def asked() -> AskedOfModels:
    return asked_of_response(LEAST | {"tools": [TOOL], "stream": True})


def events_of(content: bytes) -> list[dict[str, Any]]:
    """Return what an event stream holds; each has the name that its body tells."""
    found = []
    for event in content.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def written(*pieces: Piece) -> list[dict[str, Any]]:
    form = ResponseForm(asked(), CREATED)
    content = form.begin([TASK]) + b"".join(form.piece(0, piece, None) for piece in pieces)
    return events_of(content + form.end())


def test_the_events_of_a_text_come_in_their_order() -> None:
    assert [event["type"] for event in written(Piece("Hi"), Piece(ending=ENDING))] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


def test_the_events_are_numbered_without_gaps() -> None:
    events = written(*PIECES)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_the_last_event_holds_what_the_whole_answer_would() -> None:
    said = Completion(
        text="I look.\u2028",
        model="m",
        thinking="Hm.",
        tool_calls=(CALL, CALL | {"id": ""}),
        logprobs=(LOGPROB,),
        ending=ENDING,
    )
    answer = LlmAnswer(task_id=TASK, model="m", completion=said, result={})
    whole = response_body(asked(), [answer], CREATED)
    assert written(*PIECES)[-1]["response"] == whole


def test_the_deltas_of_an_item_make_what_it_is_when_it_is_done() -> None:
    grown: dict[int, str] = {}
    for event in written(*PIECES):
        index = event.get("output_index", -1)
        if event["type"] == "response.output_item.added":
            assert index not in grown
            assert event["item"]["status"] == "in_progress"
            grown[index] = ""
        elif event["type"].endswith(".delta"):
            grown[index] += event["delta"]
        elif event["type"].endswith("_text.done"):
            assert event["text"] == grown[index]
        elif event["type"] == "response.function_call_arguments.done":
            assert event["arguments"] == grown[index]
            assert json.loads(grown[index]) == {"at": "the sky"}
    assert sorted(grown) == [0, 1, 2, 3]


def test_an_answer_that_is_cut_at_its_bound_ends_as_incomplete() -> None:
    *_, done, last = written(Piece("I lo"), Piece(ending=Ending(FinishReason.LENGTH)))
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert done["item"]["status"] == "incomplete"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BackendStalledError("silent"), "server_error"),
        (FloodError("full"), "rate_limit_exceeded"),
        (InvalidTaskError("bad"), "invalid_prompt"),
    ],
)
def test_a_break_ends_it_as_failed(error: D8Error, code: str) -> None:
    form = ResponseForm(asked(), CREATED)
    content = form.begin([TASK]) + form.piece(0, Piece(tool_calls=(CALL,)), None)
    content += form.piece(0, Piece("I lo"), None)
    error.task_id = TASK
    last = events_of(content + form.broken(error))[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == code
    assert TASK in last["response"]["error"]["message"]
    assert [each["type"] for each in last["response"]["output"]] == ["function_call"]
