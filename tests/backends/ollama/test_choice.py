"""Calls that must be made, or must not, at an Ollama that knows no such choice."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from d8mesh.backends.backend import ChatRun
from d8mesh.backends.ollama import OllamaBackend
from d8mesh.backends.ollama.choice import ChosenCalls, chosen_calls
from d8mesh.core.protocol.chat import ChatRequest, Completion, Ending, FinishReason, Piece
from tests.ollama_standin import OllamaStandin

PATIENCE_S = 20
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
ADD = {"type": "function", "function": {"name": "add"}}
THE_WEATHER = {"type": "function", "function": {"name": "weather"}}


def asked(standin: OllamaStandin, text: str, pieces: list[Piece], **more: object) -> Completion:
    request = ChatRequest(
        messages=({"role": "user", "content": text},), model="qwen2.5:3b", more=more
    )
    run = ChatRun(on_piece=pieces.append, is_cancelled=lambda: False, deadline_s=PATIENCE_S)
    return OllamaBackend(standin.url).chat(request, run)


def read(calls: ChosenCalls, pieces: list[Piece]) -> list[Piece]:
    return list(map(calls.reading(lambda piece: piece), pieces))


@pytest.mark.parametrize("choice", ["required", THE_WEATHER])
def test_a_call_that_must_be_made_is_asked_for_as_json_and_comes_as_a_call(choice: object) -> None:
    pieces: list[Piece] = []
    with OllamaStandin() as standin:
        done = asked(standin, "hello", pieces, tools=[WEATHER, ADD], tool_choice=choice)
        (body,) = standin.chats
    (call,) = done.tool_calls
    assert call == {"function": {"index": 0, "name": "weather", "arguments": {"city": "a"}}}
    assert done.text == "" == "".join(piece.text for piece in pieces)
    assert done.ending.finish_reason is FinishReason.TOOL_CALLS
    assert len(body["tools"]) == 2
    assert "tool_choice" not in body
    weather = {
        "type": "object",
        "properties": {"name": {"const": "weather"}, "arguments": CITY},
        "required": ["name", "arguments"],
    }
    assert weather in (body["format"], body["format"].get("anyOf", [None])[0])


def test_tools_that_must_not_be_called_are_not_offered() -> None:
    with OllamaStandin() as standin:
        done = asked(standin, "weather", [], tools=[WEATHER], tool_choice="none")
        (body,) = standin.chats
    assert (done.tool_calls, done.text) == ((), "You asked: weather")
    assert "tools" not in body


def test_of_several_calls_the_first_is_kept_where_one_is_wanted() -> None:
    with OllamaStandin() as standin:
        both = asked(standin, "weather add", [], tools=[WEATHER, ADD])
        one = asked(standin, "weather add", [], tools=[WEATHER, ADD], parallel_tool_calls=False)
    assert len(both.tool_calls) == 2
    assert one.tool_calls == both.tool_calls[:1]


def test_what_ollama_does_not_take_is_named() -> None:
    with OllamaStandin() as standin:
        done = asked(standin, "hello", [], logit_bias={"7": -100}, min_tokens=3)
        (body,) = standin.chats
    assert done.ignored == ("logit_bias", "min_tokens")
    assert not {"logit_bias", "min_tokens"} & body.keys()


def test_a_form_of_the_answer_gives_way_to_a_call_and_is_named() -> None:
    calls = chosen_calls({"tools": [ADD], "tool_choice": "required", "format": "json"})
    assert calls.ignored == ("format",)
    form: Any = calls.more["format"]
    assert form["properties"] == {"name": {"const": "add"}, "arguments": {"type": "object"}}


def test_a_call_that_was_cut_stays_a_text() -> None:
    calls = chosen_calls({"tools": [ADD], "tool_choice": "required"})
    last = Piece(' "ad', ending=Ending(FinishReason.LENGTH))
    working, cut = read(calls, [Piece('{"name":'), last])
    assert working == Piece(is_working=True)
    assert cut == replace(last, text='{"name": "ad')


def test_a_call_that_ollama_has_found_by_itself_is_not_made_twice() -> None:
    calls = chosen_calls({"tools": [ADD], "tool_choice": "required"})
    found = {"function": {"index": 0, "name": "add", "arguments": {}}}
    text = json.dumps({"name": "add", "arguments": {}})
    called, last = read(calls, [Piece(tool_calls=(found,)), Piece(text, ending=Ending())])
    assert called.tool_calls == (found,)
    assert (last.text, last.tool_calls) == ("", ())
