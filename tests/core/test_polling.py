"""Polling workers: silent while they run, no tokens, the same leases and retries."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from d8mesh.core import messages as m
from d8mesh.core.effects import Load, Peer
from d8mesh.core.returns import MAX_RETURNS
from d8mesh.core.task import TaskState
from tests.core.desktop import Desktop, S, beat, failure, result


def register(desk: Desktop, shim: Peer, worker_id: str = "p", **capabilities: Any) -> m.Answer:
    return desk.ask(
        shim, "poll.register", worker_id=worker_id, worker_type="groq", capabilities=capabilities
    )


def poll(desk: Desktop, shim: Peer, worker_id: str = "p", wait_s: float = 0.0) -> object:
    return desk.ask(shim, "poll.next", worker_id=worker_id, wait_s=wait_s).body.get("task")


def report(
    desk: Desktop, shim: Peer, task_id: str, *, ok: bool = True, worker_id: str = "p"
) -> m.Answer:
    payload = result(1) if ok else failure("no")
    return desk.ask(
        shim, "poll.report", task_id=task_id, worker_id=worker_id, is_success=ok, result=payload
    )


def taken(task: object) -> str:
    assert isinstance(task, dict)
    return str(task["task_id"])


def test_a_polling_worker_registers_polls_and_reports(desk: Desktop) -> None:
    shim = desk.client()
    assert register(desk, shim).code == ""
    assert poll(desk, shim) is None
    (task_id,) = desk.submit(shim, kind="agent_action", payloads=[b"\x81\xa1a\x01"], priority=7)
    task = poll(desk, shim)
    assert task == {
        "task_id": task_id, "type": "agent_action", "data": b"\x81\xa1a\x01", "priority": 7,
        "attempt": 1,
    }  # fmt: skip
    workers = desk.ask(shim, "workers").body["workers"]
    assert workers[0]["status"] == "busy"  # type: ignore[index]
    assert report(desk, shim, task_id).code == ""
    assert desk.ask(shim, "status", id=task_id).body["assigned_to"] == "p"
    assert report(desk, shim, task_id).code == ""  # a second report changes nothing
    assert desk.ledger.totals.completed == 1


def test_a_waiting_poll_is_answered_when_a_task_comes(desk: Desktop) -> None:
    shim = desk.client()
    register(desk, shim, task_types=["echo"])
    desk.say(shim, m.Ask(900, "poll.next", {"worker_id": "p", "wait_s": 20}))
    assert desk.got(shim, m.Answer) == []
    (task_id,) = desk.submit(shim)
    (answer,) = desk.got(shim, m.Answer)
    assert (answer.request, taken(answer.body["task"])) == (900, task_id)


def test_a_waiting_poll_ends_with_nothing(desk: Desktop) -> None:
    shim = desk.client()
    register(desk, shim)
    desk.say(shim, m.Ask(900, "poll.next", {"worker_id": "p", "wait_s": 5}))
    assert desk.dispatcher.next_deadline() <= desk.now + 5
    desk.pass_time(6)
    assert desk.got(shim, m.Answer)[0].body == {"task": None}
    desk.say(shim, m.Ask(901, "poll.next", {"worker_id": "p", "wait_s": 50}))
    desk.say(shim, m.Ask(902, "poll.next", {"worker_id": "p", "wait_s": "x"}))
    assert [a.request for a in desk.got(shim, m.Answer)] == [901, 902]


def test_a_poll_dies_with_the_process_that_asked(desk: Desktop) -> None:
    shim = desk.client()
    register(desk, shim)
    desk.say(shim, m.Ask(900, "poll.next", {"worker_id": "p", "wait_s": 50}))
    desk.say(shim, m.Goodbye("bye"))
    shim = desk.client()
    (task_id,) = desk.submit(shim, kind="agent_action")
    assert desk.ledger.state_of(task_id) is TaskState.QUEUED


def test_unknown_workers_are_told_to_register(desk: Desktop) -> None:
    shim = desk.client()
    for what in ("poll.next", "poll.heartbeat", "poll.unregister"):
        assert desk.ask(shim, what, worker_id="p").code == "worker.unknown"
    assert desk.ask(shim, "poll.next", worker_id=5).code == "task.invalid"


def test_a_full_hand_that_asks_means_that_a_reply_was_lost(desk: Desktop) -> None:
    shim = desk.client()
    register(desk, shim)
    (task_id,) = desk.submit(shim, kind="agent_action")
    assert taken(poll(desk, shim)) == task_id
    again = poll(desk, shim)
    assert taken(again) == task_id
    task = desk.ledger.tasks[task_id]
    assert task.n == 2
    assert task.history is not None
    assert task.history.errors == 0


def test_one_that_asks_and_never_reports_gets_a_task_so_often_and_no_more(desk: Desktop) -> None:
    shim = desk.client()
    register(desk, shim)
    (task_id,) = desk.submit(shim, kind="agent_action", max_attempts=1)
    count = 0
    for _ in range(5000):
        if desk.ledger.state_of(task_id) is None:
            break
        count += poll(desk, shim) is not None
        reason = desk.ask(shim, "status", id=task_id).body["reason"]
        assert count < 2 or "no report of this one was taken" in str(reason)
        desk.pass_time(0.05)
    assert count == MAX_RETURNS
    assert desk.ledger.totals.failed == 1


@pytest.mark.parametrize("worker_id", ["p", ""])
def test_a_report_that_cannot_be_taken_ends_the_attempt_and_counts(
    desk: Desktop, worker_id: str
) -> None:
    shim = desk.client()
    register(desk, shim)
    (task_id,) = desk.submit(shim, kind="agent_action")
    assert taken(poll(desk, shim)) == task_id
    named = {"task_id": task_id, "worker_id": worker_id, "error": "NaN is no number"}
    assert desk.ask(shim, "poll.refused", **named).code == ""
    history = desk.ledger.tasks[task_id].remember()
    assert history.errors == 1
    assert history.last_error == "the worker's report could not be taken: NaN is no number"
    assert "NaN" in str(desk.ask(shim, "status", id=task_id).body["reason"])


def test_a_bad_report_of_somebody_else_or_for_nothing_changes_nothing(desk: Desktop) -> None:
    shim, worker = desk.client(), desk.worker("w")
    register(desk, shim)
    (task_id,) = desk.submit(shim, kind="agent_action")
    poll(desk, shim)
    for named in ({"task_id": task_id, "worker_id": "q"}, {"task_id": f"{S}-99"}):
        assert desk.ask(shim, "poll.refused", error="x", **named).code == ""
    (other,) = desk.submit(shim)
    assert list(desk.work(worker)) == [other]
    assert desk.ask(shim, "poll.refused", task_id=other, error="x").code == ""
    assert desk.ledger.running == 2


def test_a_polling_worker_may_say_that_no_retry_helps(desk: Desktop) -> None:
    shim = desk.client()
    register(desk, shim)
    (task_id,) = desk.submit(shim, kind="agent_action")
    poll(desk, shim)
    payload = msgspec.msgpack.encode({"success": False, "error": "no", "retry": False})
    named = {"task_id": task_id, "worker_id": "p", "is_success": False, "result": payload}
    desk.ask(shim, "poll.report", **named)
    assert desk.ledger.totals.failed == 1


def test_two_slots_hold_two_tasks(desk: Desktop) -> None:
    shim = desk.client()
    register(desk, shim, slots=2)
    ids = desk.submit(shim, 2, kind="agent_action")
    assert [taken(poll(desk, shim)), taken(poll(desk, shim))] == ids
    assert desk.ledger.running == 2


def test_failures_are_retried_and_late_reports_of_earlier_holders_count(desk: Desktop) -> None:
    shim = desk.client()
    register(desk, shim)
    (task_id,) = desk.submit(shim, kind="agent_action")
    poll(desk, shim)
    assert report(desk, shim, task_id, ok=False).code == ""
    assert report(desk, shim, task_id, ok=False).code == ""  # stale by now
    assert desk.ledger.state_of(task_id) is TaskState.DELAYED
    assert report(desk, shim, task_id).code == ""
    assert desk.ledger.totals.completed == 1


def test_a_report_of_somebody_else_is_refused(desk: Desktop) -> None:
    shim = desk.client()
    register(desk, shim)
    (task_id,) = desk.submit(shim, kind="agent_action")
    assert report(desk, shim, task_id).code == "access.forbidden"  # never given to it
    poll(desk, shim)
    assert report(desk, shim, task_id, worker_id="q").code == "access.forbidden"
    assert report(desk, shim, f"{S}-99").code == "task.unknown"
    bad = desk.ask(shim, "poll.report", task_id=task_id, worker_id="p", is_success=True, result=5)
    assert bad.code == "task.invalid"
    assert desk.ledger.state_of(task_id) is TaskState.RUNNING


def test_a_fenced_task_takes_no_late_report(desk: Desktop) -> None:
    shim = desk.client()
    register(desk, shim)
    (task_id,) = desk.submit(shim, kind="agent_action", is_fenced=True)
    poll(desk, shim)
    report(desk, shim, task_id, ok=False)
    report(desk, shim, task_id)
    assert desk.ledger.totals.completed == 0


def test_unregistering_gives_the_tasks_back_at_once(desk: Desktop) -> None:
    shim = desk.client()
    register(desk, shim)
    (task_id,) = desk.submit(shim, kind="agent_action")
    poll(desk, shim)
    assert desk.ask(shim, "poll.unregister", worker_id="p").code == ""
    assert desk.ledger.state_of(task_id) is TaskState.QUEUED
    assert desk.ask(shim, "workers").body["total"] == 0
    desk.restart()
    assert desk.pool.roster.seats == {}


def test_an_attempt_lives_for_the_task_timeout_and_longer_with_heartbeats(desk: Desktop) -> None:
    shim = desk.client()
    register(desk, shim)
    (task_id,) = desk.submit(shim, kind="agent_action")
    poll(desk, shim)

    def wait(seconds: int, *, beats: bool) -> None:
        for _ in range(seconds // 10):
            desk.pass_time(10, step=1.9)
            desk.say(shim, m.Watch([]))
            if beats:
                desk.ask(shim, "poll.heartbeat", worker_id="p")

    wait(290, beats=False)
    assert desk.ledger.state_of(task_id) is TaskState.RUNNING
    wait(100, beats=True)
    assert desk.ledger.state_of(task_id) is TaskState.RUNNING
    wait(70, beats=False)
    assert desk.ledger.state_of(task_id) is TaskState.QUEUED
    assert desk.ask(shim, "workers").body["workers"][0]["status"] == "offline"  # type: ignore[index]
    assert taken(poll(desk, shim)) == task_id  # a poll brings it back


@pytest.mark.parametrize("wait_s", [0.0, 30.0])
def test_of_two_slots_an_attempt_that_never_arrived_runs_again(
    desk: Desktop, wait_s: float
) -> None:
    """Polls and reports of other tasks do not keep it."""
    shim = desk.client()
    register(desk, shim, task_types=["echo"], slots=2)
    other, lost = desk.submit(shim, 2)
    assert [taken(poll(desk, shim)), taken(poll(desk, shim))] == [other, lost]
    begun = desk.now  # the second answer was lost on the way
    given: list[object] = []
    while desk.now < begun + 400 and not any(given):
        report(desk, shim, other)
        desk.say(shim, m.Ask(900, "poll.next", {"worker_id": "p", "wait_s": wait_s}))
        desk.pass_time(10, step=1.9)
        given += [answer.body.get("task") for answer in desk.got(shim, m.Answer)]
    assert taken(given[-1]) == lost
    assert 300 <= desk.now - begun <= 350


def test_of_several_slots_a_heartbeat_keeps_what_it_names(desk: Desktop) -> None:
    shim = desk.client()
    register(desk, shim, task_types=["echo"], slots=3)
    long, lost = desk.submit(shim, 2)
    assert [taken(poll(desk, shim)), taken(poll(desk, shim))] == [long, lost]
    for _ in range(50):
        desk.pass_time(10, step=1.9)
        desk.ask(shim, "poll.heartbeat", worker_id="p", task_ids=[long, 5, f"{S}-99"])
        desk.ask(shim, "poll.heartbeat", worker_id="p")
    assert desk.ledger.state_of(long) is TaskState.RUNNING
    assert desk.ledger.state_of(lost) is TaskState.QUEUED
    history = desk.ledger.tasks[lost].history
    assert history is not None
    assert (history.errors, history.last_error) == (1, "timed out")
    assert not history.losses


def test_registrations_and_running_tasks_survive_a_restart(desk: Desktop) -> None:
    shim = desk.client()
    register(desk, shim, task_types=["echo"])
    (task_id,) = desk.submit(shim)
    poll(desk, shim)
    desk.restart()
    shim = desk.client()
    assert desk.ledger.state_of(task_id) is TaskState.RUNNING
    desk.pass_time(20)
    assert desk.ledger.state_of(task_id) is TaskState.RUNNING
    assert report(desk, shim, task_id).code == ""
    assert desk.ledger.totals.completed == 1
    assert poll(desk, shim) is None


def test_after_a_restart_a_worker_was_last_heard_when_it_registered(desk: Desktop) -> None:
    shim = desk.client()
    register(desk, shim, task_types=["echo"])
    registered_at = desk.at
    desk.pass_time(30)
    poll(desk, shim)
    desk.restart()
    workers: Any = desk.ask(desk.client(), "workers").body["workers"]
    (worker,) = workers
    assert (worker["status"], worker["last_heartbeat"]) == ("offline", registered_at)
    assert worker["capabilities"] == {"task_types": ["echo"]}


def test_a_task_that_a_silent_worker_had_last_names_it(desk: Desktop) -> None:
    shim = desk.client()
    register(desk, shim)
    (task_id,) = desk.submit(shim, kind="agent_action", max_attempts=1)
    poll(desk, shim)
    while desk.ledger.state_of(task_id) is not None:
        desk.pass_time(10, step=1.9)
        desk.say(shim, m.Watch([]))
    body: Any = desk.ask(shim, "status", id=task_id).body
    assert (body["reason"], body["assigned_to"]) == ("worker lost", "p")
    assert [(past["attempt"], past["worker_id"]) for past in body["history"]] == [(1, "p")]
    assert msgspec.msgpack.decode(body["result"])["worker_id"] == "p"
    workers: Any = desk.ask(shim, "workers").body["workers"]
    assert workers[0]["tasks_failed"] == 1
    desk.restart()
    workers = desk.ask(desk.client(), "workers").body["workers"]
    assert workers[0]["tasks_failed"] == 1


def test_the_first_poll_after_a_restart_waits_for_what_is_on_the_disk(desk: Desktop) -> None:
    shim = desk.client()
    register(desk, shim, task_types=["echo"])
    (task_id,) = desk.submit(shim)
    desk.restart()
    assert taken(poll(desk, desk.client())) == task_id


@pytest.mark.parametrize("kind", ["echo", "other"])
def test_a_poll_waits_a_bounded_time_for_a_disk_and_for_nothing_else(
    desk: Desktop, kind: str
) -> None:
    shim = desk.client()
    register(desk, shim, "p", task_types=["echo"])
    register(desk, shim, "q", task_types=["echo", "other"])
    desk.submit(shim, kind=kind)
    desk.restart()
    shim = desk.client()
    for request, worker_id in ((900, "q"), (901, "p")):
        ask = m.Ask(request, "poll.next", {"worker_id": worker_id, "wait_s": 0})
        effects = desk.dispatcher.receive(ask, shim, desk.now)
        effects += desk.dispatcher.tick(desk.now, desk.at)
        desk.perform([each for each in effects if not isinstance(each, Load)])  # a slow disk
    at_once = {answer.request for answer in desk.got(shim, m.Answer)}
    assert at_once == (set() if kind == "echo" else {901})
    assert desk.dispatcher.next_deadline() > desk.now, "it does not spin meanwhile"
    desk.pass_time(2.5)
    later = desk.got(shim, m.Answer)
    assert {answer.request for answer in later} == {900, 901} - at_once
    assert all(answer.body == {"task": None} for answer in later)


def test_crossover_goes_to_mesh_workers_while_there_are_any(desk: Desktop) -> None:
    shim = desk.client()
    mesh = desk.worker("w", types=("evolution_crossover",), window=0)
    register(desk, shim)
    (task_id,) = desk.submit(shim, kind="evolution_crossover")
    assert poll(desk, shim) is None
    desk.say(mesh, m.Goodbye("x"))
    assert taken(poll(desk, shim)) == task_id


def test_the_id_of_a_mesh_worker_cannot_be_registered(desk: Desktop) -> None:
    shim = desk.client()
    worker = desk.worker("p")
    assert register(desk, shim).code == "worker.id_taken"
    desk.say(worker, beat([], 0))
    assert desk.got(worker, m.Beat)


@pytest.mark.parametrize(
    ("capabilities", "types"),
    [
        ({}, 4),
        ({"task_types": "echo"}, 4),
        ({"task_types": None}, 4),
        ({"task_types": []}, 4),
        ({"task_types": ["a", 5, "", "b"]}, 2),
        ({"task_types": ["a"] * 3000, "models": ["m"], "model": 5, "slots": "x"}, 1),
    ],
)
def test_odd_capabilities_do_no_harm(
    desk: Desktop, capabilities: dict[str, Any], types: int
) -> None:
    shim = desk.client()
    assert register(desk, shim, **capabilities).code == ""
    assert len(desk.pool.roster.seats["p"].types) == types
    told = desk.ask(shim, "workers").body["workers"]
    assert told[0]["capabilities"] == msgspec.msgpack.decode(msgspec.msgpack.encode(capabilities))  # type: ignore[index]


def test_registrations_are_bounded(desk: Desktop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("d8mesh.core.polling.MAX_POLLING_WORKERS", 1)
    shim = desk.client()
    assert register(desk, shim, "p").code == ""
    assert register(desk, shim, "q").code == "access.forbidden"
    assert register(desk, shim, "p").code == ""  # it may change its own


def test_polls_of_another_process_wait_on(desk: Desktop) -> None:
    shim, other = desk.client(), desk.client("f" * 16)
    register(desk, shim, task_types=["echo"])
    desk.say(shim, m.Ask(900, "poll.next", {"worker_id": "p", "wait_s": 5.0}))
    desk.say(other, m.Goodbye("x"))
    (task_id,) = desk.submit(shim)
    (answer,) = desk.got(shim, m.Answer)
    assert taken(answer.body["task"]) == task_id


def test_a_result_of_a_worker_that_unregistered_meanwhile_counts(desk: Desktop) -> None:
    shim = desk.client()
    register(desk, shim, task_types=["echo"])
    desk.submit(shim)
    task_id = taken(poll(desk, shim))
    desk.ask(shim, "poll.unregister", worker_id="p")
    assert report(desk, shim, task_id).code == ""
    assert desk.ledger.totals.completed == 1


def test_an_idle_worker_unregisters_and_comes_back_after_silence(desk: Desktop) -> None:
    shim = desk.client()
    register(desk, shim)
    assert desk.ask(shim, "poll.unregister", worker_id="p").code == ""
    register(desk, shim)
    for _ in range(8):
        desk.pass_time(10)
        desk.say(shim, m.Watch([]))
    assert not desk.pool.roster.seats["p"].is_live
    register(desk, shim, task_types=["echo"])
    desk.submit(shim)
    assert taken(poll(desk, shim))
