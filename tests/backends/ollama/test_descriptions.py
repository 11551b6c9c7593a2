"""What Ollama tells of a model is told on, in bounds."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from d8mesh.backends.backend import ChatRun
from d8mesh.backends.ollama import OllamaBackend
from d8mesh.backends.ollama.descriptions import (
    MAX_DESCRIBED_FIELDS,
    MAX_DESCRIBED_ITEMS,
    MAX_TEXT_CHARS,
    MAX_TOLD_CHARS,
    description_in,
    details_in,
)
from d8mesh.core.protocol.chat import ChatRequest
from tests.ollama_standin import OllamaStandin
from tests.standin.calls import post
from tests.standin.machine import Model

PATIENCE_S = 20.0


def test_all_that_show_tells_is_told_on() -> None:
    with OllamaStandin() as standin:
        told: Any = OllamaBackend(standin.url).describe("qwen2.5:3b")
        shown = post(standin.url, "/api/show", {"model": "qwen2.5:3b"}).json
    assert told == shown
    assert told["model_info"]["tokenizer.ggml.tokens"] is None


def test_tensors_and_long_lists_and_texts_are_not() -> None:
    tokens = ["x"] * (MAX_DESCRIBED_ITEMS + 1)
    told: Any = description_in(
        {
            "license": "l" * (MAX_TEXT_CHARS + 1),
            "tensors": [{"name": "blk.0"}],
            "model_info": {"tokens": tokens, "huge": 2**70, "nan": float("nan"), "few": [1, 2]},
        }
    )
    assert len(told["license"]) == MAX_TEXT_CHARS
    assert told["model_info"] == {"tokens": None, "huge": 2.0**70, "nan": None, "few": [1, 2]}
    assert "tensors" not in told
    assert msgspec.msgpack.encode(told)
    many = {f"field{n}": n for n in range(2 * MAX_DESCRIBED_FIELDS)}
    assert len(description_in(many)) == MAX_DESCRIBED_FIELDS


@pytest.mark.parametrize("row", [{}, {"details": None}, {"details": []}])
def test_who_tells_no_details_has_none(row: dict[str, Any]) -> None:
    assert details_in(row) == {}


def test_of_details_only_short_facts_are_kept() -> None:
    facts = {"family": "x" * 999, "families": ["a", 7], "context_length": 4096, "odd": {"a": 1}}
    assert details_in({"details": facts}) == {
        "family": "x" * MAX_TOLD_CHARS,
        "families": ["a", ""],
        "context_length": 4096,
    }


def test_a_probe_tells_details_and_what_the_memory_holds() -> None:
    model = Model(name="a:1b", size=1000, size_vram=400, context_length=9000)
    with OllamaStandin(models=[model], keep_alive_s=60.0) as standin:
        backend = OllamaBackend(standin.url)
        before = backend.probe().details["a:1b"]
        run = ChatRun(is_cancelled=lambda: False, deadline_s=PATIENCE_S)
        backend.chat(ChatRequest(messages=({"role": "user", "content": "hi"},)), run)
        after = backend.probe().details["a:1b"]
    assert (before.most_context, before.vram_bytes, before.details["family"]) == (9000, 0, "llama")
    assert (after.context_length, after.vram_bytes) == (4096, 400)
