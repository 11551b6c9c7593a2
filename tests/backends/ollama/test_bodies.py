"""What is asked of Ollama, and that no way of asking makes it load a model anew."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from d8mesh.backends.backend import ChatRun
from d8mesh.backends.ollama import OllamaBackend
from d8mesh.backends.ollama.bodies import KEEP_ALIVE, MOST_TOKENS, Defaults, Loading, question_of
from d8mesh.core.protocol.chat import ChatRequest, EmbeddingRequest, Prompt
from d8mesh.core.protocol.messages import Placement
from d8mesh.handlers.llm import embedding_handlers, llm_handlers
from tests.ollama_standin import OllamaStandin
from tests.standin.machine import Model
from tests.task_context import Context

PATIENCE_S = 30.0
CHAT = "qwen2.5:3b"
VECTORS = "nomic-embed-text:latest"
QUESTION = ({"role": "user", "content": "hi"},)
RUN = ChatRun(is_cancelled=lambda: False, deadline_s=PATIENCE_S)


@pytest.fixture
def standin() -> Iterator[OllamaStandin]:
    with OllamaStandin() as running:
        yield running


def body_of(request: ChatRequest, loading: Loading | None = None) -> tuple[str, dict[str, Any]]:
    return question_of(request, loading or Loading(model="m:1b"), Defaults())


# --- bodies -----------------------------------------------------------------------------


def test_a_prompt_is_asked_with_all_that_it_has() -> None:
    prompt = Prompt(
        text="def f(",
        suffix="return 1",
        images=("eA==",),
        system="be brief",
        template="{{ .Prompt }}",
        context=(1, 2),
        is_raw=True,
    )
    path, body = body_of(ChatRequest(prompt=prompt, more={"think": False}))
    assert path == "/api/generate"
    assert body == {
        "model": "m:1b", "prompt": "def f(", "suffix": "return 1", "images": ["eA=="],
        "system": "be brief", "template": "{{ .Prompt }}", "context": [1, 2], "raw": True,
        "think": False, "stream": True, "keep_alive": KEEP_ALIVE,
        "options": {"temperature": 0.7, "num_predict": 2000},
    }  # fmt: skip


def test_a_plain_prompt_is_asked_with_nothing_more() -> None:
    _, body = body_of(ChatRequest(prompt=Prompt(text="hi")))
    assert body.keys() == {"model", "prompt", "stream", "keep_alive", "options"}


@pytest.mark.parametrize(
    ("wished", "waiting", "sent"),
    [
        (None, 0, KEEP_ALIVE),
        (0, 0, 0),
        ("1m", 0, "1m"),
        (0, 3, KEEP_ALIVE),
        ("1m", 3, KEEP_ALIVE),
        ("1h", 3, "1h"),
        (-1, 3, -1),
    ],
)
def test_while_tasks_wait_for_a_model_no_task_sends_it_away(
    wished: object, waiting: int, sent: object
) -> None:
    more = {} if wished is None else {"keep_alive": wished}
    loading = Loading(model="m:1b", waiting=waiting)
    assert body_of(ChatRequest(messages=QUESTION, more=more), loading)[1]["keep_alive"] == sent


@pytest.mark.parametrize(
    ("wished", "kept_s", "waiting", "sent"),
    [
        (None, math.inf, 0, -1),
        (None, 7200.9, 0, 7200),
        (None, 930.0, 0, KEEP_ALIVE),  # our own, that an answer has extended
        (None, -5.0, 0, KEEP_ALIVE),
        (0, math.inf, 0, 0),
        (0, math.inf, 3, -1),
    ],
)
def test_a_pinned_model_is_not_shortened_by_the_usual_keep_alive(
    wished: object, kept_s: float, waiting: int, sent: object
) -> None:
    more = {} if wished is None else {"keep_alive": wished}
    loading = Loading(model="m:1b", waiting=waiting, kept_s=kept_s)
    assert body_of(ChatRequest(messages=QUESTION, more=more), loading)[1]["keep_alive"] == sent


@pytest.mark.parametrize("pin", [-1, "24h"])
def test_a_model_that_somebody_pinned_stays_pinned(standin: OllamaStandin, pin: object) -> None:
    backend, question = OllamaBackend(standin.url), ChatRequest(messages=QUESTION, model=CHAT)
    backend.chat(replace(question, more={"keep_alive": pin}), RUN)
    assert backend.probe().details[CHAT].kept_until > time.monotonic() + 86_000
    backend.chat(question, RUN)
    backend.load(CHAT, {}, within_s=PATIENCE_S)
    backend.chat(question, replace(RUN, placement=Placement(service="s", model=CHAT)))
    assert backend.probe().details[CHAT].kept_until > time.monotonic() + 86_000


# --- one set of load options ------------------------------------------------------------


def test_ten_requests_by_different_ways_load_a_model_once(standin: OllamaStandin) -> None:
    options = {"num_ctx": 8192, "num_batch": 256}
    backend = OllamaBackend(standin.url)
    handlers = llm_handlers(backend) | embedding_handlers(backend)
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    tasks: list[tuple[str, dict[str, Any]]] = [
        ("agent_action", chat),
        ("agent_action", chat | {"options": {"num_ctx": 2048, "num_thread": 3, "seed": 1}}),
        ("agent_action", chat | {"num_ctx": 16384, "shift": False}),
        ("agent_action", chat | {"format": {"type": "object"}, "think": False}),
        ("code_generation", {"prompt": "primes", "options": {"num_batch": 64}}),
        ("code_generation", {"prompt": "primes", "keep_alive": "30m"}),
        ("generate", {"prompt": "once"}),
        ("generate", {"prompt": "once", "raw": True, "options": {"use_mmap": False}}),
        ("embed", {"model": VECTORS, "input": "x", "options": {"num_gpu": 0}}),
        ("embed", {"model": VECTORS, "input": ["x", "y"]}),
    ]
    for kind, data in tasks:
        model = VECTORS if kind == "embed" else CHAT
        placement = Placement(service="s", model=model, options=dict(options))
        result: Any = handlers[kind](data, Context(placement=placement))
        assert result["success"], result
    assert standin.reloads == 0
    assert standin.ollama.machine.loads.total() == 2
    sent = [body["options"] for path, _, body in standin.counters.bodies if "options" in body]
    assert {(each["num_ctx"], each["num_batch"]) for each in sent} == {(8192, 256)}


def test_a_model_that_somebody_loaded_keeps_its_context(standin: OllamaStandin) -> None:
    with OllamaStandin() as used:
        OllamaBackend(used.url).load(CHAT, {"num_ctx": 32_768}, within_s=PATIENCE_S)
        backend = OllamaBackend(used.url)
        assert backend.probe().details[CHAT].context_length == 32_768
        request = ChatRequest(messages=QUESTION, model=CHAT)
        backend.chat(request, RUN)
        placement = Placement(service="s", model=CHAT, options={"num_ctx": 4096})
        backend.chat(request, replace(RUN, placement=placement))
        backend.check(backend.probe().details[CHAT], within_s=PATIENCE_S)
        backend.load(CHAT, {"num_ctx": 4096}, within_s=PATIENCE_S)
        assert (used.reloads, used.ollama.machine.loads[CHAT]) == (0, 1)


def test_a_check_loads_as_the_last_placement_did(standin: OllamaStandin) -> None:
    backend = OllamaBackend(standin.url)
    placement = Placement(service="s", model=CHAT, options={"num_thread": 2})
    backend.chat(ChatRequest(messages=QUESTION), replace(RUN, placement=placement))
    backend.check(backend.probe().details[CHAT], within_s=PATIENCE_S)
    assert (standin.reloads, standin.ollama.machine.loads[CHAT]) == (0, 1)


def test_a_placement_says_which_model_runs_whatever_the_task_wishes(
    standin: OllamaStandin,
) -> None:
    backend = OllamaBackend(standin.url)
    placement = Placement(service="s", model="deepseek-r1:8b")
    request = ChatRequest(messages=QUESTION, model="llama9", is_model_strict=True)
    assert backend.chat(request, replace(RUN, placement=placement)).model == "deepseek-r1:8b"
    with OllamaStandin(models=[Model(name="e1:latest", can=("embedding",))]) as other:
        placed = replace(RUN, placement=Placement(service="s", model="e1"))
        made = OllamaBackend(other.url).embed(EmbeddingRequest(texts=("x",), model="e"), placed)
        assert made.model == "e1:latest"


def test_the_first_of_several_models_that_is_there_answers(standin: OllamaStandin) -> None:
    backend = OllamaBackend(standin.url)
    request = ChatRequest(
        messages=QUESTION, model="llama9", fallbacks=("other:1b", CHAT), is_model_strict=True
    )
    assert backend.chat(request, RUN).model == CHAT


def test_where_the_model_has_its_own_defaults_only_a_ceiling_is_said() -> None:
    _, body = body_of(ChatRequest(messages=QUESTION, has_model_defaults=True))
    assert body["options"] == {"num_predict": MOST_TOKENS}
    own = ChatRequest(messages=QUESTION, has_model_defaults=True, temperature=0.0, max_tokens=5)
    assert body_of(own)[1]["options"] == {"temperature": 0.0, "num_predict": 5}
