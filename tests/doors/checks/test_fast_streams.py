"""A model that makes a thousand tokens a second: each arrives once, in order, and is counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.doors.llm_mesh import CHAT, LlmMesh, llm_mesh, machine

WORDS: Final = 3000
SAID: Final = [f"w{n}" for n in range(WORDS)]


@pytest.fixture(scope="module")
def mesh() -> Iterator[LlmMesh]:
    with llm_mesh(machine(tokens_per_s=1000, prompt_tokens_per_s=0)) as made:
        yield made


def streamed(mesh: LlmMesh, path: str, **more: Any) -> list[Any]:
    """Return the objects of an answer of so many words."""
    asks = [{"role": "user", "content": f"say {WORDS} words"}]
    body = {"model": CHAT, "messages": asks, "max_tokens": 2 * WORDS, "stream": True, **more}
    answered = mesh.post(path, body)
    assert answered.status == 200, answered.body
    lines = [line.removeprefix("data: ") for line in answered.body.decode().splitlines()]
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_at_ollamas_door_no_token_of_a_fast_stream_is_lost_or_comes_twice(mesh: LlmMesh) -> None:
    *lines, last = streamed(mesh, "/api/chat")
    assert "".join(each["message"]["content"] for each in lines).split() == SAID
    assert last["eval_count"] == WORDS


def test_at_openais_door_no_token_of_a_fast_stream_is_lost_or_comes_twice(mesh: LlmMesh) -> None:
    options = {"include_usage": True}
    *chunks, last = streamed(mesh, "/v1/chat/completions", stream_options=options)
    deltas = [each["choices"][0]["delta"] for each in chunks]
    assert "".join(each.get("content") or "" for each in deltas).split() == SAID
    assert last["usage"]["completion_tokens"] == WORDS


def test_at_anthropics_door_no_token_of_a_fast_stream_is_lost_or_comes_twice(
    mesh: LlmMesh,
) -> None:
    events = streamed(mesh, "/v1/messages")
    deltas = [each["delta"] for each in events if each["type"] == "content_block_delta"]
    assert "".join(each["text"] for each in deltas).split() == SAID
    (usage,) = [each["usage"] for each in events if each["type"] == "message_delta"]
    assert usage["output_tokens"] == WORDS
