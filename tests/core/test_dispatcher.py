"""The whole brain: roles, restarts, and that memory, facts and disk agree."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from d8mesh.core import messages as m
from d8mesh.core.dispatcher import (
    MIN_GRACE_S,
    PRUNE_S,
    SETTLE_S,
    STANDSTILL_S,
    SWEEP_S,
    WAIT_STEP_LEASES,
    Dispatcher,
)
from d8mesh.core.effects import Load, Loaded, Peer
from d8mesh.core.ledger import Ledger
from d8mesh.core.pool import MAX_LOADS_OF_CLIENT, Policy
from d8mesh.core.records import History
from d8mesh.core.restored import Restored
from d8mesh.core.task import Closed, Missed, Pruned, TaskState
from tests.core.desktop import Desktop, S, beat, hello


def picture(ledger: Ledger) -> dict[str, object]:
    """Return all that a ledger knows of unfinished tasks, in comparable form."""
    tasks: dict[str, object] = {}
    for batch in ledger.batches():
        for index in range(batch.count):
            task_id = batch.task_id(index)
            state = ledger.state_of(task_id)
            if state is not None:
                task = ledger.tasks.get(task_id)
                errors = task.history.errors if task and task.history else 0
                tasks[task_id] = (state, errors, batch.spec)
    return {
        "tasks": tasks,
        "totals": ledger.totals,
        "kept": ledger.kept_finished,
        "keys": ledger.keys,
    }


def test_verbs_of_the_other_role_are_forbidden(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    desk.say(client, beat([], 0))
    desk.say(worker, m.Watch([]))
    desk.say(client, hello("x"))
    desk.say(worker, m.ClientHello(1, "m", S, "pc"))
    for peer in (client, worker):
        refusals = desk.got(peer, m.Refused)
        assert [each.code for each in refusals] == ["access.forbidden"] * 2


def test_strangers_are_told_to_say_hello(desk: Desktop) -> None:
    stranger = Peer(b"x")
    for message in (beat([], 0), m.Watch([]), m.Results(1, 1, [], [], b"", [])):
        desk.say(stranger, message)
    assert len(desk.got(stranger, m.Rehello)) == 3


def test_a_standstill_of_the_broker_blames_nobody(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client)
    desk.work(worker)
    desk.pass_time(60, step=60)
    assert STANDSTILL_S < 60
    assert desk.ledger.state_of(task_id) is TaskState.RUNNING
    assert S in desk.pool.clients


def test_a_standstill_beyond_the_time_of_an_attempt_blames_nobody(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    ids = desk.submit(client, 2, max_attempts=1)
    held = desk.work(worker)
    offer = {"task_types": ["echo"]}
    desk.ask(client, "poll.register", worker_id="p", worker_type="t", capabilities=offer)
    assert desk.ask(client, "poll.next", worker_id="p", wait_s=0.0).body["task"]
    desk.pass_time(400, step=400)
    for _ in range(30):  # the polling worker is silent while it runs
        desk.say(worker, beat(list(held), 1))
        desk.pass_time(3)
    assert [desk.ledger.state_of(task_id) for task_id in ids] == [TaskState.RUNNING] * 2
    desk.finish(worker, held)
    assert desk.ledger.totals.completed == 1


def test_a_standstill_gives_no_attempt_more_than_its_whole_time(desk: Desktop) -> None:
    worker = desk.worker("w")
    (task_id,) = desk.submit(desk.client(), max_attempts=1)
    held = desk.work(worker)
    desk.now += 400
    desk.at += 400
    desk.say(worker, hello("w", held=held))
    for _ in range(100):
        desk.pass_time(3)
        desk.say(worker, beat([task_id], 0))
    assert desk.ledger.state_of(task_id) is TaskState.RUNNING
    for _ in range(12):
        desk.pass_time(3)
        desk.say(worker, beat([task_id], 0))
    assert desk.ledger.state_of(task_id) is None


def test_a_jump_of_the_wall_clock_changes_no_lease_and_no_deadline(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    running, waiting = desk.submit(client, 2, deadline_s=100.0)
    desk.work(worker)
    desk.at += 1_000_000
    desk.pass_time(5)
    desk.at -= 2_000_000
    desk.pass_time(4)
    assert desk.ledger.state_of(running) is TaskState.RUNNING
    assert desk.ledger.state_of(waiting) is TaskState.QUEUED


@pytest.mark.parametrize("jump_s", [1e6, -1e6])
def test_a_jump_of_the_wall_clock_changes_no_time_that_is_left_for_a_hand_out(
    desk: Desktop, jump_s: float
) -> None:
    desk.submit(desk.client(), deadline_s=100.0)
    desk.at += jump_s
    desk.pass_time(10)
    (work,) = desk.got(desk.worker("w"), m.Work)
    assert work.groups[0].timeout_s == pytest.approx(90.0)


def test_questions_to_the_journal_are_bounded_and_failures_told(desk: Desktop) -> None:
    client = desk.client()
    desk.dispatcher.receive(m.Ask(1, "status", {"id": f"{S}-5"}), client, desk.now)
    number = desk.pool._next_load - 1
    effects = desk.dispatcher.loaded(Loaded(number, [], "disk on fire"))
    desk.perform(effects)
    assert desk.got(client, m.Answer)[0].body["error"] == "disk on fire"
    assert desk.dispatcher.loaded(Loaded(number, [], "")) == []  # nobody asked


@pytest.mark.parametrize("others", [0, 1])
def test_what_one_client_asks_of_the_journal_is_bounded_and_what_all_do(
    desk: Desktop, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    monkeypatch.setattr("d8mesh.core.pool.MAX_LOADS", MAX_LOADS_OF_CLIENT + others)
    client, other, third = (desk.client(name * 16) for name in "abc")
    ask = m.Ask(1, "status", {"id": f"{S}-5"})
    asked = [desk.dispatcher.receive(ask, client, 0.0) for _ in range(MAX_LOADS_OF_CLIENT + 1)]
    desk.dispatcher.receive(m.Watch([f"{S}-5"]), client, 0.0)  # it asks again later
    desk.perform(asked[-1])
    assert [answer.code for answer in desk.got(client, m.Answer)] == ["access.flood"]
    desk.perform(desk.dispatcher.receive(ask, other, 0.0))
    assert desk.got(other, m.Answer)[0].code == ("task.unknown" if others else "access.flood")
    desk.perform(asked[0])
    assert desk.got(client, m.Answer)[0].code == "task.unknown"
    assert desk.ask(third, "status", id=f"{S}-5").code == "task.unknown"
    assert desk.ask(client, "status", id=f"{S}-5").code == "task.unknown"
    assert desk.pool.clients["a" * 16].loads == MAX_LOADS_OF_CLIENT - 1


@pytest.mark.parametrize("seed", range(12))
def test_memory_facts_and_disk_agree_whatever_happens(tmp_path: Path, seed: int) -> None:  # noqa: C901
    """A random history: after it the fold of the facts and the file tell the same."""
    rng = random.Random(seed)
    desk = Desktop(tmp_path, max_attempts=3)
    desk.draw = rng.random
    client = desk.client()
    workers = {name: desk.worker(name, slots=3) for name in "abc"}
    held: dict[str, dict[str, bytes]] = {name: {} for name in workers}
    submitted: list[str] = []

    def step() -> None:
        name = rng.choice(sorted(workers))
        worker = workers[name]
        held[name] |= desk.work(worker)
        chosen = dict(list(held[name].items())[: rng.randint(0, 3)])
        match rng.randint(0, 9):
            case 0 | 1:
                later = desk.at + 3 if rng.random() < 0.2 else None
                submitted.extend(
                    desk.submit(
                        client, rng.randint(1, 6), priority=rng.randint(1, 10), run_at=later
                    )
                )
            case 2 | 3 | 4:
                kind = rng.choice((m.SUCCEEDED, m.SUCCEEDED, m.FAILED, m.REFUSED))
                desk.finish(worker, chosen, kind)
                for task_id in chosen:
                    held[name].pop(task_id)
            case 5:
                desk.say(worker, m.Release(3, list(chosen), list(chosen.values())))
                for task_id in chosen:
                    held[name].pop(task_id)
            case 6:
                desk.pass_time(rng.choice((0.5, 2.0)))
                for each, peer in workers.items():
                    held[each] |= desk.work(peer)
                    desk.say(peer, beat(list(held[each]), 10**6, window=3))
                desk.say(client, m.Watch([]))
            case 7 if submitted:
                desk.ask(client, "cancel", id=rng.choice(submitted))
            case 8:
                desk.say(worker, m.Goodbye("x"))
                workers[name] = desk.worker(name, slots=3, boot=f"b{desk.seq}")
                held[name] = {}
            case _:
                desk.finish(worker, {task_id: bytes(16) for task_id in submitted[-1:]})

    for _ in range(120):
        step()
    fold = Ledger()
    for fact in desk.facts:
        fold.apply(fact)
    fold.check()
    before = picture(desk.ledger)
    assert picture(fold) == before
    desk.restart()
    after = picture(desk.ledger)
    tasks = {key: value[2] for key, value in before["tasks"].items()}  # type: ignore[attr-defined]
    assert {key: value[2] for key, value in after["tasks"].items()} == tasks  # type: ignore[attr-defined]
    assert (after["totals"], after["kept"]) == (before["totals"], before["kept"])
    finish_everything(desk, submitted)
    desk.close()


def finish_everything(desk: Desktop, submitted: list[str]) -> None:
    """In a kind world every accepted task ends in exactly one outcome."""
    worker = desk.worker("z", slots=500)
    for _ in range(80):
        desk.pass_time(1)
        desk.finish(worker, desk.work(worker))
        desk.say(worker, beat([], 10**6, window=500))
    client = desk.client()
    desk.say(client, m.Watch(submitted))
    states = {
        task_id: state
        for outcomes in desk.got(client, m.Outcomes)
        for task_id, state in zip(outcomes.ids, outcomes.states, strict=True)
    }
    assert sorted(states) == sorted(submitted)
    assert set(states.values()) <= {1, 2, 3}
    totals = desk.ledger.totals
    assert totals.completed + totals.failed + totals.cancelled == len(submitted)
    assert desk.ledger.queued == desk.ledger.running == desk.ledger.unfinished_bytes == 0


def test_what_could_not_be_sent_and_is_finished_already_needs_nothing(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    desk.submit(client)
    (work,) = desk.got(worker, m.Work)
    desk.finish(worker, dict(zip(work.groups[0].ids, work.groups[0].tokens, strict=True)))
    assert desk.dispatcher.undelivered(worker, work) == []


def test_a_drain_says_goodbye_to_who_is_there(desk: Desktop) -> None:
    client, gone, there = desk.client(), desk.worker("gone"), desk.worker("there")
    desk.ask(client, "poll.register", worker_id="p", worker_type="t", capabilities={})
    desk.say(gone, m.Goodbye("x"))
    desk.perform(desk.dispatcher.drain())
    assert [len(desk.got(peer, m.Goodbye)) for peer in (client, there, gone)] == [1, 1, 0]


def finish_many(desk: Desktop, count: int) -> None:
    client, worker = desk.client(), desk.worker("w", slots=count)
    for _ in range(count):
        desk.submit(client)
    desk.finish(worker, desk.work(worker))


def test_pruning_goes_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("d8mesh.core.dispatcher.PRUNE_BATCHES", 2)
    desk = Desktop(tmp_path, retention_count=1)
    finish_many(desk, 6)
    desk.pass_time(PRUNE_S + 4 * SWEEP_S)
    assert [len(fact.batches) for fact in desk.facts if isinstance(fact, Pruned)] == [2, 2, 1]
    assert desk.ledger.kept_finished == 1
    desk.close()


def closed(desk: Desktop) -> list[int]:
    return [len(fact.batches) for fact in desk.facts if isinstance(fact, Closed)]


def test_finished_batches_are_closed_many_at_once_or_after_a_while(
    desk: Desktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_many(desk, 3)
    assert closed(desk) == []
    desk.pass_time(SETTLE_S + SWEEP_S)
    assert closed(desk) == [3]
    monkeypatch.setattr("d8mesh.core.dispatcher.CLOSED_AT_ONCE", 2)
    finish_many(desk, 2)
    assert closed(desk) == [3, 2]


def test_batches_that_a_crash_left_unclosed_are_closed_after_the_restart(desk: Desktop) -> None:
    finish_many(desk, 3)
    desk.submit(desk.client(), kind="unknown")
    desk.restart()
    assert closed(desk) == []
    assert desk.ledger.queued == 1
    desk.pass_time(SETTLE_S + SWEEP_S)
    assert closed(desk) == [3]


def test_nothing_is_pruned_twice_when_the_journal_answers_late(tmp_path: Path) -> None:
    desk = Desktop(tmp_path, retention_count=1)
    finish_many(desk, 3)
    loads: list[Load] = []
    for _ in range(3):
        desk.now += PRUNE_S
        effects = desk.dispatcher.tick(desk.now, desk.at)
        loads += [effect for effect in effects if isinstance(effect, Load)]
        desk.perform([effect for effect in effects if not isinstance(effect, Load)])
    assert len(loads) == 1
    rows = desk.reader.query(loads[0].what, loads[0].args)
    desk.perform(desk.dispatcher.loaded(Loaded(loads[0].number, rows)))
    desk.pass_time(2 * PRUNE_S)
    assert desk.ledger.kept_finished == 1
    desk.close()


def test_what_went_wrong_with_finished_tasks_is_no_concern_of_a_start() -> None:
    restored = Restored(1, bytes(32), troubled={f"{S}-0": (1, History(1))})
    restored.in_flight[f"{S}-1"] = (1, "w")
    dispatcher = Dispatcher(Policy(broker_id="o", mesh="m"), restored, lambda: 0.5)
    dispatcher.check()
    assert not dispatcher.pool.ledger.tasks


def test_sessions_whose_tasks_are_forgotten_count_among_those_that_the_journal_names() -> None:
    restored = Restored(1, bytes(32), sessions=5, accepted={S: [(0, 2), (7, 1)]})
    dispatcher = Dispatcher(Policy(broker_id="o", mesh="m"), restored, lambda: 0.5)
    assert dispatcher.pool.ledger.forgotten_sessions == 4


LEASE_S = Policy(broker_id="o", mesh="m").lease_s


def in_hand(desk: Desktop, *names: str) -> dict[str, dict[str, bytes]]:
    """Have each of these workers hold one task, known on disk; return worker -> what it holds."""
    client, held = desk.client(), dict[str, dict[str, bytes]]()
    for name in names:
        worker = desk.worker(name)
        desk.submit(client)
        held[name] = desk.work(worker)
        assert held[name]
    return held


def waits(desk: Desktop, task: dict[str, bytes], most_s: float = 30.0) -> float:
    """Return how long it takes until the task of a worker that is away waits again."""
    (task_id,), start = task, desk.now
    while desk.ledger.state_of(task_id) is TaskState.RUNNING:
        assert desk.now - start < most_s
        desk.pass_time(0.1, step=0.1)
    return desk.now - start


@pytest.mark.parametrize("lives", [(9.0,), (4.0, 4.0), (2.6, 2.6, 2.6), (1.0, 8.0, 2.0)])
def test_the_wait_for_a_worker_that_is_away_goes_on_after_a_restart(
    desk: Desktop, lives: tuple[float, ...]
) -> None:
    """A step of each life may be missing in what is noted."""
    task = in_hand(desk, "w")["w"]
    for life_s in lives:
        desk.restart()
        desk.pass_time(life_s)
        assert desk.ledger.state_of(*task) is TaskState.RUNNING
    desk.restart()
    lost_s = len(lives) * (WAIT_STEP_LEASES * LEASE_S + SWEEP_S)
    total_s = sum(lives) + waits(desk, task)
    assert LEASE_S <= total_s <= LEASE_S + max(lost_s, MIN_GRACE_S) + 2 * SWEEP_S
    assert total_s < LEASE_S + sum(lives)  # not a whole lease after the last start
    assert desk.ledger.tasks[next(iter(task))].remember().errors == 0


def test_a_broker_that_dies_again_and_again_gives_a_dead_worker_up(desk: Desktop) -> None:
    (task_id,) = in_hand(desk, "w")["w"]
    lives = 0
    while desk.ledger.state_of(task_id) is TaskState.RUNNING:
        desk.restart()
        desk.pass_time(MIN_GRACE_S + 2 * SWEEP_S)
        lives += 1
        assert lives <= 4
    assert list(desk.work(desk.worker("v"))) == [task_id]


def test_however_long_a_worker_was_waited_for_it_may_come_back_after_a_start(
    desk: Desktop,
) -> None:
    task = in_hand(desk, "w")["w"]
    desk.restart()
    desk.pass_time(LEASE_S - 0.1)
    desk.restart()
    desk.pass_time(MIN_GRACE_S - 0.1)
    assert desk.ledger.state_of(*task) is TaskState.RUNNING
    back = desk.worker("w", held=task)
    assert desk.got(back, m.Welcome)[0].dropped_ids == []
    desk.pass_time(SWEEP_S)
    assert desk.ledger.state_of(*task) is TaskState.RUNNING


def test_a_worker_that_was_back_has_its_whole_grace_after_the_next_start(desk: Desktop) -> None:
    """Also if the broker dies with the HELLO; who was not back has been waited for."""
    held = in_hand(desk, "w", "v")
    desk.restart()
    desk.pass_time(6)
    desk.worker("w", held=held["w"])
    desk.restart()
    start = desk.now
    assert waits(desk, held["v"]) < LEASE_S - 6 + WAIT_STEP_LEASES * LEASE_S
    assert desk.ledger.state_of(*held["w"]) is TaskState.RUNNING
    assert waits(desk, held["w"]) >= LEASE_S - (desk.now - start)


def test_after_it_was_given_up_the_wait_for_a_worker_begins_anew(desk: Desktop) -> None:
    held = in_hand(desk, "w")["w"]
    desk.restart()
    assert waits(desk, held) >= LEASE_S
    held = desk.work(desk.worker("w", boot="b2"))
    desk.restart()
    assert waits(desk, held) >= LEASE_S


def test_a_start_at_which_nothing_is_in_hand_forgets_who_was_waited_for(desk: Desktop) -> None:
    (task_id,) = in_hand(desk, "w")["w"]
    desk.restart()
    desk.pass_time(8)
    assert desk.ask(desk.client(), "cancel", id=task_id).code == ""
    desk.restart()
    worker = desk.worker("w", boot="b2")  # before the first sweep: in one wake-up with it
    desk.submit(desk.client())
    held = desk.work(worker)
    desk.restart()
    assert waits(desk, held) >= LEASE_S


def test_nothing_is_noted_of_workers_that_are_back_at_once_or_hold_nothing(desk: Desktop) -> None:
    held = in_hand(desk, "w")["w"]
    idle = desk.worker("idle")
    desk.say(idle, m.Goodbye("done"))
    desk.restart()
    desk.pass_time(1)
    back = desk.worker("w", held=held)
    for _ in range(5):
        desk.pass_time(3)
        desk.say(back, beat(list(held), 0))
    desk.finish(back, held)
    desk.restart()
    desk.pass_time(12)
    assert not [fact for fact in desk.facts if isinstance(fact, Missed)]


def test_a_wait_is_noted_each_quarter_of_a_lease_and_no_longer_than_it_lasts(desk: Desktop) -> None:
    in_hand(desk, "w", "v")
    desk.restart()
    desk.pass_time(60)
    notes = [fact for fact in desk.facts if isinstance(fact, Missed)]
    assert len(notes) <= 1 / WAIT_STEP_LEASES + 1
    assert (notes[-1].worker_ids, notes[-1].waited_s) == ([], [])
    for number, note in enumerate(notes[:-1], 1):
        assert note.worker_ids == ["w", "v"]
        step_s = WAIT_STEP_LEASES * LEASE_S
        assert all(number * step_s <= each <= LEASE_S for each in note.waited_s)


def test_while_the_broker_stands_still_nobody_is_waited_for(desk: Desktop) -> None:
    """Also when a HELLO is the first thing that it hears after it."""
    held = in_hand(desk, "w", "v")
    desk.restart()
    desk.pass_time(3)
    desk.now += 60
    desk.say(Peer(b"back", "10.0.0.1"), hello("w", held=held["w"]))
    desk.restart()
    assert waits(desk, held["v"]) >= LEASE_S - 3 - SWEEP_S
