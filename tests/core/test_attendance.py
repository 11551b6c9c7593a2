"""Mesh workers: joining, living, handing in, giving back, leaving."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from d8mesh.core import messages as m
from d8mesh.core.attendance import MAX_CUTS, OWED_S
from d8mesh.core.effects import Peer, Send
from d8mesh.core.handout import POISON_LOSSES
from d8mesh.core.records import History
from d8mesh.core.restored import Restored
from d8mesh.core.streaming import TAIL_BYTES
from d8mesh.core.task import Requeued, TaskState
from d8mesh.edge.journal.restore import fill
from tests.core.desktop import Desktop, S, beat, failure, hello, result


def silence(desk: Desktop, witness: Peer) -> None:
    """Let all workers be silent for longer than a lease, while a client is heard."""
    for _ in range(4):
        desk.pass_time(2.75)
        desk.say(witness, m.Watch([]))


def counted(desk: Desktop, task_id: str) -> tuple[int, set[tuple[str, int]], dict[str, int]]:
    """Return errors and losses of a task and where they were: on disk is what is in memory."""
    history = desk.ledger.tasks[task_id].remember()
    restored = Restored(0, b"")
    fill(desk.journal._db, restored)
    _, stored = restored.troubled.get(task_id, (0, History()))
    assert (stored.errors, stored.failed_on) == (history.errors, history.failed_on)
    assert (stored.losses, stored.failures) == (history.losses, history.failures)
    return history.errors, history.losses, history.failed_on


def test_a_worker_is_welcomed_and_gets_what_waits(desk: Desktop) -> None:
    client = desk.client()
    ids = desk.submit(client, 2)
    worker = desk.worker("w", slots=2)
    (welcome,) = desk.got(worker, m.Welcome)
    assert (welcome.epoch, welcome.dropped_ids) == (1, [])
    assert list(desk.work(worker)) == ids


@pytest.mark.parametrize(
    ("given", "code"), [({"version": 9}, "protocol.version"), ({"mesh": "x"}, "access.forbidden")]
)
def test_a_wrong_hello_is_refused(desk: Desktop, given: dict[str, Any], code: str) -> None:
    peer = desk.worker("w", **given)
    (refused,) = desk.got(peer, m.Refused)
    assert refused.code == code
    assert desk.pool.rejected[code] == 1
    desk.say(peer, beat([], 0))
    assert desk.got(peer, m.Rehello)


def test_a_clone_on_another_machine_needs_another_id(desk: Desktop) -> None:
    desk.worker("w", address="10.0.0.1")
    clone = desk.worker("w", address="10.0.0.2", boot="b2")
    assert desk.got(clone, m.Refused)[0].code == "worker.id_taken"


def test_a_copy_on_the_same_machine_has_the_seat_until_the_first_one_speaks(desk: Desktop) -> None:
    client = desk.client()
    first = desk.worker("w")
    (task_id,) = desk.submit(client)
    held = desk.work(first)
    copy = desk.worker("w", boot="b2")
    assert desk.got(copy, m.Welcome)
    desk.say(first, beat(list(held), 1))
    assert desk.got(first, m.Rehello)
    desk.say(first, hello("w", held=held))
    assert desk.got(first, m.Refused)[-1].code == "worker.id_taken"
    desk.say(first, hello("w-2", held=held))
    assert len(desk.got(first, m.Welcome)) == 2
    desk.say(copy, beat([task_id], 1))
    assert not desk.got(copy, m.Rehello)
    desk.finish(first, held)
    assert desk.got(client, m.Outcomes)[0].ids == [task_id]


def test_a_worker_started_again_takes_its_seat_and_loses_nothing(desk: Desktop) -> None:
    client = desk.client()
    first = desk.worker("w")
    (task_id,) = desk.submit(client)
    assert list(desk.work(first)) == [task_id]
    second = desk.worker("w", boot="b2")
    assert list(desk.work(second)) == [task_id]


@pytest.mark.parametrize("attempts", [1, 3])
def test_what_a_worker_finished_before_it_was_started_again_is_no_loss(
    desk: Desktop, attempts: int
) -> None:
    """Its outbox has the result: the hello that announces it must not fail the task."""
    client, first = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client, max_attempts=attempts)
    held = desk.work(first)
    second = desk.worker("w", boot="b2", held=held)
    (welcome,) = desk.got(second, m.Welcome)
    assert welcome.dropped_ids == []
    desk.finish(second, held)
    assert desk.ask(client, "status", id=task_id).body["state"] == "completed"
    assert not any(isinstance(fact, Requeued) and fact.is_counted for fact in desk.facts)


def test_who_cannot_be_reached_gets_nothing_until_it_speaks_again(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w", window=4)
    (task_id,) = desk.submit(client)
    gone = [msg for peer, msg, _ in desk.sent if peer == worker and isinstance(msg, m.Work)]
    desk.perform(desk.dispatcher.undelivered(worker, gone[0]))
    desk.got(worker, m.Work)
    desk.pass_time(5)
    assert desk.work(worker) == {}
    desk.say(worker, beat([], 0, window=4))
    assert list(desk.work(worker)) == [task_id]


def test_the_session_moves_to_another_connection_with_what_it_holds(desk: Desktop) -> None:
    client = desk.client()
    first = desk.worker("w")
    (task_id,) = desk.submit(client)
    held = desk.work(first)
    moved = Peer(b"moved", "10.0.0.1")
    desk.say(moved, hello("w", held=held))
    assert desk.got(moved, m.Welcome)[0].dropped_ids == []
    assert desk.work(moved) == {}
    desk.finish(moved, held)
    assert desk.got(client, m.Outcomes)[0].ids == [task_id]


def test_an_attempt_that_is_said_to_be_held_again_gets_its_time_again(desk: Desktop) -> None:
    worker = desk.worker("w")
    (task_id,) = desk.submit(desk.client(), max_attempts=1)
    held = desk.work(worker)
    for moved in range(60):  # 600 s of a link that breaks: each time the worker speaks for it
        desk.pass_time(10)
        desk.say(Peer(f"moved-{moved}".encode(), "10.0.0.1"), hello("w", held=held))
    assert desk.ledger.state_of(task_id) is TaskState.RUNNING


def test_held_attempts_of_finished_tasks_are_dropped(desk: Desktop) -> None:
    client = desk.client()
    worker = desk.worker("w")
    desk.submit(client)
    held = desk.work(worker)
    desk.finish(worker, held)
    desk.say(worker, hello("w", held=held))
    assert desk.got(worker, m.Welcome)[-1].dropped_ids == list(held)


def test_a_hand_out_whose_submit_never_reached_the_disk_is_dropped(desk: Desktop) -> None:
    """It left before the commit, and the commit failed: the broker is another one now."""
    client = desk.client()
    desk.worker("w")
    submit = m.Submit(1, S, 7, [m.Group("echo", 5, [b"\x80"])])
    effects = desk.dispatcher.receive(submit, client, desk.now)
    effects += desk.dispatcher.tick(desk.now, desk.at)
    messages = [effect.message for effect in effects if isinstance(effect, Send)]
    (work,) = (each for each in messages if isinstance(each, m.Work))
    (group,) = work.groups
    desk.restart()
    back = desk.worker("w", held=dict(zip(group.ids, group.tokens, strict=True)))
    assert desk.got(back, m.Welcome)[0].dropped_ids == [f"{S}-7"]


def test_after_a_restart_a_worker_goes_on_with_its_attempt(desk: Desktop) -> None:
    client = desk.client()
    worker = desk.worker("w")
    (task_id,) = desk.submit(client)
    held = desk.work(worker)
    desk.restart()
    assert desk.ledger.state_of(task_id) is TaskState.RUNNING
    again = desk.worker("w", held=held)
    assert desk.got(again, m.Welcome)[0].dropped_ids == []
    desk.pass_time(30)  # its heartbeats fail: the attempt is lost after all
    assert desk.ledger.state_of(task_id) is TaskState.QUEUED


def test_after_a_restart_what_nobody_comes_back_with_waits_again_uncounted(desk: Desktop) -> None:
    client = desk.client()
    worker = desk.worker("w")
    (task_id,) = desk.submit(client)
    desk.work(worker)
    desk.restart()
    desk.pass_time(9)
    assert desk.ledger.state_of(task_id) is TaskState.RUNNING
    desk.pass_time(2)
    assert desk.ledger.state_of(task_id) is TaskState.QUEUED
    other = desk.worker("v")
    assert list(desk.work(other)) == [task_id]
    assert desk.ledger.tasks[task_id].remember().errors == 0


def test_a_result_of_before_the_restart_counts(desk: Desktop) -> None:
    client = desk.client()
    worker = desk.worker("w")
    (task_id,) = desk.submit(client)
    held = desk.work(worker)
    desk.restart()
    again = desk.worker("w", held=held)
    desk.finish(again, held)
    assert desk.ledger.state_of(task_id) is None
    assert desk.ledger.totals.completed == 1


def test_a_hand_out_that_never_arrived_is_found_by_the_heartbeat(desk: Desktop) -> None:
    client = desk.client()
    worker = desk.worker("w")
    (task_id,) = desk.submit(client)
    assert desk.work(worker)
    desk.say(worker, beat([], 0))  # sent before the hand-out arrived: no denial
    assert desk.work(worker) == {}
    desk.say(worker, beat([], 1))
    assert list(desk.work(worker)) == [task_id]
    assert desk.got(worker, m.Beat)


def test_a_silent_worker_is_lost_and_its_tasks_run_elsewhere(desk: Desktop) -> None:
    client = desk.client()
    silent = desk.worker("w")
    (task_id,) = desk.submit(client)
    desk.work(silent)
    other = desk.worker("v")
    for _ in range(4):
        desk.pass_time(3)
        desk.say(other, beat([], 0))
    assert list(desk.work(other)) == [task_id]
    history = desk.ledger.tasks[task_id].history
    assert history is not None
    assert history.losses == {("w", 1)}


def test_only_the_running_attempts_of_a_lost_worker_are_blamed(desk: Desktop) -> None:
    client = desk.client()
    worker = desk.worker("w", slots=2, window=5)
    ids = desk.submit(client, 5)
    assert list(desk.work(worker)) == ids
    silence(desk, client)
    blamed = [task_id for task_id in ids if desk.ledger.tasks[task_id].remember().errors]
    assert blamed == ids[:2]


def test_a_task_that_took_three_workers_down_is_poison(desk: Desktop) -> None:
    desk.policy["max_attempts"] = 50
    desk.restart()
    client = desk.client()
    (task_id,) = desk.submit(client)
    for name in ("a", "b", "c"):
        assert list(desk.work(desk.worker(name))) == [task_id]
        silence(desk, client)
    answer = desk.ask(client, "status", id=task_id)
    assert answer.body["state"] == "failed"
    assert answer.body["reason"] == "worker lost"


def test_cuts_of_the_network_use_up_no_attempts(desk: Desktop) -> None:
    """The worker never died: a loss is taken back when it comes with the attempt."""
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client)
    held = desk.work(worker)
    for _ in range(4):
        silence(desk, client)
        assert counted(desk, task_id) == (1, {("w", 1)}, {"w": 1})
        desk.say(worker, hello("w", held=held))
        assert counted(desk, task_id) == (0, set(), {})
        assert desk.ledger.tasks[task_id].worker_id == "w"
    desk.finish(worker, held)
    assert desk.ledger.totals.completed == 1


def test_a_loss_is_taken_back_while_the_task_runs_elsewhere_and_others_stay(desk: Desktop) -> None:
    client, first = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client)
    held = desk.work(first)
    silence(desk, client)
    second = desk.worker("v")
    desk.finish(second, desk.work(second), m.FAILED)
    third = desk.worker("u")
    desk.pass_time(1)
    assert list(desk.work(third)) == [task_id]
    assert counted(desk, task_id) == (2, {("w", 1)}, {"w": 1, "v": 1})
    desk.say(first, hello("w", held=held))
    assert counted(desk, task_id) == (1, set(), {"v": 1})
    assert desk.ledger.tasks[task_id].worker_id == "u"


def test_a_loss_is_taken_back_after_a_restart_of_the_broker_too(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client)
    held = desk.work(worker)
    silence(desk, client)
    desk.restart()
    desk.worker("w", held={task_id: bytes(16)})  # nobody's token takes nothing back
    assert counted(desk, task_id) == (1, {("w", 1)}, {"w": 1})
    desk.worker("w", held=held)
    assert counted(desk, task_id) == (0, set(), {})


def test_a_loss_before_the_attempt_that_is_held_stays(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client)
    desk.work(worker)
    worker = desk.worker("w", boot="b2")
    held = desk.work(worker)
    silence(desk, client)
    assert counted(desk, task_id) == (2, {("w", 1), ("w", 2)}, {"w": 2})
    desk.say(worker, hello("w", boot="b2", held=held))
    assert counted(desk, task_id) == (1, {("w", 1)}, {"w": 1})


@pytest.mark.parametrize("apart_s", [0.0, 2.0])
def test_nobody_is_blamed_when_the_whole_mesh_falls_silent(desk: Desktop, apart_s: float) -> None:
    """It is our own network: even what may be lost only once waits again."""
    client = desk.client()
    workers = [desk.worker(name, slots=2) for name in "vw"]
    ids = desk.submit(client, 4, max_attempts=1)
    held = []
    for name, worker in zip("vw", workers, strict=True):
        desk.pass_time(apart_s)
        held.append(desk.work(worker))
        desk.say(worker, beat(list(held[-1]), 9))
        assert len(held[-1]) == 2, name
    desk.pass_time(14)
    assert desk.ledger.queued == 4
    assert all(counted(desk, task_id) == (0, set(), {}) for task_id in ids)
    for name, worker, mine in zip("vw", workers, held, strict=True):
        desk.say(worker, hello(name, slots=2, held=mine))
        desk.finish(worker, mine)
    assert desk.ledger.totals.completed == 4


@pytest.mark.parametrize("attempts", [1, 3])
def test_who_was_not_heard_with_all_the_others_and_had_died_is_blamed_when_it_is_back(
    desk: Desktop, attempts: int
) -> None:
    client, worker = desk.client(), desk.worker("w", window=2)
    ids = desk.submit(client, 2, max_attempts=attempts)
    assert list(desk.work(worker)) == ids
    desk.pass_time(11)
    assert counted(desk, ids[0]) == (0, set(), {})
    desk.worker("w", boot="b2", window=0)
    if attempts > 1:
        assert counted(desk, ids[0]) == (1, {("w", 1)}, {"w": 1})
    else:
        client = desk.client()
        body = desk.ask(client, "status", id=ids[0]).body
        assert (body["state"], body["reason"]) == ("failed", "its worker was started again")
    assert counted(desk, ids[1]) == (0, set(), {})  # it had not started


def test_who_was_not_heard_with_all_the_others_is_not_blamed_for_what_has_ended_or_is_there(
    desk: Desktop,
) -> None:
    client, worker = desk.client(), desk.worker("w", slots=4)
    ended, kept, running, waiting = desk.submit(client, 4, max_attempts=3)
    held = desk.work(worker)
    desk.pass_time(11)
    other = desk.worker("v", slots=2)
    others = desk.work(other)
    assert list(others) == [ended, kept]
    desk.finish(other, {ended: others[ended]}, window=2)
    assert running in desk.work(other)
    back = desk.worker("w", boot="b2", window=0, held={kept: held[kept]})
    assert desk.got(back, m.Welcome)[0].dropped_ids == []
    assert counted(desk, kept) == (0, set(), {})
    assert counted(desk, running) == counted(desk, waiting) == (1, {("w", 1)}, {"w": 1})
    assert desk.ledger.tasks[running].worker_id == "v"


def test_a_worker_on_the_orchestrators_own_machine_is_blamed_at_once(desk: Desktop) -> None:
    worker = desk.worker("w", address="127.0.0.1")
    (task_id,) = desk.submit(desk.client(), max_attempts=2)
    desk.work(worker)
    desk.pass_time(11)
    assert counted(desk, task_id) == (1, {("w", 1)}, {"w": 1})


def test_who_is_heard_on_this_machine_says_nothing_of_the_network(desk: Desktop) -> None:
    worker, near = desk.worker("w"), desk.worker("v", address="127.0.0.1", window=0)
    (task_id,) = desk.submit(desk.client())
    desk.work(worker)
    for _ in range(4):
        desk.pass_time(2.75)
        desk.say(near, beat([], 0, window=0))
    assert desk.ledger.state_of(task_id) is TaskState.QUEUED
    assert counted(desk, task_id) == (0, set(), {})


def test_a_goodbye_gives_all_back_at_once_uncounted(desk: Desktop) -> None:
    client = desk.client()
    worker, other = desk.worker("w"), desk.worker("v")
    (task_id,) = desk.submit(client)
    assert desk.work(worker)
    desk.say(worker, m.Goodbye("drained"))
    assert list(desk.work(other)) == [task_id]
    assert desk.ledger.tasks[task_id].remember().errors == 0


def test_results_are_acknowledged_after_the_commit_only(desk: Desktop) -> None:
    client = desk.client()
    worker = desk.worker("w")
    desk.submit(client)
    desk.finish(worker, desk.work(worker))
    desk.pass_time(OWED_S)
    waits = {type(message).__name__: waits for _, message, waits in desk.sent}
    assert waits["Received"] is True
    assert waits["Outcomes"] is True
    assert waits["Accepted"] is True


def test_a_worker_is_told_to_drop_a_result_after_the_commit_of_the_other_only(
    desk: Desktop,
) -> None:
    """Both in one wake-up: nothing that is sent to it may overtake its welcome either."""
    client, slow = desk.client(), desk.worker("w")
    task_id, other = desk.submit(client, 2)
    held = desk.work(slow)
    desk.pass_time(11)
    quick = desk.worker("v", slots=2)
    current = desk.work(quick)
    assert current.keys() == {task_id, other}
    again, seq = Peer(b"again", "10.0.0.1"), 99
    late = m.Results(seq, 1, [task_id], [current[task_id]], bytes([m.SUCCEEDED]), [result()])
    effects = desk.dispatcher.receive(late, quick, desk.now)
    effects += desk.dispatcher.receive(hello("w", held=held), again, desk.now)
    effects += desk.dispatcher.receive(beat([], 0), again, desk.now)
    submit = m.Submit(seq, S, 50, [m.Group("echo", 5, [b"\x80"])])
    effects += desk.dispatcher.receive(submit, client, desk.now)
    effects += desk.dispatcher.tick(desk.now, desk.at)
    told = [each for each in effects if isinstance(each, Send) and each.peer == again]
    assert [type(each.message) for each in told] == [m.Welcome, m.Beat, m.Work]
    assert isinstance(told[0].message, m.Welcome)
    assert told[0].message.dropped_ids == [task_id]
    assert all(each.waits for each in told)
    desk.perform(effects)
    desk.pass_time(1)
    desk.finish(again, desk.work(again))
    desk.submit(client)
    later = [waits for peer, msg, waits in desk.sent if peer == again and isinstance(msg, m.Work)]
    assert later == [False]


def test_the_acknowledgement_of_a_single_result_goes_with_the_hand_out_after_the_next(
    desk: Desktop,
) -> None:
    worker = desk.worker("w")
    desk.submit(desk.client(), 3)
    held = [desk.work(worker)]
    for is_told in (False, True):
        desk.finish(worker, held[-1], window=1)
        (work,) = desk.got(worker, m.Work)
        assert work.received == [desk.seq - 1] * is_told
        held.append(dict(zip(work.groups[0].ids, work.groups[0].tokens, strict=True)))
        assert desk.got(worker, m.Received) == []
    desk.finish(worker, held[-1], window=1)
    desk.pass_time(OWED_S)  # nothing is left to go with
    assert [each.seq for each in desk.got(worker, m.Received)] == [desk.seq - 1, desk.seq]


def test_the_acknowledgement_of_a_result_that_came_alone_goes_with_the_next_hand_out(
    desk: Desktop,
) -> None:
    client, worker = desk.client(), desk.worker("w", window=4)
    desk.submit(client)
    desk.finish(worker, desk.work(worker))
    seq = desk.seq
    desk.submit(client)
    (work,) = desk.got(worker, m.Work)
    assert work.received == [seq]
    desk.pass_time(1.0)
    assert desk.got(worker, m.Received) == []


def test_an_acknowledgement_waits_for_no_longer_than_a_heartbeat(desk: Desktop) -> None:
    worker = desk.worker("w")
    desk.submit(desk.client(), 2)
    desk.finish(worker, desk.work(worker), window=1)
    (task_id,) = desk.work(worker)
    assert desk.got(worker, m.Received) == []
    desk.say(worker, beat([task_id], 2))
    assert [each.seq for each in desk.got(worker, m.Received)] == [desk.seq]
    desk.say(worker, beat([task_id], 2))
    assert desk.got(worker, m.Received) == []


def test_a_repeat_is_acknowledged_and_changes_nothing(desk: Desktop) -> None:
    client = desk.client()
    worker = desk.worker("w")
    (task_id,) = desk.submit(client)
    held = desk.work(worker)
    desk.finish(worker, held)
    desk.finish(worker, held, m.FAILED)
    desk.pass_time(OWED_S)
    assert len(desk.got(worker, m.Received)) == 2
    assert desk.pool.duplicates == 1
    assert desk.ask(client, "status", id=task_id).body["state"] == "completed"


def test_the_same_task_twice_in_one_message_counts_once(desk: Desktop) -> None:
    client = desk.client()
    worker = desk.worker("w")
    (task_id,) = desk.submit(client)
    token = desk.work(worker)[task_id]
    twice = m.Results(1, 1, [task_id] * 2, [token] * 2, b"\1\1", [result(1), result(2)])
    desk.say(worker, twice)
    assert desk.ledger.totals.completed == 1
    assert desk.pool.duplicates == 1


def test_a_guessed_token_is_refused(desk: Desktop) -> None:
    client = desk.client()
    worker = desk.worker("w")
    (task_id,) = desk.submit(client)
    desk.work(worker)
    desk.finish(worker, {task_id: bytes(16)})
    assert desk.ledger.state_of(task_id) is TaskState.RUNNING
    assert desk.pool.rejected["token.invalid"] == 1


def test_a_late_success_of_an_earlier_attempt_wins_and_stops_the_other(desk: Desktop) -> None:
    client = desk.client()
    slow = desk.worker("w")
    (task_id,) = desk.submit(client)
    held = desk.work(slow)
    desk.pass_time(11)
    quick = desk.worker("v")
    assert list(desk.work(quick)) == [task_id]
    back = desk.worker("w", held=held, boot="b1")
    desk.finish(back, held)
    assert desk.got(quick, m.Stop)[0].ids == [task_id]
    assert desk.ledger.totals.completed == 1


def test_a_stale_failure_is_refused(desk: Desktop) -> None:
    client = desk.client()
    slow = desk.worker("w")
    (task_id,) = desk.submit(client)
    held = desk.work(slow)
    desk.pass_time(11)
    quick = desk.worker("v")
    assert desk.work(quick)
    back = desk.worker("w", held=held)
    desk.finish(back, held, m.FAILED)
    assert desk.ledger.state_of(task_id) is TaskState.RUNNING
    assert desk.pool.rejected["result.stale"] == 1


def test_a_fenced_task_is_finished_by_its_current_attempt_only(desk: Desktop) -> None:
    client = desk.client()
    slow = desk.worker("w")
    (task_id,) = desk.submit(client, is_fenced=True)
    held = desk.work(slow)
    desk.pass_time(11)
    quick = desk.worker("v")
    current = desk.work(quick)
    desk.finish(desk.worker("w", held=held), held)
    assert desk.ledger.state_of(task_id) is TaskState.RUNNING
    desk.finish(quick, current)
    assert desk.ledger.totals.completed == 1


def test_an_ended_attempt_of_a_fenced_task_is_not_taken_up_again(desk: Desktop) -> None:
    first = desk.worker("w1")
    client = desk.client()
    (task_id,) = desk.submit(client, is_fenced=True)
    held = desk.work(first)
    desk.pass_time(11.0)  # w1 is lost, and the attempt with it
    second = desk.worker("w2")
    desk.say(second, m.Goodbye("off"))  # so is the next: the task waits again
    back = desk.worker("w1", held=held, window=0)
    assert desk.got(back, m.Welcome)[0].dropped_ids == [task_id]
    desk.finish(back, held)
    assert desk.ledger.state_of(task_id) is not None
    assert desk.pool.rejected["result.stale"] == 1


def test_the_running_attempt_of_a_fenced_task_outlives_a_restart(desk: Desktop) -> None:
    first = desk.worker("w1")
    (task_id,) = desk.submit(desk.client(), is_fenced=True)
    held = desk.work(first)
    desk.restart()
    back = desk.worker("w1", held=held)
    assert desk.got(back, m.Welcome)[0].dropped_ids == []
    desk.finish(back, held)
    assert desk.ledger.state_of(task_id) is None


def test_released_attempts_wait_again_and_cost_nothing(desk: Desktop) -> None:
    client = desk.client()
    worker = desk.worker("w", slots=2)
    ids = desk.submit(client, 2)
    held = desk.work(worker)
    desk.say(worker, m.Release(0, ids[1:], [held[ids[1]]]))
    assert desk.ledger.state_of(ids[1]) is TaskState.QUEUED
    assert desk.ledger.tasks[ids[1]].remember().errors == 0
    desk.say(worker, m.Release(2, [ids[0]], [bytes(16)]))  # not its token: nothing
    assert desk.ledger.state_of(ids[0]) is TaskState.RUNNING
    assert list(desk.work(worker)) == [ids[1]]


def test_prefetched_tasks_are_called_back_for_an_idle_worker(desk: Desktop) -> None:
    client = desk.client()
    full = desk.worker("w", window=4)
    desk.submit(client, 4)
    desk.work(full)
    desk.worker("v")
    desk.pass_time(2)
    recalls = desk.got(full, m.Recall)
    assert recalls
    assert recalls[0].count == 3


def test_chunks_reach_listeners_and_late_ones_get_the_tail(desk: Desktop) -> None:
    client = desk.client()
    worker = desk.worker("w")
    (task_id,) = desk.submit(client)
    token = desk.work(worker)[task_id]
    desk.say(client, m.Listen(task_id, True))
    assert desk.got(worker, m.Listening) == [m.Listening([task_id], True)]
    desk.say(worker, m.Chunks([task_id], [token], [0], [b"\xa1a"]))
    desk.say(worker, m.Chunks([task_id], [bytes(16)], [1], [b"\xa1x"]))  # not its token
    assert desk.got(client, m.Stream) == [m.Stream(task_id, 1, 0, [b"\xa1a"])]
    other = desk.client("f" * 16)
    desk.say(other, m.Listen(task_id, True))
    assert desk.got(other, m.Stream) == [m.Stream(task_id, 1, 0, [b"\xa1a"])]
    desk.say(client, m.Listen(task_id, False))
    desk.say(other, m.Listen(task_id, False))
    assert desk.got(worker, m.Listening) == [m.Listening([task_id], False)]


def test_a_new_attempt_tells_its_listeners_to_begin_again(desk: Desktop) -> None:
    client = desk.client()
    first = desk.worker("w")
    (task_id,) = desk.submit(client)
    token = desk.work(first)[task_id]
    desk.say(client, m.Listen(task_id, True))
    desk.say(first, m.Chunks([task_id], [token], [0], [b"\xa1a"]))
    desk.say(first, m.Goodbye("gone"))
    second = desk.worker("v")
    (work,) = desk.got(second, m.Work)
    assert work.groups[0].is_listened
    desk.say(second, m.Chunks([task_id], [work.groups[0].tokens[0]], [0], [b"\xa1b"]))
    streams = desk.got(client, m.Stream)
    assert [(s.attempt, s.payloads) for s in streams] == [(1, [b"\xa1a"]), (2, []), (2, [b"\xa1b"])]


def test_what_an_earlier_attempt_says_is_not_passed_on(desk: Desktop) -> None:
    client = desk.client()
    first = desk.worker("w")
    (task_id,) = desk.submit(client)
    token = desk.work(first)[task_id]
    desk.say(client, m.Listen(task_id, True))
    desk.pass_time(11)  # it is silent, and its task goes to another
    desk.worker("v")
    desk.got(client, m.Stream)
    back = desk.worker("w", window=0)
    desk.say(back, m.Chunks([task_id], [token], [0], [b"\xa1a"]))
    assert desk.got(client, m.Stream) == []


def test_what_a_worker_offers_can_change(desk: Desktop) -> None:
    client = desk.client()
    worker = desk.worker("w")
    (task_id,) = desk.submit(client, kind="agent_action")
    assert "no worker" in str(desk.ask(client, "status", id=task_id).body["reason"])
    desk.say(worker, beat([], 0, types=("echo", "agent_action")))
    assert list(desk.work(worker)) == [task_id]


def test_an_attempt_far_beyond_its_time_is_taken_back(desk: Desktop) -> None:
    client = desk.client()
    worker = desk.worker("w")
    (task_id,) = desk.submit(client, max_attempts=1)
    desk.work(worker)
    for _ in range(120):
        desk.pass_time(3, step=1.5)
        desk.say(worker, beat([task_id], 1))
    client = desk.client()  # it was silent for long, too
    assert desk.ask(client, "status", id=task_id).body["reason"] == "timed out"


def holding(held: list[tuple[str, bytes]]) -> m.WorkerHello:
    """Return the HELLO of a worker that may hold several attempts of one task."""
    ids, tokens = [task_id for task_id, _ in held], [token for _, token in held]
    return msgspec.structs.replace(hello("w"), held_ids=ids, held_tokens=tokens)


@pytest.mark.parametrize("is_late", [False, True])
def test_an_old_result_of_a_fenced_task_takes_no_current_attempt_with_it(
    desk: Desktop, is_late: bool
) -> None:
    """What is dropped is named by its task, so the current attempt would go too."""
    worker = desk.worker("w")
    (task_id,) = desk.submit(desk.client(), is_fenced=True)
    old = desk.work(worker)
    desk.say(worker, beat([], 1))
    current = desk.work(worker)
    held = [*old.items(), *current.items()]
    desk.say(worker, holding(held[::-1] if is_late else held))
    assert desk.got(worker, m.Welcome)[-1].dropped_ids == []
    desk.finish(worker, old)
    assert desk.pool.rejected["result.stale"] == 1
    assert desk.got(worker, m.Received)
    desk.say(worker, beat([task_id], 0))
    desk.finish(worker, current)
    assert desk.ledger.totals.completed == 1


@pytest.mark.parametrize("is_restarted", [False, True])
def test_the_current_attempt_of_a_fenced_task_may_come_from_an_adopted_outbox(
    desk: Desktop, is_restarted: bool
) -> None:
    first = desk.worker("w")
    (task_id,) = desk.submit(desk.client(), is_fenced=True)
    held = desk.work(first)
    if is_restarted:
        desk.restart()
    heir = desk.worker("v", held=held)
    assert desk.got(heir, m.Welcome)[0].dropped_ids == []
    assert desk.ledger.tasks[task_id].worker_id == "w"
    desk.finish(heir, held)
    assert desk.ledger.totals.completed == 1


def test_after_a_restart_an_older_attempt_of_a_fenced_task_is_not_taken_for_the_current_one(
    desk: Desktop,
) -> None:
    first = desk.worker("w")
    (task_id,) = desk.submit(desk.client(), is_fenced=True)
    old = desk.work(first)
    desk.say(first, m.Goodbye("off"))
    desk.work(desk.worker("w2"))
    desk.restart()
    heir = desk.worker("v", held=old)
    assert desk.got(heir, m.Welcome)[0].dropped_ids == [task_id]
    desk.finish(heir, old)
    assert desk.ledger.state_of(task_id) is TaskState.RUNNING


def test_two_attempts_of_one_task_may_be_held(desk: Desktop) -> None:
    client = desk.client()
    worker = desk.worker("w")
    (task_id,) = desk.submit(client)
    first = desk.work(worker)[task_id]
    desk.say(worker, beat([], 1))
    second = desk.work(worker)[task_id]
    desk.restart()
    again = Peer(b"again", "10.0.0.1")
    desk.say(again, holding([(task_id, first), (task_id, second)]))
    assert desk.got(again, m.Welcome)[0].dropped_ids == []
    desk.finish(again, {task_id: second})
    assert desk.ledger.totals.completed == 1


def test_a_last_hand_out_that_never_arrived_is_found_after_a_lease(desk: Desktop) -> None:
    client = desk.client()
    worker = desk.worker("w")
    (task_id,) = desk.submit(client)
    assert desk.work(worker)
    for _ in range(4):
        desk.pass_time(3)
        desk.say(worker, beat([], 0))  # it has not even seen number 1
    assert list(desk.work(worker)) == [task_id]


def test_what_a_moved_session_does_not_hold_was_lost_on_the_way(desk: Desktop) -> None:
    client = desk.client()
    first = desk.worker("w")
    (task_id,) = desk.submit(client)
    assert desk.work(first)
    moved = Peer(b"moved", "10.0.0.1")
    desk.say(moved, hello("w"))
    assert list(desk.work(moved)) == [task_id]
    assert desk.ask(client, "status", id=task_id).body["attempts"] == 2
    history = desk.ledger.tasks[task_id].history
    assert history is None or history.errors == 0


def test_a_tail_is_bounded_and_goes_when_its_task_ends(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client)
    held = desk.work(worker)
    chunk = bytes(TAIL_BYTES // 2)
    for seq in range(5):
        desk.say(worker, m.Chunks([task_id], [held[task_id]], [seq], [chunk]))
    desk.say(client, m.Listen(task_id, True))
    (tail,) = desk.got(client, m.Stream)
    assert (tail.first_seq, len(tail.payloads)) == (3, 2)
    desk.finish(worker, held)
    for _ in range(12):  # the tail is dropped with the next pruning
        desk.pass_time(2)
        desk.say(worker, beat([], 10))
    late = desk.client("f" * 16)
    desk.say(late, m.Listen(task_id, True))
    assert desk.got(late, m.Stream) == []
    assert not desk.dispatcher._streaming._tails


def test_a_tail_of_very_small_chunks_fits_a_message_too(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client)
    token = desk.work(worker)[task_id]
    for start in range(0, 3 * m.MAX_BATCH_TASKS, m.MAX_BATCH_TASKS):
        seqs = list(range(start, start + m.MAX_BATCH_TASKS))
        count = len(seqs)
        desk.say(worker, m.Chunks([task_id] * count, [token] * count, seqs, [b"\xc0"] * count))
    desk.say(client, m.Listen(task_id, True))
    (tail,) = desk.got(client, m.Stream)
    assert (tail.first_seq, len(tail.payloads)) == (2 * m.MAX_BATCH_TASKS, m.MAX_BATCH_TASKS)


def test_a_success_and_a_failure_of_one_attempt_in_one_message_is_a_success(
    desk: Desktop,
) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client)
    token = desk.work(worker)[task_id]
    kinds = bytes([m.FAILED, m.SUCCEEDED])
    ids, tokens, payloads = [task_id] * 2, [token] * 2, [failure("x"), result(1)]
    desk.say(worker, m.Results(1, 1, ids, tokens, kinds, payloads))
    assert desk.ledger.totals.completed == 1
    assert desk.pool.duplicates == 1


def test_an_attempt_that_is_held_outlives_a_restart(desk: Desktop) -> None:
    client = desk.client()
    worker = desk.worker("w")
    (task_id,) = desk.submit(client)
    held = desk.work(worker)
    desk.restart()
    again = desk.worker("w", held=held)
    for _ in range(5):
        desk.pass_time(3)
        desk.say(again, beat([task_id], 0))
    assert desk.ledger.state_of(task_id) is TaskState.RUNNING
    assert desk.ledger.tasks[task_id].n == 1


def test_after_our_restart_a_worker_that_comes_back_without_its_task_frees_it_at_once(
    desk: Desktop,
) -> None:
    first = desk.worker("w", slots=2, window=2)
    held, lost = desk.submit(desk.client(), 2)
    tokens = desk.work(first)
    desk.restart()
    back = desk.worker("w", boot="b2", slots=2, window=2, held={held: tokens[held]})
    desk.pass_time(0.1)
    assert list(desk.work(back)) == [lost]
    assert desk.ledger.tasks[held].worker_id == "w"


def test_a_failure_that_another_worker_tells_again_counts_once(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client)
    held = desk.work(worker)
    desk.finish(worker, held, m.FAILED)
    heir = desk.worker("v", held=held)  # it has found the outbox
    desk.finish(heir, held, m.FAILED)
    assert counted(desk, task_id) == (1, set(), {"w": 1})


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_failure_that_is_told_again_after_a_hello_counts_once(
    desk: Desktop, is_restarted: bool
) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client)
    held = desk.work(worker)
    desk.finish(worker, held, m.FAILED)  # its acknowledgement gets lost
    if is_restarted:
        desk.restart()
    back = desk.worker("w", held=held)
    desk.finish(back, held, m.FAILED)
    desk.pass_time(OWED_S)
    assert desk.got(back, m.Received)
    assert counted(desk, task_id) == (1, set(), {"w": 1})


def test_a_failure_of_an_attempt_that_was_taken_over_counts_once(desk: Desktop) -> None:
    """It is the first attempt's, though another one was handed out since."""
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client)
    held = desk.work(worker)
    desk.pass_time(11)
    other = desk.worker("v")
    desk.say(other, m.Release(0, [task_id], [desk.work(other)[task_id]]))
    for _ in range(2):  # the first acknowledgement gets lost
        desk.finish(desk.worker("w", held=held, window=0), held, m.FAILED)
    assert counted(desk, task_id)[0] == 1


def test_a_task_under_which_every_lone_worker_dies_is_not_spared_for_ever(desk: Desktop) -> None:
    client = desk.client()
    (task_id,) = desk.submit(client, max_attempts=100)
    rounds = 0
    while desk.ledger.state_of(task_id) is not None:
        assert rounds <= MAX_CUTS + POISON_LOSSES
        assert task_id in desk.work(desk.worker(f"w{rounds}"))
        desk.pass_time(11)  # nobody beyond this machine is heard: a cut, as it seems
        rounds += 1
    assert rounds == MAX_CUTS + POISON_LOSSES


@pytest.mark.parametrize(("kind", "is_trusted"), [(m.REFUSED, True), (m.FAILED, False)])
def test_only_failures_in_a_row_that_are_no_refusals_make_a_worker_get_less(
    desk: Desktop, kind: int, is_trusted: bool
) -> None:
    client, worker = desk.client(), desk.worker("w", slots=2)
    desk.submit(client, 5, max_attempts=1)
    (_, other) = desk.work(worker).items()  # the first goes on
    for _ in range(2):
        desk.finish(worker, dict([other]), kind, window=2)
        (other,) = desk.work(worker).items()
    desk.finish(worker, dict([other]), kind, window=2)
    assert bool(desk.work(worker)) is is_trusted
