"""The whole brain: roles, restarts, and that memory, facts and disk agree."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from d8mesh.core.broker.dispatcher import PRUNE_S, SETTLE_S, STANDSTILL_S, SWEEP_S
from d8mesh.core.broker.effects import Fault, Load, Loaded, Peer, Send
from d8mesh.core.broker.state import MAX_LOADS_OF_CLIENT, Policy
from d8mesh.core.broker.store import Unreadable
from d8mesh.core.broker.task_table import TaskTable
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.task import Closed, Pruned, TaskState
from tests.core.invariants import check_table
from tests.core.plain_state import batches_of
from tests.core.wired_broker import S, WiredBroker, beat, hello


def picture(task_table: TaskTable) -> dict[str, object]:
    """Return all that a task table knows of unfinished tasks, in comparable form."""
    tasks: dict[str, object] = {}
    for batch in batches_of(task_table):
        for index in range(batch.count):
            task_id = batch.task_id(index)
            state = task_table.state_of(task_id)
            if state is not None:
                task = task_table.tasks.get(task_id)
                errors = task.history.errors if task and task.history else 0
                tasks[task_id] = (state, errors, batch.spec)
    return {
        "tasks": tasks,
        "totals": task_table.totals,
        "kept": task_table.kept_finished,
        "keys": task_table.keys,
    }


def test_verbs_of_the_other_role_are_forbidden(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    broker.say(client, beat([], 0))
    broker.say(worker, m.Watch([]))
    broker.say(client, hello("x"))
    broker.say(worker, m.ClientHello(1, "m", S, "pc"))
    for peer in (client, worker):
        refusals = broker.got(peer, m.Refused)
        assert [each.code for each in refusals] == ["access.forbidden"] * 2


def test_strangers_are_told_to_say_hello(broker: WiredBroker) -> None:
    stranger = Peer(b"x")
    for message in (beat([], 0), m.Watch([]), m.Results(1, 1, [], [], b"", [])):
        broker.say(stranger, message)
    assert len(broker.got(stranger, m.Rehello)) == 3


def test_a_standstill_of_the_broker_blames_nobody(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    broker.work(worker)
    broker.pass_time(60, step=60)
    assert STANDSTILL_S < 60
    assert broker.task_table.state_of(task_id) is TaskState.RUNNING
    assert S in broker.state.clients


def test_a_standstill_beyond_the_time_of_an_attempt_blames_nobody(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    ids = broker.submit(client, 2, max_attempts=1)
    held = broker.work(worker)
    offer = {"task_types": ["echo"]}
    broker.ask(client, "poll.register", worker_id="p", worker_type="t", capabilities=offer)
    assert broker.ask(client, "poll.next", worker_id="p", wait_s=0.0).body["task"]
    broker.pass_time(400, step=400)
    for _ in range(30):  # the polling worker is silent while it runs
        broker.say(worker, beat(list(held), 1))
        broker.pass_time(3)
    assert [broker.task_table.state_of(task_id) for task_id in ids] == [TaskState.RUNNING] * 2
    broker.finish(worker, held)
    assert broker.task_table.totals.completed == 1


def test_a_standstill_gives_no_attempt_more_than_its_whole_time(broker: WiredBroker) -> None:
    worker = broker.worker("w")
    (task_id,) = broker.submit(broker.client(), max_attempts=1)
    held = broker.work(worker)
    broker.now += 400
    broker.at += 400
    broker.say(worker, hello("w", held=held))
    for _ in range(100):
        broker.pass_time(3)
        broker.say(worker, beat([task_id], 0))
    assert broker.task_table.state_of(task_id) is TaskState.RUNNING
    for _ in range(12):
        broker.pass_time(3)
        broker.say(worker, beat([task_id], 0))
    assert broker.task_table.state_of(task_id) is None


def test_a_jump_of_the_wall_clock_changes_no_lease_and_no_deadline(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    running, waiting = broker.submit(client, 2, deadline_s=100.0)
    broker.work(worker)
    broker.at += 1_000_000
    broker.pass_time(5)
    broker.at -= 2_000_000
    broker.pass_time(4)
    assert broker.task_table.state_of(running) is TaskState.RUNNING
    assert broker.task_table.state_of(waiting) is TaskState.QUEUED


@pytest.mark.parametrize("jump_s", [1e6, -1e6])
def test_a_jump_of_the_wall_clock_changes_no_time_that_is_left_for_a_hand_out(
    broker: WiredBroker, jump_s: float
) -> None:
    broker.submit(broker.client(), deadline_s=100.0)
    broker.at += jump_s
    broker.pass_time(10)
    (work,) = broker.got(broker.worker("w"), m.Work)
    assert work.groups[0].timeout_s == pytest.approx(90.0)


def test_clocks_of_what_has_ended_are_forgotten(
    broker: WiredBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deadline may be years away, and its task done within a moment."""
    monkeypatch.setattr("d8mesh.core.broker.dispatcher.FEW_TIMERS", 10)
    client, worker = broker.client(), broker.worker("w", window=1)
    (late,) = broker.submit(client, 1, deadline_s=50.0)
    broker.finish(worker, broker.work(worker), m.FAILED, window=0)  # tried again after a pause
    (waiting,) = broker.submit(client, 1)
    later = broker.worker("later", window=1)
    (token,) = broker.work(later).values()
    failed = msgspec.msgpack.encode({"success": False, "error": "no", "retry_after_s": 30.0})
    broker.say(later, m.Results(1, 0, [waiting], [token], bytes([m.FAILED]), [failed]))
    for _ in range(100):
        (task_id,) = broker.submit(client, 1, deadline_s=1e9)
        assert broker.ask(client, "cancel", id=task_id).code == ""
    broker.pass_time(1.0)
    assert 1 <= len(broker.state.timers) <= 22
    broker.pass_time(60.0, step=1.0)
    asking = broker.client()
    assert broker.ask(asking, "status", id=late).body["state"] == "failed"
    assert list(broker.work(broker.worker("able", window=1))) == [waiting]  # its pause is over


def test_what_the_store_cannot_answer_is_told_to_who_asked(broker: WiredBroker) -> None:
    client = broker.client()
    broker.dispatcher.receive(m.Query(1, "status", {"id": f"{S}-5"}), client, broker.now)
    number = broker.state.next_load - 1
    effects = broker.dispatcher.loaded(Loaded(number, Unreadable("disk on fire")))
    broker.perform(effects)
    assert broker.got(client, m.Answer)[0].body["error"] == "disk on fire"
    assert broker.dispatcher.loaded(Loaded(number, None)) == []  # nobody asked


@pytest.mark.parametrize("others", [0, 1])
def test_what_one_client_asks_of_the_journal_is_bounded_and_what_all_do(
    broker: WiredBroker, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    monkeypatch.setattr("d8mesh.core.broker.state.MAX_LOADS", MAX_LOADS_OF_CLIENT + others)
    client, other, third = (broker.client(name * 16) for name in "abc")
    ask = m.Query(1, "status", {"id": f"{S}-5"})
    asked = [broker.dispatcher.receive(ask, client, 0.0) for _ in range(MAX_LOADS_OF_CLIENT + 1)]
    broker.dispatcher.receive(m.Watch([f"{S}-5"]), client, 0.0)  # it asks again later
    broker.perform(asked[-1])
    assert [answer.code for answer in broker.got(client, m.Answer)] == ["access.flood"]
    broker.perform(broker.dispatcher.receive(ask, other, 0.0))
    assert broker.got(other, m.Answer)[0].code == ("task.unknown" if others else "access.flood")
    broker.perform(asked[0])
    assert broker.got(client, m.Answer)[0].code == "task.unknown"
    assert broker.ask(third, "status", id=f"{S}-5").code == "task.unknown"
    assert broker.ask(client, "status", id=f"{S}-5").code == "task.unknown"
    assert broker.state.clients["a" * 16].loads == MAX_LOADS_OF_CLIENT - 1


@pytest.mark.parametrize("seed", range(12))
def test_memory_facts_and_disk_agree_whatever_happens(tmp_path: Path, seed: int) -> None:  # noqa: C901
    """A random history: after it the fold of the facts and the file tell the same."""
    rng = random.Random(seed)
    broker = WiredBroker(tmp_path, max_attempts=3)
    broker.draw = rng.random
    client = broker.client()
    workers = {name: broker.worker(name, slots=3) for name in "abc"}
    held: dict[str, dict[str, bytes]] = {name: {} for name in workers}
    submitted: list[str] = []

    def step() -> None:
        name = rng.choice(sorted(workers))
        worker = workers[name]
        held[name] |= broker.work(worker)
        chosen = dict(list(held[name].items())[: rng.randint(0, 3)])
        match rng.randint(0, 9):
            case 0 | 1:
                later = broker.at + 3 if rng.random() < 0.2 else None
                submitted.extend(
                    broker.submit(
                        client, rng.randint(1, 6), priority=rng.randint(1, 10), run_at=later
                    )
                )
            case 2 | 3 | 4:
                kind = rng.choice((m.SUCCEEDED, m.SUCCEEDED, m.FAILED, m.REFUSED))
                broker.finish(worker, chosen, kind)
                for task_id in chosen:
                    held[name].pop(task_id)
            case 5:
                broker.say(worker, m.Release(3, list(chosen), list(chosen.values())))
                for task_id in chosen:
                    held[name].pop(task_id)
            case 6:
                broker.pass_time(rng.choice((0.5, 2.0)))
                for each, peer in workers.items():
                    held[each] |= broker.work(peer)
                    broker.say(peer, beat(list(held[each]), 10**6, window=3))
                broker.say(client, m.Watch([]))
            case 7 if submitted:
                broker.ask(client, "cancel", id=rng.choice(submitted))
            case 8:
                broker.say(worker, m.Goodbye("x"))
                workers[name] = broker.worker(name, slots=3, boot=f"b{broker.seq}")
                held[name] = {}
            case _:
                broker.finish(worker, {task_id: bytes(16) for task_id in submitted[-1:]})

    for _ in range(120):
        step()
    fold = TaskTable()
    for fact in broker.facts:
        fold.apply(fact)
    check_table(fold)
    before = picture(broker.task_table)
    assert picture(fold) == before
    broker.restart()
    after = picture(broker.task_table)
    tasks = {key: value[2] for key, value in before["tasks"].items()}  # type: ignore[attr-defined]
    assert {key: value[2] for key, value in after["tasks"].items()} == tasks  # type: ignore[attr-defined]
    assert (after["totals"], after["kept"]) == (before["totals"], before["kept"])
    finish_everything(broker, submitted)
    broker.close()


def finish_everything(broker: WiredBroker, submitted: list[str]) -> None:
    """In a kind world every accepted task ends in exactly one outcome."""
    worker = broker.worker("z", slots=500)
    for _ in range(80):
        broker.pass_time(1)
        broker.finish(worker, broker.work(worker))
        broker.say(worker, beat([], 10**6, window=500))
    client = broker.client()
    broker.say(client, m.Watch(submitted))
    states = {
        task_id: state
        for outcomes in broker.got(client, m.Outcomes)
        for task_id, state in zip(outcomes.ids, outcomes.states, strict=True)
    }
    assert sorted(states) == sorted(submitted)
    assert set(states.values()) <= {1, 2, 3}
    totals = broker.task_table.totals
    assert totals.completed + totals.failed + totals.cancelled == len(submitted)
    assert (
        broker.task_table.queued
        == broker.task_table.running
        == broker.task_table.unfinished_bytes
        == 0
    )


def test_what_could_not_be_sent_and_is_finished_already_needs_nothing(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    broker.submit(client)
    (work,) = broker.got(worker, m.Work)
    broker.finish(worker, dict(zip(work.groups[0].ids, work.groups[0].tokens, strict=True)))
    assert broker.dispatcher.undelivered(worker, work) == []


def test_a_drain_says_goodbye_to_who_is_there(broker: WiredBroker) -> None:
    client, gone, there = broker.client(), broker.worker("gone"), broker.worker("there")
    broker.ask(client, "poll.register", worker_id="p", worker_type="t", capabilities={})
    broker.say(gone, m.Goodbye("x"))
    broker.perform(broker.dispatcher.drain())
    assert [len(broker.got(peer, m.Goodbye)) for peer in (client, there, gone)] == [1, 1, 0]


def finish_many(broker: WiredBroker, count: int) -> None:
    client, worker = broker.client(), broker.worker("w", slots=count)
    for _ in range(count):
        broker.submit(client)
    broker.finish(worker, broker.work(worker))


def test_pruning_goes_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("d8mesh.core.broker.dispatcher.PRUNE_BATCHES", 2)
    broker = WiredBroker(tmp_path, retention_count=1)
    finish_many(broker, 6)
    broker.pass_time(PRUNE_S + 4 * SWEEP_S)
    assert [len(fact.batches) for fact in broker.facts if isinstance(fact, Pruned)] == [2, 2, 1]
    assert broker.task_table.kept_finished == 1
    broker.close()


def closed(broker: WiredBroker) -> list[int]:
    return [len(fact.batches) for fact in broker.facts if isinstance(fact, Closed)]


def test_finished_batches_are_closed_many_at_once_or_after_a_while(
    broker: WiredBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_many(broker, 3)
    assert closed(broker) == []
    broker.pass_time(SETTLE_S + SWEEP_S)
    assert closed(broker) == [3]
    monkeypatch.setattr("d8mesh.core.broker.dispatcher.CLOSED_AT_ONCE", 2)
    finish_many(broker, 2)
    assert closed(broker) == [3, 2]


def test_batches_that_a_crash_left_unclosed_are_closed_after_the_restart(
    broker: WiredBroker,
) -> None:
    finish_many(broker, 3)
    broker.submit(broker.client(), kind="unknown")
    broker.restart()
    assert closed(broker) == []
    assert broker.task_table.queued == 1
    broker.pass_time(SETTLE_S + SWEEP_S)
    assert closed(broker) == [3]


def test_nothing_is_pruned_twice_when_the_journal_answers_late(tmp_path: Path) -> None:
    broker = WiredBroker(tmp_path, retention_count=1)
    finish_many(broker, 3)
    loads: list[Load] = []
    for _ in range(3):
        broker.now += PRUNE_S
        effects = broker.dispatcher.tick(broker.now, broker.at)
        loads += [effect for effect in effects if isinstance(effect, Load)]
        broker.perform([effect for effect in effects if not isinstance(effect, Load)])
    assert len(loads) == 1
    answer = broker.journal.ask(loads[0].question)
    broker.perform(broker.dispatcher.loaded(Loaded(loads[0].number, answer)))
    broker.pass_time(2 * PRUNE_S)
    assert broker.task_table.kept_finished == 1
    broker.close()


LEASE_S = Policy(broker_id="o", mesh="m").lease_s


@pytest.mark.parametrize("what", ["workers", "status"])
def test_a_fault_of_ours_is_logged_and_told_as_no_fault_of_the_caller(
    broker: WiredBroker, what: str
) -> None:
    client = broker.client()
    (task_id,) = broker.submit(client)
    del broker.state.registry.serving  # a bug: whoever looks there fails
    broker.state.registry.workers["w"] = None  # type: ignore[assignment]
    effects = broker.dispatcher.receive(m.Query(7, what, {"id": task_id}), client, broker.now)
    (answer,) = [each.message for each in effects if isinstance(each, Send)]
    (fault,) = [each for each in effects if isinstance(each, Fault)]
    assert isinstance(answer, m.Answer)
    assert answer.code == "d8.error"
    assert "AttributeError" not in str(answer.body)
    assert fault.where == what
    assert "AttributeError" in fault.traceback


def test_who_left_while_the_store_was_asked_gets_no_further_answer(broker: WiredBroker) -> None:
    client = broker.client()
    broker.dispatcher.receive(m.Query(1, "status", {"id": f"{S}-5", "full": True}), client, 0.0)
    number = broker.state.next_load - 1
    broker.dispatcher.receive(m.Goodbye(""), client, broker.now)
    assert broker.dispatcher.loaded(Loaded(number, None)) == []
