"""Vectors of many texts come in batches, in their order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from d8mesh.backends.backend import ChatRun
from d8mesh.backends.ollama import OllamaBackend, embed
from d8mesh.core.protocol.chat import EmbeddingRequest
from d8mesh.errors import BackendTooLargeError
from tests.ollama_standin import OllamaStandin

VECTORS = "nomic-embed-text:latest"
RUN = ChatRun(is_cancelled=lambda: False, deadline_s=30.0)


@pytest.fixture
def standin() -> Iterator[OllamaStandin]:
    with OllamaStandin() as running:
        yield running


def test_each_of_many_texts_has_its_own_vector_in_order(standin: OllamaStandin) -> None:
    texts = tuple(f"text {n}" for n in range(150))
    backend = OllamaBackend(standin.url)
    made = backend.embed(EmbeddingRequest(texts=texts, model=VECTORS, dimensions=4), RUN)
    assert len(set(made.vectors)) == 150
    alone = backend.embed(EmbeddingRequest(texts=texts[70:71], model=VECTORS, dimensions=4), RUN)
    assert made.vectors[70] == pytest.approx(alone.vectors[0])
    assert made.usage.prompt_tokens == 300
    assert standin.counters.requests["/api/embed"] == 4


def test_the_clock_of_silence_begins_anew_with_each_batch(standin: OllamaStandin) -> None:
    standin.change(settings={"prompt_tokens_per_s": 200})
    texts = tuple(f"text {n}" for n in range(150))  # 1.5 s in all, 0.64 s for a batch
    request = EmbeddingRequest(texts=texts, model=VECTORS)
    assert OllamaBackend(standin.url).embed(request, replace(RUN, first_token_s=1.2)).vectors


def test_more_numbers_than_a_result_holds_are_an_error(
    standin: OllamaStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "MAX_NUMBERS", 1000)
    request = EmbeddingRequest(texts=("x",) * 200, model=VECTORS, dimensions=10)
    with pytest.raises(BackendTooLargeError):
        OllamaBackend(standin.url).embed(request, RUN)
