"""Mesh workers: joining, living, handing in, giving back, leaving."""

from __future__ import annotations

import msgspec
import pytest

from d8mesh.core.broker.effects import Effect, Peer, Send
from d8mesh.core.broker.records import History
from d8mesh.core.broker.returns import POISON_LOSSES
from d8mesh.core.broker.store import Restored
from d8mesh.core.broker.streaming import TAIL_BYTES
from d8mesh.core.broker.worker_sessions import MAX_CUTS, RECEIVED_WAIT_S
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.task import TaskState
from d8mesh.edge.sqlite.restore import fill
from tests.core.wired_broker import S, WiredBroker, beat, failure, hello, result


def silence(broker: WiredBroker, witness: Peer) -> None:
    """Let all workers be silent for longer than a lease, while a client is heard."""
    for _ in range(4):
        broker.pass_time(2.75)
        broker.say(witness, m.Watch([]))


def counted(broker: WiredBroker, task_id: str) -> tuple[int, set[tuple[str, int]], dict[str, int]]:
    """Return errors and losses of a task and where they were: on disk is what is in memory."""
    history = broker.task_table.tasks[task_id].remember()
    restored = Restored(0, b"")
    fill(broker.journal._db, restored)
    _, stored = restored.troubled.get(task_id, (0, History()))
    assert (stored.errors, stored.failed_on) == (history.errors, history.failed_on)
    assert (stored.losses, stored.failures) == (history.losses, history.failures)
    return history.errors, history.losses, history.failed_on


def test_a_hand_out_that_never_arrived_is_found_by_the_heartbeat(broker: WiredBroker) -> None:
    client = broker.client()
    worker = broker.worker("w")
    (task_id,) = broker.submit(client)
    assert broker.work(worker)
    broker.say(worker, beat([], 0))  # sent before the assignment arrived: no denial
    assert broker.work(worker) == {}
    broker.say(worker, beat([], 1))
    assert list(broker.work(worker)) == [task_id]
    assert broker.got(worker, m.Beat)


def test_a_silent_worker_is_lost_and_its_tasks_run_elsewhere(broker: WiredBroker) -> None:
    client = broker.client()
    silent = broker.worker("w")
    (task_id,) = broker.submit(client)
    broker.work(silent)
    other = broker.worker("v")
    for _ in range(4):
        broker.pass_time(3)
        broker.say(other, beat([], 0))
    assert list(broker.work(other)) == [task_id]
    history = broker.task_table.tasks[task_id].history
    assert history is not None
    assert history.losses == {("w", 1)}


def test_only_the_running_attempts_of_a_lost_worker_are_blamed(broker: WiredBroker) -> None:
    client = broker.client()
    worker = broker.worker("w", slots=2, window=5)
    ids = broker.submit(client, 5)
    assert list(broker.work(worker)) == ids
    silence(broker, client)
    blamed = [task_id for task_id in ids if broker.task_table.tasks[task_id].remember().errors]
    assert blamed == ids[:2]


def test_a_task_that_took_three_workers_down_is_poison(broker: WiredBroker) -> None:
    broker.policy["max_attempts"] = 50
    broker.restart()
    client = broker.client()
    (task_id,) = broker.submit(client)
    for name in ("a", "b", "c"):
        assert list(broker.work(broker.worker(name))) == [task_id]
        silence(broker, client)
    answer = broker.ask(client, "status", id=task_id)
    assert answer.body["state"] == "failed"
    assert answer.body["reason"] == "worker lost"


def test_cuts_of_the_network_use_up_no_attempts(broker: WiredBroker) -> None:
    """The worker never died: a loss is taken back when it comes with the attempt."""
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    held = broker.work(worker)
    for _ in range(4):
        silence(broker, client)
        assert counted(broker, task_id) == (1, {("w", 1)}, {"w": 1})
        broker.say(worker, hello("w", held=held))
        assert counted(broker, task_id) == (0, set(), {})
        assert broker.task_table.tasks[task_id].worker_id == "w"
    broker.finish(worker, held)
    assert broker.task_table.totals.completed == 1


def test_a_loss_is_taken_back_while_the_task_runs_elsewhere_and_others_stay(
    broker: WiredBroker,
) -> None:
    client, first = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    held = broker.work(first)
    silence(broker, client)
    second = broker.worker("v")
    broker.finish(second, broker.work(second), m.FAILED)
    third = broker.worker("u")
    broker.pass_time(1)
    assert list(broker.work(third)) == [task_id]
    assert counted(broker, task_id) == (2, {("w", 1)}, {"w": 1, "v": 1})
    broker.say(first, hello("w", held=held))
    assert counted(broker, task_id) == (1, set(), {"v": 1})
    assert broker.task_table.tasks[task_id].worker_id == "u"


def test_a_loss_is_taken_back_after_a_restart_of_the_broker_too(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    held = broker.work(worker)
    silence(broker, client)
    broker.restart()
    broker.worker("w", held={task_id: bytes(16)})  # nobody's token takes nothing back
    assert counted(broker, task_id) == (1, {("w", 1)}, {"w": 1})
    broker.worker("w", held=held)
    assert counted(broker, task_id) == (0, set(), {})


def test_a_loss_before_the_attempt_that_is_held_stays(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    broker.work(worker)
    worker = broker.worker("w", boot="b2")
    held = broker.work(worker)
    silence(broker, client)
    assert counted(broker, task_id) == (2, {("w", 1), ("w", 2)}, {"w": 2})
    broker.say(worker, hello("w", boot="b2", held=held))
    assert counted(broker, task_id) == (1, {("w", 1)}, {"w": 1})


@pytest.mark.parametrize("apart_s", [0.0, 2.0])
def test_nobody_is_blamed_when_the_whole_mesh_falls_silent(
    broker: WiredBroker, apart_s: float
) -> None:
    """It is our own network: even what may be lost only once waits again."""
    client = broker.client()
    workers = [broker.worker(name, slots=2) for name in "vw"]
    ids = broker.submit(client, 4, max_attempts=1)
    held = []
    for name, worker in zip("vw", workers, strict=True):
        broker.pass_time(apart_s)
        held.append(broker.work(worker))
        broker.say(worker, beat(list(held[-1]), 9))
        assert len(held[-1]) == 2, name
    broker.pass_time(14)
    assert broker.task_table.queued == 4
    assert all(counted(broker, task_id) == (0, set(), {}) for task_id in ids)
    for name, worker, mine in zip("vw", workers, held, strict=True):
        broker.say(worker, hello(name, slots=2, held=mine))
        broker.finish(worker, mine)
    assert broker.task_table.totals.completed == 4


@pytest.mark.parametrize("attempts", [1, 3])
def test_who_was_not_heard_with_all_the_others_and_had_died_is_blamed_when_it_is_back(
    broker: WiredBroker, attempts: int
) -> None:
    client, worker = broker.client(), broker.worker("w", window=2)
    ids = broker.submit(client, 2, max_attempts=attempts)
    assert list(broker.work(worker)) == ids
    broker.pass_time(11)
    assert counted(broker, ids[0]) == (0, set(), {})
    broker.worker("w", boot="b2", window=0)
    if attempts > 1:
        assert counted(broker, ids[0]) == (1, {("w", 1)}, {"w": 1})
    else:
        client = broker.client()
        body = broker.ask(client, "status", id=ids[0]).body
        assert (body["state"], body["reason"]) == ("failed", "its worker was started again")
    assert counted(broker, ids[1]) == (0, set(), {})  # it had not started


def test_who_was_not_heard_with_all_the_others_is_not_blamed_for_what_has_ended_or_is_there(
    broker: WiredBroker,
) -> None:
    client, worker = broker.client(), broker.worker("w", slots=4)
    ended, kept, running, waiting = broker.submit(client, 4, max_attempts=3)
    held = broker.work(worker)
    broker.pass_time(11)
    other = broker.worker("v", slots=2)
    others = broker.work(other)
    assert list(others) == [ended, kept]
    broker.finish(other, {ended: others[ended]}, window=2)
    assert running in broker.work(other)
    back = broker.worker("w", boot="b2", window=0, held={kept: held[kept]})
    assert broker.got(back, m.Welcome)[0].dropped_ids == []
    assert counted(broker, kept) == (0, set(), {})
    assert counted(broker, running) == counted(broker, waiting) == (1, {("w", 1)}, {"w": 1})
    assert broker.task_table.tasks[running].worker_id == "v"


def test_a_worker_on_the_orchestrators_own_machine_is_blamed_at_once(broker: WiredBroker) -> None:
    worker = broker.worker("w", address="127.0.0.1")
    (task_id,) = broker.submit(broker.client(), max_attempts=2)
    broker.work(worker)
    broker.pass_time(11)
    assert counted(broker, task_id) == (1, {("w", 1)}, {"w": 1})


def test_who_is_heard_on_this_machine_says_nothing_of_the_network(broker: WiredBroker) -> None:
    worker, near = broker.worker("w"), broker.worker("v", address="127.0.0.1", window=0)
    (task_id,) = broker.submit(broker.client())
    broker.work(worker)
    for _ in range(4):
        broker.pass_time(2.75)
        broker.say(near, beat([], 0, window=0))
    assert broker.task_table.state_of(task_id) is TaskState.QUEUED
    assert counted(broker, task_id) == (0, set(), {})


def test_a_goodbye_gives_all_back_at_once_uncounted(broker: WiredBroker) -> None:
    client = broker.client()
    worker, other = broker.worker("w"), broker.worker("v")
    (task_id,) = broker.submit(client)
    assert broker.work(worker)
    broker.say(worker, m.Goodbye("drained"))
    assert list(broker.work(other)) == [task_id]
    assert broker.task_table.tasks[task_id].remember().errors == 0


def test_results_are_acknowledged_after_the_commit_only(broker: WiredBroker) -> None:
    client = broker.client()
    worker = broker.worker("w")
    broker.submit(client)
    broker.finish(worker, broker.work(worker))
    broker.pass_time(RECEIVED_WAIT_S)
    waits = {type(message).__name__: waits for _, message, waits in broker.sent}
    assert waits["Received"] is True
    assert waits["Outcomes"] is True
    assert waits["Accepted"] is True


def test_a_worker_is_told_to_drop_a_result_after_the_commit_of_the_other_only(
    broker: WiredBroker,
) -> None:
    """Both in one wake-up: nothing that is sent to it may overtake its welcome either."""
    client, slow = broker.client(), broker.worker("w")
    task_id, other = broker.submit(client, 2)
    held = broker.work(slow)
    broker.pass_time(11)
    quick = broker.worker("v", slots=2)
    current = broker.work(quick)
    assert current.keys() == {task_id, other}
    again, seq = Peer(b"again", "10.0.0.1"), 99
    late = m.Results(seq, 1, [task_id], [current[task_id]], bytes([m.SUCCEEDED]), [result()])
    effects = broker.dispatcher.receive(late, quick, broker.now)
    effects += broker.dispatcher.receive(hello("w", held=held), again, broker.now)
    effects += broker.dispatcher.receive(beat([], 0), again, broker.now)
    submit = m.Submit(seq, S, 50, [m.Group("echo", 5, [b"\x80"])])
    effects += broker.dispatcher.receive(submit, client, broker.now)
    effects += broker.dispatcher.tick(broker.now, broker.at)
    told = [each for each in effects if isinstance(each, Send) and each.peer == again]
    assert [type(each.message) for each in told] == [m.Welcome, m.Beat, m.Work]
    assert isinstance(told[0].message, m.Welcome)
    assert told[0].message.dropped_ids == [task_id]
    assert all(each.waits for each in told)
    broker.perform(effects)
    broker.pass_time(1)
    broker.finish(again, broker.work(again))
    broker.submit(client)
    later = [waits for peer, msg, waits in broker.sent if peer == again and isinstance(msg, m.Work)]
    assert later == [False]


def test_the_acknowledgement_of_a_single_result_goes_with_the_hand_out_after_the_next(
    broker: WiredBroker,
) -> None:
    worker = broker.worker("w")
    broker.submit(broker.client(), 3)
    held = [broker.work(worker)]
    for is_told in (False, True):
        broker.finish(worker, held[-1], window=1)
        (work,) = broker.got(worker, m.Work)
        assert work.received == [broker.seq - 1] * is_told
        held.append(dict(zip(work.groups[0].ids, work.groups[0].tokens, strict=True)))
        assert broker.got(worker, m.Received) == []
    broker.finish(worker, held[-1], window=1)
    broker.pass_time(RECEIVED_WAIT_S)  # nothing is left to go with
    assert [each.seq for each in broker.got(worker, m.Received)] == [broker.seq - 1, broker.seq]


def test_the_acknowledgement_of_a_result_that_came_alone_goes_with_the_next_hand_out(
    broker: WiredBroker,
) -> None:
    client, worker = broker.client(), broker.worker("w", window=4)
    broker.submit(client)
    broker.finish(worker, broker.work(worker))
    seq = broker.seq
    broker.submit(client)
    (work,) = broker.got(worker, m.Work)
    assert work.received == [seq]
    broker.pass_time(1.0)
    assert broker.got(worker, m.Received) == []


def test_an_acknowledgement_waits_for_no_longer_than_a_heartbeat(broker: WiredBroker) -> None:
    worker = broker.worker("w")
    broker.submit(broker.client(), 2)
    broker.finish(worker, broker.work(worker), window=1)
    (task_id,) = broker.work(worker)
    assert broker.got(worker, m.Received) == []
    broker.say(worker, beat([task_id], 2))
    assert [each.seq for each in broker.got(worker, m.Received)] == [broker.seq]
    broker.say(worker, beat([task_id], 2))
    assert broker.got(worker, m.Received) == []


def test_a_repeat_is_acknowledged_and_changes_nothing(broker: WiredBroker) -> None:
    client = broker.client()
    worker = broker.worker("w")
    (task_id,) = broker.submit(client)
    held = broker.work(worker)
    broker.finish(worker, held)
    broker.finish(worker, held, m.FAILED)
    broker.pass_time(RECEIVED_WAIT_S)
    assert len(broker.got(worker, m.Received)) == 2
    assert broker.state.metrics.duplicates == 1
    assert broker.ask(client, "status", id=task_id).body["state"] == "completed"


def test_the_same_task_twice_in_one_message_counts_once(broker: WiredBroker) -> None:
    client = broker.client()
    worker = broker.worker("w")
    (task_id,) = broker.submit(client)
    token = broker.work(worker)[task_id]
    twice = m.Results(1, 1, [task_id] * 2, [token] * 2, b"\1\1", [result(1), result(2)])
    broker.say(worker, twice)
    assert broker.task_table.totals.completed == 1
    assert broker.state.metrics.duplicates == 1


def test_a_guessed_token_is_refused(broker: WiredBroker) -> None:
    client = broker.client()
    worker = broker.worker("w")
    (task_id,) = broker.submit(client)
    broker.work(worker)
    broker.finish(worker, {task_id: bytes(16)})
    assert broker.task_table.state_of(task_id) is TaskState.RUNNING
    assert broker.state.metrics.rejected["token.invalid"] == 1


def test_a_late_success_of_an_earlier_attempt_wins_and_stops_the_other(broker: WiredBroker) -> None:
    client = broker.client()
    slow = broker.worker("w")
    (task_id,) = broker.submit(client)
    held = broker.work(slow)
    broker.pass_time(11)
    quick = broker.worker("v")
    assert list(broker.work(quick)) == [task_id]
    back = broker.worker("w", held=held, boot="b1")
    broker.finish(back, held)
    assert broker.got(quick, m.Stop)[0].ids == [task_id]
    assert broker.task_table.totals.completed == 1


def test_a_stale_failure_is_refused(broker: WiredBroker) -> None:
    client = broker.client()
    slow = broker.worker("w")
    (task_id,) = broker.submit(client)
    held = broker.work(slow)
    broker.pass_time(11)
    quick = broker.worker("v")
    assert broker.work(quick)
    back = broker.worker("w", held=held)
    broker.finish(back, held, m.FAILED)
    assert broker.task_table.state_of(task_id) is TaskState.RUNNING
    assert broker.state.metrics.rejected["result.stale"] == 1


def test_a_fenced_task_is_finished_by_its_current_attempt_only(broker: WiredBroker) -> None:
    client = broker.client()
    slow = broker.worker("w")
    (task_id,) = broker.submit(client, is_fenced=True)
    held = broker.work(slow)
    broker.pass_time(11)
    quick = broker.worker("v")
    current = broker.work(quick)
    broker.finish(broker.worker("w", held=held), held)
    assert broker.task_table.state_of(task_id) is TaskState.RUNNING
    broker.finish(quick, current)
    assert broker.task_table.totals.completed == 1


def test_an_ended_attempt_of_a_fenced_task_is_not_taken_up_again(broker: WiredBroker) -> None:
    first = broker.worker("w1")
    client = broker.client()
    (task_id,) = broker.submit(client, is_fenced=True)
    held = broker.work(first)
    broker.pass_time(11.0)  # w1 is lost, and the attempt with it
    second = broker.worker("w2")
    broker.say(second, m.Goodbye("off"))  # so is the next: the task waits again
    back = broker.worker("w1", held=held, window=0)
    assert broker.got(back, m.Welcome)[0].dropped_ids == [task_id]
    broker.finish(back, held)
    assert broker.task_table.state_of(task_id) is not None
    assert broker.state.metrics.rejected["result.stale"] == 1


def test_the_running_attempt_of_a_fenced_task_outlives_a_restart(broker: WiredBroker) -> None:
    first = broker.worker("w1")
    (task_id,) = broker.submit(broker.client(), is_fenced=True)
    held = broker.work(first)
    broker.restart()
    back = broker.worker("w1", held=held)
    assert broker.got(back, m.Welcome)[0].dropped_ids == []
    broker.finish(back, held)
    assert broker.task_table.state_of(task_id) is None


def test_released_attempts_wait_again_and_cost_nothing(broker: WiredBroker) -> None:
    client = broker.client()
    worker = broker.worker("w", slots=2)
    ids = broker.submit(client, 2)
    held = broker.work(worker)
    broker.say(worker, m.Release(0, ids[1:], [held[ids[1]]]))
    assert broker.task_table.state_of(ids[1]) is TaskState.QUEUED
    assert broker.task_table.tasks[ids[1]].remember().errors == 0
    broker.say(worker, m.Release(2, [ids[0]], [bytes(16)]))  # not its token: nothing
    assert broker.task_table.state_of(ids[0]) is TaskState.RUNNING
    assert list(broker.work(worker)) == [ids[1]]


def test_prefetched_tasks_are_called_back_for_an_idle_worker(broker: WiredBroker) -> None:
    client = broker.client()
    full = broker.worker("w", window=4)
    broker.submit(client, 4)
    broker.work(full)
    broker.worker("v")
    broker.pass_time(2)
    recalls = broker.got(full, m.Recall)
    assert recalls
    assert recalls[0].count == 3


def test_chunks_reach_listeners_and_late_ones_get_the_tail(broker: WiredBroker) -> None:
    client = broker.client()
    worker = broker.worker("w")
    (task_id,) = broker.submit(client)
    token = broker.work(worker)[task_id]
    broker.say(client, m.Listen(task_id, True))
    assert broker.got(worker, m.Listening) == [m.Listening([task_id], True)]
    broker.say(worker, m.Chunks([task_id], [token], [0], [b"\xa1a"]))
    broker.say(worker, m.Chunks([task_id], [bytes(16)], [1], [b"\xa1x"]))  # not its token
    assert broker.got(client, m.Stream) == [m.Stream(task_id, 1, 0, [b"\xa1a"])]
    other = broker.client("f" * 16)
    broker.say(other, m.Listen(task_id, True))
    assert broker.got(other, m.Stream) == [m.Stream(task_id, 1, 0, [b"\xa1a"])]
    broker.say(client, m.Listen(task_id, False))
    broker.say(other, m.Listen(task_id, False))
    assert broker.got(worker, m.Listening) == [m.Listening([task_id], False)]


def test_a_new_attempt_tells_its_listeners_to_begin_again(broker: WiredBroker) -> None:
    client = broker.client()
    first = broker.worker("w")
    (task_id,) = broker.submit(client)
    token = broker.work(first)[task_id]
    broker.say(client, m.Listen(task_id, True))
    broker.say(first, m.Chunks([task_id], [token], [0], [b"\xa1a"]))
    broker.say(first, m.Goodbye("gone"))
    second = broker.worker("v")
    (work,) = broker.got(second, m.Work)
    assert work.groups[0].is_listened
    broker.say(second, m.Chunks([task_id], [work.groups[0].tokens[0]], [0], [b"\xa1b"]))
    streams = broker.got(client, m.Stream)
    assert [(s.attempt, s.payloads) for s in streams] == [(1, [b"\xa1a"]), (2, []), (2, [b"\xa1b"])]


def test_what_an_earlier_attempt_says_is_not_passed_on(broker: WiredBroker) -> None:
    client = broker.client()
    first = broker.worker("w")
    (task_id,) = broker.submit(client)
    token = broker.work(first)[task_id]
    broker.say(client, m.Listen(task_id, True))
    broker.pass_time(11)  # it is silent, and its task goes to another
    broker.worker("v")
    broker.got(client, m.Stream)
    back = broker.worker("w", window=0)
    broker.say(back, m.Chunks([task_id], [token], [0], [b"\xa1a"]))
    assert broker.got(client, m.Stream) == []


def test_what_a_worker_offers_can_change(broker: WiredBroker) -> None:
    client = broker.client()
    worker = broker.worker("w")
    (task_id,) = broker.submit(client, kind="agent_action")
    assert "no worker" in str(broker.ask(client, "status", id=task_id).body["reason"])
    broker.say(worker, beat([], 0, types=("echo", "agent_action")))
    assert list(broker.work(worker)) == [task_id]


def test_an_attempt_far_beyond_its_time_is_taken_back(broker: WiredBroker) -> None:
    client = broker.client()
    worker = broker.worker("w")
    (task_id,) = broker.submit(client, max_attempts=1)
    broker.work(worker)
    for _ in range(120):
        broker.pass_time(3, step=1.5)
        broker.say(worker, beat([task_id], 1))
    client = broker.client()  # it was silent for long, too
    assert broker.ask(client, "status", id=task_id).body["reason"] == "timed out"


def holding(held: list[tuple[str, bytes]]) -> m.WorkerHello:
    """Return the HELLO of a worker that may hold several attempts of one task."""
    ids, tokens = [task_id for task_id, _ in held], [token for _, token in held]
    return msgspec.structs.replace(hello("w"), held_ids=ids, held_tokens=tokens)


@pytest.mark.parametrize("is_late", [False, True])
def test_an_old_result_of_a_fenced_task_takes_no_current_attempt_with_it(
    broker: WiredBroker, is_late: bool
) -> None:
    """What is dropped is named by its task, so the current attempt would go too."""
    worker = broker.worker("w")
    (task_id,) = broker.submit(broker.client(), is_fenced=True)
    old = broker.work(worker)
    broker.say(worker, beat([], 1))
    current = broker.work(worker)
    held = [*old.items(), *current.items()]
    broker.say(worker, holding(held[::-1] if is_late else held))
    assert broker.got(worker, m.Welcome)[-1].dropped_ids == []
    broker.finish(worker, old)
    assert broker.state.metrics.rejected["result.stale"] == 1
    assert broker.got(worker, m.Received)
    broker.say(worker, beat([task_id], 0))
    broker.finish(worker, current)
    assert broker.task_table.totals.completed == 1


def test_a_last_hand_out_that_never_arrived_is_found_after_a_lease(broker: WiredBroker) -> None:
    client = broker.client()
    worker = broker.worker("w")
    (task_id,) = broker.submit(client)
    assert broker.work(worker)
    for _ in range(4):
        broker.pass_time(3)
        broker.say(worker, beat([], 0))  # it has not even seen number 1
    assert list(broker.work(worker)) == [task_id]


def test_a_tail_is_bounded_and_goes_when_its_task_ends(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    held = broker.work(worker)
    chunk = bytes(TAIL_BYTES // 2)
    for seq in range(5):
        broker.say(worker, m.Chunks([task_id], [held[task_id]], [seq], [chunk]))
    broker.say(client, m.Listen(task_id, True))
    (tail,) = broker.got(client, m.Stream)
    assert (tail.first_seq, len(tail.payloads)) == (3, 2)
    broker.say(client, m.Listen(task_id, False))
    broker.finish(worker, held)
    assert broker.dispatcher._streaming._tails
    for _ in range(12):  # the tail is dropped with the next pruning
        broker.pass_time(2)
        broker.say(worker, beat([], 10))
    late = broker.client("f" * 16)
    broker.say(late, m.Listen(task_id, True))
    assert broker.got(late, m.Stream) == []
    assert not broker.dispatcher._streaming._tails


def test_a_tail_of_very_small_chunks_fits_a_message_too(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    token = broker.work(worker)[task_id]
    for start in range(0, 3 * m.MAX_BATCH_TASKS, m.MAX_BATCH_TASKS):
        seqs = list(range(start, start + m.MAX_BATCH_TASKS))
        count = len(seqs)
        broker.say(worker, m.Chunks([task_id] * count, [token] * count, seqs, [b"\xc0"] * count))
    broker.say(client, m.Listen(task_id, True))
    (tail,) = broker.got(client, m.Stream)
    assert (tail.first_seq, len(tail.payloads)) == (2 * m.MAX_BATCH_TASKS, m.MAX_BATCH_TASKS)


def test_a_success_and_a_failure_of_one_attempt_in_one_message_is_a_success(
    broker: WiredBroker,
) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    token = broker.work(worker)[task_id]
    kinds = bytes([m.FAILED, m.SUCCEEDED])
    ids, tokens, payloads = [task_id] * 2, [token] * 2, [failure("x"), result(1)]
    broker.say(worker, m.Results(1, 1, ids, tokens, kinds, payloads))
    assert broker.task_table.totals.completed == 1
    assert broker.state.metrics.duplicates == 1


def test_after_our_restart_a_worker_that_comes_back_without_its_task_frees_it_at_once(
    broker: WiredBroker,
) -> None:
    first = broker.worker("w", slots=2, window=2)
    held, lost = broker.submit(broker.client(), 2)
    tokens = broker.work(first)
    broker.restart()
    back = broker.worker("w", boot="b2", slots=2, window=2, held={held: tokens[held]})
    broker.pass_time(0.1)
    assert list(broker.work(back)) == [lost]
    assert broker.task_table.tasks[held].worker_id == "w"


def test_a_failure_that_another_worker_tells_again_counts_once(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    held = broker.work(worker)
    broker.finish(worker, held, m.FAILED)
    heir = broker.worker("v", held=held)  # it has found the outbox
    broker.finish(heir, held, m.FAILED)
    assert counted(broker, task_id) == (1, set(), {"w": 1})


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_failure_that_is_told_again_after_a_hello_counts_once(
    broker: WiredBroker, is_restarted: bool
) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    held = broker.work(worker)
    broker.finish(worker, held, m.FAILED)  # its acknowledgement gets lost
    if is_restarted:
        broker.restart()
    back = broker.worker("w", held=held)
    broker.finish(back, held, m.FAILED)
    broker.pass_time(RECEIVED_WAIT_S)
    assert broker.got(back, m.Received)
    assert counted(broker, task_id) == (1, set(), {"w": 1})


def test_a_failure_of_an_attempt_that_was_taken_over_counts_once(broker: WiredBroker) -> None:
    """It is the first attempt's, though another one was handed out since."""
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    held = broker.work(worker)
    broker.pass_time(11)
    other = broker.worker("v")
    broker.say(other, m.Release(0, [task_id], [broker.work(other)[task_id]]))
    for _ in range(2):  # the first acknowledgement gets lost
        broker.finish(broker.worker("w", held=held, window=0), held, m.FAILED)
    assert counted(broker, task_id)[0] == 1


def test_a_task_under_which_every_lone_worker_dies_is_not_spared_for_ever(
    broker: WiredBroker,
) -> None:
    client = broker.client()
    (task_id,) = broker.submit(client, max_attempts=100)
    rounds = 0
    while broker.task_table.state_of(task_id) is not None:
        assert rounds <= MAX_CUTS + POISON_LOSSES
        assert task_id in broker.work(broker.worker(f"w{rounds}"))
        broker.pass_time(11)  # nobody beyond this machine is heard: a cut, as it seems
        rounds += 1
    assert rounds == MAX_CUTS + POISON_LOSSES


@pytest.mark.parametrize(("kind", "is_trusted"), [(m.REFUSED, True), (m.FAILED, False)])
def test_only_failures_in_a_row_that_are_no_refusals_make_a_worker_get_less(
    broker: WiredBroker, kind: int, is_trusted: bool
) -> None:
    client, worker = broker.client(), broker.worker("w", slots=2)
    broker.submit(client, 5, max_attempts=1)
    (_, other) = broker.work(worker).items()  # the first goes on
    for _ in range(2):
        broker.finish(worker, dict([other]), kind, window=2)
        (other,) = broker.work(worker).items()
    broker.finish(worker, dict([other]), kind, window=2)
    assert bool(broker.work(worker)) is is_trusted


def test_results_of_one_wake_up_are_acknowledged_together(broker: WiredBroker) -> None:
    worker = broker.worker("w", slots=2)
    ids = broker.submit(broker.client(), 2)
    held = broker.work(worker)
    effects: list[Effect] = []
    for seq, task_id in enumerate(ids, 1):
        said = m.Results(seq, 2, [task_id], [held[task_id]], bytes([m.SUCCEEDED]), [result()])
        effects += broker.dispatcher.receive(said, worker, broker.now)
    broker.perform([*effects, *broker.dispatcher.tick(broker.now, broker.at)])
    told = [each.seq for each in broker.got(worker, m.Received)]
    assert told == [1, 2]


def test_an_acknowledgement_waits_its_whole_time_when_a_hand_out_took_the_one_before(
    broker: WiredBroker,
) -> None:
    client, worker = broker.client(), broker.worker("w", window=4)
    broker.submit(client)
    broker.finish(worker, broker.work(worker))
    broker.submit(client)  # takes the acknowledgement with it; its timer runs on
    broker.pass_time(RECEIVED_WAIT_S / 2)
    broker.finish(worker, broker.work(worker))
    broker.pass_time(RECEIVED_WAIT_S * 3 / 4)
    assert broker.got(worker, m.Received) == []
    broker.pass_time(RECEIVED_WAIT_S / 4)
    assert [each.seq for each in broker.got(worker, m.Received)] == [broker.seq]


def test_a_worker_that_is_forgotten_is_owed_nothing(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w", window=4)
    broker.submit(client)
    broker.finish(worker, broker.work(worker))
    broker.state.registry.remove(broker.state.registry.workers["w"])
    broker.pass_time(RECEIVED_WAIT_S)
    assert broker.got(worker, m.Received) == []


def test_a_hand_out_waits_for_no_commit_and_what_is_owed_does(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w", window=4)
    broker.submit(client)
    broker.finish(worker, broker.work(worker))
    broker.sent.clear()
    broker.dispatcher.set_unconfirmed(broker.now)
    broker.now += RECEIVED_WAIT_S / 2
    broker.submit(client)
    mine = [(message, waits) for peer, message, waits in broker.sent if peer == worker]
    assert (m.Received(broker.seq - 1), True) in mine
    assert [message.received for message, _ in mine if isinstance(message, m.Work)] == [[]]
