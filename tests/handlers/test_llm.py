"""The tasks that a language model answers, on a server that speaks Ollama's API."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from d8mesh.backends.ollama import OllamaBackend
from d8mesh.errors import (
    BackendDeadlineError,
    BackendError,
    InvalidTaskError,
    TaskCancelledError,
)
from d8mesh.handlers.llm import MAX_MESSAGES, llm_handlers, unfenced
from tests.ollama_server import OllamaServer
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
