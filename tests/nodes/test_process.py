"""Handlers in processes of their own: reused while warm, killed when unwanted."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from d8mesh.core.protocol.messages import MAX_PAYLOAD_BYTES
from d8mesh.errors import HandlerError, TaskCancelledError, TaskFailedError
from d8mesh.nodes.client import Client
from d8mesh.nodes.process import load
from tests.nodes import process_handlers
from tests.nodes.mesh import PATIENCE_S, Mesh, mesh_in, until

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
#: "At once" on a busy machine, far below the time that an attempt has.
SOON_S = 15.0


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with mesh_in(tmp_path) as mesh:
        yield mesh


def test_a_warm_process_is_used_again_and_prints_harm_nothing(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = mesh.worker(port, slots=1)
    worker.register("pid", process_handlers.pid, process=True)
    worker.register("coroutine", process_handlers.coroutine, process=True)
    mesh.run(worker)
    client = mesh.client(port)
    pids = {client.submit("pid", {}).result(PATIENCE_S)["output"] for _ in range(3)}
    assert len(pids) == 1
    assert pids != {os.getpid()}
    assert client.submit("coroutine", {"x": [1]}).result(PATIENCE_S)["output"] == [1]


def test_a_cancelled_process_is_killed(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = mesh.worker(port, slots=1)
    worker.register("hang", process_handlers.hang, process=True)
    worker.register("pid", process_handlers.pid, process=True)
    mesh.run(worker)
    client = mesh.client(port)
    task = client.submit("hang", {})
    until(lambda: worker.status()["running"] == 1)
    task.cancel()
    with pytest.raises(TaskCancelledError):
        task.result(PATIENCE_S)
    client.submit("pid", {}).result(PATIENCE_S)
    assert worker.status()["stuck"] == 0


def test_a_process_that_dies_is_a_failure_with_its_exit_code(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = mesh.worker(port, slots=1)
    worker.register("die", process_handlers.die, process=True)
    mesh.run(worker)
    with pytest.raises(TaskFailedError) as caught:
        mesh.client(port).submit("die", {}, max_attempts=1).result(PATIENCE_S)
    assert "exit code 7" in str(caught.value.result["error"])


def test_a_function_that_is_not_there_is_said() -> None:
    assert load("tests.nodes.process_handlers:pid") is process_handlers.pid
    with pytest.raises(HandlerError, match="nothing"):
        load("tests.nodes.process_handlers:nothing")


def offered(mesh: Mesh, *handlers: Any) -> Client:
    """A client of a worker with one slot that runs these in processes, by their names."""
    port = mesh.broker()
    worker = mesh.worker(port, slots=1)
    for handler in handlers:
        worker.register(handler.__name__, handler, process=True)
    mesh.run(worker)
    return mesh.client(port)


def failure(client: Client, kind: str, **data: Any) -> dict[str, Any]:
    began = time.monotonic()
    with pytest.raises(TaskFailedError) as caught:
        client.submit(kind, data, max_attempts=1).result(PATIENCE_S)
    assert time.monotonic() - began < SOON_S
    return dict(caught.value.result)


def lives(pid: int) -> bool:
    """A zombie lives no longer: whoever should take it in may be gone itself."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat")
        return not (state.exists() and state.read_text("utf-8").rsplit(")", 1)[1].split()[0] == "Z")
    except (OSError, IndexError):
        return False


@pytest.mark.parametrize("how", ["exit", "interrupt", "generator", "odd", "value"])
def test_whatever_a_process_raises_is_a_failure_with_its_traceback(mesh: Mesh, how: str) -> None:
    client = offered(mesh, process_handlers.raises, process_handlers.pid)
    result = failure(client, "raises", how=how)
    assert type(result["error"]) is str
    rows = result["traceback"].split("\n")
    assert "process_handlers.py" in rows[1]  # ours, above it, are cut away
    assert result["error"].split(":")[0] in rows[-1]


@needs_fork
def test_a_killed_process_ends_its_attempt_though_a_fork_holds_all_it_had(mesh: Mesh) -> None:
    client = offered(mesh, process_handlers.outlived, process_handlers.pid)
    assert "killed by SIGKILL" in failure(client, "outlived")["error"]
    client.submit("pid", {}).result(PATIENCE_S)


@needs_fork
@pytest.mark.parametrize("how", ["cancelled", "timed out"])
def test_an_unwanted_process_ends_with_all_that_it_started(
    mesh: Mesh, tmp_path: Path, how: str
) -> None:
    port = mesh.broker(task_timeout_s=5.0 if how == "timed out" else 300.0)
    worker = mesh.worker(port, slots=1)
    worker.register("crowd", process_handlers.crowd, process=True)
    mesh.run(worker)
    pids = tmp_path / "pids"
    task = mesh.client(port).submit("crowd", {"pids": str(pids)}, max_attempts=1)
    until(lambda: pids.exists() and len(pids.read_text("utf-8").split()) == 3)
    if how == "cancelled":
        task.cancel()
    with pytest.raises((TaskCancelledError, TaskFailedError)):
        task.result(PATIENCE_S)
    until(lambda: not any(lives(int(pid)) for pid in pids.read_text("utf-8").split()))


@needs_fork
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["KILL", "TERM"])
def test_a_process_and_its_own_end_with_a_worker_that_is_killed(
    mesh: Mesh, tmp_path: Path, number: signal.Signals
) -> None:
    port = mesh.broker()
    pids = tmp_path / "pids"
    script = f"""
        from pathlib import Path
        from d8mesh.config import Config
        from d8mesh.nodes.worker import Worker
        from tests.nodes import process_handlers

        config = Config(mesh={mesh.mesh!r}, interfaces=("no-mdns",), data_dir={str(tmp_path)!r})
        worker = Worker("{mesh.endpoint(port)}", config=config, slots=1)
        worker.register("crowd", process_handlers.crowd, process=True)
        worker.start()
        worker.wait_joined(60)
        while True:
            __import__("time").sleep(60)
    """
    worker = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    try:
        mesh.client(port).submit("crowd", {"pids": str(pids)})
        until(lambda: pids.exists() and len(pids.read_text("utf-8").split()) == 3)
        assert all(lives(int(pid)) for pid in pids.read_text("utf-8").split())
    finally:
        worker.send_signal(number)
        worker.wait(PATIENCE_S)
    until(lambda: not any(lives(int(pid)) for pid in pids.read_text("utf-8").split()))


def test_standard_input_is_empty_and_what_is_printed_harms_nothing(
    mesh: Mesh, capfd: pytest.CaptureFixture[str]
) -> None:
    client = offered(mesh, process_handlers.prints)
    assert client.submit("prints", {}).result(PATIENCE_S)["output"] == ""
    said = capfd.readouterr()
    assert said.out == ""
    for text in ("printed", " written", "by a program"):
        assert text in said.err


def test_a_handler_that_closes_every_descriptor_is_told_what_it_did(mesh: Mesh) -> None:
    client = offered(mesh, process_handlers.closes_all, process_handlers.pid)
    assert "closed, by the handler" in failure(client, "closes_all")["error"]
    client.submit("pid", {}).result(PATIENCE_S)


@needs_fork
def test_a_handler_that_forks_and_returns_twice_answers_once(mesh: Mesh) -> None:
    client = offered(mesh, process_handlers.forks)
    for _ in range(3):
        assert client.submit("forks", {}).result(PATIENCE_S)["output"] == "both"


@pytest.mark.skipif(sys.platform == "win32", reason="a signal's name")
def test_a_crash_names_its_signal(mesh: Mesh) -> None:
    client = offered(mesh, process_handlers.crashes)
    assert "killed by SIGSEGV" in failure(client, "crashes")["error"]


def test_a_thread_that_an_attempt_leaves_behind_emits_into_no_other(
    mesh: Mesh, tmp_path: Path
) -> None:
    client = offered(mesh, process_handlers.leaves_or_tells)
    client.submit("leaves_or_tells", {"leaves": True}).result(PATIENCE_S)
    heard = tmp_path / "heard"
    task = client.submit("leaves_or_tells", {"heard": str(heard)})
    chunks = []
    for chunk in task.stream(PATIENCE_S):
        chunks.append(chunk)
        if len(chunks) > 20:
            heard.touch()
    assert set(chunks) == {"own"}


def test_many_threads_emit_at_once_and_nothing_is_mixed_up(mesh: Mesh) -> None:
    client = offered(mesh, process_handlers.emits)
    data = {"size": 50_000, "count": 20, "threads": 8}
    task = client.submit("emits", data)
    assert set(task.stream(PATIENCE_S)) <= {"x" * 50_000}
    assert task.result(PATIENCE_S)["output"] == "all"


def test_a_chunk_that_cannot_travel_fails_in_the_process_too(mesh: Mesh) -> None:
    client = offered(mesh, process_handlers.emits, process_handlers.emits_what_is_no_json)
    assert failure(client, "emits_what_is_no_json")["error"].startswith("the chunk.a: saw a key")
    huge = {"size": MAX_PAYLOAD_BYTES, "count": 1, "threads": 1}
    client.submit("emits", huge).result(PATIENCE_S)  # the thread it failed in said so


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("def other(data): ...", "AttributeError"),
        ("this is no Python", "SyntaxError"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("import sys; sys.exit(5)", "SystemExit: 5"),
        ("handler = 5", "it is no function"),
    ],
)
def test_a_handler_that_cannot_be_loaded_is_named_and_ends_cleanly(
    tmp_path: Path, content: str, said: str
) -> None:
    (tmp_path / "nope.py").write_text(content, "utf-8")
    path = os.pathsep.join([str(tmp_path), *(each for each in sys.path if each)])
    process = subprocess.Popen(
        [sys.executable, "-m", "d8mesh", "_process", "nope:handler"],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,  # open, and nothing comes
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    with process:
        assert process.stderr is not None
        text = process.stderr.read()
        assert process.wait(PATIENCE_S) == 1
    assert "cannot load the handler nope:handler" in text
    assert said in text


def test_the_failure_of_a_task_names_why_its_handler_cannot_be_loaded(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "changed_meanwhile.py"
    module.write_text("def handler(data): ...", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    client = offered(mesh, importlib.import_module("changed_meanwhile").handler)
    module.write_text("def handler(data: broken", "utf-8")
    result = failure(client, "handler")
    assert "cannot load the handler changed_meanwhile:handler: SyntaxError" in result["error"]
    assert "changed_meanwhile.py" in result["traceback"]


def test_what_is_worth_another_attempt_is_decided_where_the_error_is(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = mesh.worker(port, slots=1)
    fail = process_handlers.fail
    worker.register("class", fail, process=True, retry=KeyError, backoff=0.0)
    worker.register("function", fail, process=True, retry=process_handlers.is_key_error)
    with pytest.raises(HandlerError, match="cannot import"):
        worker.register("here", fail, process=True, retry=lambda error: True)
    mesh.run(worker)
    client = mesh.client(port)
    for kind in ("class", "function"):
        for how, count in (("key", 2), ("value", 1)):
            task = client.submit(kind, {"how": how}, max_attempts=2)
            with pytest.raises(TaskFailedError, match=f"(?i){how}error"):
                task.result(PATIENCE_S)
            assert task.status()["attempts"] == count
