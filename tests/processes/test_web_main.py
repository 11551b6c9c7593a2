"""The REST process: starts, ends with its parent, and keeps answering under waiting requests."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from d8mesh.config import Config
from d8mesh.edge.network import bind
from d8mesh.errors import D8Error, ForbiddenError, NodeClosedError
from d8mesh.nodes.client.aio.node import AsyncNode
from d8mesh.processes import web_main
from tests.nodes.mesh import PATIENCE_S, Mesh, free_port, mesh_in, until

ROOT = Path(__file__).resolve().parents[2]
WAITS = 256
STREAMS = 50


class Web:
    """One REST process for a broker of this process."""

    def __init__(self, mesh: Mesh, broker_port: int, folder: Path, *, port: int = 0) -> None:
        self.port = port or free_port()
        environment = os.environ | {
            "D8_MESH": mesh.mesh,
            "D8_DATA_DIR": str(folder / "web"),
            "FLASK_HOST": "127.0.0.1",
            "FLASK_PORT": str(self.port),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "d8mesh", "_web", "--broker", mesh.endpoint(broker_port)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def wait_healthy(self) -> None:
        until(lambda: self.is_healthy())

    def is_healthy(self) -> bool:
        with contextlib.suppress(OSError):
            return self.ask("GET", "/health")[0] == 200
        return False

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def open(self, path: str) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return connection

    def errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with mesh_in(tmp_path) as mesh:
        yield mesh


@pytest.fixture
def web(mesh: Mesh, tmp_path: Path) -> Iterator[Web]:
    web = Web(mesh, mesh.broker(), tmp_path)
    try:
        web.wait_healthy()
        yield web
    finally:
        web.close()


def submitted(web: Web) -> str:
    status, body = web.ask("POST", "/api/tasks/submit", {"type": "nobody_runs_this", "data": {}})
    assert status == 201
    return str(body["task_id"])


def test_it_says_where_it_is_up(web: Web) -> None:
    assert web.process.stdout is not None
    assert json.loads(web.process.stdout.readline()) == {"event": "ready", "port": web.port}


def test_it_ends_within_a_second_of_its_parent_whatever_waits(web: Web) -> None:
    path = f"/api/tasks/{submitted(web)}"
    with web.open(f"{path}/wait?timeout_s=60"), web.open(f"{path}/stream"):
        assert web.process.stdin is not None
        begun = time.monotonic()
        web.process.stdin.close()
        assert (web.process.wait(PATIENCE_S), web.errors()) == (0, "")
        assert time.monotonic() - begun < 3.0  # a second, and room for a loaded machine


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM there")
def test_a_sigterm_ends_it(web: Web) -> None:
    web.process.terminate()
    assert (web.process.wait(PATIENCE_S), web.errors()) == (0, "")


def test_after_a_kill_the_next_one_has_the_port_at_once(
    web: Web, mesh: Mesh, tmp_path: Path
) -> None:
    with web.open("/api/tasks/status/x"):
        web.process.kill()
        web.process.wait()
        again = Web(mesh, mesh.brokers[0][0].ready.port, tmp_path, port=web.port)
        try:
            again.wait_healthy()
        finally:
            again.close()


def test_health_answers_while_hundreds_wait(web: Web) -> None:
    path = f"/api/tasks/{submitted(web)}"
    with contextlib.ExitStack() as stack:
        for _ in range(WAITS):
            stack.enter_context(web.open(f"{path}/wait?timeout_s=60"))
        streams = [stack.enter_context(web.open(f"{path}/stream")) for _ in range(STREAMS)]
        for stream in streams:
            assert stream.recv(17, socket.MSG_WAITALL).startswith(b"HTTP/1.1 200 OK")
        times = []
        for _ in range(21):
            begun = time.monotonic()
            assert web.ask("GET", "/health")[0] == 200
            times.append(time.monotonic() - begun)
        assert statistics.median(times) < 0.1


def test_slow_clients_do_not_keep_others_from_being_served(web: Web) -> None:
    with contextlib.ExitStack() as stack:
        for text in (b"GET /health HTTP/1.1\r\nHo", b"POST /api/tasks/submit HTTP/1.1\r\n"):
            for _ in range(150):
                slow = socket.create_connection(("127.0.0.1", web.port), timeout=PATIENCE_S)
                stack.enter_context(slow).sendall(text)
        assert web.ask("GET", "/health")[0] == 200
        submitted(web)


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [
        ("/api/tasks/submit", 42 * 1024 * 1024, 413),
        ("/api/workers/register", 2 * 1024 * 1024, 413),
        ("/api/tasks/submit", 2 * 1024 * 1024, 400),
    ],
)
def test_bodies_have_limits_by_path(web: Web, path: str, length: int, status: int) -> None:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", web.port), timeout=PATIENCE_S) as connection:
        connection.sendall(head.encode())
        if status != 413:
            connection.sendall(b"x" * length)
        answer = b""
        while part := connection.recv(65_536):
            answer += part
    assert int(answer.split()[1]) == status
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"]


def test_what_the_server_refuses_by_itself_is_counted(web: Web) -> None:
    with socket.create_connection(("127.0.0.1", web.port), timeout=PATIENCE_S) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        answer = b""
        while part := connection.recv(65_536):
            answer += part
    assert b"http.bad_request" in answer
    assert web.ask("GET", "/health")[1]["rejected"]["rest"] == {"http.bad_request": 1}


def test_a_taken_port_is_said_with_its_holder_and_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web_main, "BIND_PATIENCE_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(D8Error, match="FLASK_PORT") as caught:
            web_main.bind_patiently("localhost", port)
    assert str(port) in str(caught.value)
    if sys.platform == "linux":
        assert str(os.getpid()) in str(caught.value)


def test_a_port_that_becomes_free_soon_is_waited_for() -> None:
    taken = bind("127.0.0.1", 0)
    taken.listen()
    port = taken.getsockname()[1]
    threading.Timer(0.3, taken.close).start()
    web_main.bind_patiently("127.0.0.1", port).close()


@pytest.mark.parametrize(("fatal", "is_dead"), [(NodeClosedError(), 1), (ForbiddenError(), 0)])
def test_a_client_that_has_ended_by_itself_ends_the_process_and_a_refused_one_does_not(
    tmp_path: Path, fatal: D8Error, is_dead: bool
) -> None:
    async def serve() -> bool:
        config = Config(mesh="test-none", data_dir=str(tmp_path))
        node = AsyncNode(config, endpoint="tcp://127.0.0.1:1", url=None)
        alive = asyncio.ensure_future(web_main._until_dead(node))
        await asyncio.sleep(0)
        node.runner.fatal = fatal
        node._after_turn()
        done, _ = await asyncio.wait((alive,), timeout=0.2)
        alive.cancel()
        await node.close(0.0)
        return bool(done)

    assert asyncio.run(serve()) == is_dead


def test_where_nobody_watches_the_tokens_the_process_ends(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise RuntimeError("it fell")

    async def serve() -> bool:
        alive = asyncio.ensure_future(asyncio.sleep(60))
        with caplog.at_level(logging.ERROR):
            await web_main._until_either(alive, asyncio.ensure_future(fail()))
        alive.cancel()
        return not alive.done()

    assert asyncio.run(serve())
    assert "tokens.unwatched" in caplog.text
    assert "it fell" in caplog.text
