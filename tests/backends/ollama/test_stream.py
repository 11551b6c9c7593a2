"""A service that misbehaves fails one answer with a code, and nothing else."""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Iterator

import pytest

from d8mesh.backends.ollama.stream import Part, Stream, shown
from d8mesh.errors import (
    BackendAnswerError,
    BackendError,
    BackendTooLargeError,
    BackendUnavailableError,
)
from tests.ollama_server import OllamaServer

PATIENCE_S = 30
#: Far below what any of the floods would take if it were kept.
MAX_MEMORY_BYTES = 24 * 1024 * 1024


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with OllamaServer() as running:
        yield running


def parts_of(server: OllamaServer, *, model: str = "deepseek-r1:8b") -> list[Part]:
    stream = Stream(
        server.url,
        [{"role": "user", "content": "one two"}],
        model=model,
        temperature=0.5,
        max_tokens=10,
    )
    parts: list[Part] = []
    until = time.monotonic() + PATIENCE_S
    try:
        while not (parts and parts[-1].is_last):
            assert time.monotonic() < until
            part = stream.next(0.5)
            if part is not None:
                parts.append(part)
    finally:
        stream.close()
    return parts


def test_the_last_piece_carries_the_figures(server: OllamaServer) -> None:
    parts = parts_of(server)
    assert "".join(part.text for part in parts) == "You asked: one two"
    assert (parts[-1].tokens_used, parts[-1].load_s, parts[-1].is_cut) == (18, 1.5, False)


@pytest.mark.parametrize(
    ("behaviour", "kind", "code"),
    [
        ("busy", BackendUnavailableError, "backend.unavailable"),
        ("compressed", BackendAnswerError, "backend.answer"),
        ("cut", BackendAnswerError, "backend.answer"),
        ("deep_json", BackendAnswerError, "backend.answer"),
        ("endless_error", BackendError, "backend.failed"),
        ("endless_line", BackendTooLargeError, "backend.too_large"),
        ("error", BackendError, "backend.failed"),
        ("error_line", BackendError, "backend.failed"),
        ("missing", BackendError, "backend.failed"),
        ("not_json", BackendAnswerError, "backend.answer"),
        ("redirect", BackendAnswerError, "backend.answer"),
        ("wrong_shape", BackendAnswerError, "backend.answer"),
    ],
)
def test_misbehaviour_fails_the_answer_with_a_code_and_takes_no_memory(
    server: OllamaServer, behaviour: str, kind: type[BackendError], code: str
) -> None:
    assert parts_of(server)  # the package is loaded: it is not what is measured
    server.behaviour = behaviour
    tracemalloc.start()
    try:
        with pytest.raises(kind) as caught:
            parts_of(server)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert peak_bytes < MAX_MEMORY_BYTES
    assert not [path for path, _, _ in server.requests if path == "/elsewhere"]
    server.behaviour = "ok"
    assert parts_of(server)[-1].is_last


def test_a_model_that_is_gone_is_named(server: OllamaServer) -> None:
    with pytest.raises(BackendError, match="model 'gone:1b' not found"):
        parts_of(server, model="gone:1b")


def test_closing_before_anything_came_does_not_wait(server: OllamaServer) -> None:
    server.behaviour = "silent"
    started = time.monotonic()
    stream = Stream(server.url, [], model="x", temperature=0.5, max_tokens=1)
    stream.close()
    assert stream.next(0) is None
    assert time.monotonic() - started < PATIENCE_S


def test_what_a_service_says_is_shown_in_one_bounded_line() -> None:
    assert shown("a\n\x1b[31mred\x00") == "a [31mred"
    assert len(shown("x" * 10_000)) == 300
    assert shown("\n") == "no reason given"


def test_a_package_that_cannot_be_imported_is_said(
    server: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ollama", None)
    with pytest.raises(BackendUnavailableError, match="cannot be imported"):
        parts_of(server)
