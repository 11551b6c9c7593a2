"""Every request has a JSON answer, and what is refused changes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from d8mesh.doors import waiting
from d8mesh.doors.api_document import DOCUMENT_PATH
from d8mesh.doors.rest.api import rest_door
from d8mesh.doors.rest.members import join_door
from d8mesh.doors.tunnel import tunnel_door
from d8mesh.doors.waiting import Places
from d8mesh.http import application
from d8mesh.http.answers import STATUS
from d8mesh.http.guard import Rejections
from tests.doors.rest_calls import Rest, rest_in
from tests.nodes.mesh import Mesh

ROOT = Path(__file__).resolve().parents[3]
JSON = {"Content-Type": "application/json"}
NOBODY: Any = SimpleNamespace(loop=None, exchange=None)
DOORS = (
    rest_door(NOBODY, Places(1), Rejections()),
    join_door(NOBODY, Places(1)),
    tunnel_door(NOBODY),
)
#: (method, path) of every call
ROUTES = [(route.method, route.rule) for door in DOORS for route in door.routes]


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rest]:
    with rest_in(tmp_path_factory.mktemp("rest")) as rest:
        yield rest


def test_health_says_that_tasks_are_taken(rest: Rest) -> None:
    answer = rest.get("/health")
    body = answer.json
    assert answer.status_code == 200
    assert body is not None
    assert (body["status"], body["service"]) == ("healthy", "d8-orchestrator")
    assert datetime.fromisoformat(body["timestamp"]).utcoffset() is not None
    assert {"workers_online", "tasks_pending", "tasks_in_progress", "version"} <= set(body)
    assert body["broker_port"] == rest.port


def test_head_is_answered_without_a_body(rest: Rest) -> None:
    answer = rest.call("HEAD", "/health")
    assert (answer.status_code, answer.data) == (200, b"")


def test_a_broker_that_is_away_makes_us_unhealthy_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "AWAY_S", 0.1)
    with ExitStack() as stack:
        rest = Rest(Mesh(tmp_path, stack), 1, stack)
        health = rest.get("/health")
        assert health.status_code == 503
        assert health.json["status"] == "unhealthy"
        assert health.json["reason"]
        stats = rest.get("/api/stats")
        assert stats.status_code == 503
        assert stats.headers["Retry-After"]
        assert stats.json["code"] == "broker.unavailable"


def test_a_client_that_has_ended_is_told_by_every_call(tmp_path: Path) -> None:
    with rest_in(tmp_path) as rest:
        rest.loop.run(rest.client.close(0.0))
        for path in ("/health", "/api/stats"):
            answer = rest.get(path)
            assert (answer.status_code, answer.json["code"]) == (503, "node.closed")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/x",
        "/console",
        "/?__debugger__=yes&cmd=resource&f=style.css",
        "/static/x",
        "/api",
        "/api/tasks/status",
        "/api/tasks/status/a/b",
        "/../../etc/passwd",
        "/.env",
        "/api/tasks/status/..%2f..%2fetc%2fpasswd",
        "/health%00",
        "/%ff",
        "/api//stats",
    ],
)
def test_unknown_paths_are_404(rest: Rest, path: str) -> None:
    answer = rest.get(path)
    assert answer.status_code == 404
    assert answer.json["code"] == "http.not_found"


@pytest.mark.parametrize(
    "task_id",
    [
        "x",
        "..",
        "a" * 3000,
        "%00",
        "ñ",
        "0123456789abcdef-99999999999999",
        "0123456789abcdef-01",
        "zzzzzzzzzzzzzzzz-0",
        "0123456789abcdef-0",
        "' OR 1=1 --",
        "0123456789abcdef-0%0a",
    ],
)
def test_odd_task_ids_are_404(rest: Rest, task_id: str) -> None:
    for method, path in (("GET", "status/{}"), ("GET", "{}/wait"), ("POST", "{}/cancel")):
        answer = rest.call(method, "/api/tasks/" + path.format(task_id))
        assert answer.status_code == 404, (path, answer.text)


def test_an_unknown_task_is_told_as_ever(rest: Rest) -> None:
    answer = rest.get("/api/tasks/status/0123456789abcdef-0")
    assert answer.status_code == 404
    assert answer.json == {"error": "Task not found", "code": "task.unknown"}


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_another_method_is_405_and_told_which_are_allowed(
    rest: Rest, method: str, path: str
) -> None:
    concrete = re.sub(r"<\w+>", "0123456789abcdef-0", path)
    allowed = {known for known, other in ROUTES if other == path}
    for wrong in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"} - allowed:
        answer = rest.call(wrong, concrete)
        assert answer.status_code == 405, (wrong, answer.text)
        assert method in answer.headers["Allow"]
        assert answer.content_type == "application/json"


POSTS = [route.rule for route in DOORS[0].routes if route.method == "POST"]


@pytest.mark.parametrize("path", POSTS)
def test_bodies_that_are_no_json_are_415(rest: Rest, path: str) -> None:
    concrete = re.sub(r"<\w+>", "0123456789abcdef-0", path)
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/xml", ""):
        answer = rest.post(concrete, b"{}", headers={"Content-Type": kind})
        assert answer.status_code == 415, (kind, answer.text)


BAD_BODIES: dict[str, bytes] = {
    "empty": b"",
    "no json": b"nonsense",
    "html": b"<script>alert(1)</script>",
    "cut off": b'{"type": "t", "data": {',
    "trailing": b'{"type": "t", "data": {}} {}',
    "array": b"[]",
    "null": b"null",
    "text": b'"x"',
    "no fields": b"{}",
    "depth": b'{"type": "t", "data": {"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}}",
    "depth of 200": b'{"type": "t", "data": {"a": ' + b"[" * 200 + b"]" * 200 + b"}}",
    "keys": b'{"type": "t", "data": {' + b",".join(b'"%d":0' % n for n in range(1_000_000)) + b"}}",
    "duplicate": b'{"type": "t", "type": "u", "data": {}}',
    "NaN": b'{"type": "t", "data": {"a": NaN}}',
    "Infinity": b'{"type": "t", "data": {"a": Infinity}}',
    "1e999": b'{"type": "t", "data": {"a": 1e999}}',
    "digits": b'{"type": "t", "data": {"a": ' + b"1" * 100_000 + b"}}",
    "65 bits": b'{"type": "t", "data": {"a": 36893488147419103232}}',
    "surrogate": b'{"type": "t", "data": {"a": "\\ud800"}}',
    "not UTF-8": b'{"type": "t", "data": {"a": "\xff"}}',
    "NUL": b'{"type": "t", "data": {"a": "\x00"}}',
    "wrong type": b'{"type": 1, "data": {}}',
    "long type": b'{"type": "' + b"t" * 1000 + b'", "data": {}}',
    "priority": b'{"type": "t", "data": {}, "priority": 99}',
    "no object": b'{"type": "t", "data": []}',
    "model": b'{"type": "agent_action", "data": {"model": "../../x"}}',
    "empty batch": b'{"tasks": []}',
    "batch": b'{"tasks": [{"type": "t", "data": {}}, {"type": "t"}]}',
    "batch of all": b'{"tasks": 1}',
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body_is_400_and_the_queue_stays_as_it_was(rest: Rest, name: str) -> None:
    before = rest.counts()
    for path in ("submit", "submit_batch"):
        answer = rest.post(f"/api/tasks/{path}", BAD_BODIES[name], headers=JSON)
        assert answer.status_code == 400, answer.text
        assert answer.json["code"] == "task.invalid"
        assert 5 < len(answer.json["error"]) < 500
        assert "Traceback" not in answer.text
        assert str(ROOT) not in answer.text
    assert rest.counts() == before


def test_each_refusal_raises_one_counter_by_one(rest: Rest) -> None:
    def count() -> int:
        body = rest.get("/health").json
        assert body is not None
        return int(body["rejected"]["rest"].get("http.not_found", 0))

    before = count()
    rest.get("/nothing")
    assert count() == before + 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.com"}, 403),
        ({"Host": "a b"}, 400),
        ({"Origin": "http://evil.com"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"X-Forwarded-For": "8.8.8.8", "X-Forwarded-Host": "evil.com"}, 200),
    ],
)
def test_the_guard_stands_before_every_call(
    rest: Rest, headers: dict[str, str], status: int
) -> None:
    answer = rest.get("/api/stats", headers=headers)
    assert answer.status_code == status
    assert answer.content_type == "application/json"


def test_public_peers_are_refused(rest: Rest) -> None:
    answer = rest.get("/health", peer="8.8.8.8")
    assert answer.status_code == 403


def test_long_addresses_are_414(rest: Rest) -> None:
    assert rest.get("/api/tasks/status/" + "x" * 5000).status_code == 414
    assert rest.get("/api/tasks?cursor=" + "x" * 5000).status_code == 414


def test_large_bodies_are_bounded_together(rest: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"type": "large", "data": {"x": "y" * 1_100_000}}
    with monkeypatch.context() as patch:
        patch.setattr(application, "MAX_HELD_BYTES", 1_000_000)
        refused = rest.post("/api/tasks/submit", body)
        assert (refused.status_code, "Retry-After" in refused.headers) == (429, True)
        rest.submit("small")
    assert rest.post("/api/tasks/submit", body).status_code == 201


def test_an_error_of_ours_is_told_without_its_traceback(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(rest.client, "ask", broken)
    answer = rest.get("/api/stats")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert json.loads(answer.text)["code"] == "d8.error"


def test_the_documentation_has_every_call_and_no_other() -> None:
    text = (ROOT / "docs" / "REST.md").read_text("utf-8")
    documented = set()
    for method, paths in re.findall(r"^### `(GET|POST) (/.*)$", text, re.MULTILINE):
        documented |= {(method, path) for path in re.findall(r"(/[^`\s]*)`", paths)}
    routes = {(method, re.sub(r"<(\w+)>", r"{\1}", path)) for method, path in ROUTES}
    assert documented == routes | {("GET", DOCUMENT_PATH)}


def test_the_documentation_has_every_code_with_its_status() -> None:
    text = (ROOT / "docs" / "REST.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d{3}) \| (.*?) \|", text, re.MULTILINE)
    documented = {
        code: int(status) for status, codes in rows for code in re.findall(r"`([\w.]+)`", codes)
    }
    assert documented == dict(STATUS)
