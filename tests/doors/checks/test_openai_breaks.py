"""Checks 13, 18, 19 and 21: an answer that breaks at OpenAI's door never looks complete.

Each test has a model of its own: one that failed is left alone for a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.doors.checks.openai_clients import (
    HELLO,
    asynchronous,
    chat_sent,
    events_of,
    official,
    text_of,
)
from tests.doors.llm_mesh import LlmMesh, llm_mesh, machine
from tests.end_to_end.processes import until
from tests.standin.faults import Kind
from tests.standin.machine import Model

SAID = "You asked: hello there"
BREAKS = (Kind.CUT, Kind.NO_DONE, Kind.ERROR_LINE, Kind.STALL)
OTHERS = ("sync", "async", "moves", "text", "ends", "silent", "fails-whole", "fails-streamed")
LATE = ("late-whole", "late-streamed", "busy")
NINE: list[dict[str, Any]] = [{"role": "user", "content": "say 9 words"}]


@pytest.fixture(scope="module")
def mesh() -> Iterator[LlmMesh]:
    models = [Model(name=f"{name}:1b") for name in (*BREAKS, *OTHERS, *LATE)]
    more: dict[str, Any] = {"models": models, "loaded": [], "max_loaded": len(models)}
    with llm_mesh(machine(**more), machine(**more)) as made:
        yield made


def break_all(mesh: LlmMesh, kind: Kind, model: str, after: int) -> None:
    for standin in mesh.standins:
        standin.fault(kind, model, after=after)


def await_paused(mesh: LlmMesh, name: str) -> None:
    """Wait until no machine takes anything for a model."""

    def are_paused() -> bool:
        (model,) = (each for each in mesh.models()["models"] if each["name"] == name)
        return all(place["paused"] for place in model["places"])

    until(are_paused, "its pause")


@pytest.mark.parametrize("kind", BREAKS)
def test_check_18_a_stream_that_breaks_ends_with_an_error_and_no_reason(
    mesh: LlmMesh, kind: Kind
) -> None:
    model = f"{kind}:1b"
    break_all(mesh, kind, model, after=3)
    answered = chat_sent(mesh, model=model, stream=True, messages=NINE)
    *chunks, last = events_of(answered)
    assert text_of(chunks) == "w0 w1 w2"
    assert {choice["finish_reason"] for each in chunks for choice in each["choices"]} == {None}
    assert last["error"]["type"] == "server_error"
    assert answered.headers["x-d8-task"] in last["error"]["message"]
    assert b"[DONE]" not in answered.body


def test_check_18_the_official_client_raises_when_a_stream_breaks(mesh: LlmMesh) -> None:
    break_all(mesh, Kind.CUT, "sync:1b", after=3)
    said: list[str] = []

    def read() -> None:
        with official(mesh) as client:
            for chunk in client.chat.completions.create(
                model="sync:1b", messages=HELLO, stream=True
            ):
                said.append(chunk.choices[0].delta.content or "")

    with pytest.raises(openai.APIError, match="task"):
        read()
    assert "".join(said) == "You asked: hello"


def test_check_18_the_asynchronous_client_raises_too(mesh: LlmMesh) -> None:
    break_all(mesh, Kind.CUT, "async:1b", after=1)

    async def read() -> None:
        async with asynchronous(mesh) as client:
            async for _ in await client.chat.completions.create(
                model="async:1b", messages=HELLO, stream=True
            ):
                pass

    with pytest.raises(openai.APIError):
        asyncio.run(read())


def test_check_18_a_completion_breaks_as_a_chat_does(mesh: LlmMesh) -> None:
    break_all(mesh, Kind.CUT, "text:1b", after=2)
    body = {"model": "text:1b", "prompt": "say 9 words", "stream": True}
    *chunks, last = events_of(mesh.post("/v1/completions", body))
    assert "".join(each["choices"][0]["text"] for each in chunks) == "w0 w1"
    assert {each["choices"][0]["finish_reason"] for each in chunks} == {None}
    assert last["error"]["type"] == "server_error"


def test_check_18_a_whole_answer_moves_to_another_machine(mesh: LlmMesh) -> None:
    mesh.standins[0].fault(Kind.CUT, "moves:1b", after=2)
    for _ in range(4):
        answered = chat_sent(mesh, model="moves:1b")
        assert answered.status == 200, answered.body
        assert answered.json["choices"][0]["message"]["content"] == SAID


@pytest.mark.slow  # seconds in which another machine might have come
@pytest.mark.parametrize("is_streamed", [False, True])
def test_check_13_where_all_fail_before_the_first_word_there_is_a_status(
    mesh: LlmMesh, is_streamed: bool
) -> None:
    model = f"fails-{'streamed' if is_streamed else 'whole'}:1b"
    break_all(mesh, Kind.FAST_FAIL, model, after=0)
    answered = chat_sent(mesh, model=model, stream=is_streamed)
    assert answered.status == 502, answered.body
    assert answered.json["error"]["code"] == "backend.failed"


@pytest.mark.slow  # the same
@pytest.mark.parametrize("is_streamed", [False, True])
def test_check_13_who_comes_when_all_are_paused_already_is_told_why(
    mesh: LlmMesh, is_streamed: bool
) -> None:
    model = f"late-{'streamed' if is_streamed else 'whole'}:1b"
    break_all(mesh, Kind.FAST_FAIL, model, after=0)
    assert chat_sent(mesh, model=model).status == 502
    await_paused(mesh, model)
    for path in ("/v1/chat/completions", "/v1/messages", "/api/chat"):
        body = {"model": model, "messages": HELLO, "max_tokens": 9, "stream": is_streamed}
        answered = mesh.post(path, body, headers={"X-D8-Priority": "2"})
        assert answered.status == 503, (path, answered.body)
        assert b"paused" in answered.body, (path, answered.body)
        assert 0 < int(answered.headers["retry-after"]) <= 120


@pytest.mark.slow  # half a minute in which a full machine might have had room
def test_check_13_where_all_are_busy_for_ever_there_is_a_status(mesh: LlmMesh) -> None:
    break_all(mesh, Kind.BUSY, "busy:1b", after=0)
    answered = chat_sent(mesh, model="busy:1b")
    assert answered.status == 503, answered.body
    assert answered.json["error"]["code"] in ("backend.busy", "backend.unavailable")
    assert "busy" in answered.json["error"]["message"]
    assert int(answered.headers["retry-after"]) > 0


@pytest.mark.slow  # the same
def test_check_19_a_whole_answer_that_no_machine_ends_is_an_error_that_says_why(
    mesh: LlmMesh,
) -> None:
    break_all(mesh, Kind.NO_DONE, "ends:1b", after=2)
    sent: list[object] = []
    http = openai.DefaultHttpxClient(event_hooks={"request": [sent.append]})
    with official(mesh, http_client=http) as client:
        with pytest.raises(openai.InternalServerError) as raised:
            client.chat.completions.create(model="ends:1b", messages=HELLO)
    assert raised.value.status_code == 502
    assert raised.value.type == "server_error"
    assert "task" in str(raised.value)
    assert len(sent) == 1  # the mesh has tried again itself


@pytest.mark.parametrize("is_streamed", [False, True])
def test_check_21_a_silent_machine_costs_seconds_and_another_answers(
    mesh: LlmMesh, is_streamed: bool
) -> None:
    mesh.standins[0].fault(Kind.SILENT, "silent:1b", times=1)
    for _ in range(2):
        answered = chat_sent(mesh, model="silent:1b", stream=is_streamed)
        if is_streamed:
            assert text_of(events_of(answered)[:-1]) == SAID
        else:
            assert answered.json["choices"][0]["message"]["content"] == SAID
