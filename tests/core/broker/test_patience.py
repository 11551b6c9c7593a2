"""Who waits at a door waits for no machine that cannot answer, and has patience with a queue."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from d8mesh.core.broker.effects import Peer
from d8mesh.core.broker.patience import HOPELESS_S, MAX_QUOTA_S, UNANSWERED_S
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.task import TaskState
from tests.core.llm_services import host, model, offer, service
from tests.core.wired_broker import WiredBroker, beat, failure

SOURCE = "openai 127.0.0.1 program"
BATCH = "batches 127.0.0.1 program"
#: A start of the orchestrator waits so long for machines that had what it found waiting.
YOUNG_S = 11.0
BACK = "worker 'w' could not run it: busy"


def pass_time(broker: WiredBroker, seconds: float, *, types: tuple[str, ...] = ("echo",)) -> None:
    """Let time pass in which all who are there say that they live."""
    until = broker.now + seconds
    while broker.now < until:
        for worker in list(broker.state.registry.workers.values()):
            if worker.is_live:
                broker.say(worker.peer, beat(list(worker.outstanding), 1, types=types))
        for client in list(broker.state.clients.values()):
            broker.say(client.peer, m.Watch([]))
        broker.pass_time(0.5)


def ask(broker: WiredBroker, client: Peer, **given: Any) -> str:
    """Submit one request of a door."""
    options = {"kind": "agent_action", "model": "=m", "priority": 8, "source": SOURCE, **given}
    (task_id,) = broker.submit(client, **options)
    return task_id


def told(broker: WiredBroker, client: Peer, task_id: str) -> dict[str, Any] | None:
    """Return what the client was told of the end of a task; None: nothing."""
    for each in broker.got(client, m.Outcomes):
        if task_id in each.ids:
            found = msgspec.msgpack.decode(each.payloads[each.ids.index(task_id)])
            assert isinstance(found, dict)
            return found
    return None


def grown_up(broker: WiredBroker, **given: Any) -> tuple[Peer, Peer]:
    """Return a client, and a worker with one model, of an orchestrator that runs for a while."""
    client, worker = broker.client(), host(broker, "w", [service("s", [model("m", **given)])])
    pass_time(broker, YOUNG_S)
    return client, worker


@pytest.mark.parametrize("priority", [1, 5, 8, 10])
def test_a_request_that_comes_while_all_places_are_paused_ends_with_the_reason(
    broker: WiredBroker, priority: int
) -> None:
    client, _ = grown_up(broker, paused="no memory")
    task_id = ask(broker, client, priority=priority)
    pass_time(broker, HOPELESS_S - 1)
    assert told(broker, client, task_id) is None
    pass_time(broker, 2)
    result = told(broker, client, task_id)
    assert result is not None
    assert result["code"] == "backend.unavailable"
    assert "paused: no memory" in result["error"]


def test_a_request_whose_machines_are_all_away_ends(broker: WiredBroker) -> None:
    client, worker = grown_up(broker)
    broker.say(worker, m.Goodbye("off"))
    task_id = ask(broker, client)
    pass_time(broker, HOPELESS_S + 1)
    result = told(broker, client, task_id)
    assert result is not None
    assert result["code"] == "backend.unavailable"
    assert "no worker" in result["error"]


def test_an_order_to_a_service_that_is_away_ends_too(broker: WiredBroker) -> None:
    client, worker = grown_up(broker)
    broker.say(worker, m.Goodbye("off"))
    task_id = ask(broker, client, kind="model_load", model="m;on=s")
    pass_time(broker, HOPELESS_S + 1)
    assert told(broker, client, task_id) is not None


def test_a_line_of_a_batch_waits_and_so_does_what_nobody_awaits(broker: WiredBroker) -> None:
    client, _ = grown_up(broker, paused="no memory")
    other = broker.client("f" * 16)
    line = ask(broker, client, source=BATCH)
    plain = ask(broker, client, source="")
    (left,) = broker.submit(other, kind="agent_action", model="=m", source=SOURCE, session="f" * 16)
    broker.say(other, m.Goodbye("left"))
    pass_time(broker, UNANSWERED_S + HOPELESS_S)
    states = [broker.task_table.state_of(each) for each in (line, plain, left)]
    assert states == [TaskState.QUEUED] * 3


def test_a_machine_that_comes_back_in_time_answers(broker: WiredBroker) -> None:
    client, worker = grown_up(broker, paused="no memory")
    task_id = ask(broker, client)
    for _ in range(3):
        pass_time(broker, HOPELESS_S - 1)
        offer(broker, worker, [service("s", [model("m", slots=0)])])
        pass_time(broker, 1)
        offer(broker, worker, [service("s", [model("m", paused="no memory")])])
    offer(broker, worker, [service("s", [model("m")])])
    assert list(broker.work(worker)) == [task_id]


def test_a_full_machine_is_a_queue(broker: WiredBroker) -> None:
    client, worker = grown_up(broker, slots=1)
    ask(broker, client)
    held = broker.work(worker)
    waiting = ask(broker, client)
    pass_time(broker, UNANSWERED_S * 3)
    assert broker.task_table.state_of(waiting) is TaskState.QUEUED
    broker.finish(worker, held)
    assert list(broker.work(worker)) == [waiting]


@pytest.mark.parametrize("kind", ["echo", "agent_action"])
def test_workers_whose_slots_are_taken_are_a_queue(broker: WiredBroker, kind: str) -> None:
    client, worker = broker.client(), broker.worker("w", types=[kind])
    pass_time(broker, YOUNG_S, types=(kind,))
    ask(broker, client, kind=kind, model="")
    held = broker.work(worker)
    waiting = ask(broker, client, kind=kind, model="")
    pass_time(broker, UNANSWERED_S * 2, types=(kind,))
    assert broker.task_table.state_of(waiting) is TaskState.QUEUED
    broker.finish(worker, held)
    assert list(broker.work(worker)) == [waiting]


def test_a_machine_that_answers_others_is_a_queue(broker: WiredBroker) -> None:
    client, worker = grown_up(broker)
    for _ in range(int(UNANSWERED_S)):
        ask(broker, client)
        broker.finish(worker, broker.work(worker))
        broker.say(worker, m.Measured("s", [model("m", slots=0)]))
        waiting = ask(broker, client)
        pass_time(broker, 2)
        assert broker.task_table.state_of(waiting) is TaskState.QUEUED
        broker.say(worker, m.Measured("s", [model("m")]))


def test_a_machine_that_takes_nothing_for_long_is_no_queue(broker: WiredBroker) -> None:
    client, worker = grown_up(broker)
    task_id, result = ask(broker, client), None
    line = ask(broker, client, source=BATCH)
    began = broker.now
    while broker.now < began + UNANSWERED_S * 2 and result is None:
        if held := broker.work(worker):
            broker.say(worker, m.Measured("s", [model("m", slots=0)]))
            broker.say(worker, m.Release(1, list(held), list(held.values()), "busy"))
            broker.say(worker, m.Measured("s", [model("m")]))
        pass_time(broker, 0.5)
        result = told(broker, client, task_id)
    assert result is not None
    assert result["code"] == "backend.busy", (result, broker.now - began)
    assert result["error"].endswith(BACK)
    assert UNANSWERED_S <= broker.now - began < UNANSWERED_S + 3
    assert broker.task_table.state_of(line) is not None


@pytest.mark.parametrize(("blocked_s", "is_over"), [(MAX_QUOTA_S / 2, False), (3600.0, True)])
def test_an_account_is_waited_for_if_it_allows_something_soon(
    broker: WiredBroker, blocked_s: float, is_over: bool
) -> None:
    client = broker.client()
    budget = m.Budget(blocked_s=blocked_s + YOUNG_S, blocked_why="quota of the day")
    host(broker, "w", [service("s", [model("m", budget=budget)], is_cloud=True)])
    pass_time(broker, YOUNG_S)
    task_id = ask(broker, client, model="=m;cloud=yes")
    pass_time(broker, HOPELESS_S + 1)
    result = told(broker, client, task_id)
    assert (result is not None) is is_over
    if result is not None:
        assert result["code"] == "backend.limit"
        assert "quota of the day" in result["error"]


def test_a_line_of_a_batch_that_fails_is_tried_again_later(broker: WiredBroker) -> None:
    client, worker = grown_up(broker)
    line = ask(broker, client, source=BATCH)
    token = broker.work(worker)[line]
    payload = failure("no memory at all")
    broker.say(worker, m.Results(1, 4, [line], [token], bytes([m.FAILED]), [payload]))
    offer(broker, worker, [service("s", [model("m", paused="it failed")])])
    pass_time(broker, HOPELESS_S + UNANSWERED_S)
    assert told(broker, client, line) is None
    assert broker.task_table.state_of(line) is TaskState.QUEUED


def test_who_saw_his_request_fail_everywhere_is_told_the_last_error(broker: WiredBroker) -> None:
    client, worker = grown_up(broker)
    task_id = ask(broker, client)
    token = broker.work(worker)[task_id]
    payload = failure("no memory at all")
    broker.say(worker, m.Results(1, 4, [task_id], [token], bytes([m.FAILED]), [payload]))
    offer(broker, worker, [service("s", [model("m", paused="it failed")])])
    pass_time(broker, HOPELESS_S + 1)
    result = told(broker, client, task_id)
    assert result is not None
    assert result["error"] == "no memory at all"


def test_as_long_as_one_machine_is_well_who_waits_at_a_door_waits_for_it(
    broker: WiredBroker,
) -> None:
    client, worker = grown_up(broker)
    busy = host(broker, "b", [service("t", [model("m", slots=1)])])
    ask(broker, client)
    ask(broker, client)
    held = broker.work(busy)
    assert held
    ((task_id, token),) = broker.work(worker).items()
    broker.say(worker, m.Results(1, 4, [task_id], [token], bytes([m.FAILED]), [b"\x80"]))
    offer(broker, worker, [service("s", [model("m", paused="no memory")])])
    pass_time(broker, UNANSWERED_S * 2)
    assert broker.task_table.state_of(task_id) is TaskState.QUEUED


def test_a_restart_waits_for_machines_to_come_back_and_then_is_as_before(
    broker: WiredBroker,
) -> None:
    client, _ = grown_up(broker, paused="no memory")
    task_id = ask(broker, client)
    broker.restart()
    client = broker.client()
    broker.say(client, m.Watch([task_id]))
    pass_time(broker, YOUNG_S - 2)
    assert told(broker, client, task_id) is None
    pass_time(broker, HOPELESS_S + 4)
    assert told(broker, client, task_id) is not None


def test_a_broker_that_stood_still_blames_nobody(broker: WiredBroker) -> None:
    client, worker = grown_up(broker, paused="no memory")
    task_id = ask(broker, client)
    pass_time(broker, 1)
    broker.pass_time(60, step=60)
    offer(broker, worker, [service("s", [model("m")])])
    assert list(broker.work(worker)) == [task_id]
