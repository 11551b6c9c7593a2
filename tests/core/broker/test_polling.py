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


def register(broker: WiredBroker, web: Peer, worker_id: str = "p", **capabilities: Any) -> m.Answer:
    return broker.ask(
        web, "poll.register", worker_id=worker_id, worker_type="groq", capabilities=capabilities
    )


def poll(broker: WiredBroker, web: Peer, worker_id: str = "p", wait_s: float = 0.0) -> object:
    return broker.ask(web, "poll.next", worker_id=worker_id, wait_s=wait_s).body.get("task")


def report(
    broker: WiredBroker, web: Peer, task_id: str, *, ok: bool = True, worker_id: str = "p"
) -> m.Answer:
    payload = result(1) if ok else failure("no")
    return broker.ask(
        web, "poll.report", task_id=task_id, worker_id=worker_id, is_success=ok, result=payload
    )


def taken(task: object) -> str:
    assert isinstance(task, dict)
    return str(task["task_id"])


def test_a_polling_worker_registers_polls_and_reports(broker: WiredBroker) -> None:
    web = broker.client()
    assert register(broker, web).code == ""
    assert poll(broker, web) is None
    (task_id,) = broker.submit(web, kind="agent_action", payloads=[b"\x81\xa1a\x01"], priority=7)
    task = poll(broker, web)
    assert task == {
        "task_id": task_id, "type": "agent_action", "data": b"\x81\xa1a\x01", "priority": 7,
        "attempt": 1,
    }  # fmt: skip
    workers = broker.ask(web, "workers").body["workers"]
    assert workers[0]["status"] == "busy"  # type: ignore[index]
    assert report(broker, web, task_id).code == ""
    assert broker.ask(web, "status", id=task_id).body["assigned_to"] == "p"
    assert report(broker, web, task_id).code == ""  # a second report changes nothing
    assert broker.task_table.totals.completed == 1


def test_a_waiting_poll_is_answered_when_a_task_comes(broker: WiredBroker) -> None:
    web = broker.client()
    register(broker, web, task_types=["echo"])
    broker.say(web, m.Query(900, "poll.next", {"worker_id": "p", "wait_s": 20}))
    assert broker.got(web, m.Answer) == []
    (task_id,) = broker.submit(web)
    (answer,) = broker.got(web, m.Answer)
    assert (answer.request, taken(answer.body["task"])) == (900, task_id)


def test_a_waiting_poll_ends_with_nothing(broker: WiredBroker) -> None:
    web = broker.client()
    register(broker, web)
    broker.say(web, m.Query(900, "poll.next", {"worker_id": "p", "wait_s": 5}))
    assert broker.dispatcher.next_deadline() <= broker.now + 5
    broker.pass_time(6)
    assert broker.got(web, m.Answer)[0].body == {"task": None}
    broker.say(web, m.Query(901, "poll.next", {"worker_id": "p", "wait_s": 50}))
    broker.say(web, m.Query(902, "poll.next", {"worker_id": "p", "wait_s": "x"}))
    assert [a.request for a in broker.got(web, m.Answer)] == [901, 902]


def test_a_poll_that_is_sent_again_waits_on(broker: WiredBroker) -> None:
    web = broker.client()
    register(broker, web, task_types=["echo"])
    question = m.Query(900, "poll.next", {"worker_id": "p", "wait_s": 20})
    broker.say(web, question)
    broker.say(web, question)
    assert broker.got(web, m.Answer) == []
    broker.submit(web)
    (answer,) = broker.got(web, m.Answer)
    assert (answer.request, answer.body["task"] is not None) == (900, True)


def test_who_hangs_up_is_handed_nothing_and_gives_back_what_was_on_its_way(
    broker: WiredBroker,
) -> None:
    web = broker.client()
    register(broker, web, task_types=["echo"])
    broker.say(web, m.Query(900, "poll.next", {"worker_id": "p", "wait_s": 20}))
    broker.say(web, m.Query(901, "poll.leave", {"worker_id": "p"}))
    told = [(answer.request, answer.body) for answer in broker.got(web, m.Answer)]
    assert told == [(900, {"task": None}), (901, {})]
    (task_id,) = broker.submit(web)
    assert broker.task_table.state_of(task_id) is TaskState.QUEUED
    assert taken(poll(broker, web)) == task_id
    assert broker.ask(web, "poll.leave", worker_id="p", task_id=task_id).code == ""
    assert broker.task_table.state_of(task_id) is TaskState.QUEUED
    register(broker, web, "other", task_types=["echo"])
    assert taken(poll(broker, web, "other")) == task_id
    assert broker.ask(web, "poll.leave", worker_id="p", task_id=task_id).code == ""
    assert broker.task_table.state_of(task_id) is TaskState.RUNNING  # another's
    assert broker.ask(web, "poll.leave", worker_id="stranger").code == "worker.unknown"


def test_a_poll_dies_with_the_process_that_asked(broker: WiredBroker) -> None:
    web = broker.client()
    register(broker, web)
    broker.say(web, m.Query(900, "poll.next", {"worker_id": "p", "wait_s": 50}))
    broker.say(web, m.Goodbye("gone"))
    web = broker.client()
    (task_id,) = broker.submit(web, kind="agent_action")
    assert broker.task_table.state_of(task_id) is TaskState.QUEUED


def test_unknown_workers_are_told_to_register(broker: WiredBroker) -> None:
    web = broker.client()
    for what in ("poll.next", "poll.heartbeat", "poll.unregister"):
        assert broker.ask(web, what, worker_id="p").code == "worker.unknown"
    assert broker.ask(web, "poll.next", worker_id=5).code == "task.invalid"


def test_a_full_hand_that_asks_means_that_a_reply_was_lost(broker: WiredBroker) -> None:
    web = broker.client()
    register(broker, web)
    (task_id,) = broker.submit(web, kind="agent_action")
    assert taken(poll(broker, web)) == task_id
    again = poll(broker, web)
    assert taken(again) == task_id
    task = broker.task_table.tasks[task_id]
    assert task.n == 2
    assert task.history is not None
    assert task.history.errors == 0


def test_one_that_asks_and_never_reports_gets_a_task_so_often_and_no_more(
    broker: WiredBroker,
) -> None:
    web = broker.client()
    register(broker, web)
    (task_id,) = broker.submit(web, kind="agent_action", max_attempts=1)
    count = 0
    for _ in range(5000):
        if broker.task_table.state_of(task_id) is None:
            break
        count += poll(broker, web) is not None
        reason = broker.ask(web, "status", id=task_id).body["reason"]
        assert count < 2 or "no report of this one was taken" in str(reason)
        broker.pass_time(0.05)
    assert count == MAX_RETURNS
    assert broker.task_table.totals.failed == 1


@pytest.mark.parametrize("worker_id", ["p", ""])
def test_a_report_that_cannot_be_taken_ends_the_attempt_and_counts(
    broker: WiredBroker, worker_id: str
) -> None:
    web = broker.client()
    register(broker, web)
    (task_id,) = broker.submit(web, kind="agent_action")
    assert taken(poll(broker, web)) == task_id
    named = {"task_id": task_id, "worker_id": worker_id, "error": "NaN is no number"}
    assert broker.ask(web, "poll.refused", **named).code == ""
    history = broker.task_table.tasks[task_id].remember()
    assert history.errors == 1
    assert history.last_error == "the worker's report could not be taken: NaN is no number"
    assert "NaN" in str(broker.ask(web, "status", id=task_id).body["reason"])


def test_a_bad_report_of_somebody_else_or_for_nothing_changes_nothing(broker: WiredBroker) -> None:
    web, worker = broker.client(), broker.worker("w")
    register(broker, web)
    (task_id,) = broker.submit(web, kind="agent_action")
    poll(broker, web)
    for named in ({"task_id": task_id, "worker_id": "q"}, {"task_id": f"{S}-99"}):
        assert broker.ask(web, "poll.refused", error="x", **named).code == ""
    (other,) = broker.submit(web)
    assert list(broker.work(worker)) == [other]
    assert broker.ask(web, "poll.refused", task_id=other, error="x").code == ""
    assert broker.task_table.running == 2


def test_a_polling_worker_may_say_that_no_retry_helps(broker: WiredBroker) -> None:
    web = broker.client()
    register(broker, web)
    (task_id,) = broker.submit(web, kind="agent_action")
    poll(broker, web)
    payload = msgspec.msgpack.encode({"success": False, "error": "no", "retry": False})
    named = {"task_id": task_id, "worker_id": "p", "is_success": False, "result": payload}
    broker.ask(web, "poll.report", **named)
    assert broker.task_table.totals.failed == 1


def test_two_slots_hold_two_tasks(broker: WiredBroker) -> None:
    web = broker.client()
    register(broker, web, slots=2)
    ids = broker.submit(web, 2, kind="agent_action")
    assert [taken(poll(broker, web)), taken(poll(broker, web))] == ids
    assert broker.task_table.running == 2


def test_failures_are_retried_and_late_reports_of_earlier_holders_count(
    broker: WiredBroker,
) -> None:
    web = broker.client()
    register(broker, web)
    (task_id,) = broker.submit(web, kind="agent_action")
    poll(broker, web)
    assert report(broker, web, task_id, ok=False).code == ""
    assert report(broker, web, task_id, ok=False).code == ""  # stale by now
    assert broker.task_table.state_of(task_id) is TaskState.DELAYED
    assert report(broker, web, task_id).code == ""
    assert broker.task_table.totals.completed == 1


def test_a_report_of_somebody_else_is_refused(broker: WiredBroker) -> None:
    web = broker.client()
    register(broker, web)
    (task_id,) = broker.submit(web, kind="agent_action")
    assert report(broker, web, task_id).code == "access.forbidden"  # never given to it
    poll(broker, web)
    assert report(broker, web, task_id, worker_id="q").code == "access.forbidden"
    assert report(broker, web, f"{S}-99").code == "task.unknown"
    bad = broker.ask(web, "poll.report", task_id=task_id, worker_id="p", is_success=True, result=5)
    assert bad.code == "task.invalid"
    assert broker.task_table.state_of(task_id) is TaskState.RUNNING


def test_a_fenced_task_takes_no_late_report(broker: WiredBroker) -> None:
    web = broker.client()
    register(broker, web)
    (task_id,) = broker.submit(web, kind="agent_action", is_fenced=True)
    poll(broker, web)
    report(broker, web, task_id, ok=False)
    report(broker, web, task_id)
    assert broker.task_table.totals.completed == 0


def test_unregistering_gives_the_tasks_back_at_once(broker: WiredBroker) -> None:
    web = broker.client()
    register(broker, web)
    (task_id,) = broker.submit(web, kind="agent_action")
    poll(broker, web)
    assert broker.ask(web, "poll.unregister", worker_id="p").code == ""
    assert broker.task_table.state_of(task_id) is TaskState.QUEUED
    assert broker.ask(web, "workers").body["total"] == 0
    broker.restart()
    assert broker.state.registry.workers == {}


def test_an_attempt_lives_for_the_task_timeout_and_longer_with_heartbeats(
    broker: WiredBroker,
) -> None:
    web = broker.client()
    register(broker, web)
    (task_id,) = broker.submit(web, kind="agent_action")
    poll(broker, web)

    def wait(seconds: int, *, beats: bool) -> None:
        for _ in range(seconds // 10):
            broker.pass_time(10, step=1.9)
            broker.say(web, m.Watch([]))
            if beats:
                broker.ask(web, "poll.heartbeat", worker_id="p")

    wait(290, beats=False)
    assert broker.task_table.state_of(task_id) is TaskState.RUNNING
    wait(100, beats=True)
    assert broker.task_table.state_of(task_id) is TaskState.RUNNING
    wait(70, beats=False)
    assert broker.task_table.state_of(task_id) is TaskState.QUEUED
    assert broker.ask(web, "workers").body["workers"][0]["status"] == "offline"  # type: ignore[index]
    assert taken(poll(broker, web)) == task_id  # a poll brings it back


@pytest.mark.parametrize("wait_s", [0.0, 30.0])
def test_of_two_slots_an_attempt_that_never_arrived_runs_again(
    broker: WiredBroker, wait_s: float
) -> None:
    """Polls and reports of other tasks do not keep it."""
    web = broker.client()
    register(broker, web, task_types=["echo"], slots=2)
    other, lost = broker.submit(web, 2)
    assert [taken(poll(broker, web)), taken(poll(broker, web))] == [other, lost]
    begun = broker.now  # the second answer was lost on the way
    given: list[object] = []
    while broker.now < begun + 400 and not any(given):
        report(broker, web, other)
        broker.say(web, m.Query(900, "poll.next", {"worker_id": "p", "wait_s": wait_s}))
        broker.pass_time(10, step=1.9)
        given += [answer.body.get("task") for answer in broker.got(web, m.Answer)]
    assert taken(given[-1]) == lost
    assert 300 <= broker.now - begun <= 350


def test_of_several_slots_a_heartbeat_keeps_what_it_names(broker: WiredBroker) -> None:
    web = broker.client()
    register(broker, web, task_types=["echo"], slots=3)
    long, lost = broker.submit(web, 2)
    assert [taken(poll(broker, web)), taken(poll(broker, web))] == [long, lost]
    for _ in range(50):
        broker.pass_time(10, step=1.9)
        broker.ask(web, "poll.heartbeat", worker_id="p", task_ids=[long, 5, f"{S}-99"])
        broker.ask(web, "poll.heartbeat", worker_id="p")
    assert broker.task_table.state_of(long) is TaskState.RUNNING
    assert broker.task_table.state_of(lost) is TaskState.QUEUED
    history = broker.task_table.tasks[lost].history
    assert history is not None
    assert (history.errors, history.last_error) == (1, "timed out")
    assert not history.losses


def test_registrations_and_running_tasks_survive_a_restart(broker: WiredBroker) -> None:
    web = broker.client()
    register(broker, web, task_types=["echo"])
    (task_id,) = broker.submit(web)
    poll(broker, web)
    broker.restart()
    web = broker.client()
    assert broker.task_table.state_of(task_id) is TaskState.RUNNING
    broker.pass_time(20)
    assert broker.task_table.state_of(task_id) is TaskState.RUNNING
    assert report(broker, web, task_id).code == ""
    assert broker.task_table.totals.completed == 1
    assert poll(broker, web) is None


def test_after_a_restart_a_worker_was_last_heard_when_it_registered(broker: WiredBroker) -> None:
    web = broker.client()
    register(broker, web, task_types=["echo"])
    registered_at = broker.at
    broker.pass_time(30)
    poll(broker, web)
    broker.restart()
    workers: Any = broker.ask(broker.client(), "workers").body["workers"]
    (worker,) = workers
    assert (worker["status"], worker["last_heartbeat"]) == ("offline", registered_at)
    assert worker["capabilities"] == {"task_types": ["echo"]}


def test_a_task_that_a_silent_worker_had_last_names_it(broker: WiredBroker) -> None:
    web = broker.client()
    register(broker, web)
    (task_id,) = broker.submit(web, kind="agent_action", max_attempts=1)
    poll(broker, web)
    while broker.task_table.state_of(task_id) is not None:
        broker.pass_time(10, step=1.9)
        broker.say(web, m.Watch([]))
    body: Any = broker.ask(web, "status", id=task_id).body
    assert (body["reason"], body["assigned_to"]) == ("worker lost", "p")
    assert [(past["attempt"], past["worker_id"]) for past in body["history"]] == [(1, "p")]
    assert msgspec.msgpack.decode(body["result"])["worker_id"] == "p"
    workers: Any = broker.ask(web, "workers").body["workers"]
    assert workers[0]["tasks_failed"] == 1
    broker.restart()
    workers = broker.ask(broker.client(), "workers").body["workers"]
    assert workers[0]["tasks_failed"] == 1


def test_the_first_poll_after_a_restart_waits_for_what_is_on_the_disk(broker: WiredBroker) -> None:
    web = broker.client()
    register(broker, web, task_types=["echo"])
    (task_id,) = broker.submit(web)
    broker.restart()
    assert taken(poll(broker, broker.client())) == task_id


@pytest.mark.parametrize("kind", ["echo", "other"])
def test_a_poll_waits_a_bounded_time_for_a_disk_and_for_nothing_else(
    broker: WiredBroker, kind: str
) -> None:
    web = broker.client()
    register(broker, web, "p", task_types=["echo"])
    register(broker, web, "q", task_types=["echo", "other"])
    broker.submit(web, kind=kind)
    broker.restart()
    web = broker.client()
    for request, worker_id in ((900, "q"), (901, "p")):
        ask = m.Query(request, "poll.next", {"worker_id": worker_id, "wait_s": 0})
        effects = broker.dispatcher.receive(ask, web, broker.now)
        effects += broker.dispatcher.tick(broker.now, broker.at)
        broker.perform([each for each in effects if not isinstance(each, Load)])  # a slow disk
    at_once = {answer.request for answer in broker.got(web, m.Answer)}
    assert at_once == (set() if kind == "echo" else {901})
    assert broker.dispatcher.next_deadline() > broker.now, "it does not spin meanwhile"
    broker.pass_time(2.5)
    later = broker.got(web, m.Answer)
    assert {answer.request for answer in later} == {900, 901} - at_once
    assert all(answer.body == {"task": None} for answer in later)


def test_crossover_goes_to_mesh_workers_while_there_are_any(broker: WiredBroker) -> None:
    web = broker.client()
    mesh = broker.worker("w", types=("evolution_crossover",), window=0)
    register(broker, web)
    (task_id,) = broker.submit(web, kind="evolution_crossover")
    assert poll(broker, web) is None
    broker.say(mesh, m.Goodbye("x"))
    assert taken(poll(broker, web)) == task_id


def test_the_id_of_a_mesh_worker_cannot_be_registered(broker: WiredBroker) -> None:
    web = broker.client()
    worker = broker.worker("p")
    assert register(broker, web).code == "worker.id_taken"
    broker.say(worker, beat([], 0))
    assert broker.got(worker, m.Beat)


@pytest.mark.parametrize("key", [None, b"1" * 32])
def test_nobody_reports_in_the_name_of_a_mesh_worker(
    broker: WiredBroker, key: bytes | None
) -> None:
    client, worker = broker.client(), broker.worker("w", key=key)
    (task_id,) = broker.submit(client)
    held = broker.work(worker)
    stranger = broker.client("f" * 16, key=b"2" * 32)
    for ok in (True, False):
        assert report(broker, stranger, task_id, ok=ok, worker_id="w").code == "access.forbidden"
        assert broker.task_table.state_of(task_id) is TaskState.RUNNING
    broker.finish(worker, held)
    assert broker.task_table.totals.completed == 1


def test_nobody_reports_in_the_name_of_a_mesh_worker_that_a_restart_does_not_know_yet(
    broker: WiredBroker,
) -> None:
    client, worker = broker.client(), broker.worker("w", key=b"1" * 32)
    (task_id,) = broker.submit(client)
    assert broker.work(worker)
    broker.pass_time(10.0)  # the members are written
    broker.restart()
    stranger = broker.client("f" * 16, key=b"2" * 32)
    assert report(broker, stranger, task_id, worker_id="w").code == "access.forbidden"
    assert broker.task_table.totals.completed == 0


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
    web = broker.client()
    assert register(broker, web, **capabilities).code == ""
    assert len(broker.state.registry.workers["p"].types) == types
    told = broker.ask(web, "workers").body["workers"]
    assert told[0]["capabilities"] == msgspec.msgpack.decode(msgspec.msgpack.encode(capabilities))  # type: ignore[index]


def test_registrations_are_bounded(broker: WiredBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("d8mesh.core.broker.polling.MAX_POLLING_WORKERS", 1)
    web = broker.client()
    assert register(broker, web, "p").code == ""
    assert register(broker, web, "q").code == "access.forbidden"
    assert register(broker, web, "p").code == ""  # it may change its own


def test_polls_of_another_process_wait_on(broker: WiredBroker) -> None:
    web, other = broker.client(), broker.client("f" * 16)
    register(broker, web, task_types=["echo"])
    broker.say(web, m.Query(900, "poll.next", {"worker_id": "p", "wait_s": 5.0}))
    broker.say(other, m.Goodbye("x"))
    (task_id,) = broker.submit(web)
    (answer,) = broker.got(web, m.Answer)
    assert taken(answer.body["task"]) == task_id


def test_a_result_of_a_worker_that_unregistered_meanwhile_counts(broker: WiredBroker) -> None:
    web = broker.client()
    register(broker, web, task_types=["echo"])
    broker.submit(web)
    task_id = taken(poll(broker, web))
    broker.ask(web, "poll.unregister", worker_id="p")
    assert report(broker, web, task_id).code == ""
    assert broker.task_table.totals.completed == 1


def test_an_idle_worker_unregisters_and_comes_back_after_silence(broker: WiredBroker) -> None:
    web = broker.client()
    register(broker, web)
    assert broker.ask(web, "poll.unregister", worker_id="p").code == ""
    register(broker, web)
    for _ in range(8):
        broker.pass_time(10)
        broker.say(web, m.Watch([]))
    assert not broker.state.registry.workers["p"].is_live
    register(broker, web, task_types=["echo"])
    broker.submit(web)
    assert taken(poll(broker, web))


def test_a_poll_of_no_known_name_is_refused(broker: WiredBroker) -> None:
    assert broker.ask(broker.client(), "poll.everything").code == "access.forbidden"
