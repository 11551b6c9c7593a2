"""The status page of a worker, over real sockets."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from d8mesh.edge.network import bind
from d8mesh.errors import D8Error
from d8mesh.http import guard
from d8mesh.http.guard import Guard
from d8mesh.processes import status
from d8mesh.processes.status import StatusServer

ROOT = Path(__file__).resolve().parents[2]
REPORT: dict[str, Any] = {"status": "healthy", "service": "d8-worker", "worker_id": "w-ñ"}


@pytest.fixture
def report() -> dict[str, Any]:
    return dict(REPORT)


@pytest.fixture
def page(report: dict[str, Any]) -> Iterator[StatusServer]:
    server = StatusServer("127.0.0.1", [0], lambda: report, Guard())
    server.start()
    yield server
    server.close()


def ask(
    page: StatusServer, method: str = "GET", path: str = "/health", **headers: str
) -> tuple[int, dict[str, Any], http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=20)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=named)
        answer = connection.getresponse()
        content = answer.read()
        assert answer.headers["Content-Type"] == "application/json"
        return answer.status, json.loads(content) if content else {}, answer.headers
    finally:
        connection.close()


def test_a_healthy_worker_is_200(page: StatusServer) -> None:
    assert ask(page)[:2] == (200, REPORT | {"rejected": {}})


def test_an_unhealthy_worker_is_503_with_its_reason(
    page: StatusServer, report: dict[str, Any]
) -> None:
    report |= {"status": "unhealthy", "reason": "no orchestrator"}
    assert ask(page)[:2] == (503, report | {"rejected": {}})


def test_a_head_has_no_body(page: StatusServer) -> None:
    found, body, headers = ask(page, "HEAD")
    assert (found, body) == (200, {})
    assert int(headers["Content-Length"]) > 0


def test_other_methods_are_405(page: StatusServer) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
        found, body, headers = ask(page, method)
        assert (found, body["code"], headers["Allow"]) == (405, "http.method", "GET, HEAD")


def test_other_paths_are_404(page: StatusServer) -> None:
    for path in ("/", "/health/x", "/../etc/passwd", "/console", "/%2e%2e/health"):
        found, body, _ = ask(page, "GET", path)
        assert (found, body["code"]) == (404, "http.not_found")
    assert ask(page)[1]["rejected"] == {"http.not_found": 5}


@pytest.mark.parametrize(
    ("headers", "found", "code"),
    [
        ({"Host": "evil.example.com"}, 403, "http.host"),
        ({"Host": "a b"}, 400, "http.bad_request"),
        ({"Origin": "http://evil.example.com"}, 403, "http.origin"),
        ({"Origin": "null"}, 403, "http.origin"),
        ({"Sec_Fetch_Site": "cross-site"}, 403, "http.origin"),
    ],
)
def test_web_pages_from_elsewhere_learn_nothing(
    page: StatusServer, headers: dict[str, str], found: int, code: str
) -> None:
    status_code, body, _ = ask(page, **headers)
    assert (status_code, body["code"]) == (found, code)
    assert "worker_id" not in body


def test_a_forwarded_address_counts_for_nothing(
    page: StatusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(page, X_Forwarded_For="8.8.8.8", X_Forwarded_Host="evil.example.com")[0] == 200
    monkeypatch.setattr(guard, "is_admissible", lambda address: False)
    assert ask(page, X_Forwarded_For="127.0.0.1")[0] == 403


def test_in_a_closed_mesh_it_takes_the_key() -> None:
    key = "0123456789abcdef"
    server = StatusServer("127.0.0.1", [0], lambda: REPORT, Guard(keys=[key]))
    server.start()
    try:
        assert ask(server)[0] == 200  # a program of this machine
        for method, path in (("GET", "/health"), ("POST", "/health"), ("GET", "/nothing")):
            found, body, _ = ask(server, method, path, Via="1.1 proxy")
            assert (found, body["code"]) == (401, "access.token")
        assert ask(server, Via="1.1 proxy", Authorization=f"Bearer {key}")[0] == 200
    finally:
        server.close()


def test_a_flood_is_429_and_no_answer_is_missing(
    page: StatusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "BURST", 20)
    monkeypatch.setattr(status, "PER_SECOND", 1.0)
    answers = [ask(page) for _ in range(60)]
    assert [found for found, *_ in answers[:20]] == [200] * 20
    assert {found for found, *_ in answers[30:]} == {429}
    assert answers[-1][2]["Retry-After"] == "1"


def test_the_next_port_is_taken_when_the_first_is_not_free() -> None:
    first, second = bind("127.0.0.1", 0), bind("127.0.0.1", 0)
    ports = [first.getsockname()[1], second.getsockname()[1]]
    first.listen()
    second.close()
    server = StatusServer("localhost", ports, lambda: REPORT, Guard())
    assert server.port == ports[1]
    server.close()
    first.close()


def test_no_free_port_is_said_with_the_variable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(D8Error, match="WORKER_STATUS_PORT"):
            StatusServer("127.0.0.1", [taken.getsockname()[1]], lambda: REPORT, Guard())


def test_the_page_is_small() -> None:
    code = (
        "import sys, d8mesh.processes.status\n"
        "print([m for m in ('werkzeug', 'zmq', 'http.server', 'httpx') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_http_1_0_needs_no_host(page: StatusServer) -> None:
    with socket.create_connection(("127.0.0.1", page.port), 30) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert b" 200 OK" in connection.recv(4096).partition(b"\r\n")[0]
