"""Checks 22 to 26, 28 to 35: what the official client, and others, need of OpenAI's door."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel

from tests.doors.checks.openai_clients import (
    DONE,
    HELLO,
    LOOK,
    asynchronous,
    chat_sent,
    events_of,
    official,
    text_of,
)
from tests.doors.llm_mesh import (
    CHAT,
    EMBEDDER,
    SEER,
    THINKER,
    LlmMesh,
    llm_mesh,
    machine,
)
from tests.standin import speech

PICTURE = base64.b64encode(b"a picture").decode()
SAID = "You asked: hello there"


@pytest.fixture(scope="module")
def mesh() -> Iterator[LlmMesh]:
    with llm_mesh(machine(), machine()) as made:
        yield made


@pytest.fixture
def client(mesh: LlmMesh) -> Iterator[Any]:
    with official(mesh) as made:
        yield made


def last_chat(mesh: LlmMesh, said: str) -> dict[str, Any]:
    """Return what a stand-in was sent for the chat in which this was said."""
    bodies = [body for each in mesh.standins for body in each.chats]
    return next(body for body in reversed(bodies) if said in json.dumps(body))


def shown(url: str) -> list[dict[str, Any]]:
    parts = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    return [{"role": "user", "content": parts}]


# --------------------------------------------------------------------------------- streams


def test_check_22_role_first_one_id_reason_last_and_done(mesh: LlmMesh) -> None:
    *chunks, last = events_of(chat_sent(mesh, stream=True))
    assert last == DONE
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    assert len({(each["id"], each["created"]) for each in chunks}) == 1
    choices = [each["choices"][0] for each in chunks]
    assert ["role" in each["delta"] for each in choices] == [True] + [False] * (len(chunks) - 1)
    assert [each["finish_reason"] for each in choices] == [None] * (len(chunks) - 1) + ["stop"]
    assert text_of(chunks) == SAID


def test_check_22_ids_differ_from_answer_to_answer(client: Any) -> None:
    ids = {client.chat.completions.create(model=CHAT, messages=HELLO).id for _ in range(5)}
    assert len(ids) == 5


def test_check_22_the_official_client_reads_a_stream_both_ways(mesh: LlmMesh) -> None:
    with official(mesh) as client:
        chunks = client.chat.completions.create(model=CHAT, messages=HELLO, stream=True)
        assert "".join(each.choices[0].delta.content or "" for each in chunks) == SAID

    async def read() -> Any:
        async with asynchronous(mesh) as client:
            chunks = await client.chat.completions.create(model=CHAT, messages=HELLO, stream=True)
            return "".join([each.choices[0].delta.content or "" async for each in chunks])

    assert asyncio.run(read()) == SAID


def test_check_22_several_choices_take_turns_in_one_stream(client: Any) -> None:
    said, reasons = {0: "", 1: "", 2: ""}, {}
    for chunk in client.chat.completions.create(model=CHAT, messages=HELLO, stream=True, n=3):
        choice = chunk.choices[0]
        said[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    assert said == {0: SAID, 1: SAID, 2: SAID}
    assert reasons == {0: "stop", 1: "stop", 2: "stop"}


def test_check_23_every_line_is_data_or_blank(mesh: LlmMesh) -> None:
    answered = chat_sent(mesh, stream=True)
    assert answered.headers["content-type"].split(";")[0] == "text/event-stream"
    assert "content-encoding" not in answered.headers
    lines = answered.body.decode().split("\n")
    assert all(line == "" or (line.startswith("data: ") and len(line) > 6) for line in lines)


def test_check_24_usage_comes_only_if_it_is_wished_for(mesh: LlmMesh) -> None:
    options = {"include_usage": True}
    *chunks, last, done = events_of(chat_sent(mesh, stream=True, stream_options=options))
    assert done == DONE
    assert last["choices"] == []
    usage = last["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0
    assert all(each["usage"] is None for each in chunks)
    plain = events_of(chat_sent(mesh, stream=True))
    assert all(not each.get("usage") and each["choices"] for each in plain[:-1])


def test_check_25_a_whole_answer_has_its_reason_and_its_sums(client: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(model=CHAT, messages=HELLO, n=2)
    answer = raw.parse()
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]
    assert [choice.message.content for choice in answer.choices] == [SAID, SAID]
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.headers["x-d8-model"] == CHAT
    assert raw.headers["x-d8-fallback"] == "no"
    assert answer._request_id == raw.headers["x-request-id"]


# ------------------------------------------------------------------------ tools, thoughts


def test_check_26_a_streamed_call_has_its_parts_once_and_arguments_that_parse(
    mesh: LlmMesh,
) -> None:
    asked = [{"role": "user", "content": "please look"}]
    *chunks, last = events_of(chat_sent(mesh, stream=True, messages=asked, tools=[LOOK]))
    assert last == DONE
    choices = [each["choices"][0] for each in chunks]
    deltas = [call for each in choices for call in each["delta"].get("tool_calls", ())]
    assert [each["index"] for each in deltas] == [0] * len(deltas)
    for name in ("id", "type"):
        assert len([each for each in deltas if name in each]) == 1
    assert len([each for each in deltas if "name" in each["function"]]) == 1
    arguments = json.loads("".join(each["function"]["arguments"] for each in deltas))
    assert arguments.keys() == {"place"}
    assert choices[-1]["finish_reason"] == "tool_calls"


def test_check_26_the_official_helper_puts_a_call_together(client: Any) -> None:
    asked = [{"role": "user", "content": "please look"}]
    with client.chat.completions.stream(model=CHAT, messages=asked, tools=[LOOK]) as stream:
        for _ in stream:
            pass
        answer = stream.get_final_completion()
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "look"
    assert json.loads(call.function.arguments).keys() == {"place"}
    assert answer.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ("none", []),
        ("auto", []),
        ("required", ["look"]),
        ({"type": "function", "function": {"name": "look"}}, ["look"]),
    ],
)
def test_check_26_a_choice_of_tools_is_obeyed(
    mesh: LlmMesh, choice: object, called: list[str], is_streamed: bool
) -> None:
    fields = {"tools": [LOOK], "tool_choice": choice}  # the question names no tool
    if is_streamed:
        *chunks, _ = events_of(chat_sent(mesh, stream=True, **fields))
        choices = [each["choices"][0] for each in chunks]
        calls = [call for each in choices for call in each["delta"].get("tool_calls", ())]
        reason = choices[-1]["finish_reason"]
    else:
        (found,) = chat_sent(mesh, **fields).json["choices"]
        calls, reason = found["message"].get("tool_calls", []), found["finish_reason"]
    assert [call["function"]["name"] for call in calls] == called
    assert all(json.loads(call["function"]["arguments"]).keys() == {"place"} for call in calls)
    assert reason == ("tool_calls" if called else "stop")


def test_check_26_functions_in_their_older_form_are_called(client: Any) -> None:
    answer = client.chat.completions.create(
        model=CHAT,
        messages=[{"role": "user", "content": "please look"}],
        functions=[LOOK["function"]],
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "function_call"
    assert choice.message.function_call.name == "look"


def test_check_28_a_call_without_content_and_its_result_reach_the_model_by_name(
    mesh: LlmMesh, client: Any
) -> None:
    call = {"name": "look", "arguments": '{"place": "the harbour"}'}
    client.chat.completions.create(
        model=CHAT,
        messages=[
            {"role": "user", "content": "check 28"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "call_28", "type": "function", "function": call}],
            },
            {"role": "tool", "tool_call_id": "call_28", "content": "ships"},
        ],
        tools=[LOOK],
    )
    _, asked, answered = last_chat(mesh, "check 28")["messages"]
    assert asked["tool_calls"][0]["function"] == {
        "name": "look",
        "arguments": {"place": "the harbour"},
    }
    assert (answered["tool_name"], answered["content"]) == ("look", "ships")


def test_check_29_thoughts_stand_apart_whole_and_streamed(mesh: LlmMesh) -> None:
    message = chat_sent(mesh, model=THINKER).json["choices"][0]["message"]
    assert message["content"] == SAID
    assert message["reasoning"] == message["reasoning_content"] == speech.THOUGHT
    *chunks, _ = events_of(chat_sent(mesh, model=THINKER, stream=True))
    deltas = [each["choices"][0]["delta"] for each in chunks]
    for name in ("reasoning", "reasoning_content"):
        assert "".join(delta.get(name, "") for delta in deltas) == speech.THOUGHT
    assert text_of(chunks) == SAID


def test_check_29_thinking_can_be_switched_off(mesh: LlmMesh) -> None:
    fields = {"model": THINKER, "reasoning_effort": "none"}
    message = chat_sent(mesh, **fields).json["choices"][0]["message"]
    assert "reasoning" not in message


# ------------------------------------------------------------------------ forms and bounds


def test_check_30_a_picture_reaches_the_model(mesh: LlmMesh, client: Any) -> None:
    messages = shown(f"data:image/png;base64,{PICTURE}")
    client.chat.completions.create(model=SEER, messages=messages)
    (message,) = last_chat(mesh, "what is this?")["messages"]
    assert message["images"] == [PICTURE]


def test_check_30_an_address_is_refused_and_not_fetched(mesh: LlmMesh, client: Any) -> None:
    before = list(mesh.standins[0].counters.bodies)
    messages = shown(f"{mesh.standins[0].url}/cat.png")
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=SEER, messages=messages)
    assert raised.value.param == "messages[0].content[1].image_url.url"
    assert list(mesh.standins[0].counters.bodies) == before


def test_check_31_the_newer_bound_is_kept(client: Any) -> None:
    answer = client.chat.completions.create(
        model=CHAT,
        messages=[{"role": "user", "content": "say 50 words"}],
        max_completion_tokens=5,
        max_tokens=40,
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens <= 5
    assert answer.choices[0].message.content == "w0 w1 w2 w3 w4"


class Weather(BaseModel):
    """What an answer is to be."""

    place: str
    degrees: int
    is_wet: bool


def test_check_32_an_answer_fits_its_schema(mesh: LlmMesh, client: Any) -> None:
    answer = client.chat.completions.parse(model=CHAT, messages=HELLO, response_format=Weather)
    assert isinstance(answer.choices[0].message.parsed, Weather)
    asked = last_chat(mesh, "is_wet")
    assert asked["format"]["required"] == ["place", "degrees", "is_wet"]


def test_check_32_any_json_is_json(client: Any) -> None:
    answer = client.chat.completions.create(
        model=CHAT, messages=HELLO, response_format={"type": "json_object"}
    )
    json.loads(answer.choices[0].message.content)


# ------------------------------------------------------------------------------- vectors


def test_check_33_vectors_are_the_same_in_every_encoding(mesh: LlmMesh, client: Any) -> None:
    def sent(**fields: Any) -> Any:
        answered = mesh.post("/v1/embeddings", {"model": EMBEDDER, "input": "a text", **fields})
        assert answered.status == 200
        return answered.json["data"][0]["embedding"]

    plain, floats, coded = sent(), sent(encoding_format="float"), sent(encoding_format="base64")
    assert plain == floats == pytest.approx(speech.vector("a text"), abs=1e-6)
    assert isinstance(coded, str)
    unpacked = struct.unpack(f"<{len(floats)}f", base64.b64decode(coded))
    assert unpacked == pytest.approx(floats, abs=1e-6)
    official_one = client.embeddings.create(model=EMBEDDER, input="a text")
    assert official_one.data[0].embedding == pytest.approx(floats, abs=1e-6)


def test_check_34_a_hundred_texts_keep_their_order(client: Any) -> None:
    texts = [f"text number {n}" for n in range(100)]
    answer = client.embeddings.create(model=EMBEDDER, input=texts)
    assert [each.index for each in answer.data] == list(range(100))
    for text, each in zip(texts, answer.data, strict=True):
        assert each.embedding == pytest.approx(speech.vector(text), abs=1e-6)
    assert len({tuple(each.embedding) for each in answer.data}) == 100
    assert answer.usage.total_tokens == answer.usage.prompt_tokens > 0


def test_check_34_more_texts_than_one_task_has_keep_their_order(client: Any) -> None:
    texts = [str(n) for n in range(600)]
    answer = client.embeddings.create(model=EMBEDDER, input=texts)
    expected = [pytest.approx(speech.vector(text), abs=1e-6) for text in texts]
    assert [each.embedding for each in answer.data] == expected


# -------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("is_streamed", [False, True])
def test_check_35_an_unknown_model_is_told_at_once_and_not_asked_for_again(
    mesh: LlmMesh, is_streamed: bool
) -> None:
    sent: list[object] = []
    http = openai.DefaultHttpxClient(event_hooks={"request": [sent.append]})
    with official(mesh, http_client=http) as client:
        with pytest.raises(openai.NotFoundError) as raised:
            client.chat.completions.create(model="nobody:7b", messages=HELLO, stream=is_streamed)
    assert raised.value.code == "model_not_found"
    assert raised.value.param == "model"
    assert len(sent) == 1
