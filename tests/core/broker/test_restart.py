"""What a start goes on from, and whom it waits for."""

from __future__ import annotations

import pytest

from d8mesh.core.broker.dispatcher import SWEEP_S, Dispatcher
from d8mesh.core.broker.effects import Peer
from d8mesh.core.broker.records import History
from d8mesh.core.broker.restart import MIN_GRACE_S, WAIT_STEP_LEASES
from d8mesh.core.broker.state import Policy
from d8mesh.core.broker.store import Restored
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.task import TaskState, WorkersMissed
from tests.core.invariants import check
from tests.core.wired_broker import S, WiredBroker, beat, hello

LEASE_S = Policy(broker_id="o", mesh="m").lease_s


def in_hand(broker: WiredBroker, *names: str) -> dict[str, dict[str, bytes]]:
    """Have each of these workers hold one task, known on disk; return worker -> what it holds."""
    client, held = broker.client(), dict[str, dict[str, bytes]]()
    for name in names:
        worker = broker.worker(name)
        broker.submit(client)
        held[name] = broker.work(worker)
        assert held[name]
    return held


def waits(broker: WiredBroker, task: dict[str, bytes], most_s: float = 30.0) -> float:
    """Return how long it takes until the task of a worker that is away waits again."""
    (task_id,), start = task, broker.now
    while broker.task_table.state_of(task_id) is TaskState.RUNNING:
        assert broker.now - start < most_s
        broker.pass_time(0.1, step=0.1)
    return broker.now - start


def test_what_went_wrong_with_finished_tasks_is_no_concern_of_a_start() -> None:
    restored = Restored(1, bytes(32), troubled={f"{S}-0": (1, History(1))})
    restored.in_flight[f"{S}-1"] = (1, "w")
    dispatcher = Dispatcher(Policy(broker_id="o", mesh="m"), restored, lambda: 0.5)
    check(dispatcher)
    assert not dispatcher.state.task_table.tasks


def test_sessions_whose_tasks_are_forgotten_count_among_those_that_the_journal_names() -> None:
    restored = Restored(1, bytes(32), sessions=5, accepted={S: [(0, 2), (7, 1)]})
    dispatcher = Dispatcher(Policy(broker_id="o", mesh="m"), restored, lambda: 0.5)
    assert dispatcher.state.task_table.forgotten_sessions == 4


@pytest.mark.parametrize("lives", [(9.0,), (4.0, 4.0), (2.6, 2.6, 2.6), (1.0, 8.0, 2.0)])
def test_the_wait_for_a_worker_that_is_away_goes_on_after_a_restart(
    broker: WiredBroker, lives: tuple[float, ...]
) -> None:
    """A step of each life may be missing in what is noted."""
    task = in_hand(broker, "w")["w"]
    for life_s in lives:
        broker.restart()
        broker.pass_time(life_s)
        assert broker.task_table.state_of(*task) is TaskState.RUNNING
    broker.restart()
    lost_s = len(lives) * (WAIT_STEP_LEASES * LEASE_S + SWEEP_S)
    total_s = sum(lives) + waits(broker, task)
    assert LEASE_S <= total_s <= LEASE_S + max(lost_s, MIN_GRACE_S) + 2 * SWEEP_S
    assert total_s < LEASE_S + sum(lives)  # not a whole lease after the last start
    assert broker.task_table.tasks[next(iter(task))].remember().errors == 0


def test_a_broker_that_dies_again_and_again_gives_a_dead_worker_up(broker: WiredBroker) -> None:
    (task_id,) = in_hand(broker, "w")["w"]
    lives = 0
    while broker.task_table.state_of(task_id) is TaskState.RUNNING:
        broker.restart()
        broker.pass_time(MIN_GRACE_S + 2 * SWEEP_S)
        lives += 1
        assert lives <= 4
    assert list(broker.work(broker.worker("v"))) == [task_id]


def test_however_long_a_worker_was_waited_for_it_may_come_back_after_a_start(
    broker: WiredBroker,
) -> None:
    task = in_hand(broker, "w")["w"]
    broker.restart()
    broker.pass_time(LEASE_S - 0.1)
    broker.restart()
    broker.pass_time(MIN_GRACE_S - 0.1)
    assert broker.task_table.state_of(*task) is TaskState.RUNNING
    back = broker.worker("w", held=task)
    assert broker.got(back, m.Welcome)[0].dropped_ids == []
    broker.pass_time(SWEEP_S)
    assert broker.task_table.state_of(*task) is TaskState.RUNNING


def test_a_worker_that_was_back_has_its_whole_grace_after_the_next_start(
    broker: WiredBroker,
) -> None:
    """Also if the broker dies with the HELLO; who was not back has been waited for."""
    held = in_hand(broker, "w", "v")
    broker.restart()
    broker.pass_time(6)
    broker.worker("w", held=held["w"])
    broker.restart()
    start = broker.now
    assert waits(broker, held["v"]) < LEASE_S - 6 + WAIT_STEP_LEASES * LEASE_S
    assert broker.task_table.state_of(*held["w"]) is TaskState.RUNNING
    assert waits(broker, held["w"]) >= LEASE_S - (broker.now - start)


def test_after_it_was_given_up_the_wait_for_a_worker_begins_anew(broker: WiredBroker) -> None:
    held = in_hand(broker, "w")["w"]
    broker.restart()
    assert waits(broker, held) >= LEASE_S
    held = broker.work(broker.worker("w", boot="b2"))
    broker.restart()
    assert waits(broker, held) >= LEASE_S


def test_a_start_at_which_nothing_is_in_hand_forgets_who_was_waited_for(
    broker: WiredBroker,
) -> None:
    (task_id,) = in_hand(broker, "w")["w"]
    broker.restart()
    broker.pass_time(8)
    assert broker.ask(broker.client(), "cancel", id=task_id).code == ""
    broker.restart()
    worker = broker.worker("w", boot="b2")  # before the first sweep: in one wake-up with it
    broker.submit(broker.client())
    held = broker.work(worker)
    broker.restart()
    assert waits(broker, held) >= LEASE_S


def test_nothing_is_noted_of_workers_that_are_back_at_once_or_hold_nothing(
    broker: WiredBroker,
) -> None:
    held = in_hand(broker, "w")["w"]
    idle = broker.worker("idle")
    broker.say(idle, m.Goodbye("done"))
    broker.restart()
    broker.pass_time(1)
    back = broker.worker("w", held=held)
    for _ in range(5):
        broker.pass_time(3)
        broker.say(back, beat(list(held), 0))
    broker.finish(back, held)
    broker.restart()
    broker.pass_time(12)
    assert not [fact for fact in broker.facts if isinstance(fact, WorkersMissed)]


def test_a_wait_is_noted_each_quarter_of_a_lease_and_no_longer_than_it_lasts(
    broker: WiredBroker,
) -> None:
    in_hand(broker, "w", "v")
    broker.restart()
    broker.pass_time(60)
    notes = [fact for fact in broker.facts if isinstance(fact, WorkersMissed)]
    assert len(notes) <= 1 / WAIT_STEP_LEASES + 1
    assert (notes[-1].worker_ids, notes[-1].waited_s) == ([], [])
    for number, note in enumerate(notes[:-1], 1):
        assert note.worker_ids == ["w", "v"]
        step_s = WAIT_STEP_LEASES * LEASE_S
        assert all(number * step_s <= each <= LEASE_S for each in note.waited_s)


def test_while_the_broker_stands_still_nobody_is_waited_for(broker: WiredBroker) -> None:
    """Also when a HELLO is the first thing that it hears after it."""
    held = in_hand(broker, "w", "v")
    broker.restart()
    broker.pass_time(3)
    broker.now += 60
    broker.say(Peer(b"back", "10.0.0.1"), hello("w", held=held["w"]))
    broker.restart()
    assert waits(broker, held["v"]) >= LEASE_S - 3 - SWEEP_S
