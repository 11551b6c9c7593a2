"""A message that grows, event by event."""

from __future__ import annotations

import json
from typing import Any

from d8mesh.core.protocol.chat import Completion, Ending, FinishReason, Piece, Usage
from d8mesh.doors.anthropic.message_answer import SIGNATURE, message_body
from d8mesh.doors.anthropic.message_request import AskedMessage, asked_of_message
from d8mesh.doors.anthropic.message_stream import MessageForm
from d8mesh.doors.llm.asked import LlmAnswer
from d8mesh.errors import BackendStalledError
from tests.doors.anthropic.test_message_request import LEAST

TASK = "1f0e4c6a-0000-4000-8000-000000000001"
CALL = {"id": "call_1", "function": {"name": "look", "arguments": {"at": "the sky"}}}
LAST = Piece(ending=Ending(FinishReason.STOP, Usage(30, 7)))
PIECES = (
    Piece(thinking="H"),
    Piece(thinking="m."),
    Piece("I lo"),
    Piece("ok.\u2028"),
    Piece(tool_calls=(CALL, CALL | {"id": ""})),
    Piece("Done."),
    LAST,
)


def asked(**more: Any) -> AskedMessage:
    return asked_of_message(LEAST | {"thinking": {"type": "adaptive"}, "stream": True} | more)


def events_of(content: bytes) -> list[dict[str, Any]]:
    """Return what an event stream holds; each has the name that its body tells."""
    found = []
    for event in content.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        body = json.loads(data.removeprefix("data: "))
        assert name == f"event: {body['type']}"
        found.append(body)
    return found


def written(*pieces: Piece, form: MessageForm | None = None) -> list[dict[str, Any]]:
    form = form or MessageForm(asked(), "req_1")
    content = form.begin([TASK])
    content += b"".join(form.piece(0, piece, None) for piece in pieces)
    return events_of(content + form.end())


def grown(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the message that a reader makes of events."""
    message: dict[str, Any] = {}
    for event in events:
        kind = event["type"]
        if kind == "message_start":
            message = event["message"]
        elif kind == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append(event["content_block"] | {"json": ""})
        elif kind == "content_block_delta":
            (name, what) = next(item for item in event["delta"].items() if item[0] != "type")
            block = message["content"][event["index"]]
            key = "json" if name == "partial_json" else name
            block[key] += what
        elif kind == "content_block_stop":
            block = message["content"][event["index"]]
            if text := block.pop("json"):
                block["input"] = json.loads(text)
        elif kind == "message_delta":
            message |= event["delta"] | {"usage": event["usage"]}
    return message


def test_the_events_come_in_their_order() -> None:
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    wanted = ["message_start", "ping", *block, "message_delta", "message_stop"]
    assert [event["type"] for event in written(Piece("Hi"), LAST)] == wanted


def test_the_blocks_of_a_stream_are_those_of_the_whole_answer() -> None:
    said = Completion(
        text="I look.\u2028",
        model="m",
        thinking="Hm.",
        tool_calls=(CALL, CALL | {"id": ""}),
        ending=Ending(FinishReason.STOP, Usage(30, 7)),
    )
    whole = message_body(asked(), LlmAnswer(task_id=TASK, model="m", completion=said, result={}))
    assert grown(written(*PIECES[:5], LAST)) == whole


def test_each_block_is_opened_once_and_closed_before_the_next() -> None:
    opened: list[int] = []
    closed: list[int] = []
    for event in written(*PIECES):
        if event["type"] == "content_block_start":
            assert opened == closed
            opened.append(event["index"])
        elif event["type"] == "content_block_delta":
            assert event["index"] == opened[-1]
        elif event["type"] == "content_block_stop":
            closed.append(event["index"])
    assert opened == closed == [0, 1, 2, 3, 4]


def test_the_input_of_a_tool_begins_empty() -> None:
    starts = [each for each in written(*PIECES) if each["type"] == "content_block_start"]
    calls = [
        each["content_block"] for each in starts if each["content_block"]["type"] == "tool_use"
    ]
    assert [each["input"] for each in calls] == [{}, {}]


def test_thoughts_are_signed_before_their_block_closes() -> None:
    deltas = [each["delta"] for each in written(*PIECES) if each["type"] == "content_block_delta"]
    assert deltas[2] == {"type": "signature_delta", "signature": SIGNATURE}


def test_thoughts_that_nobody_asked_for_are_left_out() -> None:
    events = written(*PIECES, form=MessageForm(asked(thinking=None), "req_1"))
    assert grown(events)["content"][0]["text"] == "I look.\u2028"


def test_the_last_counts_are_told_from_the_beginning() -> None:
    *_, last, stop = written(*PIECES)
    assert last["usage"]["output_tokens"] == 7
    assert last["usage"]["input_tokens"] == 30
    assert last["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert stop == {"type": "message_stop"}


def test_an_answer_of_nothing_is_a_message_without_blocks() -> None:
    assert grown(written(LAST))["content"] == []


def test_a_break_is_an_error_and_no_end() -> None:
    form = MessageForm(asked(), "req_1")
    content = form.begin([TASK]) + form.piece(0, Piece("I lo"), None)
    error = BackendStalledError("the machine is silent")
    error.details = {"task_id": TASK}
    *before, last = events_of(content + form.broken(error))
    assert last == {
        "type": "error",
        "error": {"type": "api_error", "message": f"the machine is silent (task {TASK})"},
        "request_id": "req_1",
    }
    assert "message_stop" not in {event["type"] for event in before}
