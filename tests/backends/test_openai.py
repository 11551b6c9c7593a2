"""OpenAI-compatible services over real sockets: what is sent, what comes back, what is refused."""

from __future__ import annotations

import json
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from d8mesh.backends.backend import ChatRun, ModelInfo
from d8mesh.backends.openai import gemini_of, groq_of, servers_of
from d8mesh.backends.openai.endpoint import Endpoint
from d8mesh.backends.openai.service import OpenAIBackend
from d8mesh.backends.services import PoolListener, ServicePool
from d8mesh.config import Config
from d8mesh.core.protocol.chat import (
    ChatRequest,
    Completion,
    EmbeddingRequest,
    FinishReason,
    Piece,
    Prompt,
    Usage,
)
from d8mesh.core.protocol.messages import OfferedModel, Placement, Services
from d8mesh.errors import (
    BackendAnswerError,
    BackendError,
    BackendLimitError,
    BackendStalledError,
    BackendTooLargeError,
    BackendUnavailableError,
    InvalidTaskError,
    TaskCancelledError,
)
from tests.cloud_servers import (
    CALL,
    SIGNATURE,
    CloudServer,
    Prepared,
    Quota,
    day_over,
    gemini_429,
    minute_over,
    too_large,
)

PATIENCE_S = 30
QUESTION = ({"role": "user", "content": "one two"},)
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
SCHEMA = {"type": "object", "properties": {"answer": {"type": "integer"}}}


def backend_of(server: CloudServer, **settings: Any) -> OpenAIBackend:
    config = Config(
        groq_api_key=server.key,
        groq_base_url=server.url,
        gemini_api_key=server.key,
        gemini_base_url=server.url,
        openai_hosts=(server.url,),
        worker_type=server.kind,
        **settings,
    )
    make = {"groq": groq_of, "gemini": gemini_of}.get(server.kind, servers_of)
    (made,) = make(config)
    return made


@pytest.fixture
def groq() -> Iterator[CloudServer]:
    with CloudServer("groq") as running:
        yield running


@pytest.fixture
def gemini() -> Iterator[CloudServer]:
    with CloudServer("gemini") as running:
        yield running


@pytest.fixture(params=["vllm", "llama", "lmstudio"])
def lan(request: pytest.FixtureRequest) -> Iterator[CloudServer]:
    with CloudServer(request.param) as running:
        yield running


@pytest.fixture(params=["groq", "gemini", "vllm", "llama", "lmstudio"])
def any_server(request: pytest.FixtureRequest) -> Iterator[CloudServer]:
    with CloudServer(request.param) as running:
        yield running


def run_of(pieces: list[Piece] | None = None, **changes: Any) -> ChatRun:
    said: list[Piece] = [] if pieces is None else pieces
    run = ChatRun(on_piece=said.append, is_cancelled=lambda: False, deadline_s=PATIENCE_S)
    return replace(run, **changes)


def chat(backend: OpenAIBackend, **fields: Any) -> Completion:
    return backend.chat(ChatRequest(**({"messages": QUESTION} | fields)), run_of())


# --- what is there


def test_models_are_read_from_the_service_and_those_for_other_things_left_out(
    groq: CloudServer,
) -> None:
    seen = backend_of(groq).probe()
    assert seen.models == ("openai/gpt-oss-120b", "qwen/qwen3-32b")
    assert sorted(seen.unfit) == ["retired-8b", "whisper-large-v3"]
    assert seen.loaded == ()  # what wishes for no model gets the default, not any of them


def test_the_prefix_of_gemini_is_taken_off_and_models_for_vectors_told_apart(
    gemini: CloudServer,
) -> None:
    seen = backend_of(gemini).probe()
    assert seen.models == ("gemini-2.5-pro", "gemini-2.5-flash")
    assert seen.embedders == ("gemini-embedding-001",)
    assert seen.default == "gemini-2.5-flash"  # of which an account allows more


def test_a_default_model_that_is_gone_is_told_with_those_that_are_there(groq: CloudServer) -> None:
    seen = backend_of(groq, groq_model="llama-3.3-70b-versatile").probe()
    assert seen.is_up
    assert "GROQ_MODEL=llama-3.3-70b-versatile is not there" in seen.warning
    assert "qwen/qwen3-32b" in seen.warning


def test_a_default_model_answers_what_wishes_for_none(groq: CloudServer) -> None:
    backend = backend_of(groq, groq_model="qwen/qwen3-32b")
    assert chat(backend).model == "qwen/qwen3-32b"
    assert groq.bodies[0]["model"] == "qwen/qwen3-32b"


def test_in_the_cloud_the_list_is_not_read_each_time_on_the_lan_it_is(
    groq: CloudServer, lan: CloudServer
) -> None:
    for server, times in ((groq, 1), (lan, 3)):
        backend = backend_of(server)
        for _ in range(3):
            assert backend.probe().is_up
        assert sum(each.path.endswith("v1/models") for each in server.seen) == times


def test_a_file_of_llama_cpp_gets_a_name_that_can_travel_and_is_asked_by_its_own() -> None:
    with CloudServer("llama") as server:
        backend = backend_of(server)
        assert backend.probe().models == ("smollm2-135m",)
        assert chat(backend, model="smollm2-135m").model == "smollm2-135m"
        assert server.bodies[0]["model"] == "/models/smollm2-135m.gguf"


def test_lm_studio_says_which_models_are_loaded() -> None:
    with CloudServer("lmstudio") as server:
        seen = backend_of(server).probe()
        assert seen.models == ("qwen3-4b",)
        assert seen.embedders == ("text-embedding-nomic-embed-text-v1.5",)
        assert seen.loaded == ("text-embedding-nomic-embed-text-v1.5",)  # of which it says nothing
        assert seen.details["qwen3-4b"].can == {"completion", "vision", "tools"}


@pytest.mark.parametrize("data", [None, []])
def test_a_service_without_models_is_down(data: object) -> None:
    with CloudServer("vllm") as server:
        server.prepared_lists = [Prepared(body={"object": "list", "data": data})]
        seen = backend_of(server).probe()
        assert not seen.is_up
        assert "no models" in seen.reason


def test_a_service_that_is_not_there_is_down_and_says_where_it_was_looked_for() -> None:
    with CloudServer("vllm") as server:
        backend = backend_of(server)
    seen = backend.probe()
    assert (seen.is_up, seen.url) == (False, server.url)
    assert server.url in seen.reason
    with pytest.raises(BackendUnavailableError):
        chat(backend)


@pytest.mark.parametrize("kind", ["groq", "gemini"])
def test_a_wrong_key_is_told_with_its_variable_and_never_shown(kind: str) -> None:
    with CloudServer(kind) as server:
        right, server.key = server.key, "wrong-key-5678"
        backend = backend_of(server)
        server.key = right
        reason = backend.probe().reason
    assert f"check {kind.upper()}_API_KEY" in reason
    assert "wrong-key-5678" not in reason
    assert "wrong-key-5678" not in repr(backend)


# --- chats


def test_a_chat_is_streamed_and_its_usage_told(any_server: CloudServer) -> None:
    pieces: list[Piece] = []
    backend = backend_of(any_server)
    done = backend.chat(ChatRequest(messages=QUESTION), run_of(pieces))
    assert done.text == "You asked: one two"
    assert [piece.text for piece in pieces if piece.text] == ["You", " asked:", " one", " two"]
    assert done.ending.usage == Usage(11, 7)
    assert done.ending.finish_reason is FinishReason.STOP
    assert done.ignored == ()
    assert any_server.bodies[0]["stream_options"] == {"include_usage": True}


def test_only_the_right_address_gets_the_key(groq: CloudServer) -> None:
    backend = backend_of(groq)
    with CloudServer("vllm") as elsewhere:
        groq.prepared = [Prepared(302, {}, {"Location": f"{elsewhere.url}/chat/completions"})]
        with pytest.raises(BackendAnswerError, match="redirects"):
            chat(backend)
        assert elsewhere.seen == []


def test_temperature_and_length_are_said_in_the_words_of_each(any_server: CloudServer) -> None:
    chat(backend_of(any_server), temperature=0.0, max_tokens=2)
    body = any_server.bodies[0]
    if any_server.kind == "groq":
        assert body["max_completion_tokens"] == 2
        assert 0 < body["temperature"] < 1e-6
    else:
        assert (body["max_tokens"], body["temperature"]) == (2, 0.0)


def test_where_the_model_has_its_own_defaults_nothing_is_said_of_them(
    any_server: CloudServer,
) -> None:
    chat(backend_of(any_server), has_model_defaults=True)
    chat(backend_of(any_server), has_model_defaults=True, temperature=0.5, max_tokens=2)
    names = {"temperature", "max_tokens", "max_completion_tokens"}
    assert [len(names & body.keys()) for body in any_server.bodies] == [0, 2]


def test_a_choice_of_tools_is_handed_on(any_server: CloudServer) -> None:
    more = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    done = chat(backend_of(any_server), more=more)
    body = any_server.bodies[-1]
    assert body["tool_choice"] == "required"
    if any_server.kind == "gemini":  # it refuses a field that it does not know, by name
        assert done.ignored == ("parallel_tool_calls",)
    else:
        assert (done.ignored, body["parallel_tool_calls"]) == ((), False)


def test_the_odds_of_single_tokens_go_to_the_lan_and_are_named_in_the_cloud(
    groq: CloudServer, lan: CloudServer
) -> None:
    more = {"logit_bias": {"7": -100}, "min_tokens": 3}
    assert chat(backend_of(groq), more=more).ignored == ("logit_bias", "min_tokens")
    assert chat(backend_of(lan), more=more).ignored == ()
    assert {name: lan.bodies[0][name] for name in more} == more


def test_an_answer_at_its_bound_is_cut(any_server: CloudServer) -> None:
    done = chat(backend_of(any_server), max_tokens=2)
    assert done.ending.finish_reason is FinishReason.LENGTH


def test_what_a_provider_refuses_is_left_out_and_named(groq: CloudServer) -> None:
    options = {"seed": 7, "top_k": 3, "stop": ["x"]}
    done = chat(backend_of(groq), options=options, more={"logprobs": True, "keep_alive": "5m"})
    assert done.ignored == ("logprobs", "options.top_k")
    assert groq.bodies[0]["seed"] == 7
    assert not {"top_k", "logprobs", "keep_alive"} & groq.bodies[0].keys()


def test_gemini_never_gets_a_field_that_it_does_not_know(gemini: CloudServer) -> None:
    options = {"seed": 7, "frequency_penalty": 1.0, "top_p": 0.5, "min_p": 0.1}
    done = chat(backend_of(gemini), options=options, more={"top_logprobs": 3, "strange": 1})
    assert "options.seed" in done.ignored
    assert "strange" in done.ignored
    assert gemini.bodies[0]["top_p"] == 0.5


def test_servers_of_the_lan_get_options_and_probabilities(lan: CloudServer) -> None:
    done = chat(backend_of(lan), options={"seed": 7, "top_k": 3}, more={"logprobs": True})
    assert done.ignored == ()
    assert (lan.bodies[0]["seed"], lan.bodies[0]["top_k"]) == (7, 3)
    assert done.logprobs[0] == {"token": "You", "logprob": -0.1, "bytes": [89], "top_logprobs": []}


def test_a_field_that_a_server_refuses_by_name_is_left_out_from_then_on(lan: CloudServer) -> None:
    message = "Extra inputs are not permitted: stream_options; 'top_k' is no field"
    lan.prepared = [Prepared(400, {"object": "error", "message": message, "code": 400})]
    backend = backend_of(lan)
    done = chat(backend, options={"top_k": 3})
    assert done.text == "You asked: one two"
    assert done.ignored == ("options.top_k",)
    assert chat(backend, options={"top_k": 3}).ignored == ("options.top_k",)
    assert [("top_k" in body) for body in lan.bodies] == [True, False, False]


def test_thinking_that_a_model_cannot_leave_is_left_as_it_is(gemini: CloudServer) -> None:
    said = "Budget 0 is invalid. This model only works in thinking mode."
    gemini.prepared = [Prepared(400, [{"error": {"code": 400, "message": said}}])]
    done = chat(backend_of(gemini), more={"think": False})
    assert (done.text, done.ignored) == ("You asked: one two", ("think",))


def test_pictures_go_as_data_of_their_kind(any_server: CloudServer) -> None:
    asked = {"role": "user", "content": "what?", "images": ["iVBORw0KGgo=", "/9j/4AAQ"]}
    chat(backend_of(any_server), messages=(asked,))
    parts = any_server.bodies[0]["messages"][0]["content"]
    assert parts[0] == {"type": "text", "text": "what?"}
    urls = [part["image_url"]["url"] for part in parts[1:]]
    assert urls == ["data:image/png;base64,iVBORw0KGgo=", "data:image/jpeg;base64,/9j/4AAQ"]


def test_a_call_of_a_tool_is_an_object_here_and_comes_back_as_text(any_server: CloudServer) -> None:
    backend = backend_of(any_server)
    done = chat(backend, more={"tools": [TOOL]})
    assert done.ending.finish_reason is FinishReason.TOOL_CALLS
    call: Any = done.tool_calls[0]
    assert call["function"]["name"] == "add"
    assert call["function"]["arguments"] == CALL["arguments"]
    answer = {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [call]}
    result = {"role": "tool", "tool_name": "add", "content": "5"}
    again = chat(backend, messages=(*QUESTION, answer, result), more={"tools": [TOOL]})
    assert again.text == "You asked: 5"
    _, said, told = any_server.bodies[-1]["messages"]
    assert json.loads(said["tool_calls"][0]["function"]["arguments"]) == CALL["arguments"]
    assert told == {"role": "tool", "tool_call_id": "call_abc", "content": "5"}
    assert None not in said.values()


def test_the_signature_of_a_thought_comes_back_with_its_call(gemini: CloudServer) -> None:
    backend = backend_of(gemini)
    call: Any = chat(backend, more={"tools": [TOOL]}).tool_calls[0]
    assert call["extra_content"]["google"]["thought_signature"] == SIGNATURE
    bare = {key: value for key, value in call.items() if key != "extra_content"}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "5"}
    for sent, is_well in ((call, True), (bare, False)):
        answer = {"role": "assistant", "content": "", "tool_calls": [sent]}
        if is_well:
            assert chat(backend, messages=(*QUESTION, answer, result)).text == "You asked: 5"
        else:
            with pytest.raises(BackendError, match="thought_signature"):
                chat(backend, messages=(*QUESTION, answer, result))


def test_calls_without_ids_get_some_and_results_find_theirs_by_name(groq: CloudServer) -> None:
    calls: list[Any] = [{"function": {"name": name, "arguments": {}}} for name in ("a", "b")]
    messages = (
        *QUESTION,
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_name": "b", "content": "of b"},
        {"role": "tool", "content": "of a"},
    )
    chat(backend_of(groq), messages=messages)
    sent = groq.bodies[0]["messages"]
    ids = {call["function"]["name"]: call["id"] for call in sent[1]["tool_calls"]}
    assert len(set(ids.values())) == 2
    assert [each["tool_call_id"] for each in sent[2:]] == [ids["b"], ids["a"]]


def test_parallel_calls_with_one_index_are_told_apart(gemini: CloudServer) -> None:
    def part(call_id: str, name: str) -> str:
        call = {"index": 0, "id": call_id, "type": "function"}
        call_part = call | {"function": {"name": name, "arguments": '{"x": 1}'}}
        return "data: " + json.dumps(
            {"choices": [{"index": 0, "delta": {"tool_calls": [call_part]}}]}
        )

    last = 'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}'
    gemini.events = [part("1", "a"), part("2", "b"), part("", "c"), last, "data: [DONE]"]
    calls: list[Any] = list(chat(backend_of(gemini)).tool_calls)
    assert [call["function"]["name"] for call in calls] == ["a", "b", "c"]
    assert [call["function"]["index"] for call in calls] == [0, 1, 2]


@pytest.mark.parametrize(
    ("told", "extra"),
    [
        ({"stop_reason": "END"}, {"stop_reason": "END"}),
        ({"matched_stop": "END"}, {"matched_stop": "END"}),
        ({"stop_reason": None}, {}),
        ({"matched_stop": 128009}, {}),
    ],
)
def test_the_stop_sequence_that_ended_an_answer_is_handed_on(
    lan: CloudServer, told: dict[str, Any], extra: dict[str, Any]
) -> None:
    choice = {"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"} | told
    lan.events = ["data: " + json.dumps({"choices": [choice]}), "data: [DONE]"]
    assert dict(chat(backend_of(lan)).extra) == extra


def test_arguments_that_are_no_json_fail(lan: CloudServer) -> None:
    call = {"index": 0, "id": "1", "function": {"name": "a", "arguments": '{"x": '}}
    lan.events = [
        "data: " + json.dumps({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}),
        'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}',
        "data: [DONE]",
    ]
    with pytest.raises(BackendAnswerError, match="no JSON object"):
        chat(backend_of(lan))


@pytest.mark.parametrize("think", [True, "low", False])
def test_thinking_is_asked_for_in_the_words_of_each_and_kept_apart(
    any_server: CloudServer, think: object
) -> None:
    done = chat(backend_of(any_server), more={"think": think})
    body = any_server.bodies[0]
    told = {"reasoning_effort", "reasoning_format", "chat_template_kwargs"} & body.keys()
    assert len(told) == 1
    assert done.ignored == ()
    if "reasoning_effort" in told or "reasoning_format" in told:
        assert done.thinking == "let me think"
    assert done.text == "You asked: one two"


def test_a_schema_is_asked_for_without_a_stream_where_that_must_be(
    any_server: CloudServer,
) -> None:
    done = chat(backend_of(any_server), more={"format": SCHEMA})
    assert json.loads(done.text) == {"answer": 42}
    assert done.ending.usage == Usage(11, 7)
    body = any_server.bodies[0]
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert body["stream"] is (any_server.kind != "groq")


def test_groq_has_no_schema_beside_tools(groq: CloudServer) -> None:
    done = chat(backend_of(groq), more={"format": SCHEMA, "tools": [TOOL]})
    assert done.ignored == ("format",)
    assert done.tool_calls


def test_any_json_is_a_schema_on_the_lan_and_a_word_in_the_cloud(
    groq: CloudServer, lan: CloudServer
) -> None:
    for server, kind in ((groq, "json_object"), (lan, "json_schema")):
        chat(backend_of(server), more={"format": "json"})
        assert server.bodies[0]["response_format"]["type"] == kind


def test_a_prompt_becomes_a_chat_and_a_raw_one_a_completion(lan: CloudServer) -> None:
    backend = backend_of(lan)
    plain = Prompt(text="go on", system="be brief")
    assert chat(backend, messages=(), prompt=plain).text == "You asked: go on"
    assert [each["role"] for each in lan.bodies[0]["messages"]] == ["system", "user"]
    raw = Prompt(text="go on", is_raw=True)
    assert chat(backend, messages=(), prompt=raw).text == "You asked: go on"
    assert lan.asked[1].path.endswith("/v1/completions")
    gap = Prompt(text="def f(", suffix="return 1")
    chat(backend, messages=(), prompt=gap)
    assert lan.bodies[2]["suffix"] == "return 1"


def test_in_the_cloud_there_is_no_raw_prompt(groq: CloudServer) -> None:
    with pytest.raises(InvalidTaskError, match="raw: Groq has chats only"):
        chat(backend_of(groq), messages=(), prompt=Prompt(text="x", is_raw=True))
    assert groq.asked == []


def test_the_times_of_llama_cpp_are_taken_over() -> None:
    with CloudServer("llama") as server:
        timing = chat(backend_of(server)).ending.timing
    assert (timing.prompt_s, timing.output_s) == (0.05, 0.25)


def test_a_placement_says_which_model_runs(groq: CloudServer) -> None:
    backend = backend_of(groq)
    there = Placement(service=backend.service_id, model="qwen/qwen3-32b")
    done = backend.chat(ChatRequest(messages=QUESTION), run_of(placement=there))
    assert done.model == "qwen/qwen3-32b"
    gone = replace_model(there, "gone-7b")
    with pytest.raises(BackendUnavailableError, match="any more"):
        backend.chat(ChatRequest(messages=QUESTION), run_of(placement=gone))


def replace_model(placement: Placement, model: str) -> Placement:
    return Placement(service=placement.service, model=model)


def test_a_must_that_is_not_there_can_never_be_answered(groq: CloudServer) -> None:
    with pytest.raises(InvalidTaskError, match="model_strict"):
        chat(backend_of(groq), model="gone-7b", is_model_strict=True)


def test_who_cancels_ends_the_connection(any_server: CloudServer) -> None:
    any_server.token_delay_s = 0.5
    cancelled = threading.Event()
    run = run_of(is_cancelled=cancelled.is_set, on_piece=lambda piece: cancelled.set())
    with pytest.raises(TaskCancelledError):
        backend_of(any_server).chat(ChatRequest(messages=QUESTION), run)
    assert any_server.caller_left.wait(PATIENCE_S)


def test_a_service_that_falls_silent_is_given_up(lan: CloudServer) -> None:
    lan.token_delay_s = 60.0
    with pytest.raises(BackendStalledError):
        backend_of(lan).chat(
            ChatRequest(messages=QUESTION), run_of(first_token_s=0.3, token_gap_s=0.3)
        )
    assert lan.caller_left.wait(PATIENCE_S)


def test_the_arguments_of_a_long_call_are_a_sign_of_life(groq: CloudServer) -> None:
    def part(text: str, **more: object) -> str:
        call = {"index": 0, "function": {"arguments": text}, **more}
        return "data: " + json.dumps({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]})

    first = 'data: {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "1", "function": {"name": "a", "arguments": "{"}}]}}]}'  # noqa: E501 - as it comes
    last = 'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}'
    groq.events = [first, *(part(" ") for _ in range(8)), part("}"), last, "data: [DONE]"]
    groq.token_delay_s = 0.25
    done = backend_of(groq).chat(ChatRequest(messages=QUESTION), run_of(token_gap_s=1.5))
    assert done.tool_calls


# --- answers that are none


GOOD = 'data: {"choices": [{"index": 0, "delta": {"content": "hal"}, "finish_reason": null}]}'
STOP = 'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}'


def test_a_reason_and_an_orderly_end_are_success_without_done(lan: CloudServer) -> None:
    lan.events = [GOOD, STOP]
    assert chat(backend_of(lan)).text == "hal"


@pytest.mark.parametrize(
    "events",
    [
        [GOOD],
        [GOOD, "data: [DONE]"],
        ["data: [DONE]"],
        [],
        [": only a remark"],
        ['data: {"choices": [{"index": 0, "delta": {"content": 7}, "finish_reason": "stop"}]}'],
        ["data: {broken"],
    ],
)
def test_a_stream_without_a_reason_is_a_failure(lan: CloudServer, events: list[str]) -> None:
    lan.events = events
    with pytest.raises(BackendAnswerError):
        chat(backend_of(lan))


@pytest.mark.parametrize("after", [1, 3])
def test_a_stream_that_is_cut_is_a_failure(any_server: CloudServer, after: int) -> None:
    any_server.cut_after = after
    with pytest.raises(BackendAnswerError, match="broke"):
        chat(backend_of(any_server))


@pytest.mark.parametrize(
    "line",
    [
        'data: {"error": {"message": "it broke", "code": 400}}',
        'data: {"object": "error", "message": "it broke", "code": 400}',
        'data: [{"error": {"message": "it broke", "code": 500}}]',
        'data: {"error": "it broke"}',
        '{"error": {"message": "it broke"}}',
        'event: error\ndata: {"error": {"message": "it broke"}}',
    ],
)
def test_an_error_inside_a_stream_is_one(lan: CloudServer, line: str) -> None:
    lan.events = [GOOD, line, "data: [DONE]"]
    with pytest.raises(BackendError, match="it broke") as caught:
        chat(backend_of(lan))
    assert not isinstance(caught.value, BackendUnavailableError)


def test_an_error_with_the_status_200_is_one(lan: CloudServer) -> None:
    lan.prepared = [Prepared(200, {"error": "Unexpected endpoint or method."})]
    with pytest.raises(BackendError, match="Unexpected endpoint"):
        chat(backend_of(lan))


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "it broke", "type": "server_error"}},
        [{"error": {"message": "it broke", "code": 500, "status": "INTERNAL"}}],
        {"object": "error", "message": "it broke", "code": 500},
        {"error": "it broke"},
        b"it broke",
    ],
)
def test_errors_are_read_in_every_form(any_server: CloudServer, body: object) -> None:
    any_server.prepared = [Prepared(500, body)]
    with pytest.raises(BackendError, match="it broke"):
        chat(backend_of(any_server))


def test_a_server_that_loads_its_model_is_busy_and_no_failure() -> None:
    with CloudServer("llama") as server:
        server.loads = 1
        backend = backend_of(server)
        with pytest.raises(BackendUnavailableError, match="Loading model"):
            chat(backend)
        assert chat(backend).text == "You asked: one two"


def test_a_withheld_answer_is_a_failure(gemini: CloudServer) -> None:
    gemini.events = [GOOD, STOP.replace("stop", "content_filter"), "data: [DONE]"]
    with pytest.raises(BackendError, match="content_filter"):
        chat(backend_of(gemini))


def test_a_page_of_a_gateway_is_no_answer(any_server: CloudServer) -> None:
    any_server.prepared = [Prepared(200, b"<html>Sign in</html>", content_type="text/html")]
    with pytest.raises(BackendAnswerError):
        chat(backend_of(any_server))


# --- 429, 413 and 503


def test_a_429_costs_no_attempt_and_says_for_how_long_nothing_is_sent(groq: CloudServer) -> None:
    backend = backend_of(groq)
    groq.prepared = [minute_over("groq", "openai/gpt-oss-120b", "tokens", 8000, 4.77)]
    with pytest.raises(BackendLimitError, match=r"4\.77s"):
        chat(backend, model="openai/gpt-oss-120b")
    budget = backend.budget("openai/gpt-oss-120b")
    assert budget is not None
    assert 4.5 < budget.blocked_s < 7
    with pytest.raises(BackendLimitError):  # and nothing is
        chat(backend, model="openai/gpt-oss-120b")
    assert len(groq.asked) == 1
    assert chat(backend, model="qwen/qwen3-32b").text  # another model has bounds of its own


def test_without_a_header_the_seconds_are_read_from_the_text(groq: CloudServer) -> None:
    backend = backend_of(groq)
    answer = minute_over("groq", "qwen/qwen3-32b", "requests", 60, 42.5)
    groq.prepared = [Prepared(429, answer.body)]
    with pytest.raises(BackendLimitError):
        chat(backend, model="qwen/qwen3-32b")
    budget = backend.budget("qwen/qwen3-32b")
    assert budget is not None
    assert 42 < budget.blocked_s < 44


def test_the_delay_of_gemini_is_obeyed(gemini: CloudServer) -> None:
    backend = backend_of(gemini)
    quota = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"
    gemini.prepared = [gemini_429(quota, 2, "45.837906927s")]
    with pytest.raises(BackendLimitError):
        chat(backend, model="gemini-2.5-pro")
    budget = backend.budget("gemini-2.5-pro")
    assert budget is not None
    assert 45 < budget.blocked_s < 47
    assert budget.minute_requests == 2  # learnt


def test_the_delay_of_a_days_quota_is_not_believed_of_gemini(gemini: CloudServer) -> None:
    backend = backend_of(gemini)
    gemini.prepared = [day_over("gemini", "gemini-2.5-pro", 100)]
    with pytest.raises(BackendLimitError):
        chat(backend, model="gemini-2.5-pro")
    budget = backend.budget("gemini-2.5-pro")
    assert budget is not None
    assert budget.blocked_s == pytest.approx(budget.day_left_s, abs=5)
    assert "day's quota" in budget.blocked_why


def test_a_model_that_is_not_in_the_tier_is_offered_no_more(gemini: CloudServer) -> None:
    backend = backend_of(gemini)
    quota = "GenerateRequestsPerDayPerProjectPerModel-FreeTier"
    gemini.prepared = [gemini_429(quota, 0, "22s")]
    with pytest.raises(BackendLimitError):
        chat(backend, model="gemini-2.5-pro")
    seen = backend.probe()
    assert seen.models == ("gemini-2.5-flash",)
    assert "not part of what this account may use" in seen.unfit["gemini-2.5-pro"]
    assert chat(backend, model="gemini-2.5-flash").text


def test_what_can_never_fit_is_given_back_once_and_then_fails_with_what_to_do(
    groq: CloudServer,
) -> None:
    backend = backend_of(groq)
    groq.prepared = [too_large("openai/gpt-oss-120b", 8000, 32_979)] * 3
    with pytest.raises(BackendLimitError, match="can never fit"):  # another service may take it
        chat(backend, model="openai/gpt-oss-120b")
    for _ in range(2):
        with pytest.raises(BackendTooLargeError, match="can never fit") as caught:
            chat(backend, model="openai/gpt-oss-120b")
        assert "ask another model" in str(caught.value)
    budget = backend.budget("openai/gpt-oss-120b")
    assert budget is not None
    assert (budget.minute_tokens, budget.blocked_s) == (8000, 0)


def test_what_is_known_to_be_too_large_is_not_sent(groq: CloudServer) -> None:
    long = ({"role": "user", "content": "word " * 20_000},)
    backend = backend_of(groq)
    for kind in (BackendLimitError, BackendTooLargeError):
        with pytest.raises(kind, match="can never fit"):
            chat(backend, messages=long, model="openai/gpt-oss-120b")
    assert groq.asked == []


def test_questions_that_are_too_large_pause_no_model(groq: CloudServer) -> None:
    backend = backend_of(groq)
    pool = ServicePool([backend])
    pool.look()
    there = Placement(service=backend.service_id, model="openai/gpt-oss-120b")
    question = ChatRequest(messages=({"role": "user", "content": "word " * 20_000},))
    for _ in range(6):
        with pytest.raises(BackendError, match="can never fit"):
            pool.chat(question, run_of(placement=there))
    assert pool.services[0].paused("openai/gpt-oss-120b") == ""


@pytest.mark.parametrize("status", [498, 503])
def test_an_overloaded_service_is_left_alone_shortly_and_longer_each_time(
    groq: CloudServer, status: int
) -> None:
    backend = backend_of(groq)
    groq.prepared = [Prepared(status, {"error": {"message": "capacity exceeded"}})]
    with pytest.raises(BackendLimitError, match="capacity exceeded"):
        chat(backend, model="qwen/qwen3-32b")
    budget = backend.budget("qwen/qwen3-32b")
    assert budget is not None
    assert 0 < budget.blocked_s < 10


def test_a_model_that_has_gone_is_looked_for_again(groq: CloudServer) -> None:
    backend = backend_of(groq)
    backend.probe()
    groq.models = groq.models[:1]
    with pytest.raises(BackendUnavailableError, match="any more"):
        chat(backend, model="qwen/qwen3-32b")
    assert chat(backend, model="qwen/qwen3-32b").model == "openai/gpt-oss-120b"


def test_bounds_are_learnt_from_headers(groq: CloudServer) -> None:
    backend = backend_of(groq)
    groq.quota = Quota(day_requests=500, minute_tokens=12_000)
    chat(backend, model="qwen/qwen3-32b")
    budget = backend.budget("qwen/qwen3-32b")
    assert budget is not None
    assert (budget.day_requests_bound, budget.minute_tokens) == (500, 12_000)
    assert [tokens for _, tokens in budget.recent] == [18]  # as it was used, not as estimated


def test_what_was_used_is_known_after_a_restart(groq: CloudServer, tmp_path: Path) -> None:
    limits, folder = (("groq", "day_requests", 2),), tmp_path / "1"
    folder.mkdir()
    for _ in range(2):
        backend = backend_of(groq, cloud_limits=limits)
        backend.keep_in(folder)
        chat(backend, model="qwen/qwen3-32b")
    backend = backend_of(groq, cloud_limits=limits)
    backend.keep_in(folder)
    with pytest.raises(BackendLimitError, match="all 2 requests of the day"):
        chat(backend, model="qwen/qwen3-32b")
    assert len(groq.asked) == 2
    text = "".join(path.read_text("utf-8") for path in folder.iterdir())
    assert groq.key not in text


def test_the_id_of_a_service_tells_nothing_of_its_key(groq: CloudServer) -> None:
    backend = backend_of(groq)
    assert len(backend.service_id) == len("groq-") + 12
    assert groq.key not in backend.service_id
    assert backend_of(groq).service_id == backend.service_id


# --- vectors, checks


@pytest.mark.parametrize("is_base64", [False, True])
def test_vectors_come_as_numbers_or_base64_each_at_its_place(is_base64: bool) -> None:
    with CloudServer("lmstudio") as server:
        server.takes_base64_only = is_base64
        backend = backend_of(server)
        model = "text-embedding-nomic-embed-text-v1.5"
        made = backend.embed(EmbeddingRequest(texts=("a", "bbb"), model=model), run_of())
    assert made.vectors == ((1.0, 0.5, -1.0), (3.0, 0.5, -1.0))
    assert (made.model, made.usage.prompt_tokens) == (model, 2)


def test_groq_makes_no_vectors(groq: CloudServer) -> None:
    with pytest.raises(InvalidTaskError, match="makes no embeddings"):
        backend_of(groq).embed(EmbeddingRequest(texts=("a",), model="e"), run_of())


@pytest.mark.parametrize(
    "data",
    [[], [{"index": 0, "embedding": []}], [{"index": 0, "embedding": [None]}], [{"x": 1}], None,
     [{"index": 0, "embedding": "AAA="}]],
)  # fmt: skip
def test_vectors_that_are_none_fail(gemini: CloudServer, data: object) -> None:
    gemini.prepared = [Prepared(200, {"object": "list", "data": data})]
    with pytest.raises(BackendAnswerError):
        backend_of(gemini).embed(
            EmbeddingRequest(texts=("a",), model="gemini-embedding-001"), run_of()
        )


def test_a_check_asks_for_a_word_or_a_vector(gemini: CloudServer) -> None:
    backend = backend_of(gemini)
    details = backend.probe().details
    for name in ("gemini-2.5-flash", "gemini-embedding-001"):
        backend.check(details[name], within_s=PATIENCE_S)
    assert [each.path.rpartition("/")[2] for each in gemini.asked] == ["completions", "embeddings"]
    gemini.prepared = [Prepared(500, b"dead")]
    with pytest.raises(BackendError, match="dead"):
        backend.check(ModelInfo(name="gemini-2.5-flash"), within_s=PATIENCE_S)


# --- who is offered


def test_a_key_alone_offers_no_cloud() -> None:
    config = Config(groq_api_key="test-key-1234", gemini_api_key="test-key-1234")
    assert groq_of(config) == []
    assert gemini_of(config) == []
    assert groq_of(replace(config, worker_type="groq")) != []
    assert gemini_of(replace(config, worker_type="groq")) == []
    assert groq_of(Config(worker_type="groq")) == []
    assert servers_of(Config()) == []


# --- as one of a worker's services


def test_a_pool_tells_of_a_budget_when_it_is_used_and_not_as_time_passes(groq: CloudServer) -> None:
    measured: list[tuple[str, list[OfferedModel]]] = []
    backend = backend_of(groq)
    told = PoolListener(measured=lambda service, models: measured.append((service, list(models))))
    pool = ServicePool([backend], told=told)
    pool.look()
    (offered,) = (service.offered() for service in pool.services)
    assert (offered.id, offered.is_cloud) == (backend.service_id, True)
    for _ in range(3):
        pool.look()
    assert measured == []
    there = Placement(service=offered.id, model="qwen/qwen3-32b")
    done = pool.chat(ChatRequest(messages=QUESTION), run_of(placement=there))
    assert done.origin is not None
    assert (done.origin.backend, done.origin.is_cloud) == ("groq", True)
    service, models = measured[-1]
    assert service == backend.service_id
    (budget,) = (model.budget for model in models if model.name == "qwen/qwen3-32b")
    assert budget is not None
    assert budget.day_requests == 1


def test_a_429_pauses_no_model_and_is_told_before_the_task_goes_back(groq: CloudServer) -> None:
    measured: list[OfferedModel] = []
    told = PoolListener(measured=lambda service, models: measured.extend(models))
    backend = backend_of(groq)
    pool = ServicePool([backend], told=told)
    pool.look()
    groq.prepared = [minute_over("groq", "qwen/qwen3-32b", "tokens", 6000, 30.0)]
    there = Placement(service=backend.service_id, model="qwen/qwen3-32b")
    with pytest.raises(BackendLimitError):
        pool.chat(ChatRequest(messages=QUESTION), run_of(placement=there))
    last = measured[-1]
    assert last.budget is not None
    assert last.budget.blocked_s > 25
    assert last.paused == ""


def test_a_server_of_the_lan_has_the_id_of_its_place_and_no_budget(lan: CloudServer) -> None:
    pool = ServicePool([backend_of(lan)])
    pool.look()
    (offered,) = (service.offered() for service in pool.services)
    assert offered.id.endswith(f":{lan.port}")
    assert offered.why == ""
    assert not offered.is_cloud
    assert {model.budget for model in offered.models} == {None}


# --- services that mean harm, or are out of order


@pytest.mark.parametrize("where", range(0, 1200, 37))
def test_no_part_of_a_key_is_shown_wherever_a_text_is_cut(where: int) -> None:
    key = "gsk_" + "k3y" * 30
    endpoint = Endpoint("Groq", "http://127.0.0.1:1", key)
    assert "k3y" not in endpoint.redacted("x" * where + key)


def test_a_list_that_lies_deep_makes_a_service_down_and_no_more(lan: CloudServer) -> None:
    backend = backend_of(lan)
    for depth in (600, 100_000):
        lan.prepared_lists = [Prepared(200, ("[" * depth + "]" * depth).encode())]
        assert not backend.probe().is_up


def test_what_is_larger_than_what_was_asked_for_is_not_read_to_its_end(
    gemini: CloudServer, lan: CloudServer
) -> None:
    lan.prepared_lists = [Prepared(200, b'{"data": [' + b"[]," * 2_000_000 + b"[]]}")]
    assert "more than an answer may hold" in backend_of(lan).probe().reason
    gemini.prepared = [Prepared(200, b'{"data": [' + b"[]," * 200_000 + b"[]]}")]
    with pytest.raises(BackendTooLargeError):
        backend_of(gemini).embed(
            EmbeddingRequest(texts=("a",), model="gemini-embedding-001"), run_of()
        )


@pytest.mark.parametrize("vector", ["[" * 600 + "]" * 600, "[1" + "0" * 400 + "]"])
def test_vectors_beyond_all_bounds_fail(gemini: CloudServer, vector: str) -> None:
    gemini.prepared = [Prepared(200, f'{{"data": [{{"embedding": {vector}}}]}}'.encode())]
    with pytest.raises(BackendError):
        backend_of(gemini).embed(
            EmbeddingRequest(texts=("a",), model="gemini-embedding-001"), run_of()
        )


def test_nonsense_figures_keep_within_what_can_be_told_to_the_mesh(groq: CloudServer) -> None:
    backend = backend_of(groq)
    pool = ServicePool([backend])
    pool.look()
    there = Placement(service=backend.service_id, model="qwen/qwen3-32b")
    usage = {"prompt_tokens": 2**53, "total_tokens": 10**60, "prompt_time": 1e300}
    choice = {"message": {"content": "x"}, "finish_reason": "stop"}
    groq.prepared = [Prepared(200, {"choices": [choice], "usage": usage})]
    pool.chat(ChatRequest(messages=QUESTION), run_of(placement=there))
    (offered,) = (service.offered() for service in pool.services)
    sent = Services(types=[], services=[offered], held_ids=[], held_services=[], held_models=[])
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=Services) == sent


def test_parts_that_say_nothing_are_not_kept(groq: CloudServer) -> None:
    last = 'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}'
    groq.events = ["data: {}"] * 20_000 + [last, "data: [DONE]"]
    tracemalloc.start()
    try:
        chat(backend_of(groq))
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "error",
    [
        {"message": "This model's maximum context length is 4096 tokens.", "type": "BadRequest"},
        {"message": "Please reduce the length", "code": "context_length_exceeded"},
        {
            "message": "the request exceeds the available context size",
            "type": "exceed_context_size_error",
        },
    ],
)
def test_a_question_longer_than_the_context_is_not_asked_again(
    lan: CloudServer, error: dict[str, object]
) -> None:
    lan.prepared = [Prepared(400, {"error": error})]
    with pytest.raises(InvalidTaskError, match="longer than the context of the model"):
        chat(backend_of(lan))
    assert len(lan.bodies) == 1
