"""Workers with a real broker and a real client on loopback."""

from __future__ import annotations

import asyncio
import math
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from d8mesh.core.broker import returns
from d8mesh.errors import (
    BackendUnavailableError,
    ConfigError,
    HandlerError,
    InvalidTaskError,
    PayloadTooLargeError,
    TaskCancelledError,
    TaskFailedError,
)
from d8mesh.handlers import TaskContext
from d8mesh.handlers.retrying import Reject
from d8mesh.nodes.worker import Worker, slots
from tests.nodes import process_handlers
from tests.nodes.mesh import PATIENCE_S, Mesh, free_port, mesh_in, until


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with mesh_in(tmp_path) as mesh:
        yield mesh


def test_handlers_of_every_shape_return_values(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = mesh.worker(port)

    @worker.task("double")
    def double(data: dict[str, Any]) -> int:
        return int(data["x"]) * 2

    @worker.task("whole")
    def whole(data: dict[str, Any], context: TaskContext) -> dict[str, Any]:
        return {"success": True, "genome": data, "attempt": context.attempt}

    @worker.task("async")
    async def later(data: dict[str, Any]) -> str:
        await asyncio.sleep(0.01)
        return str(data["x"])

    mesh.run(worker)
    client = mesh.client(port)
    assert client.submit("double", {"x": 21}).result(PATIENCE_S)["output"] == 42
    result = client.submit("whole", {"x": 1}).result(PATIENCE_S)
    assert (result["genome"], result["attempt"]) == ({"x": 1}, 1)
    assert result["worker_id"] == worker.worker_id
    assert client.submit("async", {"x": "y"}).result(PATIENCE_S)["output"] == "y"


def test_errors_are_failures_with_their_name_and_refusals_are_final(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = mesh.worker(port)
    calls: list[str] = []

    def broken(data: dict[str, Any]) -> object:
        calls.append(data["how"])
        if data["how"] == "raise":
            raise ZeroDivisionError("by nought")
        if data["how"] == "invalid":
            raise InvalidTaskError("x: expected a number")
        return {"nan": math.nan, "keys": {1: 2}, "set": {1}, "false": {"success": False}}[
            data["how"]
        ]

    worker.register("broken", broken)
    mesh.run(worker)
    client = mesh.client(port)
    said = {
        "raise": "ZeroDivisionError: by nought",
        "invalid": "x: expected a number",
        "nan": "nan",
        "keys": "key of type int",
        "set": "saw set",
    }
    for how, text in said.items():
        with pytest.raises(TaskFailedError) as caught:
            client.submit("broken", {"how": how}, max_attempts=1).result(PATIENCE_S)
        assert text in str(caught.value.result["error"])
    with pytest.raises(TaskFailedError):
        client.submit("broken", {"how": "invalid"}).result(PATIENCE_S)
    assert calls.count("invalid") == 2  # never tried again
    status = worker.status()
    assert status["tasks_failed"] == 6


def test_many_tasks_run_once_each_and_share_the_slots(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = mesh.worker(port, slots=3)
    seen: list[int] = []
    worker.register("n", lambda data: seen.append(data["n"]))
    mesh.run(worker)
    client = mesh.client(port)
    for task in client.submit_many("n", [{"n": n} for n in range(5000)]):
        task.result(PATIENCE_S)
    assert sorted(seen) == list(range(5000))
    until(lambda: worker.status()["tasks_completed"] == 5000)


def test_a_running_task_can_be_cancelled_and_its_slot_is_free_again(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = mesh.worker(port, slots=1)
    begun, ended = threading.Event(), threading.Event()

    def wait(data: dict[str, Any], context: TaskContext) -> None:
        begun.set()
        while not ended.wait(0.01):
            context.raise_if_cancelled()

    worker.register("wait", wait)
    worker.register("noop", lambda data: None)
    mesh.run(worker)
    client = mesh.client(port)
    task = client.submit("wait", {})
    assert begun.wait(PATIENCE_S)
    task.cancel()
    with pytest.raises(TaskCancelledError):
        task.result(PATIENCE_S)
    client.submit("noop", {}).result(PATIENCE_S)
    ended.set()


def test_partial_output_reaches_who_listens(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = mesh.worker(port)
    listened = threading.Event()

    def talk(data: dict[str, Any], context: TaskContext) -> str:
        for _ in range(200):
            context.emit("word ")
            if listened.wait(0.02):
                break
        return "done"

    worker.register("talk", talk)
    mesh.run(worker)
    client = mesh.client(port)
    task = client.submit("talk", {})
    for chunk in task.stream(PATIENCE_S):
        assert "word" in str(chunk)
        listened.set()
    assert listened.is_set()
    assert task.result(PATIENCE_S)["output"] == "done"


def test_output_that_cannot_travel_fails_in_the_handler_and_the_connection_lives(
    mesh: Mesh,
) -> None:
    port = mesh.broker()
    worker = mesh.worker(port)

    def talk(data: dict[str, Any], context: TaskContext) -> list[str]:
        said = []
        for chunk in ("x" * 40_000_000, {"a": {1: 2}}, math.inf):
            try:
                context.emit(chunk)
            except (PayloadTooLargeError, InvalidTaskError) as error:
                said.append(str(error))
        for _ in range(5):
            context.emit("x" * 20_000_000)
        context.emit("last")
        return said

    worker.register("talk", talk)
    mesh.run(worker)
    status = worker.status()
    client = mesh.client(port)
    task = client.submit("talk", {}, listen=True)
    assert list(task.stream(PATIENCE_S))[-1] == "last"
    said = task.result(PATIENCE_S)["output"]
    assert "40000005 bytes" in said[0]
    assert "the chunk.a" in said[1]
    assert "inf" in said[2]
    assert worker.status()["orchestrators"] == status["orchestrators"]


def test_a_failure_is_shown_with_its_traceback_and_carries_it(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = mesh.worker(port)
    shown: list[str] = []
    worker.show_failures(shown.append)

    def broken(data: dict[str, Any]) -> object:
        if data["how"] == "returned":
            return {"success": False, "error": "said so"}
        raise ValueError("bad")

    async def later(data: dict[str, Any]) -> object:
        await asyncio.sleep(0)
        return broken(data)

    worker.register("broken", broken)
    worker.register("later", later)
    mesh.run(worker)
    client = mesh.client(port)
    for kind, how in (("broken", "raised"), ("later", "raised"), ("broken", "returned")):
        task = client.submit(kind, {"how": how}, max_attempts=1)
        with pytest.raises(TaskFailedError) as caught:
            task.result(PATIENCE_S)
        rows = shown[-1].split("\n")
        assert rows[0].startswith(f"task {task.id} ({kind}, attempt 1) failed: ")
        traceback = caught.value.result.get("traceback", "")
        assert bool(traceback) == (how == "raised")
        assert "\n" not in str(caught.value)
        if how == "raised":
            assert "test_worker.py" in str(traceback).split("\n")[1]
            assert [row.removeprefix("    ") for row in rows[1:]] == str(traceback).split("\n")
        else:
            assert rows == [f"task {task.id} (broken, attempt 1) failed: said so"]


def test_a_handler_past_its_time_is_told_with_where_it_is(mesh: Mesh) -> None:
    port = mesh.broker(task_timeout_s=1.0)
    worker = mesh.worker(port)
    shown: list[str] = []
    worker.show_failures(shown.append)
    goes_on = threading.Event()

    def hangs(data: dict[str, Any]) -> None:
        goes_on.wait(PATIENCE_S)

    worker.register("hangs", hangs)
    mesh.run(worker)
    with pytest.raises(TaskFailedError, match="not finished after 1 s"):
        mesh.client(port).submit("hangs", {}, max_attempts=1).result(PATIENCE_S)
    goes_on.set()
    (text,) = shown
    assert "TimeoutError: not finished after 1 s" in text
    assert "in hangs" in text


def test_a_drain_finishes_what_runs_and_gives_the_rest_back(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = mesh.worker(port, slots=1)
    begun, go = threading.Event(), threading.Event()
    ran: list[str] = []

    def slow(data: dict[str, Any]) -> None:
        ran.append(data["who"])
        begun.set()
        go.wait(PATIENCE_S)

    worker.register("slow", slow)
    mesh.run(worker)
    client = mesh.client(port)
    tasks = [client.submit("slow", {"who": str(n)}) for n in range(3)]
    assert begun.wait(PATIENCE_S)
    stopper = threading.Thread(target=worker.stop)
    stopper.start()
    until(lambda: worker.status()["running"] == 1)
    go.set()
    stopper.join(PATIENCE_S)
    assert tasks[0].result(PATIENCE_S)["success"]
    assert ran == ["0"]
    second = mesh.worker(port)
    second.register("slow", slow)
    mesh.run(second)
    for task in tasks:
        task.result(PATIENCE_S)
    assert ran.count("0") == 1


def test_results_outlive_the_broker_and_the_worker(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = mesh.worker(port, name="w")
    begun, go = threading.Event(), threading.Event()
    ran: list[int] = []

    def slow(data: dict[str, Any]) -> str:
        ran.append(1)
        begun.set()
        go.wait(PATIENCE_S)
        return "kept"

    worker.register("slow", slow)
    mesh.run(worker)
    client = mesh.client(port)
    task = client.submit("slow", {})
    assert begun.wait(PATIENCE_S)
    mesh.stop_broker(*mesh.brokers[0])
    until(lambda: not worker.status()["orchestrators"])
    go.set()
    until(lambda: worker.status()["tasks_completed"] == 1)
    worker.stop(drain_s=1.0)
    mesh.broker(port=port)
    again = mesh.worker(port, name="w")
    again.register("slow", slow)
    mesh.run(again)
    assert task.result(PATIENCE_S)["output"] == "kept"
    assert ran == [1]


def test_one_worker_serves_two_orchestrators(mesh: Mesh) -> None:
    first, second = (mesh.broker(name, is_announced=True) for name in ("o1", "o2"))
    worker = mesh.worker(None)
    worker.register("echo", lambda data: data["x"])
    mesh.run(worker)
    until(lambda: len(worker.status()["orchestrators"]) == 2)  # type: ignore[arg-type]
    for port in (first, second):
        client = mesh.client(port)
        for task in client.submit_many("echo", [{"x": port}] * 300):
            assert task.result(PATIENCE_S)["output"] == port


def test_a_busy_backend_is_no_failure(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = mesh.worker(port)
    calls: list[int] = []

    def busy(data: dict[str, Any]) -> str:
        calls.append(1)
        if len(calls) == 1:
            raise BackendUnavailableError("busy")
        return "done"

    worker.register("busy", busy)
    mesh.run(worker)
    assert mesh.client(port).submit("busy", {}).result(PATIENCE_S)["output"] == "done"


def test_a_task_past_its_time_fails_and_its_slot_is_stuck_until_it_ends(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = mesh.worker(port, slots=2)
    go = threading.Event()
    worker.register("deaf", lambda data: go.wait(PATIENCE_S))
    mesh.run(worker)
    client = mesh.client(port)
    with pytest.raises(TaskFailedError):
        client.submit("deaf", {}, deadline_s=0.2, max_attempts=1).result(PATIENCE_S)
    until(lambda: worker.status()["stuck"] == 1)
    go.set()
    until(lambda: worker.status()["stuck"] == 0)


def test_status_says_what_is_missing(mesh: Mesh) -> None:
    worker = mesh.worker(free_port())
    body = worker.status()
    assert body["status"] == "unhealthy"
    assert "orchestrator" in str(body["reason"])
    documented = {
        *("status", "service", "worker_id", "worker_type", "orchestrators", "slots"),
        *("running", "tasks_completed", "tasks_failed", "backend"),
    }
    assert documented <= set(body)


def test_a_model_that_is_a_must_is_refused_only_if_no_worker_of_the_mesh_has_it(
    mesh: Mesh,
) -> None:
    port = mesh.broker()
    without, having = mesh.worker(port, name="without"), mesh.worker(port, name="having")
    begun, go = threading.Event(), threading.Event()

    def refuse(data: dict[str, Any]) -> str:
        begun.set()
        go.wait(PATIENCE_S)
        raise InvalidTaskError("it is not installed here")

    without.register("agent_action", refuse)
    without.offer(None, ["qwen:1b"])
    having.register("agent_action", lambda data: "llama says hi")
    having.offer(None, ["llama:latest"])
    mesh.run(without)
    client = mesh.client(port)
    must = {"messages": [], "model": "llama", "model_strict": True}
    task = client.submit("agent_action", must)
    assert begun.wait(PATIENCE_S)  # after a while in which such a worker might come
    mesh.run(having)  # it comes while the other one is at it
    go.set()
    assert task.result(PATIENCE_S)["worker_id"] == "having"
    for later in client.submit_many("agent_action", [must] * 20):
        assert later.result(PATIENCE_S)["worker_id"] == "having"


def test_why_a_worker_offers_less_than_it_could_is_told_to_who_waits(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = mesh.worker(port, name="bob")
    worker.register("agent_action", lambda data: "hi")
    worker.offer([], trouble="Ollama does not answer")
    mesh.run(worker)
    client = mesh.client(port)
    task = client.submit("agent_action", {"messages": []})
    task.wait_accepted(PATIENCE_S)
    assert "(1 worker there; bob: Ollama does not answer)" in task.status()["reason"]
    (row,) = client.ask("workers", {})["workers"]
    assert row["reason"] == "Ollama does not answer"
    worker.offer(None)
    assert task.result(PATIENCE_S)["output"] == "hi"
    until(lambda: client.ask("workers", {})["workers"][0]["reason"] is None)


def test_status_says_which_orchestrator_was_lost_and_why(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = mesh.worker(port)
    mesh.run(worker)
    assert worker.status()["lost"] == []
    before: Any = worker.status()["orchestrators"]
    mesh.stop_broker(*mesh.brokers[0])
    until(lambda: worker.status()["lost"])
    lost: Any = worker.status()["lost"]
    assert [each["broker_id"] for each in lost] == [each["broker_id"] for each in before]
    assert "left" in lost[0]["why"]
    mesh.broker(port=port)
    until(lambda: worker.status()["orchestrators"])
    assert worker.status()["lost"] == []


def test_what_cannot_be_registered_is_said_at_once(mesh: Mesh) -> None:
    worker = mesh.worker(free_port())
    with pytest.raises(HandlerError, match="module"):
        worker.register("x", lambda data: None, process=True)
    with pytest.raises(HandlerError):
        worker.register("", lambda data: None)
    with pytest.raises(ConfigError, match="slots"):
        mesh.worker(free_port(), slots=0)


def test_a_copy_of_a_data_folder_makes_two_workers_that_both_work(
    mesh: Mesh, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = mesh.broker()
    address = mesh.endpoint(port)

    def started(data: str) -> Worker:
        worker = Worker(address, config=mesh.config(interface="no-mdns", data=data), slots=2)
        worker.register("who", lambda data: time.sleep(0.02))
        return mesh.run(worker)

    first = started("one")
    shutil.copytree(tmp_path / "one", tmp_path / "two", ignore=shutil.ignore_patterns("lock"))
    second = started("two")
    until(lambda: second.worker_id != first.worker_id)
    until(lambda: "was its data folder copied?" in caplog.text)
    client = mesh.client(port)

    def both_work() -> bool:
        tasks = client.submit_many("who", [{}] * 20)
        return {task.result(PATIENCE_S)["worker_id"] for task in tasks} == {
            first.worker_id,
            second.worker_id,
        }

    until(both_work)
    ids = (first.worker_id, second.worker_id)
    for worker in (first, second):
        worker.stop(drain_s=1.0)
    assert (started("one").worker_id, started("two").worker_id) == ids


def test_a_broker_that_stays_away_for_longer_is_served_again_when_it_is_back(
    mesh: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="d8mesh.worker")
    port = mesh.broker()
    worker = mesh.worker(port)
    worker.register("echo", lambda data: data)
    mesh.run(worker)
    client = mesh.client(port)
    assert client.submit("echo", {"x": 1}).result(PATIENCE_S)["output"] == {"x": 1}
    mesh.stop_broker(*mesh.brokers[0])
    until(lambda: "link.lost" in caplog.text)
    task = client.submit("echo", {"x": 2})
    mesh.broker(port=port)
    assert task.result(PATIENCE_S)["output"] == {"x": 2}


def test_heartbeats_come_while_every_slot_computes_in_pure_python(mesh: Mesh) -> None:
    port = mesh.broker()
    client = mesh.client(port)
    worker = mesh.worker(port, slots=4)
    heard = threading.Event()

    def compute(data: dict[str, object]) -> dict[str, object]:
        give_up = time.monotonic() + PATIENCE_S
        while not heard.is_set() and time.monotonic() < give_up:
            sum(range(1000))
        return data

    worker.register("compute", compute)
    mesh.run(worker)
    tasks = client.submit_many("compute", [{}] * 4)
    until(lambda: client.ask("stats", {})["tasks"]["assigned"] == 4)
    beats: set[float] = set()

    def has_beaten() -> bool:
        (worker_state,) = client.ask("workers", {})["workers"]
        beats.add(worker_state["last_heartbeat"])
        return len(beats) >= 3

    until(has_beaten)
    heard.set()
    assert all(task.result(PATIENCE_S) for task in tasks)
    assert [task.status()["attempts"] for task in tasks] == [1] * 4


def test_what_is_worth_another_attempt_is_the_handlers_to_say(mesh: Mesh) -> None:
    port = mesh.broker()
    worker = mesh.worker(port, slots=1)
    calls: list[str] = []

    def broken(data: dict[str, Any]) -> None:
        calls.append(data["how"])
        if data["how"] == "reject":
            raise Reject("not this one")
        raise {"key": KeyError, "value": ValueError}[data["how"]]("x")

    worker.register("broken", broken, retry=KeyError, backoff=0.01)
    mesh.run(worker)
    client = mesh.client(port)
    said = {"key": "KeyError: 'x'", "value": "ValueError: x", "reject": "not this one"}
    for how, text in said.items():
        with pytest.raises(TaskFailedError) as caught:
            client.submit("broken", {"how": how}).result(PATIENCE_S)
        assert str(caught.value) == text
        assert "retry_after_s" not in caught.value.result
    assert calls == ["key"] * 3 + ["value", "reject"]


@pytest.mark.parametrize("process", [False, True], ids=["thread", "process"])
def test_a_service_that_never_answers_is_a_reason_and_in_the_end_an_error(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, process: bool
) -> None:
    monkeypatch.setattr(slots, "BUSY_PAUSE_S", 0.0)
    monkeypatch.setattr(returns, "MAX_RETURN_PAUSE_S", 0.1)
    port = mesh.broker()
    worker = mesh.worker(port, slots=1)

    worker.register("down", process_handlers.down, process=process)
    mesh.run(worker)
    task = mesh.client(port).submit("down", {}, max_attempts=1)
    until(lambda: "HTTP 503 from ollama" in str(task.status()["reason"]))
    with pytest.raises(TaskFailedError, match=r"given back 10 times.*HTTP 503 from ollama"):
        task.result(PATIENCE_S)
