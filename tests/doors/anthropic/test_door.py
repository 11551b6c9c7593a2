"""Anthropic's own client, unmodified, against a mesh: over real sockets, whole and streamed."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any, Final

import anthropic
import pytest
from anthropic.types import Message, TextBlock, ThinkingBlock, ToolUseBlock

from d8mesh.doors.anthropic.door import anthropic_door
from d8mesh.http.application import Application
from d8mesh.http.guard import Guard, Rejections
from tests.doors.anthropic.test_message_stream import events_of
from tests.doors.llm_mesh import CHAT, PATIENCE_S, SEER, THINKER, LlmMesh, llm_mesh, machine
from tests.http.calls import call
from tests.standin.faults import Kind
from tests.standin.speech import THOUGHT

MESSAGES: Final = "/v1/messages"
ASKS: Final[Any] = [{"role": "user", "content": "Please say 12 words"}]
TWELVE: Final = " ".join(f"w{n}" for n in range(12))
TOOL: Final[Any] = {
    "name": "look",
    "description": "Looks at a place.",
    "input_schema": {
        "type": "object",
        "properties": {"at": {"type": "string", "enum": ["the sky"]}},
        "required": ["at"],
    },
}
THINKS: Final[Any] = {"type": "enabled", "budget_tokens": 1024}
KEY: Final = "correct-horse-battery"
PICTURE: Final = base64.b64encode(b"\x89PNG picture").decode()


@pytest.fixture(scope="module")
def shared() -> Iterator[LlmMesh]:
    with llm_mesh(machine(), machine()) as made:
        yield made


@pytest.fixture
def mesh(shared: LlmMesh) -> Iterator[LlmMesh]:
    yield shared
    shared.mend()


@pytest.fixture
def client(mesh: LlmMesh) -> Iterator[anthropic.Anthropic]:
    with client_of(mesh) as made:
        yield made


def client_of(mesh: LlmMesh, **more: Any) -> anthropic.Anthropic:
    settings: dict[str, Any] = {"api_key": "any", "max_retries": 0, "timeout": PATIENCE_S}
    return anthropic.Anthropic(base_url=mesh.url, **settings | more)


def asked(**more: Any) -> Any:
    return {"model": CHAT, "max_tokens": 500, "messages": ASKS} | more


def chats(mesh: LlmMesh) -> list[Any]:
    """Return the bodies that the machines were asked."""
    return [body for standin in mesh.standins for body in standin.chats]


def text_of(message: Message) -> str:
    return "".join(block.text for block in message.content if isinstance(block, TextBlock))


def all_of(message: Message) -> dict[str, Any]:
    """Return what two answers to one question have in common."""
    return message.model_dump(include={"content", "stop_reason", "model", "role", "usage"})


# --------------------------------------------------------------------------------- answers


def test_a_message_is_answered(mesh: LlmMesh, client: anthropic.Anthropic) -> None:
    message = client.messages.create(**asked(system="Be brief."))
    assert text_of(message) == TWELVE
    assert (message.stop_reason, message.model, message.role) == ("end_turn", CHAT, "assistant")
    assert message.usage.output_tokens >= 12
    assert message.usage.input_tokens > 0
    assert message._request_id is not None
    assert message._request_id.startswith("req_")
    assert [body["messages"][0] for body in chats(mesh)] == [
        {"role": "system", "content": "Be brief."}
    ]


def test_a_stream_grows_to_the_same_message(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(**asked())
    with client.messages.stream(**asked()) as stream:
        texts = list(stream.text_stream)
        grown = stream.get_final_message()
        assert stream.request_id is not None
    assert len(texts) > 1
    assert "".join(texts) == TWELVE
    assert all_of(grown) == all_of(whole)


def test_the_client_that_waits_for_nothing_gets_the_same(mesh: LlmMesh) -> None:
    async def both() -> tuple[Message, Message]:
        async with anthropic.AsyncAnthropic(
            base_url=mesh.url, api_key="any", max_retries=0, timeout=PATIENCE_S
        ) as client:
            whole = await client.messages.create(**asked())
            async with client.messages.stream(**asked()) as stream:
                return whole, await stream.get_final_message()

    whole, grown = asyncio.run(both())
    assert text_of(whole) == TWELVE
    assert all_of(grown) == all_of(whole)


def test_programs_that_ask_for_the_beta_get_the_same(client: anthropic.Anthropic) -> None:
    message = client.beta.messages.create(**asked(), betas=["any-2026-01-01"])
    assert [block.type for block in message.content] == ["text"]


def test_events_are_named_and_in_order(mesh: LlmMesh) -> None:
    told = mesh.post(MESSAGES, asked(stream=True))
    assert told.status == 200
    assert told.headers["content-type"] == "text/event-stream"
    kinds = [event["type"] for event in events_of(told.body)]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[3:-3]) == {"content_block_delta"}


@pytest.mark.parametrize("is_streamed", [False, True])
def test_headers_tell_who_answered(mesh: LlmMesh, is_streamed: bool) -> None:
    headers = mesh.post(MESSAGES, asked(stream=is_streamed)).headers
    assert headers["x-d8-model"] == CHAT
    assert headers["x-d8-fallback"] == "no"
    assert headers["x-d8-machine"]
    assert headers["x-d8-task"] in {task["task_id"] for task in mesh.tasks()}
    assert headers["request-id"] == headers["x-request-id"]


def test_what_has_no_effect_is_named(mesh: LlmMesh) -> None:
    wanted = asked(metadata={"user_id": "u"}, thinking=THINKS, model=THINKER, max_tokens=2000)
    told = mesh.post(MESSAGES, wanted)
    assert told.headers["x-d8-ignored"] == "metadata, thinking.budget_tokens"
    assert "x-d8-ignored" not in mesh.post(MESSAGES, asked()).headers


def test_a_bound_of_tokens_is_kept_and_told(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**asked(max_tokens=5))
    assert message.stop_reason == "max_tokens"
    assert len(text_of(message).split()) <= 5


# ----------------------------------------------------------------------- tools and thoughts


def test_a_tool_is_called_and_its_result_goes_back(
    mesh: LlmMesh, client: anthropic.Anthropic
) -> None:
    question: Any = {"role": "user", "content": "Please look"}
    message = client.messages.create(**asked(tools=[TOOL], messages=[question]))
    (call,) = [block for block in message.content if isinstance(block, ToolUseBlock)]
    assert message.stop_reason == "tool_use"
    assert (call.name, call.input) == ("look", {"at": "the sky"})
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "blue"}
    turns: Any = [question, message.to_param(), {"role": "user", "content": [result]}]
    again = client.messages.create(**asked(tools=[TOOL], messages=turns))
    assert again.stop_reason == "end_turn"
    *_, called, told = chats(mesh)[-1]["messages"]
    assert called["tool_calls"][0]["function"]["arguments"] == {"at": "the sky"}
    assert told["content"] == "blue"
    assert told["tool_name"] == "look"


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "look"}])
def test_a_call_can_be_demanded(client: anthropic.Anthropic, choice: Any) -> None:
    message = client.messages.create(**asked(tools=[TOOL], tool_choice=choice))
    assert message.stop_reason == "tool_use"
    (call,) = message.content
    assert isinstance(call, ToolUseBlock)
    assert (call.name, call.input) == ("look", {"at": "the sky"})


def test_a_call_can_be_forbidden(mesh: LlmMesh, client: anthropic.Anthropic) -> None:
    question: Any = [{"role": "user", "content": "Please look"}]
    wanted = asked(tools=[TOOL], tool_choice={"type": "none"}, messages=question)
    assert client.messages.create(**wanted).stop_reason == "end_turn"
    assert not chats(mesh)[-1].get("tools")


def test_a_call_is_streamed_as_json(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        **asked(tools=[TOOL], messages=[{"role": "user", "content": "Please look"}])
    ) as stream:
        parts = [event.partial_json for event in stream if event.type == "input_json"]
        message = stream.get_final_message()
    assert json.loads("".join(parts)) == {"at": "the sky"}
    assert message.stop_reason == "tool_use"
    assert isinstance(message.content[-1], ToolUseBlock)
    assert message.content[-1].input == {"at": "the sky"}


def test_thoughts_come_apart_and_go_back(mesh: LlmMesh, client: anthropic.Anthropic) -> None:
    wanted = asked(model=THINKER, thinking=THINKS, max_tokens=2000)
    message = client.messages.create(**wanted)
    thought, text = message.content
    assert isinstance(thought, ThinkingBlock)
    assert thought.thinking == THOUGHT
    assert thought.signature
    assert isinstance(text, TextBlock)
    assert text.text == TWELVE
    with client.messages.stream(**wanted) as stream:
        assert all_of(stream.get_final_message()) == all_of(message)
    turns: Any = [*ASKS, message.to_param(), *ASKS]
    client.messages.create(**wanted | {"messages": turns})
    assert chats(mesh)[-1]["messages"][1]["thinking"] == THOUGHT


def test_a_model_that_thinks_does_not_if_nobody_asks_it(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**asked(model=THINKER))
    assert [block.type for block in message.content] == ["text"]


def test_a_picture_reaches_the_model(mesh: LlmMesh, client: anthropic.Anthropic) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": PICTURE}
    content: Any = [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]
    client.messages.create(**asked(model=SEER, messages=[{"role": "user", "content": content}]))
    assert chats(mesh)[-1]["messages"][0]["images"] == [PICTURE]


def test_an_answer_can_be_parsed(client: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    config: Any = {"format": {"type": "json_schema", "schema": schema}}
    message = client.messages.create(**asked(output_config=config))
    assert isinstance(json.loads(text_of(message))["n"], int)


def test_a_coding_agents_request_is_taken_as_it_sends_it(mesh: LlmMesh) -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    call = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "the sky"}}
    result = {
        "type": "tool_result",
        "tool_use_id": "toolu_1",
        "content": [{"type": "text", "text": "blue"}],
    }
    body = asked(
        system=[
            {"type": "text", "text": "You are an agent."},
            {"type": "text", "text": "x", **mark},
        ],
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "<reminder>"},
                    {"type": "text", "text": "Go."},
                ],
            },
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "Hm.", "signature": "s"}, call],
            },
            {
                "role": "user",
                "content": [result | mark, {"type": "text", "text": "Please say 12 words"}],
            },
        ],
        tools=[TOOL | mark, TOOL | {"name": "go", "type": "custom", "strict": True}],
        thinking={"type": "adaptive"},
        output_config={"effort": "high"},
        context_management={"edits": []},
        metadata={"user_id": "u"},
        max_tokens=32_000,
        stream=True,
    )
    told = mesh.post(f"{MESSAGES}?beta=true", body, headers={"anthropic-beta": "a,b"})
    events = events_of(told.body)
    assert events[-1]["type"] == "message_stop"
    assert told.headers["x-d8-ignored"] == "context_management, metadata"
    (sent,) = chats(mesh)
    roles = ["system", "user", "assistant", "tool", "user"]
    assert [message["role"] for message in sent["messages"]] == roles


# ---------------------------------------------------------------------------------- errors


def test_an_unknown_model_is_not_found(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as refused:
        client.messages.create(**asked(model="nobody-has-this"))
    body: Any = refused.value.body
    assert body["error"]["type"] == "not_found_error"
    assert body["request_id"] == refused.value.request_id
    assert refused.value.response.headers["x-should-retry"] == "false"


def test_a_model_that_cannot_do_it_is_a_bad_request(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="tools"):
        client.messages.create(**asked(model=SEER, tools=[TOOL]))


def test_a_model_that_never_thinks_answers_who_wishes_for_thoughts(mesh: LlmMesh) -> None:
    told = mesh.post(MESSAGES, asked(thinking=THINKS, max_tokens=2000))
    assert [block["type"] for block in told.json["content"]] == ["text"]
    assert told.headers["x-d8-ignored"] == "thinking.budget_tokens, thinking"


def test_what_is_wrong_is_named_by_its_path(client: anthropic.Anthropic) -> None:
    block: Any = {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}
    with pytest.raises(anthropic.BadRequestError, match=r"messages\.0\.content\.0\.source\.type"):
        client.messages.create(**asked(messages=[{"role": "user", "content": [block]}]))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}"])
def test_a_body_that_is_none_is_a_bad_request(mesh: LlmMesh, body: bytes) -> None:
    told = mesh.post(MESSAGES, body)
    assert told.status == 400
    assert told.json["error"]["type"] == "invalid_request_error"


def test_what_there_is_not_is_refused_in_the_same_form(
    mesh: LlmMesh, client: anthropic.Anthropic
) -> None:
    with pytest.raises(anthropic.NotFoundError, match="tokens"):
        client.messages.count_tokens(model=CHAT, messages=ASKS)
    with pytest.raises(anthropic.NotFoundError, match="batches"):
        client.messages.batches.create(requests=[])
    with pytest.raises(anthropic.NotFoundError, match="batches"):
        client.messages.batches.list()
    with pytest.raises(anthropic.NotFoundError, match="batches"):
        client.messages.batches.cancel("msgbatch_1")
    told = mesh.get(MESSAGES)
    assert told.status == 405
    assert told.json["type"] == "error"


def test_a_machine_that_fails_before_its_first_word_is_not_seen(
    mesh: LlmMesh, client: anthropic.Anthropic
) -> None:
    mesh.standins[0].fault(Kind.FAST_FAIL)
    for _ in range(3):
        assert text_of(client.messages.create(**asked())) == TWELVE
        with client.messages.stream(**asked()) as stream:
            assert stream.get_final_text() == TWELVE


def test_a_stream_that_breaks_raises_at_the_client(
    mesh: LlmMesh, client: anthropic.Anthropic
) -> None:
    for standin in mesh.standins:
        standin.fault(Kind.CUT, after=3)
    with (
        pytest.raises(anthropic.APIStatusError, match="task") as broken,
        client.messages.stream(**asked()) as stream,
    ):
        list(stream)
    body: Any = broken.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] in ("api_error", "overloaded_error")


def test_a_broken_stream_has_no_end(mesh: LlmMesh) -> None:
    for standin in mesh.standins:
        standin.fault(Kind.ERROR_LINE, after=3)
    told = mesh.post(MESSAGES, asked(stream=True))
    events = events_of(told.body)
    kinds = [event["type"] for event in events]
    assert kinds[-1] == "error"
    pieces = [each["delta"]["text"] for each in events if each["type"] == "content_block_delta"]
    assert "".join(pieces) == " ".join(TWELVE.split()[:3])  # what comes quickly comes together
    assert not {"message_stop", "message_delta"} & set(kinds)


def test_a_request_that_fails_everywhere_has_a_status(mesh: LlmMesh) -> None:
    for standin in mesh.standins:
        standin.fault(Kind.FAST_FAIL)
    told = mesh.post(MESSAGES, asked())
    assert told.status >= 500
    assert told.json["type"] == "error"
    assert told.json["error"]["type"] in ("api_error", "overloaded_error", "timeout_error")
    assert told.headers["x-d8-task"] in told.json["error"]["message"]


def test_the_same_key_gets_the_same_message(mesh: LlmMesh, client: anthropic.Anthropic) -> None:
    keyed: Any = {"extra_headers": {"Idempotency-Key": "one-of-anthropics"}}
    whole = client.messages.create(**asked(), **keyed)
    with client.messages.stream(**asked(), **keyed) as stream:
        grown = stream.get_final_message()
    assert grown.id == whole.id
    assert all_of(grown) == all_of(whole)
    assert len(chats(mesh)) == 1
    with pytest.raises(anthropic.ConflictError):
        client.messages.create(**asked(max_tokens=499), **keyed)


def test_who_leaves_stops_the_model(mesh: LlmMesh, client: anthropic.Anthropic) -> None:
    for standin in mesh.standins:
        standin.set_speed(20)
    try:
        many: Any = [{"role": "user", "content": "say 400 words"}]
        with client.messages.stream(**asked(messages=many, max_tokens=1000)) as stream:
            next(iter(stream.text_stream))
        for standin in mesh.standins:
            standin.wait_until(lambda standin=standin: standin.running == 0)  # type: ignore[misc]
        assert sum(len(standin.counters.cancelled) for standin in mesh.standins) == 1
    finally:
        for standin in mesh.standins:
            standin.set_speed(1)


def test_a_key_in_anthropics_header_may_carry_a_priority(mesh: LlmMesh) -> None:
    with client_of(mesh, api_key="any;priority=3") as client:
        told = client.messages.with_raw_response.create(**asked())
    (task,) = [each for each in mesh.tasks() if each["task_id"] == told.headers["x-d8-task"]]
    assert task["priority"] == 3


def test_models_are_listed_in_the_same_form(client: anthropic.Anthropic) -> None:
    names = [model.id for model in client.models.list(limit=2)]
    assert {CHAT, THINKER, SEER} <= set(names)
    assert client.models.retrieve(CHAT).id == CHAT
    with pytest.raises(anthropic.NotFoundError) as refused:
        client.models.retrieve("nobody-has-this")
    body: Any = refused.value.body
    assert body["error"]["type"] == "not_found_error"


@pytest.mark.parametrize(
    ("peer", "headers", "status", "kind"),
    [
        ("192.168.1.5", {}, 401, "authentication_error"),
        ("192.168.1.5", {"x-api-key": "another-key-than-that"}, 401, "authentication_error"),
        ("192.168.1.5", {"x-api-key": f"{KEY};priority=2"}, 400, "invalid_request_error"),
        ("127.0.0.1", {}, 400, "invalid_request_error"),
        ("127.0.0.1", {"origin": "https://evil.example"}, 403, "permission_error"),
        ("127.0.0.1", {"content-length": "99999999"}, 413, "request_too_large"),
    ],
)
def test_a_refusal_before_the_call_has_the_same_form(
    peer: str, headers: dict[str, str], status: int, kind: str
) -> None:
    never_asked: Any = None
    door, rejections = anthropic_door(never_asked, never_asked), Rejections()
    application = Application([door], Guard(keys=[KEY]), rejections)
    told = asyncio.run(call(application, "POST", MESSAGES, peer=peer, headers=headers, body=b"{}"))
    assert told.status_code == status
    assert told.json["type"] == "error"
    assert told.json["error"]["type"] == kind
