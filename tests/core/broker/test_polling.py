"""Polling workers: silent while they run, no tokens, the same leases and retries."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from d8mesh.core.broker.effects import Load, Peer
from d8mesh.core.broker.returns import MAX_RETURNS
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.task import TaskState
from tests.core.wired_broker import S, WiredBroker, beat, failure, result


def register(
    broker: WiredBroker, shim: Peer, worker_id: str = "p", **capabilities: Any
) -> m.Answer:
    return broker.ask(
        shim, "poll.register", worker_id=worker_id, worker_type="groq", capabilities=capabilities
    )


def poll(broker: WiredBroker, shim: Peer, worker_id: str = "p", wait_s: float = 0.0) -> object:
    return broker.ask(shim, "poll.next", worker_id=worker_id, wait_s=wait_s).body.get("task")


def report(
    broker: WiredBroker, shim: Peer, task_id: str, *, ok: bool = True, worker_id: str = "p"
) -> m.Answer:
    payload = result(1) if ok else failure("no")
    return broker.ask(
        shim, "poll.report", task_id=task_id, worker_id=worker_id, is_success=ok, result=payload
    )


def taken(task: object) -> str:
    assert isinstance(task, dict)
    return str(task["task_id"])


def test_a_polling_worker_registers_polls_and_reports(broker: WiredBroker) -> None:
    shim = broker.client()
    assert register(broker, shim).code == ""
    assert poll(broker, shim) is None
    (task_id,) = broker.submit(shim, kind="agent_action", payloads=[b"\x81\xa1a\x01"], priority=7)
    task = poll(broker, shim)
    assert task == {
        "task_id": task_id, "type": "agent_action", "data": b"\x81\xa1a\x01", "priority": 7,
        "attempt": 1,
    }  # fmt: skip
    workers = broker.ask(shim, "workers").body["workers"]
    assert workers[0]["status"] == "busy"  # type: ignore[index]
    assert report(broker, shim, task_id).code == ""
    assert broker.ask(shim, "status", id=task_id).body["assigned_to"] == "p"
    assert report(broker, shim, task_id).code == ""  # a second report changes nothing
    assert broker.task_table.totals.completed == 1


def test_a_waiting_poll_is_answered_when_a_task_comes(broker: WiredBroker) -> None:
    shim = broker.client()
    register(broker, shim, task_types=["echo"])
    broker.say(shim, m.Query(900, "poll.next", {"worker_id": "p", "wait_s": 20}))
    assert broker.got(shim, m.Answer) == []
    (task_id,) = broker.submit(shim)
    (answer,) = broker.got(shim, m.Answer)
    assert (answer.request, taken(answer.body["task"])) == (900, task_id)


def test_a_waiting_poll_ends_with_nothing(broker: WiredBroker) -> None:
    shim = broker.client()
    register(broker, shim)
    broker.say(shim, m.Query(900, "poll.next", {"worker_id": "p", "wait_s": 5}))
    assert broker.dispatcher.next_deadline() <= broker.now + 5
    broker.pass_time(6)
    assert broker.got(shim, m.Answer)[0].body == {"task": None}
    broker.say(shim, m.Query(901, "poll.next", {"worker_id": "p", "wait_s": 50}))
    broker.say(shim, m.Query(902, "poll.next", {"worker_id": "p", "wait_s": "x"}))
    assert [a.request for a in broker.got(shim, m.Answer)] == [901, 902]


def test_a_poll_that_is_sent_again_waits_on(broker: WiredBroker) -> None:
    shim = broker.client()
    register(broker, shim, task_types=["echo"])
    question = m.Query(900, "poll.next", {"worker_id": "p", "wait_s": 20})
    broker.say(shim, question)
    broker.say(shim, question)
    assert broker.got(shim, m.Answer) == []
    broker.submit(shim)
    (answer,) = broker.got(shim, m.Answer)
    assert (answer.request, answer.body["task"] is not None) == (900, True)


def test_who_hangs_up_is_handed_nothing_and_gives_back_what_was_on_its_way(
    broker: WiredBroker,
) -> None:
    shim = broker.client()
    register(broker, shim, task_types=["echo"])
    broker.say(shim, m.Query(900, "poll.next", {"worker_id": "p", "wait_s": 20}))
    broker.say(shim, m.Query(901, "poll.leave", {"worker_id": "p"}))
    told = [(answer.request, answer.body) for answer in broker.got(shim, m.Answer)]
    assert told == [(900, {"task": None}), (901, {})]
    (task_id,) = broker.submit(shim)
    assert broker.task_table.state_of(task_id) is TaskState.QUEUED
    assert taken(poll(broker, shim)) == task_id
    assert broker.ask(shim, "poll.leave", worker_id="p", task_id=task_id).code == ""
    assert broker.task_table.state_of(task_id) is TaskState.QUEUED
    register(broker, shim, "other", task_types=["echo"])
    assert taken(poll(broker, shim, "other")) == task_id
    assert broker.ask(shim, "poll.leave", worker_id="p", task_id=task_id).code == ""
    assert broker.task_table.state_of(task_id) is TaskState.RUNNING  # another's
    assert broker.ask(shim, "poll.leave", worker_id="stranger").code == "worker.unknown"


def test_a_poll_dies_with_the_process_that_asked(broker: WiredBroker) -> None:
    shim = broker.client()
    register(broker, shim)
    broker.say(shim, m.Query(900, "poll.next", {"worker_id": "p", "wait_s": 50}))
    broker.say(shim, m.Goodbye("gone"))
    shim = broker.client()
    (task_id,) = broker.submit(shim, kind="agent_action")
    assert broker.task_table.state_of(task_id) is TaskState.QUEUED


def test_unknown_workers_are_told_to_register(broker: WiredBroker) -> None:
    shim = broker.client()
    for what in ("poll.next", "poll.heartbeat", "poll.unregister"):
        assert broker.ask(shim, what, worker_id="p").code == "worker.unknown"
    assert broker.ask(shim, "poll.next", worker_id=5).code == "task.invalid"


def test_a_full_hand_that_asks_means_that_a_reply_was_lost(broker: WiredBroker) -> None:
    shim = broker.client()
    register(broker, shim)
    (task_id,) = broker.submit(shim, kind="agent_action")
    assert taken(poll(broker, shim)) == task_id
    again = poll(broker, shim)
    assert taken(again) == task_id
    task = broker.task_table.tasks[task_id]
    assert task.n == 2
    assert task.history is not None
    assert task.history.errors == 0


def test_one_that_asks_and_never_reports_gets_a_task_so_often_and_no_more(
    broker: WiredBroker,
) -> None:
    shim = broker.client()
    register(broker, shim)
    (task_id,) = broker.submit(shim, kind="agent_action", max_attempts=1)
    count = 0
    for _ in range(5000):
        if broker.task_table.state_of(task_id) is None:
            break
        count += poll(broker, shim) is not None
        reason = broker.ask(shim, "status", id=task_id).body["reason"]
        assert count < 2 or "no report of this one was taken" in str(reason)
        broker.pass_time(0.05)
    assert count == MAX_RETURNS
    assert broker.task_table.totals.failed == 1


@pytest.mark.parametrize("worker_id", ["p", ""])
def test_a_report_that_cannot_be_taken_ends_the_attempt_and_counts(
    broker: WiredBroker, worker_id: str
) -> None:
    shim = broker.client()
    register(broker, shim)
    (task_id,) = broker.submit(shim, kind="agent_action")
    assert taken(poll(broker, shim)) == task_id
    named = {"task_id": task_id, "worker_id": worker_id, "error": "NaN is no number"}
    assert broker.ask(shim, "poll.refused", **named).code == ""
    history = broker.task_table.tasks[task_id].remember()
    assert history.errors == 1
    assert history.last_error == "the worker's report could not be taken: NaN is no number"
    assert "NaN" in str(broker.ask(shim, "status", id=task_id).body["reason"])


def test_a_bad_report_of_somebody_else_or_for_nothing_changes_nothing(broker: WiredBroker) -> None:
    shim, worker = broker.client(), broker.worker("w")
    register(broker, shim)
    (task_id,) = broker.submit(shim, kind="agent_action")
    poll(broker, shim)
    for named in ({"task_id": task_id, "worker_id": "q"}, {"task_id": f"{S}-99"}):
        assert broker.ask(shim, "poll.refused", error="x", **named).code == ""
    (other,) = broker.submit(shim)
    assert list(broker.work(worker)) == [other]
    assert broker.ask(shim, "poll.refused", task_id=other, error="x").code == ""
    assert broker.task_table.running == 2


def test_a_polling_worker_may_say_that_no_retry_helps(broker: WiredBroker) -> None:
    shim = broker.client()
    register(broker, shim)
    (task_id,) = broker.submit(shim, kind="agent_action")
    poll(broker, shim)
    payload = msgspec.msgpack.encode({"success": False, "error": "no", "retry": False})
    named = {"task_id": task_id, "worker_id": "p", "is_success": False, "result": payload}
    broker.ask(shim, "poll.report", **named)
    assert broker.task_table.totals.failed == 1


def test_two_slots_hold_two_tasks(broker: WiredBroker) -> None:
    shim = broker.client()
    register(broker, shim, slots=2)
    ids = broker.submit(shim, 2, kind="agent_action")
    assert [taken(poll(broker, shim)), taken(poll(broker, shim))] == ids
    assert broker.task_table.running == 2


def test_failures_are_retried_and_late_reports_of_earlier_holders_count(
    broker: WiredBroker,
) -> None:
    shim = broker.client()
    register(broker, shim)
    (task_id,) = broker.submit(shim, kind="agent_action")
    poll(broker, shim)
    assert report(broker, shim, task_id, ok=False).code == ""
    assert report(broker, shim, task_id, ok=False).code == ""  # stale by now
    assert broker.task_table.state_of(task_id) is TaskState.DELAYED
    assert report(broker, shim, task_id).code == ""
    assert broker.task_table.totals.completed == 1


def test_a_report_of_somebody_else_is_refused(broker: WiredBroker) -> None:
    shim = broker.client()
    register(broker, shim)
    (task_id,) = broker.submit(shim, kind="agent_action")
    assert report(broker, shim, task_id).code == "access.forbidden"  # never given to it
    poll(broker, shim)
    assert report(broker, shim, task_id, worker_id="q").code == "access.forbidden"
    assert report(broker, shim, f"{S}-99").code == "task.unknown"
    bad = broker.ask(shim, "poll.report", task_id=task_id, worker_id="p", is_success=True, result=5)
    assert bad.code == "task.invalid"
    assert broker.task_table.state_of(task_id) is TaskState.RUNNING


def test_a_fenced_task_takes_no_late_report(broker: WiredBroker) -> None:
    shim = broker.client()
    register(broker, shim)
    (task_id,) = broker.submit(shim, kind="agent_action", is_fenced=True)
    poll(broker, shim)
    report(broker, shim, task_id, ok=False)
    report(broker, shim, task_id)
    assert broker.task_table.totals.completed == 0


def test_unregistering_gives_the_tasks_back_at_once(broker: WiredBroker) -> None:
    shim = broker.client()
    register(broker, shim)
    (task_id,) = broker.submit(shim, kind="agent_action")
    poll(broker, shim)
    assert broker.ask(shim, "poll.unregister", worker_id="p").code == ""
    assert broker.task_table.state_of(task_id) is TaskState.QUEUED
    assert broker.ask(shim, "workers").body["total"] == 0
    broker.restart()
    assert broker.state.registry.workers == {}


def test_an_attempt_lives_for_the_task_timeout_and_longer_with_heartbeats(
    broker: WiredBroker,
) -> None:
    shim = broker.client()
    register(broker, shim)
    (task_id,) = broker.submit(shim, kind="agent_action")
    poll(broker, shim)

    def wait(seconds: int, *, beats: bool) -> None:
        for _ in range(seconds // 10):
            broker.pass_time(10, step=1.9)
            broker.say(shim, m.Watch([]))
            if beats:
                broker.ask(shim, "poll.heartbeat", worker_id="p")

    wait(290, beats=False)
    assert broker.task_table.state_of(task_id) is TaskState.RUNNING
    wait(100, beats=True)
    assert broker.task_table.state_of(task_id) is TaskState.RUNNING
    wait(70, beats=False)
    assert broker.task_table.state_of(task_id) is TaskState.QUEUED
    assert broker.ask(shim, "workers").body["workers"][0]["status"] == "offline"  # type: ignore[index]
    assert taken(poll(broker, shim)) == task_id  # a poll brings it back


@pytest.mark.parametrize("wait_s", [0.0, 30.0])
def test_of_two_slots_an_attempt_that_never_arrived_runs_again(
    broker: WiredBroker, wait_s: float
) -> None:
    """Polls and reports of other tasks do not keep it."""
    shim = broker.client()
    register(broker, shim, task_types=["echo"], slots=2)
    other, lost = broker.submit(shim, 2)
    assert [taken(poll(broker, shim)), taken(poll(broker, shim))] == [other, lost]
    begun = broker.now  # the second answer was lost on the way
    given: list[object] = []
    while broker.now < begun + 400 and not any(given):
        report(broker, shim, other)
        broker.say(shim, m.Query(900, "poll.next", {"worker_id": "p", "wait_s": wait_s}))
        broker.pass_time(10, step=1.9)
        given += [answer.body.get("task") for answer in broker.got(shim, m.Answer)]
    assert taken(given[-1]) == lost
    assert 300 <= broker.now - begun <= 350


def test_of_several_slots_a_heartbeat_keeps_what_it_names(broker: WiredBroker) -> None:
    shim = broker.client()
    register(broker, shim, task_types=["echo"], slots=3)
    long, lost = broker.submit(shim, 2)
    assert [taken(poll(broker, shim)), taken(poll(broker, shim))] == [long, lost]
    for _ in range(50):
        broker.pass_time(10, step=1.9)
        broker.ask(shim, "poll.heartbeat", worker_id="p", task_ids=[long, 5, f"{S}-99"])
        broker.ask(shim, "poll.heartbeat", worker_id="p")
    assert broker.task_table.state_of(long) is TaskState.RUNNING
    assert broker.task_table.state_of(lost) is TaskState.QUEUED
    history = broker.task_table.tasks[lost].history
    assert history is not None
    assert (history.errors, history.last_error) == (1, "timed out")
    assert not history.losses


def test_registrations_and_running_tasks_survive_a_restart(broker: WiredBroker) -> None:
    shim = broker.client()
    register(broker, shim, task_types=["echo"])
    (task_id,) = broker.submit(shim)
    poll(broker, shim)
    broker.restart()
    shim = broker.client()
    assert broker.task_table.state_of(task_id) is TaskState.RUNNING
    broker.pass_time(20)
    assert broker.task_table.state_of(task_id) is TaskState.RUNNING
    assert report(broker, shim, task_id).code == ""
    assert broker.task_table.totals.completed == 1
    assert poll(broker, shim) is None


def test_after_a_restart_a_worker_was_last_heard_when_it_registered(broker: WiredBroker) -> None:
    shim = broker.client()
    register(broker, shim, task_types=["echo"])
    registered_at = broker.at
    broker.pass_time(30)
    poll(broker, shim)
    broker.restart()
    workers: Any = broker.ask(broker.client(), "workers").body["workers"]
    (worker,) = workers
    assert (worker["status"], worker["last_heartbeat"]) == ("offline", registered_at)
    assert worker["capabilities"] == {"task_types": ["echo"]}


def test_a_task_that_a_silent_worker_had_last_names_it(broker: WiredBroker) -> None:
    shim = broker.client()
    register(broker, shim)
    (task_id,) = broker.submit(shim, kind="agent_action", max_attempts=1)
    poll(broker, shim)
    while broker.task_table.state_of(task_id) is not None:
        broker.pass_time(10, step=1.9)
        broker.say(shim, m.Watch([]))
    body: Any = broker.ask(shim, "status", id=task_id).body
    assert (body["reason"], body["assigned_to"]) == ("worker lost", "p")
    assert [(past["attempt"], past["worker_id"]) for past in body["history"]] == [(1, "p")]
    assert msgspec.msgpack.decode(body["result"])["worker_id"] == "p"
    workers: Any = broker.ask(shim, "workers").body["workers"]
    assert workers[0]["tasks_failed"] == 1
    broker.restart()
    workers = broker.ask(broker.client(), "workers").body["workers"]
    assert workers[0]["tasks_failed"] == 1


def test_the_first_poll_after_a_restart_waits_for_what_is_on_the_disk(broker: WiredBroker) -> None:
    shim = broker.client()
    register(broker, shim, task_types=["echo"])
    (task_id,) = broker.submit(shim)
    broker.restart()
    assert taken(poll(broker, broker.client())) == task_id


@pytest.mark.parametrize("kind", ["echo", "other"])
def test_a_poll_waits_a_bounded_time_for_a_disk_and_for_nothing_else(
    broker: WiredBroker, kind: str
) -> None:
    shim = broker.client()
    register(broker, shim, "p", task_types=["echo"])
    register(broker, shim, "q", task_types=["echo", "other"])
    broker.submit(shim, kind=kind)
    broker.restart()
    shim = broker.client()
    for request, worker_id in ((900, "q"), (901, "p")):
        ask = m.Query(request, "poll.next", {"worker_id": worker_id, "wait_s": 0})
        effects = broker.dispatcher.receive(ask, shim, broker.now)
        effects += broker.dispatcher.tick(broker.now, broker.at)
        broker.perform([each for each in effects if not isinstance(each, Load)])  # a slow disk
    at_once = {answer.request for answer in broker.got(shim, m.Answer)}
    assert at_once == (set() if kind == "echo" else {901})
    assert broker.dispatcher.next_deadline() > broker.now, "it does not spin meanwhile"
    broker.pass_time(2.5)
    later = broker.got(shim, m.Answer)
    assert {answer.request for answer in later} == {900, 901} - at_once
    assert all(answer.body == {"task": None} for answer in later)


def test_crossover_goes_to_mesh_workers_while_there_are_any(broker: WiredBroker) -> None:
    shim = broker.client()
    mesh = broker.worker("w", types=("evolution_crossover",), window=0)
    register(broker, shim)
    (task_id,) = broker.submit(shim, kind="evolution_crossover")
    assert poll(broker, shim) is None
    broker.say(mesh, m.Goodbye("x"))
    assert taken(poll(broker, shim)) == task_id


def test_the_id_of_a_mesh_worker_cannot_be_registered(broker: WiredBroker) -> None:
    shim = broker.client()
    worker = broker.worker("p")
    assert register(broker, shim).code == "worker.id_taken"
    broker.say(worker, beat([], 0))
    assert broker.got(worker, m.Beat)


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
    broker: WiredBroker, capabilities: dict[str, Any], types: int
) -> None:
    shim = broker.client()
    assert register(broker, shim, **capabilities).code == ""
    assert len(broker.state.registry.workers["p"].types) == types
    told = broker.ask(shim, "workers").body["workers"]
    assert told[0]["capabilities"] == msgspec.msgpack.decode(msgspec.msgpack.encode(capabilities))  # type: ignore[index]


def test_registrations_are_bounded(broker: WiredBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("d8mesh.core.broker.polling.MAX_POLLING_WORKERS", 1)
    shim = broker.client()
    assert register(broker, shim, "p").code == ""
    assert register(broker, shim, "q").code == "access.forbidden"
    assert register(broker, shim, "p").code == ""  # it may change its own


def test_polls_of_another_process_wait_on(broker: WiredBroker) -> None:
    shim, other = broker.client(), broker.client("f" * 16)
    register(broker, shim, task_types=["echo"])
    broker.say(shim, m.Query(900, "poll.next", {"worker_id": "p", "wait_s": 5.0}))
    broker.say(other, m.Goodbye("x"))
    (task_id,) = broker.submit(shim)
    (answer,) = broker.got(shim, m.Answer)
    assert taken(answer.body["task"]) == task_id


def test_a_result_of_a_worker_that_unregistered_meanwhile_counts(broker: WiredBroker) -> None:
    shim = broker.client()
    register(broker, shim, task_types=["echo"])
    broker.submit(shim)
    task_id = taken(poll(broker, shim))
    broker.ask(shim, "poll.unregister", worker_id="p")
    assert report(broker, shim, task_id).code == ""
    assert broker.task_table.totals.completed == 1


def test_an_idle_worker_unregisters_and_comes_back_after_silence(broker: WiredBroker) -> None:
    shim = broker.client()
    register(broker, shim)
    assert broker.ask(shim, "poll.unregister", worker_id="p").code == ""
    register(broker, shim)
    for _ in range(8):
        broker.pass_time(10)
        broker.say(shim, m.Watch([]))
    assert not broker.state.registry.workers["p"].is_live
    register(broker, shim, task_types=["echo"])
    broker.submit(shim)
    assert taken(poll(broker, shim))


def test_a_poll_of_no_known_name_is_refused(broker: WiredBroker) -> None:
    assert broker.ask(broker.client(), "poll.everything").code == "access.forbidden"
