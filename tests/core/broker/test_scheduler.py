"""Assignments, retries and deadlines."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from d8mesh.core.broker.effects import Load, Loaded, Peer
from d8mesh.core.broker.outcomes import MAX_REASON_CHARS
from d8mesh.core.broker.returns import MAX_RETRY_PAUSE_S, MAX_WISHED_PAUSE_S
from d8mesh.core.broker.scheduler import READ_PAUSE_S, READ_TRIES
from d8mesh.core.broker.state import MAX_LOADS, MAX_LOADS_OF_CLIENT
from d8mesh.core.broker.store import BatchPayloads, PayloadsOf, Question, StoreAnswer, Unreadable
from d8mesh.core.broker.task_table import TaskTable
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.task import Requeued, TaskState
from tests.core.plain_state import batches_of
from tests.core.wired_broker import START_AT, S, WiredBroker, beat, hello


def test_high_priorities_go_first_and_every_16th_to_the_oldest_below(broker: WiredBroker) -> None:
    client = broker.client()
    low = broker.submit(client, 3, priority=1)
    middle = broker.submit(client, 3, priority=5)
    high = broker.submit(client, 40, priority=9)
    worker = broker.worker("w", slots=100)
    order = list(broker.work(worker))
    assert order[:15] == high[:15]
    assert order[15] == low[0]
    assert order[16:31] == high[15:30]
    assert order[31] == low[1]
    assert sorted(order) == sorted(low + middle + high)


def test_cancelled_tasks_do_not_stay_where_they_waited(broker: WiredBroker) -> None:
    client = broker.client()
    for task_id in broker.submit(client, 3):
        broker.ask(client, "cancel", id=task_id)
    broker.pass_time(1)
    assert not broker.dispatcher.state.queue.lanes
    worker = broker.worker("w")
    assert list(broker.work(worker)) == []
    later = broker.submit(client, 1)
    assert list(broker.work(worker)) == later


def test_free_workers_share_evenly(broker: WiredBroker) -> None:
    client = broker.client()
    one, two = broker.worker("a", slots=50), broker.worker("b", slots=50)
    broker.submit(client, 60)
    assert (len(broker.work(one)), len(broker.work(two))) == (30, 30)


def test_a_window_is_never_exceeded(broker: WiredBroker) -> None:
    client = broker.client()
    worker = broker.worker("w", slots=2)
    broker.submit(client, 9)
    held = broker.work(worker)
    assert len(held) == 2
    broker.seq += 1
    ids = list(held)
    broker.say(worker, m.Results(broker.seq, 0, ids, list(held.values()), b"\1\1", [b"\x80"] * 2))
    assert broker.work(worker) == {}  # window 0: nothing more
    broker.say(worker, beat([], 9, window=2))
    assert len(broker.work(worker)) == 2


def test_a_failure_is_retried_after_a_pause_on_a_worker_that_has_not_failed_it(
    broker: WiredBroker,
) -> None:
    client = broker.client()
    bad, good = broker.worker("bad"), broker.worker("good", window=0)
    (task_id,) = broker.submit(client)
    broker.finish(bad, broker.work(bad), m.FAILED)
    assert broker.task_table.state_of(task_id) is TaskState.DELAYED
    reason = str(broker.ask(client, "status", id=task_id).body["reason"])
    assert "broken" in reason
    broker.pass_time(1)
    assert broker.work(bad) == {}  # `good` lives, so it waits for it
    broker.say(good, beat([], 0))
    assert list(broker.work(good)) == [task_id]


def test_the_only_worker_retries_its_own_failure(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    broker.finish(worker, broker.work(worker), m.FAILED)
    broker.pass_time(1)
    broker.say(worker, beat([], 1))
    assert list(broker.work(worker)) == [task_id]


def test_attempts_are_counted_and_the_last_error_is_the_result(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    for _ in range(3):
        broker.finish(worker, broker.work(worker), m.FAILED)
        broker.pass_time(3)
        broker.say(worker, beat([], 0))
    body = broker.ask(client, "status", id=task_id).body
    assert (body["state"], body["attempts"], body["reason"]) == ("failed", 3, "broken")
    history = body["history"]
    assert isinstance(history, list)
    assert [each["error"] for each in history] == ["broken"] * 3
    (outcome,) = broker.got(client, m.Outcomes)
    assert outcome.states == bytes([m.FAILED_STATE])


def test_a_failure_that_no_retry_mends_is_final_at_once(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    broker.finish(worker, broker.work(worker), m.REFUSED)
    assert broker.ask(client, "status", id=task_id).body["state"] == "failed"


def test_pauses_grow_and_are_capped(tmp_path: Path) -> None:
    broker = WiredBroker(tmp_path, max_attempts=99)
    broker.draw = lambda: 1.0
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    pauses = []
    for _ in range(10):
        broker.finish(worker, broker.work(worker), m.FAILED)
        history = broker.task_table.tasks[task_id].history
        assert history is not None
        pauses.append(history.not_before_at - broker.at)
        while broker.task_table.tasks[task_id].state is TaskState.DELAYED:
            broker.pass_time(0.5)
            broker.say(worker, beat([], 99))
    assert pauses[:4] == [pytest.approx(p) for p in (0.5, 1.0, 2.0, 4.0)]
    assert max(pauses) == pytest.approx(MAX_RETRY_PAUSE_S)
    broker.close()


@pytest.mark.parametrize(
    ("wished", "pause_s"),
    [(40, 40.0), (1e12, MAX_WISHED_PAUSE_S), (-1, 0.25), (True, 0.25), ("x", 0.25)],
)
def test_a_failed_attempt_may_wish_for_a_pause_within_bounds(
    broker: WiredBroker, wished: object, pause_s: float
) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client, max_attempts=2)
    told: Any = {"success": False, "error": "x", "retry_after_s": wished, "traceback": "at line 1"}
    payload = msgspec.msgpack.encode(told)
    held = broker.work(worker)
    broker.say(
        worker, m.Results(1, 1, list(held), list(held.values()), bytes([m.FAILED]), [payload])
    )
    (fact,) = [each for each in broker.facts if isinstance(each, Requeued)]
    assert fact.not_before_at - fact.at == pytest.approx(pause_s)
    broker.say(worker, beat([], 10**6))
    full = broker.ask(client, "status", id=task_id, full=True).body
    assert full["data"] == b"\x80"
    assert full["history"] == [
        {
            "attempt": 1, "worker_id": "w", "at": START_AT, "is_counted": True, "error": "x",
            "pause_s": pytest.approx(pause_s, abs=0.01), "traceback": "at line 1",
        }
    ]  # fmt: skip
    broker.restart()  # the pause is kept
    client, worker = broker.client(), broker.worker("w")
    assert broker.work(worker) == {}
    if pause_s > 60:
        return
    while not (held := broker.work(worker)):
        broker.say(worker, beat([], 0))
        broker.say(client, m.Watch([]))
        broker.pass_time(1)
    broker.say(
        worker, m.Results(2, 1, list(held), list(held.values()), bytes([m.FAILED]), [payload])
    )
    full = dict(broker.ask(client, "status", id=task_id, full=True).body)
    told = full["history"]
    assert (full["state"], full["data"], len(told)) == ("failed", b"\x80", 2)
    stored: Any = full["result"]
    recorded = msgspec.msgpack.decode(stored)
    assert recorded == {"success": False, "error": "x", "traceback": "at line 1"}


def test_retries_survive_a_restart_with_their_count(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    broker.finish(worker, broker.work(worker), m.FAILED)
    broker.restart()
    task = broker.task_table.tasks[task_id]
    assert task.history is not None
    assert (task.n, task.history.errors, task.history.failed_on) == (1, 1, {"w": 1})
    worker = broker.worker("w")
    assert broker.work(worker) == {}  # its pause goes on
    broker.pass_time(1.0)
    assert list(broker.work(worker)) == [task_id]


def test_a_deadline_fails_what_is_not_finished_and_stops_what_runs(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    ids = broker.submit(client, 2, deadline_s=5.0)
    assert list(broker.work(worker)) == ids[:1]
    broker.pass_time(6)
    assert broker.got(worker, m.Stop)[0].ids == ids[:1]
    for task_id in ids:
        body = broker.ask(client, "status", id=task_id).body
        assert (body["state"], body["reason"]) == ("failed", "deadline exceeded")


def test_a_deadline_bounds_the_attempt(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    broker.submit(client, deadline_s=5.0)
    assert broker.got(worker, m.Work)[0].groups[0].timeout_s == pytest.approx(5.0)


def test_a_worker_that_fails_again_and_again_gets_fewer(tmp_path: Path) -> None:
    broker = WiredBroker(tmp_path, max_attempts=1)
    client, worker = broker.client(), broker.worker("w", slots=8)
    broker.submit(client, 40)
    for _ in range(2):
        broker.finish(worker, broker.work(worker), m.FAILED)
        broker.say(worker, beat([], 99, window=8))
    assert len(broker.work(worker)) < 8
    broker.close()


def test_payloads_on_disk_are_paged_in_when_their_turn_comes(broker: WiredBroker) -> None:
    broker.task_table._payload_memory_bytes = 250
    client = broker.client()
    payloads = [bytes([0xDA, 0, 97]) + b"x" * 97 for _ in range(6)]
    ids = [broker.submit(client, payloads=[payload])[0] for payload in payloads]
    on_disk = [batch for batch in batches_of(broker.task_table) if batch.payloads is None]
    assert len(on_disk) == 4
    worker = broker.worker("w", slots=6)
    got = {
        task_id: payload
        for work in broker.got(worker, m.Work)
        for group in work.groups
        for task_id, payload in zip(group.ids, group.payloads, strict=True)
    }
    assert got == dict(zip(ids, payloads, strict=True))


def test_tasks_whose_data_cannot_be_read_fail_in_the_end_and_block_nobody(
    broker: WiredBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = broker.client()
    bad = broker.submit(client, 2)
    (good,) = broker.submit(client)
    broker.restart()
    read = broker.journal.ask
    asked: list[float] = []

    def ask(question: Question) -> StoreAnswer:
        if question == PayloadsOf(S, 0):
            asked.append(broker.now)
            return Unreadable("disk on fire")
        return read(question)

    monkeypatch.setattr(broker.journal, "ask", ask)
    worker = broker.worker("w", window=9)
    for _ in range(30):
        broker.pass_time(1)
        broker.say(worker, beat([], 99, window=9))
    assert list(broker.work(worker)) == [good]
    assert len(asked) == READ_TRIES
    assert min(b - a for a, b in pairwise(asked)) >= READ_PAUSE_S
    body = broker.ask(broker.client(), "status", id=bad[0]).body
    assert body["state"] == "failed"
    assert "cannot be read" in str(body)


@pytest.mark.parametrize(
    "answer", [None, BatchPayloads([b"\x80"]), BatchPayloads([b"\x80"] * 3)], ids=str
)
def test_data_that_is_missing_or_not_that_of_all_its_tasks_cannot_be_read(
    broker: WiredBroker, answer: StoreAnswer
) -> None:
    client = broker.client()
    ids = broker.submit(client, 2)
    broker.restart()
    dispatcher, worker, asked = broker.dispatcher, Peer(b"r-w", "10.0.0.1"), 0
    broker.perform(dispatcher.receive(hello("w"), worker, broker.now))
    for _ in range(READ_TRIES):
        for _ in range(20):  # it is not asked again at once
            loads = [e for e in dispatcher.tick(broker.now, broker.at) if isinstance(e, Load)]
            asked += len(loads)
            for load in loads:
                broker.perform(dispatcher.loaded(Loaded(load.number, answer)))
        broker.now += READ_PAUSE_S
        broker.at += READ_PAUSE_S
    assert asked == READ_TRIES
    body = broker.ask(broker.client(), "status", id=ids[1]).body
    assert body["state"] == "failed"
    assert "its data cannot be read" in str(body)


def test_of_a_batch_that_was_cancelled_long_before_its_time_next_to_nothing_is_kept(
    broker: WiredBroker,
) -> None:
    client = broker.client()
    for task_id in broker.submit(client, 100, run_at=broker.at + 1e8):
        assert broker.ask(client, "cancel", id=task_id).code == ""
    ((_, _, batch),) = broker.dispatcher._scheduler._alarms
    assert (batch.gone, batch.payloads, batch.fresh_count) == (set(), [], 0)
    broker.at += 1e8
    broker.pass_time(1.0)
    assert (broker.dispatcher._scheduler._alarms, broker.task_table.queued) == ([], 0)


def test_questions_of_clients_take_no_place_from_the_broker_s_own(broker: WiredBroker) -> None:
    broker.task_table._payload_memory_bytes = 0
    client = broker.client()
    (task_id,) = broker.submit(client)
    unanswered = [  # as many as may be under way
        broker.dispatcher.receive(
            m.Query(n, "tasks", {}), broker.client(f"{client_n:016}"), broker.now
        )
        for client_n in range(MAX_LOADS // MAX_LOADS_OF_CLIENT)
        for n in range(MAX_LOADS_OF_CLIENT)
    ]
    assert len(broker.state.loads) == len(unanswered) == MAX_LOADS
    assert list(broker.work(broker.worker("w"))) == [task_id]


def test_after_a_restart_everything_is_paged_in(broker: WiredBroker) -> None:
    client = broker.client()
    first = broker.worker("w")
    ids = broker.submit(client, 5, payloads=[bytes([n]) for n in range(5)])
    assert broker.work(first)
    broker.restart()
    worker = broker.worker("v", slots=5)
    got = [group for work in broker.got(worker, m.Work) for group in work.groups]
    assert [p for group in got for p in group.payloads] == [bytes([n]) for n in range(1, 5)]
    broker.pass_time(11)
    worker = broker.worker("u", slots=5)
    broker.pass_time(1)
    assert ids[0] in broker.work(worker)


def test_large_hand_outs_are_cut_into_frames(broker: WiredBroker) -> None:
    client = broker.client()
    payload = msgspec.msgpack.encode("x" * (m.SOFT_FRAME_BYTES // 3))
    for _ in range(4):
        broker.submit(client, 2, payloads=[payload] * 2)
    worker = broker.worker("w", slots=8)
    messages = broker.got(worker, m.Work)
    assert len(messages) > 1
    assert [message.seq for message in messages] == list(range(1, len(messages) + 1))


def test_reasons_are_bounded(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client, max_attempts=1)
    token = broker.work(worker)[task_id]
    long = msgspec.msgpack.encode({"success": False, "error": "x" * 9999})
    broker.say(worker, m.Results(1, 1, [task_id], [token], b"\0", [long]))
    body = broker.ask(client, "status", id=task_id).body
    assert body["reason"] == "x" * MAX_REASON_CHARS
    assert body["result"] == long


def test_a_reason_that_is_no_text_is_told_as_text(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client, max_attempts=1)
    token = broker.work(worker)[task_id]
    broker.say(worker, m.Results(1, 1, [task_id], [token], b"\0", [b"\x81\xa5error\x05"]))
    assert broker.ask(client, "status", id=task_id).body["reason"] == "5"


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x80", b"\x81\xa5error\xc0"])
def test_a_failure_without_a_readable_reason_has_one_all_the_same(
    broker: WiredBroker, payload: bytes
) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client, max_attempts=1)
    token = broker.work(worker)[task_id]
    broker.say(worker, m.Results(1, 1, [task_id], [token], b"\0", [payload]))
    assert broker.ask(client, "status", id=task_id).body["reason"] == "failed without a reason"


def test_a_hand_out_that_cannot_be_sent_goes_to_another(broker: WiredBroker) -> None:
    client, gone = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    (work,) = broker.got(gone, m.Work)
    broker.perform(broker.dispatcher.undelivered(gone, work))
    assert broker.task_table.state_of(task_id) is TaskState.QUEUED
    assert broker.dispatcher.undelivered(client, m.Beat(1)) == []


def test_the_task_table_of_a_thousand_is_a_few_objects() -> None:
    assert not TaskTable().tasks


def test_what_is_to_run_later_wakes_the_broker_in_time(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client, run_at=broker.at + 0.2)
    assert broker.dispatcher.next_deadline() == pytest.approx(broker.now + 0.2)
    assert broker.work(worker) == {}
    broker.pass_time(0.3)
    assert list(broker.work(worker)) == [task_id]


def test_a_deadline_of_what_is_finished_is_nothing(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    broker.submit(client, deadline_s=3.0)
    broker.finish(worker, broker.work(worker))
    broker.pass_time(5)
    assert (broker.task_table.totals.completed, broker.task_table.totals.failed) == (1, 0)


def test_of_a_hand_out_in_part_listened_to_the_worker_is_told_which(broker: WiredBroker) -> None:
    client = broker.client()
    ids = broker.submit(client, 3)
    broker.say(client, m.Listen(ids[1], True))
    worker = broker.worker("w", slots=3)
    (work,) = broker.got(worker, m.Work)
    told = [(group.is_listened, group.ids, len(group.payloads)) for group in work.groups]
    assert told == [(False, [ids[0], ids[2]], 2), (True, [ids[1]], 1)]
    assert broker.got(worker, m.Listening) == []


def test_headings_of_tokens_are_kept_but_not_for_ever(
    broker: WiredBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d8mesh.core.broker.scheduler._MAX_HEADINGS", 2)
    client = broker.client()
    for name in "abcde":
        worker = broker.worker(name)
        broker.submit(client)
        broker.finish(worker, broker.work(worker))
        broker.say(worker, m.Goodbye("x"))
    assert broker.task_table.totals.completed == 5
    assert len(broker.dispatcher._scheduler._headings) <= 3


def test_payloads_that_cannot_be_read_now_are_asked_for_again(broker: WiredBroker) -> None:
    broker.task_table._payload_memory_bytes = 0
    client = broker.client()
    (task_id,) = broker.submit(client)
    worker = Peer(b"w")
    effects = broker.dispatcher.receive(hello("w"), worker, broker.now)
    effects += broker.dispatcher.tick(broker.now, broker.at)
    (load,) = (effect for effect in effects if isinstance(effect, Load))
    assert broker.dispatcher.loaded(Loaded(load.number, Unreadable("disk on fire"))) == []
    broker.pass_time(READ_PAUSE_S + 0.5)
    assert list(broker.work(worker)) == [task_id]


def test_a_task_of_many_is_not_read_any_more_when_all_are_cancelled_meanwhile(
    broker: WiredBroker,
) -> None:
    broker.task_table._payload_memory_bytes = 0
    client = broker.client()
    (task_id,) = broker.submit(client)
    effects = broker.dispatcher.receive(hello("w"), Peer(b"w"), broker.now)
    effects += broker.dispatcher.tick(broker.now, broker.at)
    (load,) = (effect for effect in effects if isinstance(effect, Load))
    broker.ask(client, "cancel", id=task_id)
    assert broker.dispatcher.loaded(Loaded(load.number, BatchPayloads([b"\x80"]))) == []
    broker.pass_time(READ_PAUSE_S + 0.5)
    assert broker.work(Peer(b"w")) == {}


def test_who_refuses_a_strict_wish_for_good_ends_no_task_that_another_can_run(
    broker: WiredBroker,
) -> None:
    client = broker.client()
    first = broker.worker("first", models=["llama"])
    (task_id,) = broker.submit(client, model="=llama:latest")
    held = broker.work(first)
    other = broker.worker("other", models=["llama"])
    refusal = msgspec.msgpack.encode({"success": False, "error": "gone", "retry": False})
    tokens, kinds = list(held.values()), bytes([m.FAILED])
    broker.say(first, m.Results(1, 1, list(held), tokens, kinds, [refusal]))
    broker.pass_time(MAX_RETRY_PAUSE_S)
    assert list(broker.work(other)) == [task_id]
