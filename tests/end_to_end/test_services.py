"""Workers with Ollamas, as processes: what fails is left, what is silent is left, all is done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from bench.mesh import Mesh, mesh
from d8mesh.apps.children import RunningCommand
from d8mesh.apps.demo import free_ports
from d8mesh.apps.orchestrators import ask
from d8mesh.edge.network import host_name, machine_id
from tests.end_to_end.processes import until
from tests.fake_ollama import put_on_path
from tests.ollama_standin import OllamaStandin
from tests.standin.faults import Kind

PATIENCE_S = 60.0
GAP_S = 2.0
MODEL = "m:1b"


@pytest.fixture
def running() -> Iterator[Mesh]:
    with mesh(workers=0) as made:
        yield made


def standin(**more: Any) -> OllamaStandin:
    settings: dict[str, Any] = {"models": [MODEL], "loaded": [MODEL], "tokens_per_s": 100}
    return OllamaStandin(**settings | more)


def start(running: Mesh, *standins: OllamaStandin, name: str = "", **more: str) -> RunningCommand:
    """Start a worker that reaches these; the first as its own, the others by D8_OLLAMA_HOSTS."""
    settings = {
        "WORKER_STATUS_PORT": str(free_ports(1)[0]),
        "WORKER_ID": name,
        "DEEPSEEK_BASE_URL": standins[0].url,
        "D8_OLLAMA_HOSTS": ",".join(each.url for each in standins[1:]),
        "D8_TOKEN_GAP_S": f"{GAP_S:g}",
    }
    return running.children.start("worker", "worker", settings=settings | more)


def services(running: Mesh) -> list[dict[str, Any]]:
    return list(ask(running.url, "/api/models")["services"])


def await_services(running: Mesh, count: int) -> None:
    until(lambda: len([s for s in services(running) if s["models"]]) == count, "the services")


def question(words: int) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": f"say {words} words"}], "model": MODEL}


def test_one_worker_serves_three_ollamas_each_as_a_service_of_its_own(running: Mesh) -> None:
    with ExitStack() as stack:
        three = [stack.enter_context(standin(num_parallel=1)) for _ in range(3)]
        child = start(running, *three)
        await_services(running, 3)
        ids = {f"{machine_id()}:{each.port}" for each in three}
        assert {each["id"] for each in services(running)} == ids
        with running.client() as client:
            handles = [client.submit("agent_action", question(30)) for _ in range(12)]
            results = [handle.result(PATIENCE_S) for handle in handles]
        assert {result["service"] for result in results} == ids
        assert {result["machine"] for result in results} == {host_name()}
        assert [each.ollama.machine.running_max[MODEL] for each in three] == [1, 1, 1]
        told = [line for line in child.lines if line.startswith("Ollama at ")]
        assert len(told) == 3


def test_two_workers_of_a_machine_share_the_slots_of_its_ollama(running: Mesh) -> None:
    with standin(num_parallel=1) as ollama:
        start(running, ollama, name="one")
        start(running, ollama, name="two")
        until(lambda: [s["workers"] for s in services(running)] == [["one", "two"]], "both workers")
        with running.client() as client:
            handles = [client.submit("agent_action", question(20)) for _ in range(8)]
            for handle in handles:
                handle.result(PATIENCE_S)
        assert ollama.counters.open_max <= 2  # one, and one to try


def test_a_machine_that_fails_at_once_gets_three_requests_and_all_succeed(running: Mesh) -> None:
    with standin() as bad, standin(tokens_per_s=50) as good:
        bad.fault(Kind.FAST_FAIL)
        start(running, bad, name="bad")
        start(running, good, name="good")
        await_services(running, 2)
        with running.client() as client:
            handles = [client.submit("agent_action", question(5)) for _ in range(20)]
            results = [handle.result(PATIENCE_S) for handle in handles]
            attempts = [handle.status()["attempts"] for handle in handles]
        assert {result["worker_id"] for result in results} == {"good"}
        asked = [prompt for prompt in bad.counters.prompts if "say 5" in str(prompt)]
        assert 1 <= len(asked) <= 3
        assert max(attempts) <= 3


@pytest.mark.parametrize("after", [0, 3])
def test_what_a_silent_machine_had_runs_elsewhere_within_the_limit(
    running: Mesh, after: int
) -> None:
    with standin() as silent, standin() as other:
        silent.fault(Kind.STALL if after else Kind.SILENT, MODEL, after=after)
        child = start(running, silent, name="silent", D8_FIRST_TOKEN_S=f"{GAP_S:g}")
        await_services(running, 1)
        with running.client() as client:
            handle = client.submit("agent_action", question(10))
            until(lambda: bool(silent.counters.prompts), "the request")
            began = time.monotonic()
            start(running, other, name="other")
            await_services(running, 2)
            waited_s = max(time.monotonic() - began, GAP_S)
            result = handle.result(PATIENCE_S)
            assert time.monotonic() - began < waited_s + 5
        assert result["worker_id"] == "other"
        assert any("gets no tasks until it answers a probe" in line for line in child.lines)
        silent.mend()
        until(lambda: f"{MODEL} at {host_name()} answers again" in child.lines, "the probe")


def test_an_ollama_is_started_and_its_missing_model_pulled(running: Mesh, tmp_path: Any) -> None:
    (port,) = free_ports(1)
    settings = {
        "WORKER_STATUS_PORT": str(free_ports(1)[0]),
        "DEEPSEEK_BASE_URL": f"http://127.0.0.1:{port}",
        "DEEPSEEK_MODEL": "new:1b",
        "D8_OLLAMA_SERVE": "1",
        "PATH": put_on_path(tmp_path / "programs"),
    }
    child = running.children.start("worker", "worker", settings=settings)
    until(lambda: "new:1b is installed" in child.lines, "the model")
    assert any(line.startswith("no Ollama was running: started") for line in child.lines)
    with running.client() as client:
        data = question(3) | {"model": "new:1b", "model_strict": True}
        assert client.submit("agent_action", data).result(PATIENCE_S)["model"] == "new:1b"
        (service,) = services(running)
        at = {"machine": service["id"]}
        pulled = client.submit("model_pull", {"model": "other:1b"} | at).result(PATIENCE_S)
        assert (pulled["output"], pulled["service"]) == ("pulled", service["id"])
        removed = client.submit("model_remove", {"model": "new:1b"} | at).result(PATIENCE_S)
        assert removed["was_there"] is True
    child.close_input()
    assert child.wait(PATIENCE_S) == 0
