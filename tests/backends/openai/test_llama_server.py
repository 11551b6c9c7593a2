"""Real tokens: the backend against llama.cpp's own HTTP server, with a small model."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from d8mesh.backends.backend import ChatRun
from d8mesh.backends.embedded.packages import (
    GET_RUNTIME,
    GET_WEIGHTS,
    WEIGHTS_MODEL,
    has_runtime,
    weights_file,
)
from d8mesh.backends.embedded.process import ModelProcess
from d8mesh.backends.embedded.server import Order
from d8mesh.backends.openai import servers_of
from d8mesh.backends.openai.service import OpenAIBackend
from d8mesh.config import Config
from d8mesh.core.protocol.chat import ChatRequest, FinishReason, Piece, Prompt
from d8mesh.errors import BackendError, InvalidTaskError, TaskCancelledError

if not has_runtime() or weights_file() is None:
    pytest.skip(f"no real model here: {GET_RUNTIME}; {GET_WEIGHTS}", allow_module_level=True)

PATIENCE_S = 100
QUESTION = ({"role": "user", "content": "What is the capital of France?"},)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "size": {"type": "integer"}},
    "required": ["city", "size"],
}


@pytest.fixture(scope="module")
def server() -> Iterator[ModelProcess]:
    path = weights_file()
    assert path is not None
    order = Order(path=str(path), key="", threads=1, context=1024, slots=2)
    running = ModelProcess(WEIGHTS_MODEL, order)
    try:
        running.load(lambda: None, within_s=PATIENCE_S)
        yield running
    finally:
        running.end()


@pytest.fixture
def backend(server: ModelProcess) -> OpenAIBackend:
    config = Config(openai_hosts=(f"{server.url}/v1",), openai_key=server.key, temperature=0.0)
    (made,) = servers_of(config)
    return made


def run_of(**changes: Any) -> ChatRun:
    run = ChatRun(is_cancelled=lambda: False, deadline_s=PATIENCE_S)
    return replace(run, **changes)


def test_it_offers_its_model(backend: OpenAIBackend) -> None:
    seen = backend.probe()
    assert seen.is_up, seen.reason
    assert len(seen.models) == 1
    assert seen.details[seen.default].is_loaded


def test_a_wrong_key_is_refused(server: ModelProcess) -> None:
    (made,) = servers_of(Config(openai_hosts=(f"{server.url}/v1",), openai_key="wrong-key-5678"))
    with pytest.raises(BackendError):
        made.chat(ChatRequest(messages=QUESTION), run_of())


def test_it_answers_in_pieces_with_usage_and_times(backend: OpenAIBackend) -> None:
    pieces: list[Piece] = []
    done = backend.chat(
        ChatRequest(messages=QUESTION, max_tokens=24, options={"seed": 7, "top_k": 5}),
        run_of(on_piece=pieces.append),
    )
    assert done.text
    assert len([piece for piece in pieces if piece.text]) > 1
    assert done.ending.usage.prompt_tokens > 5
    assert 0 < done.ending.usage.completion_tokens <= 24
    assert done.ending.timing.output_s > 0
    assert done.ignored == ()


def test_it_stops_at_its_bound(backend: OpenAIBackend) -> None:
    done = backend.chat(ChatRequest(messages=QUESTION, max_tokens=2), run_of())
    assert done.ending.finish_reason is FinishReason.LENGTH
    assert done.ending.usage.completion_tokens == 2


def test_a_schema_holds(backend: OpenAIBackend) -> None:
    asked = ChatRequest(messages=QUESTION, max_tokens=80, more={"format": SCHEMA})
    answer = json.loads(backend.chat(asked, run_of()).text)
    assert isinstance(answer["city"], str)
    assert isinstance(answer["size"], int)


def test_any_json_is_an_object(backend: OpenAIBackend) -> None:
    asked = ChatRequest(messages=QUESTION, max_tokens=200, more={"format": "json"})
    done = backend.chat(asked, run_of())
    if done.ending.finish_reason is FinishReason.STOP:
        assert isinstance(json.loads(done.text), dict)
    assert done.text.lstrip().startswith("{")


def test_probabilities_come_with_the_tokens(backend: OpenAIBackend) -> None:
    more = {"logprobs": True, "top_logprobs": 2}
    done = backend.chat(ChatRequest(messages=QUESTION, max_tokens=3, more=more), run_of())
    first: Any = done.logprobs[0]
    assert first["logprob"] <= 0
    assert len(first["top_logprobs"]) == 2


def test_a_raw_prompt_is_gone_on_with(backend: OpenAIBackend) -> None:
    prompt = Prompt(text="The capital of France is", is_raw=True)
    done = backend.chat(ChatRequest(prompt=prompt, max_tokens=6), run_of())
    assert "Paris" in done.text


def test_who_cancels_stops_it_at_once(backend: OpenAIBackend) -> None:
    cancelled = threading.Event()
    run = run_of(on_piece=lambda piece: cancelled.set(), is_cancelled=cancelled.is_set)
    asked = ({"role": "user", "content": "Count from one to five hundred, in words."},)
    with pytest.raises(TaskCancelledError):
        backend.chat(ChatRequest(messages=asked, max_tokens=800), run)
    done = backend.chat(ChatRequest(messages=QUESTION, max_tokens=2), run_of())
    assert done.text


def test_a_prompt_that_is_too_long_fails_with_the_servers_words(backend: OpenAIBackend) -> None:
    asked = ({"role": "user", "content": "word " * 3000},)
    with pytest.raises(InvalidTaskError, match="longer than the context of the model"):
        backend.chat(ChatRequest(messages=asked), run_of())


def test_a_check_is_answered(backend: OpenAIBackend) -> None:
    seen = backend.probe()
    backend.check(seen.details[seen.default], within_s=PATIENCE_S)
    backend.load(seen.default, {}, within_s=PATIENCE_S)
