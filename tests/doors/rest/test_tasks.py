"""Submitting, looking at, waiting for, cancelling and replaying tasks over REST."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.doors.rest_calls import Rest, rest_in
from tests.nodes.mesh import until


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rest]:
    with rest_in(tmp_path_factory.mktemp("rest")) as rest:
        yield rest


def status(rest: Rest, task_id: str) -> dict[str, Any]:
    body = rest.get(f"/api/tasks/status/{task_id}").json
    assert body is not None
    return dict(body)


def finish(rest: Rest, kind: str, result: Any) -> str:
    """Run one task of this type as a polling worker."""
    rest.register("finisher", kind)
    task = rest.get("/api/workers/finisher/tasks?wait=20").json["task"]
    report = {"worker_id": "finisher", "result": result}
    assert rest.post(f"/api/tasks/{task['task_id']}/result", report).status_code == 200
    return str(task["task_id"])


def test_a_submitted_task_is_pending_and_says_why(rest: Rest) -> None:
    begun = time.time()
    answer = rest.post("/api/tasks/submit", {"type": "lonely", "data": {"a": 1}, "priority": 7})
    assert answer.status_code == 201
    assert answer.json["status"] == "submitted"
    assert answer.json["message"]
    body = status(rest, answer.json["task_id"])
    assert (body["type"], body["status"], body["state"]) == ("lonely", "pending", "queued")
    assert (body["assigned_to"], body["completed_at"], body["result"]) == (None, None, None)
    assert begun - 1 <= body["created_at"] <= time.time() + 1
    assert (body["priority"], body["attempts"]) == (7, 0)
    assert "lonely" in body["reason"]


def test_keys_that_nobody_reads_and_types_that_nobody_offers_are_warned_of(rest: Rest) -> None:
    rest.register("warned", "resize")
    body = {"type": "rezise", "data": {}, "prioritty": 9, "zzz": 1}
    answer = rest.post("/api/tasks/submit", body)
    assert answer.status_code == 201
    first, second, third = answer.json["warnings"]
    assert first == "unknown key 'prioritty': did you mean 'priority'?"
    assert second.startswith("unknown key 'zzz': known are type, data, priority")
    assert third == "no worker in the mesh offers 'rezise'; did you mean 'resize'?"
    assert "did you mean 'resize'" in status(rest, answer.json["task_id"])["reason"]
    batch = {"tasks": [{"type": "resize", "data": {}, "prio": 1}] * 3, "task": []}
    answer = rest.post("/api/tasks/submit_batch", batch)
    assert answer.json["warnings"] == [
        "unknown key 'task': did you mean 'tasks'?",
        "unknown key 'prio': did you mean 'priority'?",
    ]
    answer = rest.post("/api/tasks/submit", {"type": "resize", "data": {}})
    assert "warnings" not in answer.json


def test_a_null_is_a_field_that_is_not_given(rest: Rest) -> None:
    names = ("priority", "deadline_s", "max_attempts", "fenced", "run_at", "listen")
    task = {"type": "nulls", "data": {"a": None}, **dict.fromkeys(names)}
    answer = rest.post("/api/tasks/submit", task)
    assert answer.status_code == 201, answer.text
    assert status(rest, answer.json["task_id"])["priority"] == 5
    assert rest.post("/api/tasks/submit_batch", {"tasks": [task, task]}).status_code == 201
    capabilities = {"task_types": None, "models": None, "slots": None}
    worker = {"worker_id": "nul", "worker_type": "t", "capabilities": capabilities, "status": None}
    assert rest.post("/api/workers/register", worker).status_code == 200
    assert rest.post("/api/workers/nul/heartbeat", {"task_ids": None}).status_code == 200
    for key in ("type", "data"):
        assert rest.post("/api/tasks/submit", task | {key: None}).status_code == 400
    assert rest.post("/api/tasks/submit_batch", {"tasks": None}).status_code == 400
    assert rest.post("/api/tasks/submit_batch", {"tasks": [None]}).status_code == 400


def test_the_whole_of_a_task_has_tracebacks_for_this_machine_alone(rest: Rest) -> None:
    rest.register("full", "full")
    task_id = rest.submit("full", data={"x": 1}, max_attempts=2)
    for _ in range(2):
        task = None
        while task is None:
            answer = rest.get("/api/workers/full/tasks?wait=20")
            task = answer.json["task"]
        result = {"success": False, "error": "no", "traceback": "line 1", "retry_after_s": 0}
        rest.post(f"/api/tasks/{task_id}/result", {"worker_id": "full", "result": result})
    path = f"/api/tasks/status/{task_id}"
    near = rest.get(f"{path}?full=1").json
    far = rest.get(f"{path}?full=true", peer="192.168.1.9").json
    bare = rest.get(path).json
    assert near is not None
    assert far is not None
    assert bare is not None
    assert near["data"] == far["data"] == {"x": 1}
    assert near["result"]["traceback"] == near["history"][0]["traceback"] == "line 1"
    assert [each["worker_id"] for each in near["history"]] == ["full", "full"]
    assert "traceback" not in far["result"]
    assert all("traceback" not in each for each in far["history"])
    assert "data" not in bare
    assert "traceback" not in bare["result"]
    assert rest.get(f"{path}?full=maybe").status_code == 400
    assert rest.get("/api/tasks/status/0123456789abcdef-5?full=1").status_code == 404


def test_tasks_are_listed_newest_first_if_that_is_wanted(rest: Rest) -> None:
    ids = [rest.submit("ordered") for _ in range(3)]

    def listed(query: str) -> list[str]:
        body = rest.get(f"/api/tasks?type=ordered{query}").json
        assert body is not None
        return [task["task_id"] for task in body["tasks"]]

    assert listed("") == ids
    assert listed("&order=newest") == ids[::-1]
    assert rest.get("/api/tasks?order=best").status_code == 400


def test_cancelled_is_counted_apart_and_its_word_stays(rest: Rest) -> None:
    def counts() -> tuple[int, int, int, int]:
        stats, queue = rest.get("/api/stats").json, rest.get("/api/tasks/queue").json
        assert stats is not None
        assert queue is not None
        tasks = stats["tasks"]
        assert tasks["total"] == sum(count for name, count in tasks.items() if name != "total")
        return tasks["failed"], tasks["cancelled"], queue["failed"], queue["cancelled"]

    before = counts()
    task_id = rest.submit()
    rest.post(f"/api/tasks/{task_id}/cancel")
    assert counts() == (before[0], before[1] + 1, before[2], before[3] + 1)
    assert status(rest, task_id)["status"] == "failed"


def test_keys_that_nobody_reads_are_no_error(rest: Rest) -> None:
    body = {"type": "lonely", "data": {}, "created_by": "an older client", "max_attempts": 2}
    assert rest.post("/api/tasks/submit", body).status_code == 201


def test_a_batch_is_accepted_in_order(rest: Rest) -> None:
    tasks = [{"type": f"lonely{n % 2}", "data": {"n": n}} for n in range(10)]
    answer = rest.post("/api/tasks/submit_batch", {"tasks": tasks})
    assert answer.status_code == 201
    ids = answer.json["task_ids"]
    assert len(set(ids)) == 10
    assert [status(rest, each)["type"] for each in ids] == [task["type"] for task in tasks]


def test_a_batch_of_ten_thousand_fits(rest: Rest) -> None:
    tasks = [{"type": "many", "data": {"n": n}} for n in range(10_000)]
    answer = rest.post("/api/tasks/submit_batch", {"tasks": tasks})
    assert answer.status_code == 201, answer.text
    assert len(answer.json["task_ids"]) == 10_000


@pytest.mark.parametrize("path", ["submit", "submit_batch"])
def test_an_idempotency_key_gives_the_same_answer(rest: Rest, path: str) -> None:
    def post(n: int) -> Any:
        task = {"type": "lonely", "data": {"n": n}}
        body = task if path == "submit" else {"tasks": [task, task]}
        return rest.post(f"/api/tasks/{path}", body, headers={"Idempotency-Key": f"key {path}"})

    before = rest.counts()["total"]
    first, again, other = post(1), post(1), post(2)
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 409)
    assert again.json == first.json
    assert other.json["code"] == "key.conflict"
    assert rest.counts()["total"] == before + (1 if path == "submit" else 2)


@pytest.mark.parametrize("key", ["", "x" * 129, "tab\there"])
def test_a_bad_idempotency_key_is_refused(rest: Rest, key: str) -> None:
    body = {"type": "lonely", "data": {}}
    answer = rest.post("/api/tasks/submit", body, headers={"Idempotency-Key": key})
    assert answer.status_code == 400


def test_a_full_queue_is_429_with_a_time_to_come_again(tmp_path: Any) -> None:
    from dataclasses import replace

    from d8mesh.nodes.broker import Broker  # the limit is a setting of the broker's
    from tests.nodes.mesh import PATIENCE_S, Mesh, free_port

    made: list[Broker] = []
    with ExitStack() as stack:
        mesh = Mesh(tmp_path, stack)
        config = replace(mesh.config(port=free_port()), queue_size=3)
        ready = threading.Event()

        def serve() -> None:
            made.append(Broker(config, tmp_path / "small"))
            ready.set()
            made[0].run()

        thread = threading.Thread(target=serve)
        thread.start()
        assert ready.wait(PATIENCE_S)
        mesh.brokers.append((made[0], thread))  # it knows the keys of these
        stack.callback(mesh.stop_broker, made[0], thread)
        rest = Rest(mesh, made[0].ready.port, stack)
        for _ in range(3):
            rest.submit()
        answer = rest.post("/api/tasks/submit", {"type": "t", "data": {}})
        assert answer.status_code == 429
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.json["code"] == "queue.full"
        health = rest.get("/health").json
        assert health is not None
        assert health["rejected"]["rest"]["queue.full"] == 1


def test_cancelling(rest: Rest) -> None:
    task_id = rest.submit("to_cancel")
    answer = rest.post(f"/api/tasks/{task_id}/cancel")
    assert (answer.status_code, answer.json) == (200, {"task_id": task_id, "state": "cancelled"})
    body = status(rest, task_id)
    assert (body["status"], body["state"]) == ("failed", "cancelled")
    assert body["result"]["success"] is False
    assert body["result"]["error"]


def test_a_finished_task_stays_as_it_is(rest: Rest) -> None:
    rest.submit("to_finish")
    task_id = finish(rest, "to_finish", {"success": True, "output": 1})
    answer = rest.post(f"/api/tasks/{task_id}/cancel")
    assert answer.json == {"task_id": task_id, "state": "completed"}


def test_replaying_makes_a_new_task_linked_to_the_old(rest: Rest) -> None:
    task_id = rest.submit("to_replay")
    assert rest.post(f"/api/tasks/{task_id}/replay").status_code == 400  # not finished
    rest.post(f"/api/tasks/{task_id}/cancel")
    answer = rest.post(f"/api/tasks/{task_id}/replay")
    assert answer.status_code == 201
    assert answer.json["task_id"] != task_id
    body = status(rest, answer.json["task_id"])
    assert (body["replay_of"], body["state"]) == (task_id, "queued")


def test_waiting_returns_as_soon_as_the_task_is_finished(rest: Rest) -> None:
    task_id = rest.submit("awaited")
    found: list[Any] = []

    def wait() -> None:
        found.append(rest.get(f"/api/tasks/{task_id}/wait?timeout_s=60").json)

    thread = threading.Thread(target=wait)
    thread.start()
    finish(rest, "awaited", {"success": True, "output": "x"})
    thread.join(30)
    assert found[0]["state"] == "completed"
    assert found[0]["result"]["output"] == "x"


def test_waiting_ends_with_the_time_and_the_status_so_far(rest: Rest) -> None:
    task_id = rest.submit()
    for query in ("timeout_s=0", "timeout_s=0.1"):
        answer = rest.get(f"/api/tasks/{task_id}/wait?{query}")
        assert answer.status_code == 200
        assert answer.json["state"] == "queued"
    for bad in ("61", "-1", "x", "nan", ""):
        answer = rest.get(f"/api/tasks/{task_id}/wait?timeout_s={bad}")
        assert answer.status_code == 400
        assert "timeout_s" in answer.text


def test_a_wait_without_a_place_is_answered_at_once(rest: Rest) -> None:
    task_id = rest.submit()
    with ExitStack() as places:
        while not rest.waits.is_full:
            places.enter_context(rest.waits.one())
        begun = time.monotonic()
        answer = rest.get(f"/api/tasks/{task_id}/wait?timeout_s=60")
        assert answer.status_code == 200
        assert time.monotonic() - begun < 10


def test_a_waiter_that_hung_up_waits_no_longer(rest: Rest) -> None:
    task_id = rest.submit()
    waiting = rest.open(f"/api/tasks/{task_id}/wait?timeout_s=60")
    until(lambda: task_id in rest.mesh.brokers[0][0]._dispatcher.state.task_watchers)
    waiting.leave()
    until(lambda: task_id not in rest.mesh.brokers[0][0]._dispatcher.state.task_watchers)
    with rest.waits.one() as is_free:
        assert is_free


def test_a_wait_is_one_question_once_its_task_is_finished(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    ask = rest.client.ask

    async def noted(what: str, *args: Any) -> dict[str, Any]:
        asked.append(what)
        return await ask(what, *args)

    task_id = rest.submit()
    rest.post(f"/api/tasks/{task_id}/cancel")
    monkeypatch.setattr(rest.client, "ask", noted)
    answer = rest.get(f"/api/tasks/{task_id}/wait?timeout_s=60")
    assert (answer.json["state"], asked) == ("cancelled", ["status"])


def test_the_queue_is_listed_in_pages_with_whole_counts(rest: Rest) -> None:
    for _ in range(5):
        rest.submit()
    seen: list[str] = []
    cursor = ""
    for _ in range(10_000):
        body = rest.get(f"/api/tasks/queue?limit=1000&cursor={cursor}").json
        assert body is not None
        assert {"pending", "assigned", "completed", "failed"} <= set(body)
        for row in body["queue"]:
            assert {"task_id", "type", "priority", "status", "created_at"} <= set(row)
        seen += [row["task_id"] for row in body["queue"]]
        cursor = body["next_cursor"]
        if not cursor:
            break
    assert len(seen) == len(set(seen)) == rest.counts()["pending"]


def test_tasks_are_listed_by_state_and_type(rest: Rest) -> None:
    task_id = rest.submit("listed_type")
    body = rest.get("/api/tasks?type=listed_type&state=queued").json
    assert body is not None
    assert [task["task_id"] for task in body["tasks"]] == [task_id]
    assert rest.get("/api/tasks?type=listed_type&state=completed").json["tasks"] == []
    finish(rest, "listed_type", {"success": True, "output": [1]})
    body = rest.get("/api/tasks?type=listed_type").json
    assert body is not None
    assert body["tasks"][0]["result"]["output"] == [1]


def test_pages_of_large_results_end_early(rest: Rest) -> None:
    for _ in range(4):
        rest.submit("large_result")
        finish(rest, "large_result", {"success": True, "output": "x" * 3_000_000})
    for query in ("type=large_result", "type=large_result&state=completed"):
        seen: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            body = rest.get(f"/api/tasks?{query}&cursor={cursor}").json
            assert body is not None
            assert 1 <= len(body["tasks"]) < 4
            seen += [task["task_id"] for task in body["tasks"]]
            cursor = body["next_cursor"]
        assert len(seen) == len(set(seen)) == 4


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", "state=odd", "cursor=" + "x" * 200, "type=" + "x" * 200],
)
def test_bad_pages_are_refused(rest: Rest, query: str) -> None:
    assert rest.get(f"/api/tasks?{query}").status_code == 400


def test_why_a_task_waits_is_explained(rest: Rest) -> None:
    task_id = rest.submit("nobody_explains")
    answer = rest.get(f"/api/tasks/{task_id}/explain")
    assert answer.status_code == 200
    told = answer.json
    assert (told["task_id"], told["state"]) == (task_id, "queued")
    assert told["summary"] == status(rest, task_id)["reason"]
    assert told["remedies"][0]["text"] == "start a worker that offers 'nobody_explains'"


def test_where_a_finished_task_ran_is_explained(rest: Rest) -> None:
    rest.submit("explained")
    task_id = finish(rest, "explained", {"success": True, "duration_s": 0.0})
    told = rest.get(f"/api/tasks/{task_id}/explain").json
    assert (told["state"], told["summary"]) == ("completed", "it completed")
    assert told["why"][0] == "the last to have it was worker 'finisher'"


def test_an_unknown_task_has_no_explanation(rest: Rest) -> None:
    for task_id in ("0123456789abcdef-999", "nonsense", "x" * 200):
        answer = rest.get(f"/api/tasks/{task_id}/explain")
        assert (answer.status_code, answer.json["error"]) == (404, "Task not found")
