"""OpenAI's own client, unmodified, at /v1/responses: over real sockets, whole and streamed."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any, Final

import openai
import pytest
import zstandard
from openai.types.responses import Response, ResponseFunctionToolCall
from pydantic import BaseModel

from tests.doors.llm_mesh import CHAT, PATIENCE_S, SEER, THINKER, LlmMesh, llm_mesh, machine
from tests.doors.openai.test_responses_stream import events_of
from tests.standin.faults import Kind
from tests.standin.speech import THOUGHT

RESPONSES: Final = "/v1/responses"
ASKS: Final = "Please say 12 words"
TWELVE: Final = " ".join(f"w{n}" for n in range(12))
TOOL: Final[Any] = {
    "type": "function",
    "name": "look",
    "description": "Looks at a place.",
    "parameters": {
        "type": "object",
        "properties": {"at": {"type": "string", "enum": ["the sky"]}},
        "required": ["at"],
    },
    "strict": False,
}
PICTURE: Final = base64.b64encode(b"\x89PNG picture").decode()


class Count(BaseModel):
    """A form for an answer."""

    n: int


@pytest.fixture(scope="module")
def shared() -> Iterator[LlmMesh]:
    with llm_mesh(machine(), machine()) as made:
        yield made


@pytest.fixture
def mesh(shared: LlmMesh) -> Iterator[LlmMesh]:
    yield shared
    shared.mend()


@pytest.fixture
def client(mesh: LlmMesh) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{mesh.url}/v1", api_key="any", max_retries=0, timeout=PATIENCE_S
    ) as made:
        yield made


def asked(**more: Any) -> Any:
    return {"model": CHAT, "input": ASKS} | more


def last_chat(mesh: LlmMesh) -> Any:
    (body,) = [body for standin in mesh.standins for body in standin.chats][-1:]
    return body


def said(response: Response) -> dict[str, Any]:
    """Return what two answers to one question have in common."""
    told = response.model_dump(include={"status", "usage", "model"})
    return told | {"text": response.output_text, "types": [each.type for each in response.output]}


def test_a_text_is_answered(mesh: LlmMesh, client: openai.OpenAI) -> None:
    response = client.responses.create(**asked(instructions="Be brief."))
    assert response.output_text == TWELVE
    assert (response.status, response.model, response.store) == ("completed", CHAT, False)
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert last_chat(mesh)["messages"][0] == {"role": "system", "content": "Be brief."}


def test_a_stream_grows_to_the_same_answer(client: openai.OpenAI) -> None:
    whole = client.responses.create(**asked())
    with client.responses.stream(**asked()) as stream:
        kinds = [event.type for event in stream]
        grown = stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.output_text.delta") > 1
    assert said(grown) == said(whole)


def test_the_client_that_waits_for_nothing_gets_the_same(mesh: LlmMesh) -> None:
    async def both() -> tuple[Response, str]:
        async with openai.AsyncOpenAI(
            base_url=f"{mesh.url}/v1", api_key="any", max_retries=0, timeout=PATIENCE_S
        ) as client:
            whole = await client.responses.create(**asked())
            stream = await client.responses.create(**asked(stream=True))
            deltas = [e.delta async for e in stream if e.type == "response.output_text.delta"]
            return whole, "".join(deltas)

    whole, grown = asyncio.run(both())
    assert whole.output_text == grown == TWELVE


def test_an_answer_is_parsed(client: openai.OpenAI) -> None:
    parsed = client.responses.parse(**asked(text_format=Count)).output_parsed
    assert isinstance(parsed, Count)
    with client.responses.stream(**asked(text_format=Count)) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Count)


def test_a_tool_is_called_and_its_result_goes_back(mesh: LlmMesh, client: openai.OpenAI) -> None:
    turns: list[Any] = [{"role": "user", "content": "Please look"}]
    response = client.responses.create(**asked(tools=[TOOL], input=turns))
    (call,) = [each for each in response.output if isinstance(each, ResponseFunctionToolCall)]
    assert (call.name, json.loads(call.arguments)) == ("look", {"at": "the sky"})
    turns += [each.model_dump(exclude_none=True) for each in response.output]
    turns.append({"type": "function_call_output", "call_id": call.call_id, "output": "blue"})
    assert client.responses.create(**asked(tools=[TOOL], input=turns)).output_text
    *_, called, told = last_chat(mesh)["messages"]
    assert called["tool_calls"][0]["function"]["arguments"] == {"at": "the sky"}
    assert (told["content"], told["tool_name"]) == ("blue", "look")


def test_a_call_is_streamed_as_json(client: openai.OpenAI) -> None:
    with client.responses.stream(**asked(tools=[TOOL], input="Please look")) as stream:
        done = [e for e in stream if e.type == "response.function_call_arguments.done"]
        (call,) = stream.get_final_response().output
    assert json.loads(done[0].arguments) == {"at": "the sky"}
    assert isinstance(call, ResponseFunctionToolCall)
    assert json.loads(call.arguments) == {"at": "the sky"}


def test_thoughts_are_items_of_their_own_and_go_back(mesh: LlmMesh, client: openai.OpenAI) -> None:
    wanted = asked(model=THINKER, reasoning={"effort": "high"})
    response = client.responses.create(**wanted)
    thought, text = response.output
    assert thought.type == "reasoning"
    assert thought.summary[0].text == THOUGHT
    assert response.output_text == TWELVE
    with client.responses.stream(**wanted) as stream:
        deltas = [e.delta for e in stream if e.type == "response.reasoning_summary_text.delta"]
        assert said(stream.get_final_response()) == said(response)
    assert "".join(deltas) == THOUGHT
    turns = [each.model_dump(exclude_none=True) for each in (thought, text)]
    client.responses.create(**wanted | {"input": [*turns, {"role": "user", "content": ASKS}]})
    assert last_chat(mesh)["messages"][0]["thinking"] == THOUGHT


def test_a_picture_reaches_the_model(mesh: LlmMesh, client: openai.OpenAI) -> None:
    shown = {"type": "input_image", "image_url": f"data:image/png;base64,{PICTURE}"}
    content = [shown, {"type": "input_text", "text": "What is it?"}]
    client.responses.create(**asked(model=SEER, input=[{"role": "user", "content": content}]))
    assert last_chat(mesh)["messages"][0]["images"] == [PICTURE]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_bound_that_is_used_up_is_told(mesh: LlmMesh, is_streamed: bool) -> None:
    told = mesh.post(RESPONSES, asked(max_output_tokens=5, stream=is_streamed))
    body = events_of(told.body)[-1]["response"] if is_streamed else told.json
    assert body["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}


def test_what_cannot_be_gone_on_with_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="whole conversation") as refused:
        client.responses.create(**asked(previous_response_id="resp_1"))
    assert refused.value.param == "previous_response_id"


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.responses.create(**asked(model="nobody-has-this"))
    assert refused.value.code == "model_not_found"


def test_a_stream_that_breaks_ends_as_failed(mesh: LlmMesh, client: openai.OpenAI) -> None:
    for standin in mesh.standins:
        standin.fault(Kind.CUT, after=3)
    stream = client.responses.create(**asked(stream=True))
    *said_before, last = list(stream)
    assert last.type == "response.failed"
    assert last.response.status == "failed"
    assert last.response.error is not None
    assert "task" in last.response.error.message
    pieces = [each.delta for each in said_before if each.type == "response.output_text.delta"]
    assert "".join(pieces) == "w0 w1 w2"  # what comes quickly comes together
    numbers = [event.sequence_number for event in (*said_before, last)]
    assert numbers == list(range(len(numbers)))


def test_a_coding_agents_request_is_taken_as_it_sends_it(mesh: LlmMesh) -> None:
    """Compressed, with tools that only OpenAI has, and fields that mean nothing here."""
    said = [{"type": "input_text", "text": ASKS}]
    body = asked(
        instructions="You are a coding agent.",
        input=[
            {
                "type": "message",
                "role": "developer",
                "content": [{"type": "input_text", "text": "x"}],
            },
            {"type": "message", "role": "user", "content": said},
        ],
        tools=[TOOL, {"type": "custom", "name": "apply_patch"}, {"type": "web_search"}],
        tool_choice="auto",
        parallel_tool_calls=False,
        reasoning=None,
        store=False,
        stream=True,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="c0ffee",
    )
    packed = zstandard.compress(json.dumps(body).encode())
    headers = {"Content-Encoding": "zstd", "Content-Type": "application/json"}
    told = mesh.post(RESPONSES, packed, headers=headers)
    assert told.status == 200
    last = events_of(told.body)[-1]
    assert last["type"] == "response.completed"
    assert last["response"]["output"][0]["content"][0]["text"] == TWELVE
    assert {"prompt_cache_key", "tools[1]: custom"} <= set(told.headers["x-d8-ignored"].split(", "))
    assert [each["function"]["name"] for each in last_chat(mesh)["tools"]] == ["look"]
