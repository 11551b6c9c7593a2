"""Mesh workers join, and come back with what they hold."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from d8mesh.core.broker.effects import Peer, Send
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.task import Requeued, TaskState
from tests.core.wired_broker import S, WiredBroker, beat, hello


def holding(held: list[tuple[str, bytes]]) -> m.WorkerHello:
    """Return the HELLO of a worker that may hold several attempts of one task."""
    ids, tokens = [task_id for task_id, _ in held], [token for _, token in held]
    return msgspec.structs.replace(hello("w"), held_ids=ids, held_tokens=tokens)


def test_a_worker_is_welcomed_and_gets_what_waits(broker: WiredBroker) -> None:
    client = broker.client()
    ids = broker.submit(client, 2)
    worker = broker.worker("w", slots=2)
    (welcome,) = broker.got(worker, m.Welcome)
    assert (welcome.epoch, welcome.dropped_ids) == (1, [])
    assert list(broker.work(worker)) == ids


@pytest.mark.parametrize(
    ("given", "code"), [({"version": 9}, "protocol.version"), ({"mesh": "x"}, "access.forbidden")]
)
def test_a_wrong_hello_is_refused(broker: WiredBroker, given: dict[str, Any], code: str) -> None:
    peer = broker.worker("w", **given)
    (refused,) = broker.got(peer, m.Refused)
    assert refused.code == code
    assert broker.state.metrics.rejected[code] == 1
    broker.say(peer, beat([], 0))
    assert broker.got(peer, m.Rehello)


def test_a_clone_on_another_machine_needs_another_id(broker: WiredBroker) -> None:
    broker.worker("w", address="10.0.0.1")
    clone = broker.worker("w", address="10.0.0.2", boot="b2")
    assert broker.got(clone, m.Refused)[0].code == "worker.id_taken"


def test_a_copy_on_the_same_machine_has_the_worker_until_the_first_one_speaks(
    broker: WiredBroker,
) -> None:
    client = broker.client()
    first = broker.worker("w")
    (task_id,) = broker.submit(client)
    held = broker.work(first)
    copy = broker.worker("w", boot="b2")
    assert broker.got(copy, m.Welcome)
    broker.say(first, beat(list(held), 1))
    assert broker.got(first, m.Rehello)
    broker.say(first, hello("w", held=held))
    assert broker.got(first, m.Refused)[-1].code == "worker.id_taken"
    broker.say(first, hello("w-2", held=held))
    assert len(broker.got(first, m.Welcome)) == 2
    broker.say(copy, beat([task_id], 1))
    assert not broker.got(copy, m.Rehello)
    broker.finish(first, held)
    assert broker.got(client, m.Outcomes)[0].ids == [task_id]


def test_a_worker_started_again_takes_its_worker_and_loses_nothing(broker: WiredBroker) -> None:
    client = broker.client()
    first = broker.worker("w")
    (task_id,) = broker.submit(client)
    assert list(broker.work(first)) == [task_id]
    second = broker.worker("w", boot="b2")
    assert list(broker.work(second)) == [task_id]


@pytest.mark.parametrize("attempts", [1, 3])
def test_what_a_worker_finished_before_it_was_started_again_is_no_loss(
    broker: WiredBroker, attempts: int
) -> None:
    """Its outbox has the result: the hello that announces it must not fail the task."""
    client, first = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client, max_attempts=attempts)
    held = broker.work(first)
    second = broker.worker("w", boot="b2", held=held)
    (welcome,) = broker.got(second, m.Welcome)
    assert welcome.dropped_ids == []
    broker.finish(second, held)
    assert broker.ask(client, "status", id=task_id).body["state"] == "completed"
    assert not any(isinstance(fact, Requeued) and fact.is_counted for fact in broker.facts)


def test_who_cannot_be_reached_gets_nothing_until_it_speaks_again(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w", window=4)
    (task_id,) = broker.submit(client)
    gone = [msg for peer, msg, _ in broker.sent if peer == worker and isinstance(msg, m.Work)]
    broker.perform(broker.dispatcher.undelivered(worker, gone[0]))
    broker.got(worker, m.Work)
    broker.pass_time(5)
    assert broker.work(worker) == {}
    broker.say(worker, beat([], 0, window=4))
    assert list(broker.work(worker)) == [task_id]


def test_the_session_moves_to_another_connection_with_what_it_holds(broker: WiredBroker) -> None:
    client = broker.client()
    first = broker.worker("w")
    (task_id,) = broker.submit(client)
    held = broker.work(first)
    moved = Peer(b"moved", "10.0.0.1")
    broker.say(moved, hello("w", held=held))
    assert broker.got(moved, m.Welcome)[0].dropped_ids == []
    assert broker.work(moved) == {}
    broker.finish(moved, held)
    assert broker.got(client, m.Outcomes)[0].ids == [task_id]


def test_an_attempt_that_is_said_to_be_held_again_gets_its_time_again(broker: WiredBroker) -> None:
    worker = broker.worker("w")
    (task_id,) = broker.submit(broker.client(), max_attempts=1)
    held = broker.work(worker)
    for moved in range(60):  # 600 s of a link that breaks: each time the worker speaks for it
        broker.pass_time(10)
        broker.say(Peer(f"moved-{moved}".encode(), "10.0.0.1"), hello("w", held=held))
    assert broker.task_table.state_of(task_id) is TaskState.RUNNING


def test_held_attempts_of_finished_tasks_are_dropped(broker: WiredBroker) -> None:
    client = broker.client()
    worker = broker.worker("w")
    broker.submit(client)
    held = broker.work(worker)
    broker.finish(worker, held)
    broker.say(worker, hello("w", held=held))
    assert broker.got(worker, m.Welcome)[-1].dropped_ids == list(held)


def test_a_hand_out_whose_submit_never_reached_the_disk_is_dropped(broker: WiredBroker) -> None:
    """It left before the commit, and the commit failed: the broker is another one now."""
    client = broker.client()
    broker.worker("w")
    submit = m.Submit(1, S, 7, [m.Group("echo", 5, [b"\x80"])])
    effects = broker.dispatcher.receive(submit, client, broker.now)
    effects += broker.dispatcher.tick(broker.now, broker.at)
    messages = [effect.message for effect in effects if isinstance(effect, Send)]
    (work,) = (each for each in messages if isinstance(each, m.Work))
    (group,) = work.groups
    broker.restart()
    back = broker.worker("w", held=dict(zip(group.ids, group.tokens, strict=True)))
    assert broker.got(back, m.Welcome)[0].dropped_ids == [f"{S}-7"]


def test_after_a_restart_a_worker_goes_on_with_its_attempt(broker: WiredBroker) -> None:
    client = broker.client()
    worker = broker.worker("w")
    (task_id,) = broker.submit(client)
    held = broker.work(worker)
    broker.restart()
    assert broker.task_table.state_of(task_id) is TaskState.RUNNING
    again = broker.worker("w", held=held)
    assert broker.got(again, m.Welcome)[0].dropped_ids == []
    broker.pass_time(30)  # its heartbeats fail: the attempt is lost after all
    assert broker.task_table.state_of(task_id) is TaskState.QUEUED


def test_after_a_restart_what_nobody_comes_back_with_waits_again_uncounted(
    broker: WiredBroker,
) -> None:
    client = broker.client()
    worker = broker.worker("w")
    (task_id,) = broker.submit(client)
    broker.work(worker)
    broker.restart()
    broker.pass_time(9)
    assert broker.task_table.state_of(task_id) is TaskState.RUNNING
    broker.pass_time(2)
    assert broker.task_table.state_of(task_id) is TaskState.QUEUED
    other = broker.worker("v")
    assert list(broker.work(other)) == [task_id]
    assert broker.task_table.tasks[task_id].remember().errors == 0


def test_a_result_of_before_the_restart_counts(broker: WiredBroker) -> None:
    client = broker.client()
    worker = broker.worker("w")
    (task_id,) = broker.submit(client)
    held = broker.work(worker)
    broker.restart()
    again = broker.worker("w", held=held)
    broker.finish(again, held)
    assert broker.task_table.state_of(task_id) is None
    assert broker.task_table.totals.completed == 1


@pytest.mark.parametrize("is_restarted", [False, True])
def test_the_current_attempt_of_a_fenced_task_may_come_from_an_adopted_outbox(
    broker: WiredBroker, is_restarted: bool
) -> None:
    first = broker.worker("w")
    (task_id,) = broker.submit(broker.client(), is_fenced=True)
    held = broker.work(first)
    if is_restarted:
        broker.restart()
    heir = broker.worker("v", held=held)
    assert broker.got(heir, m.Welcome)[0].dropped_ids == []
    assert broker.task_table.tasks[task_id].worker_id == "w"
    broker.finish(heir, held)
    assert broker.task_table.totals.completed == 1


def test_after_a_restart_an_older_attempt_of_a_fenced_task_is_not_taken_for_the_current_one(
    broker: WiredBroker,
) -> None:
    first = broker.worker("w")
    (task_id,) = broker.submit(broker.client(), is_fenced=True)
    old = broker.work(first)
    broker.say(first, m.Goodbye("off"))
    broker.work(broker.worker("w2"))
    broker.restart()
    heir = broker.worker("v", held=old)
    assert broker.got(heir, m.Welcome)[0].dropped_ids == [task_id]
    broker.finish(heir, old)
    assert broker.task_table.state_of(task_id) is TaskState.RUNNING


def test_two_attempts_of_one_task_may_be_held(broker: WiredBroker) -> None:
    client = broker.client()
    worker = broker.worker("w")
    (task_id,) = broker.submit(client)
    first = broker.work(worker)[task_id]
    broker.say(worker, beat([], 1))
    second = broker.work(worker)[task_id]
    broker.restart()
    again = Peer(b"again", "10.0.0.1")
    broker.say(again, holding([(task_id, first), (task_id, second)]))
    assert broker.got(again, m.Welcome)[0].dropped_ids == []
    broker.finish(again, {task_id: second})
    assert broker.task_table.totals.completed == 1


def test_what_a_moved_session_does_not_hold_was_lost_on_the_way(broker: WiredBroker) -> None:
    client = broker.client()
    first = broker.worker("w")
    (task_id,) = broker.submit(client)
    assert broker.work(first)
    moved = Peer(b"moved", "10.0.0.1")
    broker.say(moved, hello("w"))
    assert list(broker.work(moved)) == [task_id]
    assert broker.ask(client, "status", id=task_id).body["attempts"] == 2
    history = broker.task_table.tasks[task_id].history
    assert history is None or history.errors == 0


def test_an_attempt_that_is_held_outlives_a_restart(broker: WiredBroker) -> None:
    client = broker.client()
    worker = broker.worker("w")
    (task_id,) = broker.submit(client)
    held = broker.work(worker)
    broker.restart()
    again = broker.worker("w", held=held)
    for _ in range(5):
        broker.pass_time(3)
        broker.say(again, beat([task_id], 0))
    assert broker.task_table.state_of(task_id) is TaskState.RUNNING
    assert broker.task_table.tasks[task_id].n == 1
