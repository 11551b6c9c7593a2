"""The worker as a command: what it joins with, what it says, and how it ends."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.mesh import Mesh, mesh
from d8mesh.apps.children import Child
from d8mesh.apps.demo import free_ports
from d8mesh.apps.status import ask
from tests.end_to_end.processes import until
from tests.ollama_server import OllamaServer

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def running() -> Iterator[Mesh]:
    with mesh(workers=0) as made:
        yield made


def ended(child: Child) -> tuple[int, str]:
    code = child.wait(PATIENCE_S)
    return code, "\n".join(child.lines)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--type", "groq"), "GROQ_API_KEY"),
        (("--type", "gemini"), "GEMINI_API_KEY"),
        (("--tasks", "no_such_module_here"), "cannot be imported"),
        (("--tasks", "json"), "register(worker)"),
        (("--slots", "0"), "slots"),
    ],
)
def test_what_cannot_be_run_is_said_with_exit_code_2(
    running: Mesh, arguments: tuple[str, ...], said: str
) -> None:
    code, text = ended(running.children.start("worker", "worker", *arguments))
    assert code == 2
    assert said in text


def test_it_joins_without_ollama_and_says_so(running: Mesh) -> None:
    (status, nowhere) = free_ports(2)
    settings = {
        "WORKER_STATUS_PORT": str(status),
        "DEEPSEEK_BASE_URL": f"http://127.0.0.1:{nowhere}",
        "WORKER_ID": "without",
    }
    child = running.children.start("worker", "worker", settings=settings)
    until(lambda: any("joined" in line for line in child.lines), "the worker to join")
    body = ask(f"http://127.0.0.1:{status}", "/health")
    assert body["status"] == "unhealthy"
    assert "Ollama does not answer" in body["reason"]
    with running.client() as client:
        assert client.submit("echo", {"a": 1}).result(PATIENCE_S)["output"] == {"a": 1}
        waiting = client.submit("code_generation", {"prompt": "x", "language": "python"})
        waiting.wait_accepted(PATIENCE_S)
        assert "no worker" in waiting.status()["reason"]
        assert waiting.cancel()
    child.close_input()
    assert child.wait(PATIENCE_S) == 0


def test_an_orchestrator_of_another_mesh_is_told(running: Mesh) -> None:
    (status,) = free_ports(1)
    settings = {
        "WORKER_STATUS_PORT": str(status),
        "ORCHESTRATOR_URL": running.url,
        "D8_MESH": "elsewhere",
    }
    child = running.children.start("worker", "worker", settings=settings)
    why = f"this is mesh '{running.config.mesh}', not 'elsewhere'"
    line = f"an orchestrator refuses this worker: {why}"
    until(lambda: line in child.lines, "the refusal to be told")
    body = ask(f"http://127.0.0.1:{status}", "/health")
    assert (body["status"], body["refused"]) == ("unhealthy", [why])
    assert why in body["reason"]
    child.close_input()
    assert child.wait(PATIENCE_S) == 0


def test_prompts_run_on_its_ollama_and_the_model_that_ran_is_named(running: Mesh) -> None:
    (status,) = free_ports(1)
    with OllamaServer() as ollama, running.client() as client:
        settings = {"WORKER_STATUS_PORT": str(status), "DEEPSEEK_BASE_URL": ollama.url}
        child = running.children.start("worker", "worker", settings=settings)
        data = {
            "messages": [{"role": "user", "content": "hello"}],
            "model": "llama-3.3-70b",
        }
        result = client.submit("agent_action", data).result(PATIENCE_S)
        assert result["success"] is True
        assert result["output"]
        assert result["model_requested"] == "llama-3.3-70b"
        assert result["model"] != "llama-3.3-70b"
        child.close_input()
        assert child.wait(PATIENCE_S) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is another thing there")
def test_ctrl_c_lets_the_running_task_finish(running: Mesh, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    child = running.children.start(
        "worker", "worker", "--tasks", "tests.end_to_end.slow_tasks", "--slots", "1"
    )
    with running.client() as client:
        task = client.submit("slow", {"seconds": 1.5, "trace": str(trace)})
        until(trace.exists, "the start of the task")
        child.process.send_signal(signal.SIGINT)
        assert child.wait(PATIENCE_S) == 0
        assert task.result(PATIENCE_S)["output"] == {"done": True}
        assert task.status()["attempts"] == 1
