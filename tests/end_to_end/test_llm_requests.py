"""Requests to a worker's Ollama through the mesh: one load, and an end when it should come."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from bench.mesh import Mesh, mesh
from d8mesh.apps.demo import free_ports
from d8mesh.errors import TaskCancelledError
from tests.end_to_end.processes import until
from tests.ollama_standin import OllamaStandin
from tests.standin.calls import asking

#: From the caller's cancelling to the closed connection; one of some turns must show it, for others
#: use the same processors.
CANCEL_S = 0.1
TURNS = 5
PATIENCE_S = 60.0
CHAT = "qwen2.5:3b"
VECTORS = "nomic-embed-text:latest"


@pytest.fixture
def standin() -> Iterator[OllamaStandin]:
    with OllamaStandin(load_s=0.2) as running:
        yield running


@pytest.fixture
def running(standin: OllamaStandin) -> Iterator[Mesh]:
    settings = {
        "WORKER_STATUS_PORT": str(free_ports(1)[0]),
        "DEEPSEEK_BASE_URL": standin.url,
        "DEEPSEEK_MODEL": CHAT,
    }
    with mesh(workers=0) as made:
        child = made.children.start("worker", "worker", settings=settings)
        until(lambda: any(line.startswith("Ollama at ") for line in child.lines), "the service")
        yield made


def test_ten_requests_by_different_ways_load_each_model_once(
    running: Mesh, standin: OllamaStandin
) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    tasks: list[tuple[str, dict[str, Any]]] = [
        ("agent_action", chat),
        ("agent_action", chat | {"options": {"num_ctx": 2048, "num_thread": 3, "seed": 1}}),
        ("agent_action", chat | {"num_ctx": 16384, "shift": False, "model": CHAT}),
        ("agent_action", chat | {"format": {"type": "object"}, "models": ["llama9", CHAT]}),
        ("code_generation", {"prompt": "primes", "options": {"num_batch": 64}}),
        ("code_generation", {"prompt": "primes", "keep_alive": "30m"}),
        ("generate", {"prompt": "once", "pieces": True}),
        ("generate", {"prompt": "once", "raw": True, "options": {"use_mmap": False}}),
        ("embed", {"model": VECTORS, "input": "x", "options": {"num_gpu": 0}}),
        ("embed", {"model": VECTORS, "input": ["x", "y"]}),
    ]
    with running.client() as client:
        handles = [client.submit(kind, data) for kind, data in tasks]
        results = [handle.result(PATIENCE_S) for handle in handles]
    assert all(result["success"] for result in results)
    assert {result["backend"] for result in results} == {"ollama"}
    assert [result["model"] for result in results] == [CHAT] * 8 + [VECTORS] * 2
    assert results[3]["model_requested"] == "llama9"
    assert standin.reloads == 0
    loads = standin.ollama.machine.loads
    assert {name: loads[name] for name in (CHAT, VECTORS)} == {CHAT: 1, VECTORS: 1}


@pytest.mark.parametrize("phase", ["queue", "prompt", "output", "vectors"])
def test_who_cancels_a_task_stops_the_model_within_a_tenth_of_a_second(
    running: Mesh, standin: OllamaStandin, phase: str
) -> None:
    pace = {"prompt_tokens_per_s": 0.1} if phase in ("prompt", "vectors") else {"tokens_per_s": 20}
    data: dict[str, Any] = {"messages": [{"role": "user", "content": "say 500 words"}]}
    if phase == "vectors":
        data = {"model": VECTORS, "input": "one two three"}
    standin.change(settings=pace)
    took_s: list[float] = []
    with running.client() as client, contextlib.ExitStack() as others:
        if phase == "queue":
            other = {"model": CHAT, "messages": data["messages"]}
            others.enter_context(asking(standin.url, "POST", "/api/chat", other)).readline()
        while len(took_s) < TURNS and not (took_s and min(took_s) < CANCEL_S):
            standin.reset()
            handle = client.submit("embed" if phase == "vectors" else "agent_action", data)
            standin.wait_until(lambda: bool(standin.counters.prompts), within_s=PATIENCE_S)
            standin.wait_until(lambda: standin.running > 0, within_s=PATIENCE_S)
            if phase == "output":
                standin.wait_until(lambda: standin.counters.tokens > 3, within_s=PATIENCE_S)
            left_at = time.monotonic()
            handle.cancel()
            standin.wait_until(lambda: bool(standin.counters.cancelled), within_s=PATIENCE_S)
            assert standin.counters.cancelled[0].phase == phase.replace("vectors", "prompt")
            took_s.append(standin.counters.cancelled[0].at - left_at)
            with pytest.raises(TaskCancelledError):
                handle.result(PATIENCE_S)
    assert min(took_s) < CANCEL_S, took_s


def test_thoughts_and_text_are_heard_while_they_come(running: Mesh, standin: OllamaStandin) -> None:
    standin.change(settings={"tokens_per_s": 50.0})
    data = {
        "messages": [{"role": "user", "content": "say 10 words"}],
        "model": "deepseek-r1:8b",
        "model_strict": True,
        "pieces": True,
    }
    pieces: list[Any] = []
    with running.client() as client:
        handle = client.submit("agent_action", data)
        listener = threading.Thread(target=lambda: pieces.extend(handle.stream()))
        listener.start()
        result = handle.result(PATIENCE_S)
        listener.join(PATIENCE_S)
    assert result["thinking"]
    said = "".join(piece.get("text", "") for piece in pieces)
    assert said
    assert result["output"].endswith(said)
