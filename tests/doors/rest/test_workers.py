"""The polling dialect: existing workers register, poll, run and report."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import structs

from d8mesh.errors import BrokerUnavailableError
from d8mesh.http.asgi import AsgiMessage
from tests.doors.rest_calls import Rest, rest_in
from tests.http.calls import scope_of
from tests.nodes.mesh import until

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rest]:
    with rest_in(tmp_path_factory.mktemp("rest")) as rest:
        yield rest


def poll(rest: Rest, worker_id: str, wait_s: float = 20) -> Any:
    answer = rest.get(f"/api/workers/{worker_id}/tasks?wait={wait_s}")
    assert answer.status_code == 200, answer.text
    return answer.json["task"]


def status(rest: Rest, task_id: str) -> dict[str, Any]:
    body = rest.get(f"/api/tasks/status/{task_id}").json
    assert body is not None
    return dict(body)


def test_registering_is_answered_as_ever_and_again_is_an_update(rest: Rest) -> None:
    body = {
        "worker_id": "reg",
        "worker_type": "groq",
        "capabilities": {"max": 1},
        "status": "online",
    }
    for _ in range(2):
        answer = rest.post("/api/workers/register", body)
        assert answer.status_code == 200
        assert answer.json["status"] == "registered"
        assert answer.json["success"] is True
        assert answer.json["worker_id"] == "reg"
        assert answer.json["message"]
    listed = rest.get("/api/workers/list").json
    assert listed is not None
    (mine,) = [each for each in listed["workers"] if each["worker_id"] == "reg"]
    assert (mine["worker_type"], mine["status"]) == ("groq", "online")
    assert mine["capabilities"] == {"max": 1}
    assert abs(mine["last_heartbeat"] - time.time()) < 60
    assert (mine["tasks_completed"], mine["tasks_failed"]) == (0, 0)
    assert listed["total"] == len(listed["workers"])


@pytest.mark.parametrize("field", ["worker_id", "worker_type", "capabilities"])
def test_a_missing_field_is_named(rest: Rest, field: str) -> None:
    body = {"worker_id": "w", "worker_type": "t", "capabilities": {}}
    del body[field]
    answer = rest.post("/api/workers/register", body)
    assert answer.status_code == 400
    assert answer.json["error"] == f"Missing field: {field}"


def test_a_worker_that_is_not_registered_is_404(rest: Rest) -> None:
    for method, path in (("POST", "heartbeat"), ("GET", "tasks"), ("POST", "unregister")):
        for worker_id in ("stranger", "x" * 200, "%00"):
            answer = rest.call(method, f"/api/workers/{worker_id}/{path}")
            assert answer.status_code == 404, answer.text
            assert answer.json["code"] == "worker.unknown"


def test_a_heartbeat_may_have_a_body(rest: Rest) -> None:
    rest.register("beating")
    for body in (b"", {}, {"status": "idle", "worker_id": "other"}, {"task_ids": ["x"]}):
        answer = rest.post("/api/workers/beating/heartbeat", body)
        assert (answer.status_code, answer.json) == (200, {"status": "ok"})
    for path in ("beating/heartbeat", "beating/unregister"):  # null is no body
        null = rest.post(f"/api/workers/{path}", b"null", headers=JSON)
        assert null.status_code == 200
    rest.register("beating")
    for bad in list[object](([], {"task_ids": "x"}, {"task_ids": [5]})):
        assert rest.post("/api/workers/beating/heartbeat", bad).status_code == 400


def test_a_heartbeat_keeps_the_tasks_that_it_names(rest: Rest) -> None:
    rest.register("naming", "named", slots=2)
    (broker, _) = rest.mesh.brokers[0]
    ids = [rest.submit("named") for _ in range(2)]
    for task_id in ids:
        assert poll(rest, "naming")["task_id"] == task_id
    tasks = [broker._dispatcher.state.task_table.tasks[task_id] for task_id in ids]
    for task in tasks:
        task.attempt = structs.replace(task.attempt, until=time.monotonic() + 20)
    assert rest.post("/api/workers/naming/heartbeat", {"task_ids": ids[:1]}).status_code == 200
    assert [task.attempt.until > time.monotonic() + 40 for task in tasks] == [True, False]


@pytest.mark.parametrize("by_body", [False, True])
def test_unregistering_gives_running_tasks_back_at_once(rest: Rest, by_body: bool) -> None:
    kind = f"unregistered_{by_body}"
    rest.register("leaving", kind)
    task_id = rest.submit(kind)
    assert poll(rest, "leaving")["task_id"] == task_id
    if by_body:
        answer = rest.post("/api/workers/unregister", {"worker_id": "leaving"})
    else:
        answer = rest.post("/api/workers/leaving/unregister")
    assert (answer.status_code, answer.json) == (200, {"status": "unregistered", "success": True})
    assert status(rest, task_id)["status"] == "pending"
    assert rest.get("/api/workers/leaving/tasks").status_code == 404


def test_a_poll_brings_the_task_flattened(rest: Rest) -> None:
    data = {"messages": [{"role": "user", "content": "ñ"}], "priority": "mine", "type": "mine"}
    rest.register("poller", "flat")
    assert rest.get("/api/workers/poller/tasks").json == {"task": None}
    task_id = rest.submit("flat", data=data, priority=8)
    task = poll(rest, "poller")
    assert task["task_id"] == task_id
    assert (task["type"], task["priority"], task["data"]) == ("flat", 8, data)
    assert task["messages"] == data["messages"]
    assert status(rest, task_id)["assigned_to"] == "poller"
    assert status(rest, task_id)["status"] == "assigned"


def test_a_head_is_handed_no_task(rest: Rest) -> None:
    rest.register("header", "for_heads")
    task_id = rest.submit("for_heads")
    assert rest.call("HEAD", "/api/workers/header/tasks").status_code == 200
    assert status(rest, task_id)["status"] == "pending"
    rest.post(f"/api/tasks/{task_id}/cancel")


def test_higher_priorities_come_first(rest: Rest) -> None:
    low, high = rest.submit("ranked", priority=1), rest.submit("ranked", priority=9)
    rest.register("ranker", "ranked", slots=2)
    assert [poll(rest, "ranker")["task_id"] for _ in range(2)] == [high, low]


def test_a_long_poll_is_answered_when_a_task_comes(rest: Rest) -> None:
    rest.register("waiter", "late")
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(poll(rest, "waiter", 60)))
    thread.start()
    task_id = rest.submit("late")
    thread.join(30)
    assert found[0]["task_id"] == task_id


def test_a_long_poll_ends_with_its_time(rest: Rest) -> None:
    rest.register("bored", "never")
    assert poll(rest, "bored", 0.35) is None
    for bad in ("-1", "x", "nan"):
        assert rest.get(f"/api/workers/bored/tasks?wait={bad}").status_code == 400


def test_who_hangs_up_is_handed_no_task(rest: Rest) -> None:
    rest.register("gone", "for_the_gone")
    (broker, _) = rest.mesh.brokers[0]
    worker = broker._dispatcher.state.registry.workers["gone"]
    polling = rest.open("/api/workers/gone/tasks?wait=1e9")
    until(lambda: worker.poll is not None)
    polling.leave()
    until(lambda: worker.poll is None)
    task_id = rest.submit("for_the_gone")
    assert status(rest, task_id)["status"] == "pending"
    assert poll(rest, "gone")["task_id"] == task_id


@pytest.mark.parametrize("is_told", [True, False])
def test_a_task_that_was_on_its_way_to_who_hung_up_goes_back(
    rest: Rest, monkeypatch: pytest.MonkeyPatch, is_told: bool
) -> None:
    worker_id, kind = f"quick_{is_told}", f"for_the_quick_{is_told}"
    rest.register(worker_id, kind)
    ask, has_left = rest.client.ask, threading.Event()

    async def late(what: str, args: dict[str, Any], *more: Any) -> dict[str, Any]:
        if what == "poll.leave" and "task_id" not in args and not is_told:
            raise BrokerUnavailableError("away just now")
        answer = await ask(what, args, *more)
        while what == "poll.next" and not has_left.is_set():
            await asyncio.sleep(0.01)
        return answer

    monkeypatch.setattr(rest.client, "ask", late)
    polling = rest.open(f"/api/workers/{worker_id}/tasks?wait=60")
    task_id = rest.submit(kind, max_attempts=1)
    until(lambda: status(rest, task_id)["status"] == "assigned")
    polling.leave()
    has_left.set()
    until(lambda: status(rest, task_id)["status"] == "pending")
    monkeypatch.undo()
    assert poll(rest, worker_id)["task_id"] == task_id  # no attempt was used up


@pytest.mark.parametrize("path", ["/api/tasks/{}/result", "/api/workers/results"])
@pytest.mark.parametrize("key", ["output", "result", "response"])
def test_a_result_arrives_where_clients_read_it(rest: Rest, path: str, key: str) -> None:
    rest.register("llm")
    task_id = rest.submit("agent_action", data={"messages": [], "model": "llama-3.3-70b"})
    assert poll(rest, "llm")["task_id"] == task_id
    result = {"success": True, key: "hello", "model": "m"}
    body: dict[str, Any] = {"worker_id": "llm", "result": result}
    if path.endswith("results"):
        body |= {"task_id": task_id, "timestamp": 1.5}
    answer = rest.post(path.format(task_id), body)
    assert (answer.status_code, answer.json) == (200, {"status": "received", "success": True})
    found = status(rest, task_id)
    assert found["status"] == "completed"
    assert found["result"]["success"] is True
    assert found["result"]["output"] == "hello"
    assert (found["result"]["worker_id"], found["result"]["model"]) == ("llm", "m")
    assert found["completed_at"] >= found["created_at"]


def test_a_second_report_changes_nothing(rest: Rest) -> None:
    rest.register("twice", "reported_twice")
    task_id = rest.submit("reported_twice")
    poll(rest, "twice")
    for output in ("first", "second"):
        body = {"worker_id": "twice", "result": {"success": True, "output": output}}
        assert rest.post(f"/api/tasks/{task_id}/result", body).status_code == 200
    assert status(rest, task_id)["result"]["output"] == "first"


def test_a_report_for_an_unknown_task_is_404(rest: Rest) -> None:
    body = {"worker_id": "x", "result": {"success": True}}
    for task_id in ("0123456789abcdef-7", "nonsense", "x" * 200):
        assert rest.post(f"/api/tasks/{task_id}/result", body).status_code == 404
    assert rest.post("/api/workers/results", body | {"task_id": "nonsense"}).status_code == 404


def test_a_report_by_who_never_had_the_task_is_refused(rest: Rest) -> None:
    task_id = rest.submit("not_given")
    body = {"worker_id": "liar", "result": {"success": True}}
    assert rest.post(f"/api/tasks/{task_id}/result", body).status_code == 403
    assert status(rest, task_id)["status"] == "pending"


@pytest.mark.parametrize("result", [None, "text", [], {"success": False, "error": "no model"}])
def test_a_failure_fails_the_task_once_its_attempts_are_used_up(rest: Rest, result: Any) -> None:
    kind = f"failing_{type(result).__name__}"
    rest.register("failing", kind)
    task_id = rest.submit(kind, max_attempts=1)
    poll(rest, "failing")
    body = {"worker_id": "failing", "result": result}
    assert rest.post(f"/api/tasks/{task_id}/result", body).status_code == 200
    found = status(rest, task_id)
    assert found["status"] == "failed"
    assert found["result"]["success"] is False
    assert found["result"]["error"]


def test_a_report_without_a_result_is_400(rest: Rest) -> None:
    answer = rest.post("/api/tasks/0123456789abcdef-7/result", {"worker_id": "x"})
    assert answer.status_code == 400
    assert answer.json["error"] == "Missing field: result"


def test_statistics_have_the_documented_keys(rest: Rest) -> None:
    for path in ("/api/stats", "/api/workers/stats"):
        body = rest.get(path).json
        assert body is not None
        assert {"total", "online", "busy", "by_type"} <= set(body["workers"])
        assert {"total", "pending", "assigned", "completed", "failed"} <= set(body["tasks"])
        assert 0 <= body["performance"]["success_rate"] <= 100
        assert {"total_completed", "total_failed"} <= set(body["performance"])


def test_a_worker_without_task_types_gets_the_documented_ones(rest: Rest) -> None:
    rest.register("any_llm")
    for kind in ("agent_action", "code_generation", "evolution_mutation", "evolution_crossover"):
        task_id = rest.submit(kind, data={})
        task = poll(rest, "any_llm")
        assert task["task_id"] == task_id
        body = {"worker_id": "any_llm", "result": {"success": True, "output": "x"}}
        rest.post(f"/api/tasks/{task_id}/result", body)


def test_an_empty_list_of_task_types_lists_none(rest: Rest) -> None:
    rest.register("idler", task_types=[])
    task_id = rest.submit("evolution_mutation", data={})
    assert poll(rest, "idler")["task_id"] == task_id


def test_capabilities_of_a_wrong_type_are_refused_by_their_field(rest: Rest) -> None:
    body = {"worker_id": "odd", "worker_type": "t", "capabilities": {"task_types": "a"}}
    answer = rest.post("/api/workers/register", body)
    assert answer.status_code == 400
    assert answer.json["error"].startswith("capabilities.task_types: ")
    assert rest.get("/api/workers/odd/tasks").status_code == 404


BAD_RESULTS = [
    (b'{"worker_id": "%s", "result": {"success": true, "output": "\\ud83d"}}', "surrogate"),
    (b'{"worker_id": "%s", "result": {"success": true, "output": NaN}}', "NaN"),
    (b'{"worker_id": "%s", "result": {"success": true, "output": -Infinity}}', "Infinity"),
    (b'{"worker_id": "%s", "result": {"n": 1e999}}', "too large"),
    (b'{"worker_id": "%s", "result": {"n": 99999999999999999999999}}', "beyond 64 bits"),
    (b'{"worker_id": "%s", "result": {"a": 1, "a": 2}}', "stands twice"),
    (b'{"worker_id": "%s", "result": {"deep": ' + b"[" * 500 + b"]" * 500 + b"}}", "nested"),
    (b'{"worker_id": "%s", "result": {"success": true', "not JSON"),
    (b'{"worker_id": "%s", "result": "\xff"}', "not UTF-8"),
    (b'{"worker_id": "%s"}', "Missing field: result"),
    (b'{"worker": "%s", "result": {"success": true}}', "Missing field: worker_id"),
    (b'["%s"]', "expected an object"),
    (b"", "not JSON"),
]


@pytest.mark.parametrize(("body", "why"), BAD_RESULTS)
def test_a_report_that_cannot_be_taken_is_told_and_ends_the_attempt(
    rest: Rest, body: bytes, why: str
) -> None:
    worker_id = f"bad-{time.monotonic_ns()}"
    rest.register(worker_id, worker_id)
    task_id = rest.submit(worker_id, max_attempts=1)
    assert poll(rest, worker_id)["task_id"] == task_id
    body = body.replace(b"%s", worker_id.encode())
    answer = rest.post(f"/api/tasks/{task_id}/result", body, headers=JSON)
    assert answer.status_code == 400
    assert why in answer.json["error"]
    told = status(rest, task_id)
    assert (told["state"], told["attempts"]) == ("failed", 1)
    assert why in told["result"]["error"]
    assert why in told["reason"]


def test_a_bad_report_that_names_its_task_in_the_body_ends_that(rest: Rest) -> None:
    rest.register("bad-named", "bad-named")
    for body, media in (
        (b'{"task_id": "%s", "worker_id": "bad-named", "result": NaN}', "application/json"),
        (b'{"task_id": "%s", "worker_id": "bad-named", "result": oh', "application/json"),
    ):
        task_id = rest.submit("bad-named", max_attempts=1)
        assert poll(rest, "bad-named")["task_id"] == task_id
        body = body.replace(b"%s", task_id.encode())
        assert (
            rest.post("/api/workers/results", body, headers={"Content-Type": media}).status_code
            == 400
        )
        assert status(rest, task_id)["state"] == "failed"
    task_id = rest.submit("bad-named", max_attempts=1)
    poll(rest, "bad-named")
    answer = rest.post(
        f"/api/tasks/{task_id}/result", b"x=1", headers={"Content-Type": "text/plain"}
    )
    assert answer.status_code == 415  # of another media type; the path names the task
    assert status(rest, task_id)["state"] == "failed"


def test_a_report_that_is_too_large_ends_the_attempt(rest: Rest) -> None:
    rest.register("large", "large_report")
    task_id = rest.submit("large_report", max_attempts=1)
    assert poll(rest, "large")["task_id"] == task_id
    headers = JSON | {"Content-Length": str(42 * 1024 * 1024)}
    assert rest.post(f"/api/tasks/{task_id}/result", b"{}", headers=headers).status_code == 413
    assert status(rest, task_id)["state"] == "failed"


def test_a_worker_whose_reports_are_refused_is_handed_a_task_so_often_as_it_has_attempts(
    rest: Rest,
) -> None:
    rest.register("again", "again")
    task_id = rest.submit("again")
    count = 0
    while status(rest, task_id)["state"] != "failed":
        task = poll(rest, "again", 1)
        if task is not None:
            count += 1
            body = b'{"worker_id": "again", "result": {"success": true, "output": NaN}}'
            rest.post(f"/api/tasks/{task_id}/result", body, headers=JSON)
    assert count == 3
    full = rest.get(f"/api/tasks/status/{task_id}?full=1").json
    assert full is not None
    assert all("NaN" in each["error"] for each in full["history"])
    assert len(full["history"]) == 3


def test_a_report_that_was_cut_off_on_its_way_ends_nothing_and_may_come_again(rest: Rest) -> None:
    rest.register("cut", "cut")
    task_id = rest.submit("cut", max_attempts=1)
    assert poll(rest, "cut")["task_id"] == task_id
    path = f"/api/tasks/{task_id}/result"
    report = b'{"worker_id": "cut", "result": {"success": true}}'
    scope = scope_of("POST", path, headers=JSON, body=report)
    coming: list[AsgiMessage] = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": report[:20], "more_body": True},
    ]

    async def receive() -> AsgiMessage:
        return coming.pop()

    async def send(message: AsgiMessage) -> None:
        raise AssertionError("nobody is there")

    async def cut_off() -> None:
        await rest.application(scope, receive, send)

    rest.loop.run(cut_off())
    assert status(rest, task_id)["state"] == "running"
    assert rest.post(path, report, headers=JSON).status_code == 200
    assert status(rest, task_id)["state"] == "completed"
