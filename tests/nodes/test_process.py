"""Handlers in processes of their own: reused while warm, killed when unwanted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from d8mesh.errors import HandlerError, TaskCancelledError, TaskFailedError
from d8mesh.nodes.process import load
from tests.nodes import process_handlers
from tests.nodes.mesh import PATIENCE_S, Mesh, mesh_in, until


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
