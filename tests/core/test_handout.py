"""Hand-outs, retries and deadlines."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from d8mesh.core import messages as m
from d8mesh.core.effects import Effect, Load, Loaded, Peer
from d8mesh.core.endings import MAX_REASON_CHARS
from d8mesh.core.handout import MAX_RETRY_PAUSE_S, MAX_WISHED_PAUSE_S, READ_PAUSE_S, READ_TRIES
from d8mesh.core.ledger import Ledger
from d8mesh.core.pool import MAX_LOADS, MAX_LOADS_OF_CLIENT
from d8mesh.core.task import Requeued, TaskState
from tests.core.desktop import START_AT, Desktop, beat, hello


def test_high_priorities_go_first_and_every_16th_to_the_oldest_below(desk: Desktop) -> None:
    client = desk.client()
    low = desk.submit(client, 3, priority=1)
    middle = desk.submit(client, 3, priority=5)
    high = desk.submit(client, 40, priority=9)
    worker = desk.worker("w", slots=100)
    order = list(desk.work(worker))
    assert order[:15] == high[:15]
    assert order[15] == low[0]
    assert order[16:31] == high[15:30]
    assert order[31] == low[1]
    assert sorted(order) == sorted(low + middle + high)


def test_cancelled_tasks_do_not_stay_where_they_waited(desk: Desktop) -> None:
    client = desk.client()
    for task_id in desk.submit(client, 3):
        desk.ask(client, "cancel", id=task_id)
    desk.pass_time(1)
    assert not desk.dispatcher.pool.queue.lanes
    worker = desk.worker("w")
    assert list(desk.work(worker)) == []
    later = desk.submit(client, 1)
    assert list(desk.work(worker)) == later


def test_free_workers_share_evenly(desk: Desktop) -> None:
    client = desk.client()
    one, two = desk.worker("a", slots=50), desk.worker("b", slots=50)
    desk.submit(client, 60)
    assert (len(desk.work(one)), len(desk.work(two))) == (30, 30)


def test_a_window_is_never_exceeded(desk: Desktop) -> None:
    client = desk.client()
    worker = desk.worker("w", slots=2)
    desk.submit(client, 9)
    held = desk.work(worker)
    assert len(held) == 2
    desk.seq += 1
    ids = list(held)
    desk.say(worker, m.Results(desk.seq, 0, ids, list(held.values()), b"\1\1", [b"\x80"] * 2))
    assert desk.work(worker) == {}  # window 0: nothing more
    desk.say(worker, beat([], 9, window=2))
    assert len(desk.work(worker)) == 2


def test_a_failure_is_retried_after_a_pause_on_a_worker_that_has_not_failed_it(
    desk: Desktop,
) -> None:
    client = desk.client()
    bad, good = desk.worker("bad"), desk.worker("good", window=0)
    (task_id,) = desk.submit(client)
    desk.finish(bad, desk.work(bad), m.FAILED)
    assert desk.ledger.state_of(task_id) is TaskState.DELAYED
    reason = str(desk.ask(client, "status", id=task_id).body["reason"])
    assert "broken" in reason
    desk.pass_time(1)
    assert desk.work(bad) == {}  # `good` lives, so it waits for it
    desk.say(good, beat([], 0))
    assert list(desk.work(good)) == [task_id]


def test_the_only_worker_retries_its_own_failure(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client)
    desk.finish(worker, desk.work(worker), m.FAILED)
    desk.pass_time(1)
    desk.say(worker, beat([], 1))
    assert list(desk.work(worker)) == [task_id]


def test_attempts_are_counted_and_the_last_error_is_the_result(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client)
    for _ in range(3):
        desk.finish(worker, desk.work(worker), m.FAILED)
        desk.pass_time(3)
        desk.say(worker, beat([], 0))
    body = desk.ask(client, "status", id=task_id).body
    assert (body["state"], body["attempts"], body["reason"]) == ("failed", 3, "broken")
    history = body["history"]
    assert isinstance(history, list)
    assert [each["error"] for each in history] == ["broken"] * 3
    (outcome,) = desk.got(client, m.Outcomes)
    assert outcome.states == bytes([m.FAILED_STATE])


def test_a_failure_that_no_retry_mends_is_final_at_once(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client)
    desk.finish(worker, desk.work(worker), m.REFUSED)
    assert desk.ask(client, "status", id=task_id).body["state"] == "failed"


def test_pauses_grow_and_are_capped(tmp_path: Path) -> None:
    desk = Desktop(tmp_path, max_attempts=99)
    desk.draw = lambda: 1.0
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client)
    pauses = []
    for _ in range(10):
        desk.finish(worker, desk.work(worker), m.FAILED)
        history = desk.ledger.tasks[task_id].history
        assert history is not None
        pauses.append(history.not_before_at - desk.at)
        while desk.ledger.tasks[task_id].state is TaskState.DELAYED:
            desk.pass_time(0.5)
            desk.say(worker, beat([], 99))
    assert pauses[:4] == [pytest.approx(p) for p in (0.5, 1.0, 2.0, 4.0)]
    assert max(pauses) == pytest.approx(MAX_RETRY_PAUSE_S)
    desk.close()


@pytest.mark.parametrize(
    ("wished", "pause_s"),
    [(40, 40.0), (1e12, MAX_WISHED_PAUSE_S), (-1, 0.25), (True, 0.25), ("x", 0.25)],
)
def test_a_failed_attempt_may_wish_for_a_pause_within_bounds(
    desk: Desktop, wished: object, pause_s: float
) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client, max_attempts=2)
    told: Any = {"success": False, "error": "x", "retry_after_s": wished, "traceback": "at line 1"}
    payload = msgspec.msgpack.encode(told)
    held = desk.work(worker)
    desk.say(worker, m.Results(1, 1, list(held), list(held.values()), bytes([m.FAILED]), [payload]))
    (fact,) = [each for each in desk.facts if isinstance(each, Requeued)]
    assert fact.not_before_at - fact.at == pytest.approx(pause_s)
    desk.say(worker, beat([], 10**6))
    full = desk.ask(client, "status", id=task_id, full=True).body
    assert full["data"] == b"\x80"
    assert full["history"] == [
        {
            "attempt": 1, "worker_id": "w", "at": START_AT, "is_counted": True, "error": "x",
            "pause_s": pytest.approx(pause_s, abs=0.01), "traceback": "at line 1",
        }
    ]  # fmt: skip
    desk.restart()  # the pause is kept
    client, worker = desk.client(), desk.worker("w")
    assert desk.work(worker) == {}
    if pause_s > 60:
        return
    while not (held := desk.work(worker)):
        desk.say(worker, beat([], 0))
        desk.say(client, m.Watch([]))
        desk.pass_time(1)
    desk.say(worker, m.Results(2, 1, list(held), list(held.values()), bytes([m.FAILED]), [payload]))
    full = dict(desk.ask(client, "status", id=task_id, full=True).body)
    told = full["history"]
    assert (full["state"], full["data"], len(told)) == ("failed", b"\x80", 2)
    stored: Any = full["result"]
    recorded = msgspec.msgpack.decode(stored)
    assert recorded == {"success": False, "error": "x", "traceback": "at line 1"}


def test_retries_survive_a_restart_with_their_count(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client)
    desk.finish(worker, desk.work(worker), m.FAILED)
    desk.restart()
    task = desk.ledger.tasks[task_id]
    assert task.history is not None
    assert (task.n, task.history.errors, task.history.failed_on) == (1, 1, {"w": 1})
    worker = desk.worker("w")
    assert desk.work(worker) == {}  # its pause goes on
    desk.pass_time(1.0)
    assert list(desk.work(worker)) == [task_id]


def test_a_deadline_fails_what_is_not_finished_and_stops_what_runs(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    ids = desk.submit(client, 2, deadline_s=5.0)
    assert list(desk.work(worker)) == ids[:1]
    desk.pass_time(6)
    assert desk.got(worker, m.Stop)[0].ids == ids[:1]
    for task_id in ids:
        body = desk.ask(client, "status", id=task_id).body
        assert (body["state"], body["reason"]) == ("failed", "deadline exceeded")


def test_a_deadline_bounds_the_attempt(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    desk.submit(client, deadline_s=5.0)
    assert desk.got(worker, m.Work)[0].groups[0].timeout_s == pytest.approx(5.0)


def test_a_worker_that_fails_again_and_again_gets_fewer(tmp_path: Path) -> None:
    desk = Desktop(tmp_path, max_attempts=1)
    client, worker = desk.client(), desk.worker("w", slots=8)
    desk.submit(client, 40)
    for _ in range(2):
        desk.finish(worker, desk.work(worker), m.FAILED)
        desk.say(worker, beat([], 99, window=8))
    assert len(desk.work(worker)) < 8
    desk.close()


def test_payloads_on_disk_are_paged_in_when_their_turn_comes(desk: Desktop) -> None:
    desk.ledger._payload_memory_bytes = 250
    client = desk.client()
    payloads = [bytes([0xDA, 0, 97]) + b"x" * 97 for _ in range(6)]
    ids = [desk.submit(client, payloads=[payload])[0] for payload in payloads]
    on_disk = [batch for batch in desk.ledger.batches() if batch.payloads is None]
    assert len(on_disk) == 4
    worker = desk.worker("w", slots=6)
    got = {
        task_id: payload
        for work in desk.got(worker, m.Work)
        for group in work.groups
        for task_id, payload in zip(group.ids, group.payloads, strict=True)
    }
    assert got == dict(zip(ids, payloads, strict=True))


def test_tasks_whose_data_cannot_be_read_fail_in_the_end_and_block_nobody(
    desk: Desktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = desk.client()
    bad = desk.submit(client, 2)
    (good,) = desk.submit(client)
    desk.restart()
    read, take = desk.reader.query, desk.dispatcher.loaded
    asked: list[float] = []

    def query(what: str, args: tuple[object, ...]) -> list[tuple[object, ...]]:
        if what == "payloads" and args[1] == 0:
            asked.append(desk.now)
            return [("damaged",)]
        return read(what, args)

    def loaded(answer: Loaded) -> list[Effect]:
        is_bad = answer.rows == [("damaged",)]
        return take(Loaded(answer.number, [], "disk on fire") if is_bad else answer)

    monkeypatch.setattr(desk.reader, "query", query)
    monkeypatch.setattr(desk.dispatcher, "loaded", loaded)
    worker = desk.worker("w", window=9)
    for _ in range(30):
        desk.pass_time(1)
        desk.say(worker, beat([], 99, window=9))
    assert list(desk.work(worker)) == [good]
    assert len(asked) == READ_TRIES
    assert min(b - a for a, b in pairwise(asked)) >= READ_PAUSE_S
    body = desk.ask(desk.client(), "status", id=bad[0]).body
    assert body["state"] == "failed"
    assert "cannot be read" in str(body)


@pytest.mark.parametrize("rows", [[], [([b"\x80"],)], [([b"\x80"] * 3,)]])
def test_data_that_is_missing_or_not_that_of_all_its_tasks_cannot_be_read(
    desk: Desktop, rows: list[tuple[object, ...]]
) -> None:
    client = desk.client()
    ids = desk.submit(client, 2)
    desk.restart()
    dispatcher, worker, asked = desk.dispatcher, Peer(b"r-w", "10.0.0.1"), 0
    desk.perform(dispatcher.receive(hello("w"), worker, desk.now))
    for _ in range(READ_TRIES):
        for _ in range(20):  # it is not asked again at once
            loads = [e for e in dispatcher.tick(desk.now, desk.at) if isinstance(e, Load)]
            asked += len(loads)
            for load in loads:
                desk.perform(dispatcher.loaded(Loaded(load.number, rows)))
        desk.now += READ_PAUSE_S
        desk.at += READ_PAUSE_S
    assert asked == READ_TRIES
    body = desk.ask(desk.client(), "status", id=ids[1]).body
    assert body["state"] == "failed"
    assert "its data cannot be read" in str(body)


def test_questions_of_clients_take_no_place_from_the_broker_s_own(desk: Desktop) -> None:
    desk.ledger._payload_memory_bytes = 0
    client = desk.client()
    (task_id,) = desk.submit(client)
    unanswered = [  # as many as may be under way
        desk.dispatcher.receive(m.Ask(n, "tasks", {}), desk.client(f"{client_n:016}"), desk.now)
        for client_n in range(MAX_LOADS // MAX_LOADS_OF_CLIENT)
        for n in range(MAX_LOADS_OF_CLIENT)
    ]
    assert len(desk.pool._loads) == len(unanswered) == MAX_LOADS
    assert list(desk.work(desk.worker("w"))) == [task_id]


def test_after_a_restart_everything_is_paged_in(desk: Desktop) -> None:
    client = desk.client()
    first = desk.worker("w")
    ids = desk.submit(client, 5, payloads=[bytes([n]) for n in range(5)])
    assert desk.work(first)
    desk.restart()
    worker = desk.worker("v", slots=5)
    got = [group for work in desk.got(worker, m.Work) for group in work.groups]
    assert [p for group in got for p in group.payloads] == [bytes([n]) for n in range(1, 5)]
    desk.pass_time(11)
    worker = desk.worker("u", slots=5)
    desk.pass_time(1)
    assert ids[0] in desk.work(worker)


def test_large_hand_outs_are_cut_into_frames(desk: Desktop) -> None:
    client = desk.client()
    payload = msgspec.msgpack.encode("x" * (m.SOFT_FRAME_BYTES // 3))
    for _ in range(4):
        desk.submit(client, 2, payloads=[payload] * 2)
    worker = desk.worker("w", slots=8)
    messages = desk.got(worker, m.Work)
    assert len(messages) > 1
    assert [message.seq for message in messages] == list(range(1, len(messages) + 1))


def test_reasons_are_bounded(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client, max_attempts=1)
    token = desk.work(worker)[task_id]
    long = msgspec.msgpack.encode({"success": False, "error": "x" * 9999})
    desk.say(worker, m.Results(1, 1, [task_id], [token], b"\0", [long]))
    body = desk.ask(client, "status", id=task_id).body
    assert body["reason"] == "x" * MAX_REASON_CHARS
    assert body["result"] == long


def test_a_reason_that_is_no_text_is_told_as_text(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client, max_attempts=1)
    token = desk.work(worker)[task_id]
    desk.say(worker, m.Results(1, 1, [task_id], [token], b"\0", [b"\x81\xa5error\x05"]))
    assert desk.ask(client, "status", id=task_id).body["reason"] == "5"


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x80", b"\x81\xa5error\xc0"])
def test_a_failure_without_a_readable_reason_has_one_all_the_same(
    desk: Desktop, payload: bytes
) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client, max_attempts=1)
    token = desk.work(worker)[task_id]
    desk.say(worker, m.Results(1, 1, [task_id], [token], b"\0", [payload]))
    assert desk.ask(client, "status", id=task_id).body["reason"] == "failed without a reason"


def test_a_hand_out_that_cannot_be_sent_goes_to_another(desk: Desktop) -> None:
    client, gone = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client)
    (work,) = desk.got(gone, m.Work)
    desk.perform(desk.dispatcher.undelivered(gone, work))
    assert desk.ledger.state_of(task_id) is TaskState.QUEUED
    assert desk.dispatcher.undelivered(client, m.Beat(1)) == []


def test_the_ledger_of_a_thousand_is_a_few_objects() -> None:
    assert not Ledger().tasks


def test_what_is_to_run_later_wakes_the_broker_in_time(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client, run_at=desk.at + 0.2)
    assert desk.dispatcher.next_deadline() == pytest.approx(desk.now + 0.2)
    assert desk.work(worker) == {}
    desk.pass_time(0.3)
    assert list(desk.work(worker)) == [task_id]


def test_a_deadline_of_what_is_finished_is_nothing(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    desk.submit(client, deadline_s=3.0)
    desk.finish(worker, desk.work(worker))
    desk.pass_time(5)
    assert (desk.ledger.totals.completed, desk.ledger.totals.failed) == (1, 0)


def test_of_a_hand_out_in_part_listened_to_the_worker_is_told_which(desk: Desktop) -> None:
    client = desk.client()
    ids = desk.submit(client, 3)
    desk.say(client, m.Listen(ids[1], True))
    worker = desk.worker("w", slots=3)
    (work,) = desk.got(worker, m.Work)
    told = [(group.is_listened, group.ids, len(group.payloads)) for group in work.groups]
    assert told == [(False, [ids[0], ids[2]], 2), (True, [ids[1]], 1)]
    assert desk.got(worker, m.Listening) == []


def test_headings_of_tokens_are_kept_but_not_for_ever(
    desk: Desktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d8mesh.core.handout.MAX_ATTEMPT", 2)
    client = desk.client()
    for name in "abcde":
        worker = desk.worker(name)
        desk.submit(client)
        desk.finish(worker, desk.work(worker))
        desk.say(worker, m.Goodbye("x"))
    assert desk.ledger.totals.completed == 5
    assert len(desk.dispatcher._handout._headings) <= 3


def test_payloads_that_cannot_be_read_now_are_asked_for_again(desk: Desktop) -> None:
    desk.ledger._payload_memory_bytes = 0
    client = desk.client()
    (task_id,) = desk.submit(client)
    worker = Peer(b"w")
    effects = desk.dispatcher.receive(hello("w"), worker, desk.now)
    effects += desk.dispatcher.tick(desk.now, desk.at)
    (load,) = (effect for effect in effects if isinstance(effect, Load))
    assert desk.dispatcher.loaded(Loaded(load.number, [], "disk on fire")) == []
    desk.pass_time(READ_PAUSE_S + 0.5)
    assert list(desk.work(worker)) == [task_id]
