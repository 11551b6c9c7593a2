"""The tasks that a language model answers, on a server that speaks Ollama's API."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

from d8mesh.backends.backend import ChatRun
from d8mesh.backends.ollama import OllamaBackend
from d8mesh.backends.services.pool import ServicePool
from d8mesh.core.protocol.chat import (
    ChatRequest,
    Completion,
    EmbeddingRequest,
    Embeddings,
    Origin,
)
from d8mesh.core.protocol.messages import Placement
from d8mesh.errors import (
    BackendDeadlineError,
    BackendError,
    InvalidTaskError,
    TaskCancelledError,
    TaskFailedError,
)
from d8mesh.handlers.llm import embedding_handlers, is_worth_retrying, llm_handlers
from d8mesh.handlers.message_fields import MAX_MESSAGES
from d8mesh.handlers.thoughts import unfenced
from tests.ollama_server import OllamaServer
from tests.ollama_standin import OllamaStandin
from tests.standin.faults import Kind
from tests.task_context import Context

PATIENCE_S = 30
QUESTION = {"messages": [{"role": "user", "content": "How are you?"}]}


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with OllamaServer() as running:
        yield running


def run(
    server: OllamaServer, kind: str, data: dict[str, Any], context: Context | None = None
) -> Any:
    backend = OllamaBackend(server.url, default_model="qwen2.5:3b")
    return llm_handlers(backend)[kind](data, context or Context())


def test_an_agent_action_answers_its_messages(server: OllamaServer) -> None:
    context = Context()
    result = run(server, "agent_action", QUESTION, context)
    assert result["success"] is True
    assert result["output"] == "You asked: How are you?" == "".join(map(str, context.emitted))
    assert result["model"] == "qwen2.5:3b"
    assert result["tokens_used"] == 18
    assert result["duration_s"] >= 0
    assert "model_requested" not in result


def test_a_model_that_is_not_offered_is_replaced_and_the_result_says_so(
    server: OllamaServer,
) -> None:
    result = run(server, "agent_action", QUESTION | {"model": "llama-3.3-70b"})
    assert (result["model"], result["model_requested"]) == ("qwen2.5:3b", "llama-3.3-70b")


def test_the_requested_model_temperature_and_tokens_reach_the_service(
    server: OllamaServer,
) -> None:
    more = {"model": "deepseek-r1:8b", "temperature": 0, "max_tokens": 9}
    result = run(server, "agent_action", QUESTION | more)
    assert result["model"] == "deepseek-r1:8b"
    assert server.chats[0]["options"] == {"temperature": 0.0, "num_predict": 9}
    assert server.chats[0]["messages"] == QUESTION["messages"]


def test_generated_code_comes_without_its_fence(server: OllamaServer) -> None:
    server.answer = lambda messages: "```python\nprint('hi')\n```\n"
    result = run(server, "code_generation", {"prompt": "say hi", "language": "python"})
    assert result["output"] == "print('hi')"
    system, user = server.chats[0]["messages"]
    assert "python" in system["content"]
    assert user == {"role": "user", "content": "say hi"}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("```\nx = 1\n```", "x = 1"),
        ("  ```py\nx = 1\n\ny = 2\n```  \n", "x = 1\n\ny = 2"),
        ("<think>so ```many``` thoughts</think>\n```py\nx = 1\n```", "x = 1"),
        ("Here:\n```py\nx = 1\n```", "Here:\n```py\nx = 1\n```"),
        ("```py\nx\n```\nand\n```py\ny\n```", "```py\nx\n```\nand\n```py\ny\n```"),
        ("```", "```"),
        ("", ""),
    ],
)
def test_only_an_answer_that_is_one_fence_loses_it(text: str, code: str) -> None:
    assert unfenced(text) == code


def test_cancelling_stops_the_model(server: OllamaServer) -> None:
    server.behaviour = "stall"
    context = Context()
    ended: list[BaseException] = []

    def work() -> None:
        try:
            run(server, "agent_action", QUESTION, context)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert context.has_emitted.wait(PATIENCE_S)
    context.cancel()
    thread.join(PATIENCE_S)
    assert [type(error) for error in ended] == [TaskCancelledError]
    assert server.caller_left.wait(PATIENCE_S)


def test_an_attempt_whose_time_is_over_fails_with_a_code(server: OllamaServer) -> None:
    with pytest.raises(BackendDeadlineError):
        run(server, "agent_action", QUESTION, Context(remaining_s=-1.0))


def test_a_service_that_fails_fails_the_task(server: OllamaServer) -> None:
    server.behaviour = "error"
    with pytest.raises(BackendError, match="the model runner has stopped"):
        run(server, "agent_action", QUESTION)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "Missing field: messages"),
        ({"messages": []}, "messages: expected a list"),
        ({"messages": "hi"}, "messages: expected a list"),
        ({"messages": ["hi"]}, r"messages\[0\]: expected an object"),
        ({"messages": [{"role": "boss", "content": "x"}]}, r"messages\[0\].role: expected one of"),
        ({"messages": [{"role": [], "content": "x"}]}, r"messages\[0\].role: expected one of"),
        ({"messages": [{"role": "user", "content": 1}]}, r"messages\[0\].content: expected a text"),
        ({"messages": [{"role": "user", "content": "x"}] * (MAX_MESSAGES + 1)}, "at most 1000"),
        (QUESTION | {"model": "../../x"}, "model: expected"),
        (QUESTION | {"model": "http://evil/x"}, "model: expected"),
        (QUESTION | {"model": "-rm"}, "model: expected"),
        (QUESTION | {"model": "a\n"}, "model: expected"),
        (QUESTION | {"model": "x" * 10_000}, "model: expected"),
        (QUESTION | {"model": 7}, "model: expected"),
        (QUESTION | {"temperature": 2.5}, "temperature: expected a number from 0 to 2"),
        (QUESTION | {"temperature": "hot"}, "temperature: expected"),
        (QUESTION | {"temperature": float("nan")}, "temperature: expected"),
        (QUESTION | {"max_tokens": 0}, "max_tokens: expected"),
        (QUESTION | {"max_tokens": True}, "max_tokens: expected"),
        (QUESTION | {"max_tokens": 1.5}, "max_tokens: expected a whole number"),
    ],
)
def test_a_wrong_agent_action_names_the_field(
    server: OllamaServer, data: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidTaskError, match=said):
        run(server, "agent_action", data)
    assert server.requests == []


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"language": "python"}, "Missing field: prompt"),
        ({"prompt": " "}, "prompt: expected a text"),
        ({"prompt": 1}, "prompt: expected a text"),
        ({"prompt": "x", "language": ""}, "language: expected"),
        ({"prompt": "x", "language": "a\nb"}, "language: expected"),
        ({"prompt": "x", "language": "x" * 65}, "language: expected"),
    ],
)
def test_a_wrong_code_generation_names_the_field(
    server: OllamaServer, data: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidTaskError, match=said):
        run(server, "code_generation", data)


# --- what a caller sends is handed on, refused or named ---------------------------------

PICTURE = "iVBORw0KGgo="
CALL = {"id": "call_1", "function": {"index": 0, "name": "add", "arguments": {"a": 1}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "object", "properties": {"b": {"minimum": 1}}}},
        },
    },
}


def test_all_that_a_message_may_carry_reaches_the_service(server: OllamaServer) -> None:
    messages = [
        {"role": "user", "content": "add", "images": [PICTURE]},
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [CALL]},
        {"role": "tool", "content": "2", "tool_name": "add", "tool_call_id": "call_1"},
    ]
    run(server, "agent_action", {"messages": messages})
    assert server.chats[0]["messages"] == messages


def test_what_other_interfaces_call_otherwise_is_understood(server: OllamaServer) -> None:
    call = {"id": "call_1", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "x", "images": [f"data:image/png;base64,{PICTURE}"]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "name": "add"},
    ]
    run(server, "agent_action", {"messages": messages})
    user, assistant, tool = server.chats[0]["messages"]
    assert user["images"] == [PICTURE]
    assert assistant["content"] == ""
    assert assistant["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert tool == {"role": "tool", "content": "2", "tool_name": "add"}


def test_tools_format_options_and_the_rest_reach_the_service(server: OllamaServer) -> None:
    more: dict[str, Any] = {
        "tools": [TOOL],
        "format": {"type": "object"},
        "think": "low",
        "keep_alive": "1m",
        "truncate": False,
        "logprobs": True,
        "top_logprobs": 3,
    }
    options = {"top_p": 0.5, "seed": 1, "stop": ["x"], "temperature": 0.25, "num_predict": 3}
    run(server, "agent_action", QUESTION | more | {"options": options})
    asked = server.chats[0]
    assert {key: asked[key] for key in more} == more
    assert asked["options"] == options


def test_calls_of_tools_and_thoughts_come_back_in_the_result(server: OllamaServer) -> None:
    server.extra = {"tool_calls": [CALL], "thinking": "hm"}
    server.logprobs = [{"token": "You", "logprob": -0.5}]
    result = run(server, "agent_action", QUESTION | {"tools": [TOOL]})
    assert (result["tool_calls"], result["thinking"]) == ([CALL], "hm")
    assert result["logprobs"] == server.logprobs


def test_fields_that_mean_nothing_are_named_in_the_result_and_told_once(
    server: OllamaServer,
) -> None:
    told: list[str] = []
    handlers = llm_handlers(OllamaBackend(server.url), warn=told.append)
    for _ in range(2):
        result: Any = handlers["agent_action"](QUESTION | {"temprature": 1, "mine": 2}, Context())
        assert result["ignored"] == ["mine", "temprature"]
    assert told == ["agent_action has no such fields in its data: mine, temprature"]


# --- models -----------------------------------------------------------------------------


def test_another_model_than_the_one_wished_for_is_told_once(server: OllamaServer) -> None:
    told: list[str] = []
    handlers = llm_handlers(OllamaBackend(server.url), warn=told.append)
    for _ in range(2):
        result: Any = handlers["agent_action"](QUESTION | {"model": "llama9"}, Context())
        assert result["model_requested"] == "llama9"
    assert len(told) == 1
    assert "'llama9'" in told[0]
    assert "'deepseek-r1:8b' answers" in told[0]


def test_a_model_that_is_a_must_and_not_there_names_the_installed_ones(
    server: OllamaServer,
) -> None:
    must = QUESTION | {"model": "llama9", "model_strict": True}
    with pytest.raises(InvalidTaskError, match=r"'llama9' is not .*: deepseek-r1:8b, qwen2.5:3b"):
        run(server, "agent_action", must)
    server.models = (*server.models, "llama9:latest")  # pulled just now
    assert run(server, "agent_action", must)["model"] == "llama9:latest"


@pytest.mark.parametrize(
    ("wished", "why"),
    [
        ("nomic-embed-text", "makes embeddings"),
        ("other-embed:1b", "makes embeddings"),
        ("gpt-oss:120b-cloud", "Ollama's cloud"),
        ("mine", "Ollama's cloud"),
    ],
)
def test_a_model_that_can_never_chat_here_is_refused_as_a_must_and_replaced_as_a_wish(
    server: OllamaServer, wished: str, why: str
) -> None:
    server.models = ("nomic-embed-text:latest", "mine:latest", "qwen2.5:3b")
    server.remote_hosts["mine:latest"] = "https://ollama.com:443"
    with pytest.raises(InvalidTaskError, match=f"{why}.*models to chat with: qwen2.5:3b"):
        run(server, "agent_action", QUESTION | {"model": wished, "model_strict": True})
    assert server.chats == []
    result = run(server, "agent_action", QUESTION | {"model": wished})
    assert (result["model"], result["model_requested"]) == ("qwen2.5:3b", wished)


# --- prompts ----------------------------------------------------------------------------


def placed(standin: OllamaStandin, kind: str, data: dict[str, Any], context: Context) -> Any:
    return llm_handlers(OllamaBackend(standin.url))[kind](data, context)


def test_a_prompt_is_gone_on_with_and_its_context_comes_back() -> None:
    context = Context()
    with OllamaStandin() as standin:
        data = {"prompt": "say 3 words", "system": "be brief", "context": [1, 2]}
        result = placed(standin, "generate", data, context)
        assert result["output"] == "".join(map(str, context.emitted))
        assert len(result["output"].split()) == 3
        assert result["finish_reason"] == "stop"
        assert result["context"]
        assert "extra" not in result
        path, _, body = standin.counters.bodies[-1]
        raw = placed(standin, "generate", {"prompt": "say 1 words", "raw": True}, Context())
    assert (path, body["system"], body["context"]) == ("/api/generate", "be brief", [1, 2])
    assert "context" not in raw


# --- partial output ---------------------------------------------------------------------


def test_pieces_are_objects_with_thoughts_calls_and_probabilities() -> None:
    tool = {"type": "function", "function": {"name": "add"}}
    asked = {"messages": [{"role": "user", "content": "say 2 words"}], "model": "deepseek-r1:8b"}
    probable = asked | {"logprobs": True, "top_logprobs": 1, "pieces": True}
    calling = asked | {"messages": [{"role": "user", "content": "add"}], "tools": [tool]}
    with OllamaStandin() as standin:
        context = Context()
        result = placed(standin, "agent_action", probable, context)
        pieces: list[Any] = context.emitted
        assert "".join(each.get("thinking", "") for each in pieces) == result["thinking"] != ""
        assert "".join(each.get("text", "") for each in pieces) == result["output"]
        told = [row for each in pieces for row in each.get("logprobs", [])]
        assert told == result["logprobs"] != []
        assert all(pieces)
        context = Context()
        result = placed(standin, "agent_action", calling | {"pieces": True}, context)
        called: list[Any] = context.emitted
        assert [call for each in called for call in each.get("tool_calls", [])] == (
            result["tool_calls"]
        )
        assert result["finish_reason"] == "tool_calls"
        context = Context()
        result = placed(standin, "agent_action", asked, context)
        assert "".join(map(str, context.emitted)) == result["output"]


def test_the_first_piece_says_who_answers_and_no_other_one_does() -> None:
    asked = {
        "messages": [{"role": "user", "content": "say 5 words"}],
        "model": "qwen2.5",
        "pieces": True,
    }
    with OllamaStandin() as standin:
        pool = ServicePool([OllamaBackend(standin.url)])
        pool.look()
        context = Context()
        pooled: Any = llm_handlers(pool)["agent_action"](asked, context)
        alone = Context()
        llm_handlers(OllamaBackend(standin.url))["agent_action"](asked, alone)
    first, *others = [dict(each) for each in cast("list[dict[str, Any]]", context.emitted)]
    assert first == {
        "text": "w0",
        "origin": {
            "model": "qwen2.5:3b",
            "service": pooled["service"],
            "machine": pooled["machine"],
            "backend": "ollama",
            "is_cloud": False,
        },
    }
    assert others
    assert not any("origin" in each for each in others)
    assert alone.emitted[0] == {"text": "w0", "origin": {"model": "qwen2.5:3b"}}


def test_vectors_tell_what_they_took() -> None:
    with OllamaStandin(load_s=0.01) as standin:
        handlers = embedding_handlers(OllamaBackend(standin.url))
        asked = {"input": ["a b"], "model": "nomic-embed-text"}
        result: Any = handlers["embed"](asked, Context())
    assert result["timing"]["load_s"] > 0
    assert result["tokens_used"] == 2


# --- no answer --------------------------------------------------------------------------


def test_thoughts_that_used_all_tokens_are_a_failure_that_says_so_and_holds_them() -> None:
    asked = {"messages": [{"role": "user", "content": "x"}], "model": "deepseek-r1:8b"}
    with OllamaStandin() as standin:
        standin.fault(Kind.EMPTY)
        result = placed(standin, "agent_action", asked | {"max_tokens": 9}, Context())
    assert result["success"] is False
    assert result["error"].startswith("thinking used all tokens before the answer began")
    assert (result["finish_reason"], result["truncated"], result["output"]) == ("length", True, "")
    assert result["thinking"]
    assert result["usage"]["completion_tokens"] == 9
    failure = TaskFailedError(result["error"], result=result)
    assert not is_worth_retrying(failure)
    assert is_worth_retrying(BackendError("x"))


@pytest.mark.parametrize(
    ("asked", "extra", "said"),
    [
        ({"format": "json"}, {}, "empty, though a format is asked for"),
        ({}, {"thinking": "hm"}, "thought and then answered nothing"),
    ],
)
def test_an_answer_without_text_is_a_failure_where_one_must_be_there(
    server: OllamaServer, asked: dict[str, Any], extra: dict[str, Any], said: str
) -> None:
    server.answer = lambda messages: ""
    server.extra = extra
    result = run(server, "agent_action", QUESTION | asked)
    assert (result["success"], said in result["error"]) == (False, True)
    failure = TaskFailedError(result["error"], result=result)
    assert is_worth_retrying(failure)


def test_an_answer_may_be_empty(server: OllamaServer) -> None:
    server.answer = lambda messages: ""
    assert run(server, "agent_action", QUESTION)["success"] is True


# --- where it ran -----------------------------------------------------------------------


class Elsewhere:
    """A pool whose services are in the cloud, and pass over a field."""

    origin = Origin(service="groq-1", machine="api.groq.com", backend="groq", is_cloud=True)

    def chat(self, request: ChatRequest, run: ChatRun) -> Completion:
        assert run.placement is not None
        model = run.placement.model
        return Completion(text="x", model=model, origin=self.origin, ignored=("logprobs",))

    def embed(self, request: EmbeddingRequest, run: ChatRun) -> Embeddings:
        assert run.placement is not None
        local = replace(self.origin, is_cloud=False)
        vectors = ((1.0,),) * len(request.texts)
        return Embeddings(vectors=vectors, model=run.placement.model, origin=local)


def test_a_result_says_where_it_ran_and_what_another_model_was_asked_for() -> None:
    context = Context(placement=Placement(service="groq-1", model="big"))
    handlers = llm_handlers(Elsewhere()) | embedding_handlers(Elsewhere())
    result: Any = handlers["agent_action"](
        QUESTION | {"models": ["small", "big"], "cloud": "yes", "stream": True}, context
    )
    assert {key: result[key] for key in ("machine", "service", "backend", "is_cloud")} == {
        "machine": "api.groq.com", "service": "groq-1", "backend": "groq", "is_cloud": True,
    }  # fmt: skip
    assert (result["model"], result["model_requested"]) == ("big", "small")
    assert result["ignored"] == ["logprobs", "stream"]
    made: Any = handlers["embed"]({"model": "small", "input": "x"}, context)
    assert (made["service"], made["model_requested"]) == ("groq-1", "small")
    assert "is_cloud" not in made


def test_models_that_the_caller_named_are_no_surprise() -> None:
    told: list[str] = []
    handlers = llm_handlers(Elsewhere(), warn=told.append)
    context = Context(placement=Placement(service="groq-1", model="big"))
    handlers["agent_action"](QUESTION | {"models": ["small", "big"]}, context)
    assert told == []


# --- load options -----------------------------------------------------------------------


def test_options_that_would_load_a_model_anew_are_named_with_what_to_set_instead(
    server: OllamaServer,
) -> None:
    told: list[str] = []
    data = QUESTION | {"num_ctx": 8, "shift": False, "options": {"num_gpu": 1, "seed": 2}}
    handlers = llm_handlers(OllamaBackend(server.url), warn=told.append)
    result: Any = handlers["agent_action"](data, Context())
    assert [each.partition(" ")[0] for each in result["ignored"]] == [
        "num_ctx", "options.num_gpu", "shift",
    ]  # fmt: skip
    assert "D8_LOAD_OPTIONS" in result["ignored"][0]
    assert len(told) == 1
    assert server.chats[0]["options"].keys() == {"seed", "temperature", "num_predict"}
    assert "shift" not in server.chats[0]


def test_what_the_service_says_beyond_the_vocabulary_is_handed_on(server: OllamaServer) -> None:
    server.extra = {"mood": "good"}
    assert run(server, "agent_action", QUESTION)["extra"] == {"message": {"mood": "good"}}
