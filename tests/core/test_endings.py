"""Outcomes: recorded once, told to who awaits them, cut to frames."""

from __future__ import annotations

import msgspec

from d8mesh.core import messages as m
from d8mesh.core.endings import Failure, failure_payload
from tests.core.desktop import Desktop


def test_large_outcomes_are_cut_into_frames(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w", slots=4)
    ids = desk.submit(client, 4)
    held = desk.work(worker)
    large = msgspec.msgpack.encode(
        {"success": True, "output": "x" * (m.SOFT_FRAME_BYTES // 2 - 99)}
    )
    tokens = [held[task_id] for task_id in ids]
    desk.say(worker, m.Results(1, 4, ids, tokens, b"\1" * 4, [large] * 4))
    parts = desk.got(client, m.Outcomes)
    assert len(parts) > 1
    assert [task_id for part in parts for task_id in part.ids] == ids


def test_tasks_of_several_clients_in_one_message_are_told_apart(desk: Desktop) -> None:
    one, two, worker = desk.client(), desk.client("f" * 16), desk.worker("w", slots=4)
    mine, yours = desk.submit(one, 2), desk.submit(two, 2, session="f" * 16)
    desk.finish(worker, desk.work(worker))
    assert desk.got(one, m.Outcomes)[0].ids == mine
    assert desk.got(two, m.Outcomes)[0].ids == yours


def test_a_client_that_is_not_there_is_no_obstacle(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    desk.submit(client)
    desk.say(client, m.Goodbye("x"))
    desk.finish(worker, desk.work(worker))
    assert desk.ledger.totals.completed == 1
    assert desk.got(client, m.Outcomes) == []


def test_our_own_failures_have_a_code_and_an_error() -> None:
    payload = failure_payload("why", "task.deadline")
    assert msgspec.msgpack.decode(payload) == {
        "success": False,
        "error": "why",
        "code": "task.deadline",
    }
    assert Failure.of(payload).text == "why"


def test_who_awaits_the_batch_and_the_task_is_told_once(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client, is_watched=False)
    desk.say(client, m.Watch([task_id]))
    found = desk.ledger.find(task_id)
    assert found is not None
    desk.pool.batch_watchers[found[0].order] = desk.pool.task_watchers[task_id].copy().pop()
    desk.finish(worker, desk.work(worker))
    assert [each.ids for each in desk.got(client, m.Outcomes)] == [[task_id]]


def test_a_polling_worker_is_not_told_that_its_task_was_cancelled(desk: Desktop) -> None:
    client = desk.client()
    capabilities = {"task_types": ["echo"]}
    desk.ask(client, "poll.register", worker_id="p", worker_type="t", capabilities=capabilities)
    (task_id,) = desk.submit(client)
    assert desk.ask(client, "poll.next", worker_id="p").body["task"]
    assert desk.ask(client, "cancel", id=task_id).body["state"] == "cancelled"
    assert not [message for _, message, _ in desk.sent if isinstance(message, m.Stop)]
