"""Outcomes: recorded once, told to who awaits them, cut to frames."""

from __future__ import annotations

import msgspec
import pytest

from d8mesh.core.broker.outcomes import Failure, _tokens_of, failure_payload
from d8mesh.core.broker.service_states import NO_TOKENS
from d8mesh.core.protocol import messages as m
from d8mesh.errors import UnknownTaskError
from tests.core.llm_services import host, model, service
from tests.core.plain_state import dump
from tests.core.wired_broker import S, WiredBroker, beat, result


def test_large_outcomes_are_cut_into_frames(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w", slots=4)
    ids = broker.submit(client, 4)
    held = broker.work(worker)
    large = msgspec.msgpack.encode(
        {"success": True, "output": "x" * (m.SOFT_FRAME_BYTES // 2 - 99)}
    )
    tokens = [held[task_id] for task_id in ids]
    broker.say(worker, m.Results(1, 4, ids, tokens, b"\1" * 4, [large] * 4))
    parts = broker.got(client, m.Outcomes)
    assert len(parts) > 1
    assert [task_id for part in parts for task_id in part.ids] == ids


def test_tasks_of_several_clients_in_one_message_are_told_apart(broker: WiredBroker) -> None:
    one, two, worker = broker.client(), broker.client("f" * 16), broker.worker("w", slots=4)
    mine, yours = broker.submit(one, 2), broker.submit(two, 2, session="f" * 16)
    broker.finish(worker, broker.work(worker))
    assert broker.got(one, m.Outcomes)[0].ids == mine
    assert broker.got(two, m.Outcomes)[0].ids == yours


def test_a_client_that_is_not_there_is_no_obstacle(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    broker.submit(client)
    broker.say(client, m.Goodbye("x"))
    broker.finish(worker, broker.work(worker))
    assert broker.task_table.totals.completed == 1
    assert broker.got(client, m.Outcomes) == []


def test_our_own_failures_have_a_code_and_an_error() -> None:
    payload = failure_payload("why", "task.deadline")
    assert msgspec.msgpack.decode(payload) == {
        "success": False,
        "error": "why",
        "code": "task.deadline",
    }
    assert Failure.of(payload).text == "why"


def test_who_awaits_the_batch_and_the_task_is_told_once(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client, is_watched=False)
    broker.say(client, m.Watch([task_id]))
    found = broker.task_table.find(task_id)
    assert found is not None
    broker.state.batch_watchers[found[0].order] = broker.state.task_watchers[task_id].copy().pop()
    broker.finish(worker, broker.work(worker))
    assert [each.ids for each in broker.got(client, m.Outcomes)] == [[task_id]]


def test_a_polling_worker_is_not_told_that_its_task_was_cancelled(broker: WiredBroker) -> None:
    client = broker.client()
    capabilities = {"task_types": ["echo"]}
    broker.ask(client, "poll.register", worker_id="p", worker_type="t", capabilities=capabilities)
    (task_id,) = broker.submit(client)
    assert broker.ask(client, "poll.next", worker_id="p").body["task"]
    assert broker.ask(client, "cancel", id=task_id).body["state"] == "cancelled"
    assert not [message for _, message, _ in broker.sent if isinstance(message, m.Stop)]


def test_an_outcome_that_cannot_be_recorded_takes_nothing_from_anybody(
    broker: WiredBroker,
) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client, is_watched=True)
    before = dump(broker.dispatcher)
    payloads = [result()] * 2
    with pytest.raises(UnknownTaskError):
        broker.dispatcher._outcomes.complete("w", [task_id, f"{S}-77"], [1, 1], payloads)
    assert dump(broker.dispatcher) == before
    broker.finish(worker, broker.work(worker))
    assert [each.ids for each in broker.got(client, m.Outcomes)] == [[task_id]]


def test_a_cancel_stops_the_attempt_in_the_same_wake_up_and_waits_for_no_commit(
    broker: WiredBroker,
) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    broker.pass_time(5.0)
    broker.sent.clear()
    broker.say(client, m.Query(9, "cancel", {"id": task_id}))
    stops = [(peer, waits) for peer, said, waits in broker.sent if isinstance(said, m.Stop)]
    assert stops == [(worker, False)]


def test_how_long_an_answer_was_goes_into_the_pace_of_its_machine(broker: WiredBroker) -> None:
    client, worker = broker.client(), host(broker, "w", [service("s", [model("m")])])
    paces: list[float] = []
    for payload in (b"\xc1", {"usage": None}, {"usage": {"completion_tokens": 1000}}):
        (task_id,) = broker.submit(client, kind="agent_action", model="=m")
        token = broker.work(worker)[task_id]
        broker.say(worker, beat([task_id], 1))
        for _ in range(3):
            broker.pass_time(4.0)
            broker.say(worker, beat([task_id], 1))
        told = payload if isinstance(payload, bytes) else msgspec.msgpack.encode(payload)
        broker.say(worker, m.Results(1, 4, [task_id], [token], b"\1", [told]))
        found = broker.state.services.model("s", "m")
        assert found is not None
        paces.append(found.pace)
        found.pace = 0.0
    assert paces[-1] == pytest.approx(1.2)  # 12 s for what takes 10


def test_a_result_with_a_name_that_is_no_text_tells_nothing() -> None:
    odd = b"\x81\xa1\xdd\xc0"
    assert Failure.of(odd) == Failure()
    assert _tokens_of(odd) == NO_TOKENS
