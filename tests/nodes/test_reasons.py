"""A wait that is over, or long, says why: for each reason that there is."""

from __future__ import annotations

import logging
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from d8mesh.config import Config
from d8mesh.core.broker import admission
from d8mesh.errors import BrokerUnavailableError, QueueFullError, WaitTimeoutError
from d8mesh.nodes.client import Client, completion_waiters, direct_call, outputs
from d8mesh.program import command_name
from tests.keyed import endpoint_of
from tests.nodes.mesh import PATIENCE_S, Mesh, free_port, mesh_in, until


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with mesh_in(tmp_path) as mesh:
        yield mesh


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def away(stack: ExitStack, **options: Any) -> Client:
    """A client that reaches nobody; what it submits is given up at the end."""
    options.setdefault("config", Config(mesh="nobody-here", interfaces=("127.0.0.1",)))
    client = Client(**options)
    stack.callback(client.node._end)
    return client


def why(wait: Callable[[], object], error: type[Exception] = WaitTimeoutError) -> str:
    with pytest.raises(error) as caught:
        wait()
    return str(caught.value)


# ------------------------------------------------------------------- never connected


def test_an_endpoint_that_refuses_is_named(stack: ExitStack) -> None:
    port = free_port()
    client = away(stack, endpoint=endpoint_of(port))
    waits: list[Callable[[], object]] = [
        lambda: client.submit("echo", {}).result(0.3),
        lambda: client.submit("echo", {}).wait_accepted(0.3),
        lambda: client.submit_many("echo", [{}], timeout=0.3),
        lambda: list(client.map("echo", [{}], timeout=0.3)),
        lambda: client.call("echo", {}, timeout=0.3),
        lambda: next(client.submit("echo", {}).stream(0.3)),
        lambda: client.flush(0.3),
    ]
    expected = rf"within 0\.3 s: never connected: tcp://127\.0\.0\.1:{port}: the connection is ref"
    for wait in waits:
        assert re.search(expected, why(wait)), why(wait)
    asked = why(lambda: client.ask("health", {}, timeout=0.3), BrokerUnavailableError)
    assert re.search(expected, asked)
    assert client.trouble in asked


def test_an_orchestrator_url_that_refuses_is_said_to_refuse(stack: ExitStack) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    config = Config(orchestrator_url=url, interfaces=("127.0.0.1",))
    said = why(lambda: away(stack, config=config).submit("echo", {}).result(0.5))
    assert f"ORCHESTRATOR_URL {url}: the connection is refused" in said
    assert "set ORCHESTRATOR_URL" not in said
    client = away(stack, url=url, config=Config(interfaces=("127.0.0.1",)))
    until(lambda: "refused" in client.trouble)
    assert client.trouble.startswith(f"never connected: {url}: the connection is refused")


def test_a_host_that_does_not_exist_is_said_so(stack: ExitStack) -> None:
    client = away(stack, url="http://no-such-host.invalid", config=Config())
    until(lambda: "there is no host of that name" in client.trouble)
    client = away(stack, endpoint="tcp://no-such-host.invalid:7010")
    assert re.search("no host of that name|no answer within", client.trouble)


def test_what_listens_but_is_no_orchestrator_is_said_so(stack: ExitStack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = away(stack, endpoint=endpoint_of(port))
        assert f"{port}: it takes connections, but no orchestrator answers" in client.trouble


def test_an_endpoint_whose_key_nobody_tells_is_said_so(stack: ExitStack, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        config = Config(web_port=free_port(), data_dir=str(tmp_path))
        client = away(stack, endpoint=place, config=config)
        assert f"{place}: the public key of the orchestrator there is not" in client.trouble


def test_who_hears_nothing_is_told_where_it_listened(stack: ExitStack) -> None:
    said = why(lambda: away(stack).submit("echo", {}).result(0.3))
    assert "no orchestrator of mesh 'nobody-here' is heard by mDNS on 127.0.0.1" in said
    assert f"Is one running ({command_name()} orchestrator)?" in said


@pytest.mark.skipif(sys.platform == "win32", reason="multicast on loopback")
def test_other_meshes_that_are_heard_are_named(mesh: Mesh, stack: ExitStack) -> None:
    mesh.broker(is_announced=True)
    client = away(stack)
    until(lambda: (heard := client.node.reconnector.search._discovery) and heard.strangers)
    until(lambda: "(other meshes are there: " in client.trouble)


def test_another_mesh_at_the_endpoint_is_the_reason(mesh: Mesh, stack: ExitStack) -> None:
    client = away(stack, endpoint=mesh.endpoint(mesh.broker()))
    until(lambda: client.node.runner.fatal)
    assert client.trouble == f"this is mesh {mesh.mesh!r}, not 'nobody-here'"


def test_an_orchestrator_that_has_gone_is_said_to_be_lost(mesh: Mesh, stack: ExitStack) -> None:
    port = mesh.broker()
    client = away(stack, endpoint=mesh.endpoint(port), config=mesh.config())
    assert client.wait_connected(PATIENCE_S)
    assert client.trouble == ""
    mesh.stop_broker(*mesh.brokers[0])
    until(lambda: not client.is_connected)
    assert client.trouble.startswith("the connection to the orchestrator is lost: tcp://")


# ------------------------------------------------------------------------- connected


def test_a_type_that_nobody_offers_is_the_reason(mesh: Mesh) -> None:
    client = mesh.client(mesh.broker())
    assert client.wait_connected(PATIENCE_S)
    for wait in (
        lambda: client.submit("ehco", {}).result(0.5),
        lambda: client.call("ehco", {}, timeout=0.5),
        lambda: next(client.submit("ehco", {}).stream(0.5)),
        lambda: list(client.map("ehco", [{}], timeout=0.5)),
    ):
        said = why(wait)
        assert re.search(r"within 0\.5 s: no worker in the mesh offers 'ehco'", said)
        assert "workers online: 0" in said


def test_workers_that_are_busy_are_the_reason_and_who_works_is_named(mesh: Mesh) -> None:
    port = mesh.broker()
    go_on = threading.Event()
    worker = mesh.worker(port, slots=1, name="pc-1")
    worker.register("slow", lambda data: go_on.wait(PATIENCE_S) and {})
    mesh.run(worker)
    client = mesh.client(port)
    first = client.submit("slow", {})
    until(lambda: first.status()["state"] == "running")
    others = client.submit_many("slow", [{}] * 9)
    try:
        assert "worker 'pc-1' has it" in why(lambda: first.result(0.5))
        said = why(lambda: others[-1].result(0.5))
        assert re.search(r"workers online: 1, busy: 1; tasks queued: \d+, running: \d+", said)
    finally:
        go_on.set()
    assert others[-1].result(PATIENCE_S)


def test_a_full_queue_is_the_reason(
    mesh: Mesh, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(admission._RETRY_S, QueueFullError, PATIENCE_S)  # no try in between
    port = mesh.broker(queue_size=2)
    client = away(stack, endpoint=mesh.endpoint(port), config=mesh.config())
    client.submit_many("nobody", [{}] * 2)
    task = client.submit("nobody", {})
    until(lambda: client.node.session.paused_for)
    assert "TASK_QUEUE_SIZE" in why(lambda: task.wait_accepted(0.5))
    assert "TASK_QUEUE_SIZE" in why(lambda: task.result(0.5))
    assert "TASK_QUEUE_SIZE" in why(lambda: client.flush(0.5))


def test_a_look_at_a_result_asks_nobody(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    client = mesh.client(mesh.broker())
    task = client.submit("nobody", {})
    task.wait_accepted(PATIENCE_S)
    monkeypatch.setattr(client.node.questions, "ask", None)
    for _ in range(3):
        with pytest.raises(WaitTimeoutError, match=r"within 0 s$"):
            task.result(0)


# ------------------------------------------------------------------------- in the log


def waiting(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage() for record in caplog.records if "still.waiting" in record.getMessage()
    ]


def test_a_wait_without_progress_is_logged_once_with_its_reason(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(completion_waiters, "QUIET_S", 0.3)
    port = mesh.broker()
    client = mesh.client(port)
    with caplog.at_level(logging.WARNING, "d8mesh.client"):
        tasks = client.submit_many("later", [{"n": n} for n in range(3)])
        waits = [threading.Thread(target=task.result) for task in tasks]
        for thread in waits:
            thread.start()
        until(lambda: waiting(caplog))
        with pytest.raises(WaitTimeoutError):
            tasks[0].result(2.5)  # all of them have looked around more than once by then
        worker = mesh.worker(port)
        worker.register("later", lambda data: data)
        mesh.run(worker)
        for thread in waits:
            thread.join(PATIENCE_S)
    (line,) = waiting(caplog)
    assert re.search(r"what=\"the result of \S+\" why=\"no worker in the mesh offers 'later'", line)


def test_a_task_that_is_at_work_is_no_reason_to_warn(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in (completion_waiters, direct_call, outputs):
        monkeypatch.setattr(module, "QUIET_S", 0.2)
    port = mesh.broker()
    go_on = threading.Event()
    worker = mesh.worker(port)
    worker.register("slow", lambda data: go_on.wait(PATIENCE_S) and {})
    mesh.run(worker)
    client = mesh.client(port)
    assert client.wait_connected(PATIENCE_S)
    with caplog.at_level(logging.INFO, "d8mesh.client"):
        task = client.submit("slow", {})
        waits = [
            threading.Thread(target=task.result),
            threading.Thread(target=client.call, args=("slow", {})),
            threading.Thread(target=lambda: list(task.stream())),
        ]
        for thread in waits:
            thread.start()
        until(lambda: len(waiting(caplog)) >= 3)
        go_on.set()
        for thread in waits:
            thread.join(PATIENCE_S)
    levels = {record.levelno for record in caplog.records if "still.waiting" in record.getMessage()}
    assert levels == {logging.INFO}


def test_a_plain_program_shows_it_on_the_screen() -> None:
    program = f"""
from d8mesh import Client
from d8mesh.config import Config
from d8mesh.nodes.client import completion_waiters
from d8mesh.program import command_name
completion_waiters.QUIET_S = 0.2
client = Client(endpoint="tcp://127.0.0.1:{free_port()}", config=Config())
try:
    client.submit("echo", {{}}).result(3)
except TimeoutError:
    client.node._end()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    (line,) = done.stderr.splitlines()
    assert line.startswith("still.waiting what=")
    assert "the connection is refused" in line
