"""The documented bodies."""

from __future__ import annotations

from typing import Any

from d8mesh.core.protocol import messages as m
from tests.core.llm_services import host, model, service
from tests.core.wired_broker import START_AT, WiredBroker, beat


def test_statistics_count_idle_and_busy_workers_as_online(broker: WiredBroker) -> None:
    client = broker.client()
    busy, _ = broker.worker("a"), broker.worker("b")
    done, failed, waiting = (broker.submit(client, max_attempts=1)[0] for _ in range(3))
    held = broker.work(busy)
    assert list(held) == [done]
    stats = broker.ask(client, "stats").body
    assert stats["workers"] == {"total": 2, "online": 2, "busy": 2, "by_type": {"test": 2}}
    broker.finish(busy, held)
    broker.say(busy, m.Goodbye("x"))
    stats = broker.ask(client, "stats").body
    assert stats["workers"]["online"] == 1  # type: ignore[index]
    assert stats["tasks"] == {
        "total": 3, "pending": 1, "assigned": 1, "completed": 1, "failed": 0,
        "cancelled": 0,
    }  # fmt: skip
    assert stats["performance"] == {
        "total_completed": 1, "total_failed": 0, "success_rate": 100.0,
    }  # fmt: skip
    assert {failed, waiting}


def test_the_success_rate_is_zero_when_nothing_has_finished(broker: WiredBroker) -> None:
    performance = broker.ask(broker.client(), "stats").body["performance"]
    assert performance["success_rate"] == 0  # type: ignore[index]


def test_health_says_why_nothing_is_accepted(broker: WiredBroker) -> None:
    client = broker.client()
    assert broker.ask(client, "health").body["is_accepting"] is True
    broker.dispatcher.set_disk_low(True)
    body = broker.ask(client, "health").body
    assert (body["is_accepting"], body["reason"]) == (False, "the disk is nearly full")
    broker.perform(broker.dispatcher.drain())
    assert broker.ask(client, "health").body["reason"] == "shutting down"


def test_a_running_task_says_who_has_it_and_if_it_is_gone(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    broker.work(worker)
    body = broker.ask(client, "status", id=task_id).body
    assert (body["status"], body["assigned_to"], body["reason"]) == ("assigned", "w", None)
    assert (body["created_at"], body["completed_at"], body["attempts"]) == (START_AT, None, 1)
    broker.restart()
    client = broker.client()
    assert "to come back" in str(broker.ask(client, "status", id=task_id).body["reason"])


def test_workers_are_listed_with_their_counts(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w", models=["llama"])
    broker.submit(client)
    broker.finish(worker, broker.work(worker))
    broker.say(worker, beat([], 1))
    workers: Any = broker.ask(client, "workers").body["workers"]
    (listed,) = workers
    assert listed["tasks_completed"] == 1
    assert listed["status"] == "online"
    assert listed["capabilities"] == {"task_types": ["echo"], "models": []}
    assert listed["last_heartbeat"] == START_AT


def test_a_task_that_waits_for_its_next_attempt_says_what_happened(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    broker.finish(worker, broker.work(worker), m.FAILED)
    reason = str(broker.ask(client, "status", id=task_id).body["reason"])
    assert "waiting to be tried again in 0.2 s; last error: broken" in reason
    task = broker.state.task_table.tasks[task_id]
    assert task.history is not None
    broker.pass_time(task.history.not_before_at - broker.at - 0.02)
    reason = str(broker.ask(client, "status", id=task_id).body["reason"])
    assert reason.startswith("about to be tried again; last error: broken")
    broker.say(worker, beat([], 10, window=0))
    broker.pass_time(5)
    reason = str(broker.ask(client, "status", id=task_id).body["reason"])
    assert reason == (
        "the one worker that offers it is busy, or does not ask for tasks now; last error: broken"
    )


def test_a_task_waits_for_busy_workers_or_for_such_as_do_not_ask(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    capabilities = {"task_types": ["other"]}
    broker.ask(client, "poll.register", worker_id="p", worker_type="t", capabilities=capabilities)
    busy = "the one worker that offers it is busy"
    for kind, why in (
        ("echo", "the one worker that offers it is busy"),
        ("other", f"{busy}, or does not ask for tasks now; 1 waiting before it"),
    ):
        task_id = broker.submit(client, 2, kind)[-1]
        assert broker.ask(client, "status", id=task_id).body["reason"] == why
    assert len(broker.work(worker)) == 1


def test_many_tasks_that_wait_alike_have_one_reason(broker: WiredBroker) -> None:
    host(broker, "w", [service("a", [model("m")])])
    client = broker.client()
    ids = broker.submit(client, 4, kind="agent_action", model="=m")
    other = broker.submit(client, 1, kind="agent_action", model="=n")
    told = broker.ask(client, "tasks", state="queued").body["tasks"]
    reasons = {each["task_id"]: each["reason"] for each in told}  # type: ignore[attr-defined]
    assert reasons == dict.fromkeys(ids[1:], "the one service with the model 'm' is busy") | {
        other[0]: "no worker reaches a service with the model 'n'"
    }


def test_a_worker_is_listed_with_what_its_services_answer(broker: WiredBroker) -> None:
    host(broker, "w", [service("a", [model("m")])])
    client = broker.client()
    broker.submit(client, 1, kind="agent_action")
    listed: Any = broker.ask(client, "workers").body["workers"]
    (worker,) = listed
    assert "agent_action" in worker["capabilities"]["task_types"]
    assert (worker["running"], worker["placed"], worker["status"]) == (0, 1, "busy")


def test_a_task_given_back_once_says_why(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    held = broker.work(worker)
    broker.say(worker, m.Release(0, [task_id], [held[task_id]], "it is full"))
    reason = str(broker.ask(client, "status", id=task_id).body["reason"])
    assert "given back: " in reason
    assert reason.endswith("it is full")
