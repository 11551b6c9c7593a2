"""The worker as a command: what it joins with, what it says, and how it ends."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.mesh import Mesh, mesh
from d8mesh.apps.children import RunningCommand
from d8mesh.apps.demo import free_ports
from d8mesh.apps.orchestrators import ask
from d8mesh.errors import TaskFailedError
from tests.end_to_end.processes import until
from tests.ollama_server import OllamaServer

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def running() -> Iterator[Mesh]:
    with mesh(workers=0) as made:
        yield made


def ended(child: RunningCommand) -> tuple[int, str]:
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


def test_a_folder_that_cannot_be_used_is_said_in_a_sentence(running: Mesh, tmp_path: Path) -> None:
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "1").touch()
    settings = {"D8_DATA_DIR": str(tmp_path)}
    code, text = ended(running.children.start("worker", "worker", settings=settings))
    assert code == 1
    assert "Set D8_DATA_DIR to a folder that can be written" in text
    assert "Traceback" not in text


def test_its_status_page_takes_the_allowed_hosts_and_its_data_is_told(
    running: Mesh, tmp_path: Path
) -> None:
    (status,) = free_ports(1)
    settings = {
        "WORKER_STATUS_PORT": str(status),
        "D8_ALLOWED_HOSTS": "pool.example.org",
        "D8_DATA_DIR": str(tmp_path / "data"),
    }
    child = running.children.start("worker", "worker", settings=settings)
    until(lambda: f"data in {tmp_path / 'data'}" in child.lines, "the data folder")
    for host, is_refused in (("pool.example.org", False), ("evil.example.org", True)):
        connection = http.client.HTTPConnection("127.0.0.1", status, timeout=PATIENCE_S)
        connection.request("GET", "/health", headers={"Host": host})
        assert (connection.getresponse().status == 403) == is_refused
        connection.close()
    child.close_input()
    assert child.wait(PATIENCE_S) == 0


def test_without_a_free_status_port_it_says_so_and_works(running: Mesh) -> None:
    with socket.socket() as taken:
        with contextlib.suppress(OSError):  # somebody else has it
            taken.bind(("127.0.0.1", 65_535))
            taken.listen()
        settings = {"WORKER_STATUS_PORT": "65535"}  # there is no port after it
        child = running.children.start("worker", "worker", settings=settings)
        until(lambda: any(" joined " in line for line in child.lines), "the worker to join")
    (line,) = [line for line in child.lines if line.startswith("note: none of the status ports")]
    assert "65535" in line
    assert "set WORKER_STATUS_PORT" in line
    child.close_input()
    assert child.wait(PATIENCE_S) == 0


def test_an_address_of_another_machine_is_not_the_status_ports_fault(running: Mesh) -> None:
    settings = {"FLASK_HOST": "10.254.254.254"}
    child = running.children.start("worker", "worker", settings=settings)
    until(lambda: any(" joined " in line for line in child.lines), "the worker to join")
    told = "note: FLASK_HOST='10.254.254.254': expected an address of this machine"
    assert any(line.startswith(told) for line in child.lines), child.lines
    child.close_input()
    assert child.wait(PATIENCE_S) == 0


def test_a_second_worker_of_a_name_says_what_it_became(running: Mesh, tmp_path: Path) -> None:
    def started(folder: str) -> RunningCommand:
        settings = {"WORKER_STATUS_PORT": str(free_ports(1)[0]), "D8_DATA_DIR": folder}
        child = running.children.start("worker", "worker", "--name", "bob", settings=settings)
        until(lambda: any(" joined " in line for line in child.lines), "the worker to join")
        return child

    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    first, beside, elsewhere = started(here), started(here), started(there)
    assert not any("another worker" in line for line in first.lines)
    line = "another worker on this machine is called bob: this one is bob-2"
    assert line in beside.lines
    said = "another worker of the mesh is called bob: this one goes on as bob-"
    both = (first, elsewhere)  # which of the two keeps the name is the orchestrator's to say
    until(lambda: any(said in line for child in both for line in child.lines), "the new name")
    for child in (first, beside, elsewhere):
        child.close_input()
        assert child.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("name", ["{}/my own/my-paint.py", "tests/end_to_end/slow_tasks.py"])
def test_tasks_may_be_a_file(running: Mesh, tmp_path: Path, name: str) -> None:
    file = tmp_path / "my own" / "my-paint.py"
    file.parent.mkdir()
    file.write_text(
        "import colours\n"
        "def paint(data): return colours.RED\n"
        "def register(worker):\n"
        "    worker.register('paint', paint)\n"
        "    worker.register('paint_apart', paint, process=True)\n",
        "utf-8",
    )
    file.with_name("colours.py").write_text("RED = 'red'\n", "utf-8")
    settings = {"WORKER_STATUS_PORT": str(free_ports(1)[0])}
    child = running.children.start(
        "worker", "worker", "--tasks", name.format(tmp_path), settings=settings
    )
    until(lambda: any(" joined " in line for line in child.lines), "the worker to join")
    with running.client() as client:
        for kind in ("paint", "paint_apart") if "paint" in name else ():
            assert client.submit(kind, {}).result(PATIENCE_S)["output"] == "red"
    child.close_input()
    assert child.wait(PATIENCE_S) == 0


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
        told = [line for line in child.lines if line.startswith("no language model here")]
        assert len(told) == 1
        assert "Ollama does not answer" in told[0]

        def reason() -> str:
            rows = ask(running.url, "/api/workers/list")["workers"]
            (row,) = (each for each in rows if each["worker_id"] == "without")
            return str(row["reason"])

        # It may join before it has asked; then the next heartbeat tells.
        until(lambda: "Ollama does not answer" in reason(), "the reason in the list")
        assert client.submit("echo", {"a": 1}).result(PATIENCE_S)["output"] == {"a": 1}
        waiting = client.submit("code_generation", {"prompt": "x", "language": "python"})
        waiting.wait_accepted(PATIENCE_S)
        assert "no worker" in waiting.status()["reason"]
        assert "without: Ollama does not answer" in waiting.status()["reason"]
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
        settings = {
            "WORKER_STATUS_PORT": str(status),
            "DEEPSEEK_BASE_URL": ollama.url,
            "DEEPSEEK_MODEL": "absent:1b",
            "OLLAMA_HOST": ":11434",
        }
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
        with pytest.raises(TaskFailedError, match="deepseek-r1:8b, qwen2"):
            client.submit("agent_action", data | {"model_strict": True}).result(PATIENCE_S)
        said = "absent:1b could not be pulled: "
        until(lambda: any(line.startswith(said) for line in child.lines), "the failure to pull")
        text = "\n".join(child.lines)
        assert text.count("tasks wish for the model 'llama-3.3-70b'") == 1
        assert text.count("DEEPSEEK_MODEL=absent:1b is not installed") == 1
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
        text = "\n".join(child.lines)
        assert "draining: 1 task still runs and gets up to 25 s" in text
        assert "Ctrl-C again stops at once" in text
        assert child.lines[-1].endswith("stopped: 1 done, 0 failed")
        assert task.result(PATIENCE_S)["output"] == {"done": True}
        assert task.status()["attempts"] == 1
