"""Machines as one pool, as processes: nothing is lost or loaded twice, and who leaves stops."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from bench.mesh import Mesh, mesh
from bench.processes import kill_tree
from d8mesh.apps.answers import niches_in
from d8mesh.apps.niche import question_of
from d8mesh.apps.orchestrators import ask
from d8mesh.errors import TaskCancelledError
from d8mesh.nodes.client import Client
from tests.end_to_end.processes import until
from tests.ollama_standin import OllamaStandin
from tests.standin.faults import Kind
from tests.standin.machine import Model

PATIENCE_S = 90.0
MODEL = "m:1b"
GAP_S = 3


@pytest.fixture
def running() -> Iterator[Mesh]:
    with mesh(workers=0) as made:
        yield made


@pytest.fixture
def three() -> Iterator[list[OllamaStandin]]:
    with ExitStack() as stack:
        yield [stack.enter_context(machine()) for _ in range(3)]


def machine(**more: Any) -> OllamaStandin:
    settings: dict[str, Any] = {
        "models": [MODEL], "loaded": [MODEL], "num_parallel": 2, "tokens_per_s": 40,
    }  # fmt: skip
    return OllamaStandin(**settings | more)


def join(running: Mesh, machines: Sequence[OllamaStandin]) -> None:
    """Start a worker beside each machine, and wait until the mesh knows them all."""
    for each in machines:
        running.add_worker({"DEEPSEEK_BASE_URL": each.url, "D8_TOKEN_GAP_S": str(GAP_S)})

    def all_known() -> bool:
        told = ask(running.url, "/api/models")["services"]
        return len([each for each in told if each["models"]]) == len(machines)

    until(all_known, "the machines")


def question(words: int, **more: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": f"say {words} words"}], "model": MODEL} | more


def asked_many(client: Client, count: int, words: int = 20) -> list[Any]:
    return client.submit_many("agent_action", [question(words) for _ in range(count)])


def test_ten_requests_by_different_ways_load_a_model_once(running: Mesh) -> None:
    embedder = Model(name="e:latest", can=("embedding",))
    with machine(models=[MODEL, embedder], loaded=[]) as only, running.client() as client:
        join(running, [only])
        ways: list[tuple[str, dict[str, object]]] = [
            ("agent_action", question(3)),
            ("agent_action", question(3, options={"num_ctx": 2048})),
            ("agent_action", question(3, options={"num_ctx": 16_384, "num_batch": 64})),
            ("agent_action", question(3, num_ctx=8192, temperature=0)),
            ("code_generation", {"prompt": "say 3 words", "model": MODEL}),
            ("generate", {"prompt": "say 3 words", "model": MODEL}),
            ("generate", {"prompt": "x", "model": MODEL, "options": {"num_gpu": 0}}),
            ("agent_action", question_of(("pet care", "Spain"), "es").data),  # `niche`
            ("embed", {"input": ["x"], "model": "e:latest"}),
            ("embed", {"input": ["x"], "model": "e:latest", "options": {"num_ctx": 512}}),
        ]
        results = [client.submit(kind, data).result(PATIENCE_S) for kind, data in ways]
        assert len(results) == 10
        assert niches_in(str(results[7]["output"]))
        assert only.reloads == 0
        assert only.ollama.machine.loads == {MODEL: 1, "e:latest": 1}
        assert "options.num_ctx" in str(results[1]["ignored"])


def test_who_cancels_a_task_stops_the_model_within_a_second(running: Mesh) -> None:
    with machine() as only, running.client() as client:
        join(running, [only])
        task = client.submit("agent_action", question(4000))
        only.wait_until(lambda: only.running == 1 and only.counters.tokens > 3)
        left = time.monotonic()
        task.cancel()
        only.wait_until(lambda: bool(only.counters.cancelled))
        assert only.counters.cancelled[0].at - left < 1
        with pytest.raises(TaskCancelledError):
            task.result(PATIENCE_S)
        assert client.submit("agent_action", question(2)).result(PATIENCE_S)["output"] == "w0 w1"


@pytest.mark.slow
def test_a_machine_that_is_switched_off_in_the_middle_loses_nothing(
    running: Mesh, three: list[OllamaStandin]
) -> None:
    join(running, three)
    with running.client() as client:
        tasks = asked_many(client, 60)
        three[0].wait_until(lambda: three[0].counters.answered["/api/chat"] > 2)
        three[0].stop()
        outputs = [task.result(PATIENCE_S)["output"] for task in tasks]
    assert len(outputs) == 60
    assert {len(each.split()) for each in outputs} == {20}


@pytest.mark.slow
def test_broken_answers_are_asked_for_again_and_every_one_is_whole(
    running: Mesh, three: list[OllamaStandin]
) -> None:
    join(running, three)
    three[0].fault(Kind.CUT, after=5, times=2)
    three[1].fault(Kind.NO_DONE, after=5, times=2)
    three[2].fault(Kind.ERROR_LINE, after=5, times=2)
    with running.client() as client:
        tasks = asked_many(client, 40)
        outputs = [task.result(PATIENCE_S)["output"] for task in tasks]
    assert {len(each.split()) for each in outputs} == {20}


@pytest.mark.slow
def test_an_orchestrator_that_dies_in_the_middle_loses_nothing(
    running: Mesh, three: list[OllamaStandin]
) -> None:
    join(running, three)
    with running.client() as client:
        tasks = asked_many(client, 60)
        three[0].wait_until(lambda: three[0].counters.answered["/api/chat"] > 3)
        kill_tree(running.orchestrator.process.pid)
        running.restart_orchestrator()
        outputs = [task.result(PATIENCE_S)["output"] for task in tasks]
    assert {len(each.split()) for each in outputs} == {20}
    # What ran meanwhile was not asked for again.
    assert sum(each.counters.answered["/api/chat"] for each in three) == 60


@pytest.mark.skipif(sys.platform == "win32", reason="processes cannot be stopped there")
@pytest.mark.slow
def test_a_worker_that_is_frozen_loses_what_it_had_to_the_others(
    running: Mesh, three: list[OllamaStandin]
) -> None:
    join(running, three)
    with running.client() as client:
        tasks = asked_many(client, 45)
        three[0].wait_until(lambda: three[0].counters.answered["/api/chat"] > 2)
        pid = running.workers[0].process.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            outputs = [task.result(PATIENCE_S)["output"] for task in tasks]
        finally:
            os.kill(pid, signal.SIGCONT)
    assert {len(each.split()) for each in outputs} == {20}
