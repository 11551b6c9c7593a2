"""One child with a model."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from d8mesh.backends.backend import ChatRun
from d8mesh.backends.embedded.chat import asked
from d8mesh.backends.embedded.host import slots_for
from d8mesh.backends.embedded.process import ModelProcess, ModelRefusedError
from d8mesh.backends.embedded.server import Order
from d8mesh.backends.streaming import completion
from d8mesh.core.protocol.chat import ChatRequest
from d8mesh.errors import BackendStalledError, TaskCancelledError
from tests.real_model import MODEL, model_file, needs_model

PATIENCE_S = 100.0


def order(path: Path, *, slots: int = 1) -> Order:
    return Order(path=str(path), key="", threads=1, context=512, slots=slots)


def wanted() -> None:
    """Go on waiting."""


@needs_model
def test_a_child_with_two_slots_gives_two_answers_side_by_side() -> None:
    process = ModelProcess(MODEL, order(model_file(), slots=slots_for(2)))
    process.load(wanted, within_s=PATIENCE_S)
    times: dict[int, list[float]] = {1: [], 2: []}

    def ask(number: int) -> None:
        request = ChatRequest(messages=({"role": "user", "content": "Tell a story."},))
        reader = asked(process, request, temperature=1.0, max_tokens=40)
        run = ChatRun(
            on_piece=lambda piece: times[number].append(time.monotonic()),
            is_cancelled=lambda: False,
            deadline_s=PATIENCE_S,
        )
        completion(reader, MODEL, run)

    try:
        both = [threading.Thread(target=ask, args=(number,)) for number in times]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join(PATIENCE_S)
        firsts, lasts = ([each[at] for each in times.values()] for at in (0, -1))
        assert max(firsts) < min(lasts)
    finally:
        process.end()
    assert not process.is_alive


@needs_model
def test_without_its_key_nobody_is_answered() -> None:
    process = ModelProcess(MODEL, order(model_file()))
    process.load(wanted, within_s=PATIENCE_S)
    try:
        process.key = "another"
        request = ChatRequest(messages=({"role": "user", "content": "Hi."},))
        run = ChatRun(is_cancelled=lambda: False, deadline_s=PATIENCE_S)
        with pytest.raises(Exception, match="Invalid API Key"):
            completion(asked(process, request, temperature=1.0, max_tokens=4), MODEL, run)
    finally:
        process.end()


@needs_model
def test_a_file_that_llama_cpp_does_not_take_is_refused_with_its_reason(tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    with model_file().open("rb") as file:
        cut.write_bytes(file.read(3_000_000))
    process = ModelProcess("cut", order(cut))
    with pytest.raises(ModelRefusedError, match="corrupted or incomplete"):
        process.load(wanted, within_s=PATIENCE_S)
    assert not process.is_alive


@needs_model
def test_loading_ends_when_it_takes_too_long_or_nobody_wants_it_any_more() -> None:
    process = ModelProcess(MODEL, order(model_file()))
    with pytest.raises(BackendStalledError, match="did not load"):
        process.load(wanted, within_s=0.0)
    assert not process.is_alive

    def unwanted() -> None:
        raise TaskCancelledError

    process = ModelProcess(MODEL, order(model_file()))
    with pytest.raises(TaskCancelledError):
        process.load(unwanted, within_s=PATIENCE_S)
    assert not process.is_alive


def test_from_two_threads_on_two_are_answered_at_once() -> None:
    assert [slots_for(threads) for threads in (1, 2, 3, 16)] == [1, 2, 2, 2]
