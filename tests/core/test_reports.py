"""The documented bodies."""

from __future__ import annotations

from typing import Any

from d8mesh.core import messages as m
from tests.core.desktop import START_AT, Desktop, beat


def test_statistics_count_idle_and_busy_workers_as_online(desk: Desktop) -> None:
    client = desk.client()
    busy, _ = desk.worker("a"), desk.worker("b")
    done, failed, waiting = (desk.submit(client, max_attempts=1)[0] for _ in range(3))
    held = desk.work(busy)
    assert list(held) == [done]
    stats = desk.ask(client, "stats").body
    assert stats["workers"] == {"total": 2, "online": 2, "busy": 2, "by_type": {"test": 2}}
    desk.finish(busy, held)
    desk.say(busy, m.Goodbye("x"))
    stats = desk.ask(client, "stats").body
    assert stats["workers"]["online"] == 1  # type: ignore[index]
    assert stats["tasks"] == {
        "total": 3, "pending": 1, "assigned": 1, "completed": 1, "failed": 0,
        "cancelled": 0,
    }  # fmt: skip
    assert stats["performance"] == {
        "total_completed": 1, "total_failed": 0, "success_rate": 100.0,
    }  # fmt: skip
    assert {failed, waiting}


def test_the_success_rate_is_zero_when_nothing_has_finished(desk: Desktop) -> None:
    performance = desk.ask(desk.client(), "stats").body["performance"]
    assert performance["success_rate"] == 0  # type: ignore[index]


def test_health_says_why_nothing_is_accepted(desk: Desktop) -> None:
    client = desk.client()
    assert desk.ask(client, "health").body["is_accepting"] is True
    desk.dispatcher.set_disk_low(True)
    body = desk.ask(client, "health").body
    assert (body["is_accepting"], body["reason"]) == (False, "the disk is nearly full")
    desk.perform(desk.dispatcher.drain())
    assert desk.ask(client, "health").body["reason"] == "shutting down"


def test_a_running_task_says_who_has_it_and_if_it_is_gone(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client)
    desk.work(worker)
    body = desk.ask(client, "status", id=task_id).body
    assert (body["status"], body["assigned_to"], body["reason"]) == ("assigned", "w", None)
    assert (body["created_at"], body["completed_at"], body["attempts"]) == (START_AT, None, 1)
    desk.restart()
    client = desk.client()
    assert "to come back" in str(desk.ask(client, "status", id=task_id).body["reason"])


def test_workers_are_listed_with_their_counts(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w", models=["llama"])
    desk.submit(client)
    desk.finish(worker, desk.work(worker))
    desk.say(worker, beat([], 1))
    workers: Any = desk.ask(client, "workers").body["workers"]
    (listed,) = workers
    assert listed["tasks_completed"] == 1
    assert listed["status"] == "online"
    assert listed["capabilities"] == {"task_types": ["echo"], "models": []}
    assert listed["last_heartbeat"] == START_AT


def test_a_task_that_waits_for_its_next_attempt_says_what_happened(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client)
    desk.finish(worker, desk.work(worker), m.FAILED)
    reason = str(desk.ask(client, "status", id=task_id).body["reason"])
    assert "waiting to be tried again in 0.2 s; last error: broken" in reason
    desk.say(worker, beat([], 10, window=0))
    desk.pass_time(5)
    reason = str(desk.ask(client, "status", id=task_id).body["reason"])
    assert reason == (
        "the one worker that offers it is busy, or does not ask for tasks now; last error: broken"
    )


def test_a_task_waits_for_busy_workers_or_for_such_as_do_not_ask(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    capabilities = {"task_types": ["other"]}
    desk.ask(client, "poll.register", worker_id="p", worker_type="t", capabilities=capabilities)
    busy = "the one worker that offers it is busy"
    for kind, why in (
        ("echo", "the one worker that offers it is busy"),
        ("other", f"{busy}, or does not ask for tasks now; 1 waiting before it"),
    ):
        task_id = desk.submit(client, 2, kind)[-1]
        assert desk.ask(client, "status", id=task_id).body["reason"] == why
    assert len(desk.work(worker)) == 1
