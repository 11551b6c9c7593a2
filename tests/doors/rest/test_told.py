"""What is said of the answers of the documented REST is what a running mesh answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.mesh import mesh
from d8mesh.core.protocol.access_tokens import TokenScope
from d8mesh.edge.address_file import FOLDER
from d8mesh.edge.token_file import TokenFile
from tests.doors.every_door import Asking, ToldAnswers, every_door
from tests.doors.llm_mesh import LlmMesh
from tests.doors.rest_calls import BOSS
from tests.http.tokens import token_of
from tests.nodes.mesh import until


@pytest.fixture
def answers(tmp_path: Path) -> ToldAnswers:
    return ToldAnswers(every_door(tmp_path))


@pytest.fixture
def ask(answers: ToldAnswers) -> Iterator[Asking]:
    with mesh(workers=1) as made:
        boss = token_of("boss", TokenScope.ADMIN)
        TokenFile(made.folder / FOLDER).add(boss)
        until(lambda: LlmMesh(made).call("GET", "/api/join", headers=BOSS).status == 200)
        yield Asking(LlmMesh(made).call, answers)


def test_answers_of_the_documented_rest_are_what_is_said(ask: Asking, answers: ToldAnswers) -> None:
    ask("GET", "/health")
    task = {"type": "echo", "data": {"text": "x"}, "unknown": 1}
    done = ask("POST", "/api/tasks/submit", task, idempotency_key="k")["task_id"]
    ask("POST", "/api/tasks/submit", task, idempotency_key="k")
    many = {"tasks": [{"type": "nobody", "data": {}}] * 2}
    waiting, other = ask("POST", "/api/tasks/submit_batch", many, idempotency_key="m")["task_ids"]
    ask("POST", "/api/tasks/submit_batch", many, idempotency_key="m")
    ask("GET", f"/api/tasks/{done}/wait?timeout_s=30")
    ask("GET", f"/api/tasks/{done}/stream")
    for path in ("status/{}", "status/{}?full=1", "{}/explain"):
        for each in (done, waiting):
            ask("GET", f"/api/tasks/{path.format(each)}")
    for path in ("tasks", "tasks/queue", "stats", "workers/stats", "models", "workers/list"):
        ask("GET", f"/api/{path}")
    ask("POST", f"/api/tasks/{waiting}/cancel")
    ask("POST", f"/api/tasks/{waiting}/replay")
    _poll(ask, other)
    ask("GET", "/api/workers/list")
    ask("GET", "/api/tasks/status/nothing")
    listed = ask("GET", "/api/join", **BOSS)
    worker = next(each for each in listed["members"] if each["worker_ids"])
    for action in ("revoke", "approve", "forget"):
        ask("POST", f"/api/join/{action}", {"who": worker["fingerprint"]}, **BOSS)
    # All keys here are the data folder's own, and none of those can be revoked.
    assert [each[1] for each in answers.unseen("/api/join")] == ["/api/join/revoke"]
    assert {each[:2] for each in answers.unseen("/api/tasks")} == set()
    assert {each[:2] for each in answers.unseen("/api/workers")} == set()
    # 503: while the broker is away.
    assert answers.unseen("/health") == [("GET", "/health", 503, "application/json")]


def _poll(ask: Asking, task_id: str) -> None:
    """Be a polling worker, that leaves and comes by both names of each call."""
    worker = {"worker_id": "p", "worker_type": "t", "capabilities": {"task_types": ["nobody"]}}
    ask("POST", "/api/workers/register", worker)
    ask("POST", "/api/workers/p/heartbeat", {"task_ids": []})
    assert ask("GET", "/api/workers/p/tasks?wait=5")["task"] is not None
    report = {"worker_id": "p", "result": {"success": True, "output": "x"}}
    ask("POST", f"/api/tasks/{task_id}/result", report)
    ask("POST", "/api/workers/unregister", {"worker_id": "p"})
    ask("POST", "/api/workers/register", worker)
    polled = ask("GET", "/api/workers/p/tasks?wait=5")["task"]
    ask("POST", "/api/workers/results", {**report, "task_id": polled["task_id"]})
    ask("POST", "/api/workers/p/unregister")
    ask("GET", f"/api/tasks/status/{polled['task_id']}?full=1")
