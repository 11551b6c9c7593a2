"""Placed tasks: they wait until a service has a slot, and every way of ending frees it."""

from __future__ import annotations

from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.task import TaskState
from tests.core.llm_services import host, model, offer, placed, service
from tests.core.wired_broker import WiredBroker


def test_a_worker_is_told_the_place_before_the_work(broker: WiredBroker) -> None:
    client = broker.client()
    worker = host(broker, "w", [service("s", [model("m", slots=2)])])
    ids = broker.submit(client, 3, "agent_action", model="m")
    said = [message for peer, message, _ in broker.sent if peer == worker]
    kinds = [type(message) for message in said if isinstance(message, (m.Placed, m.Work))]
    assert kinds == [m.Placed, m.Work]
    assert placed(broker, worker) == {ids[0]: ("s", "m"), ids[1]: ("s", "m")}
    held = broker.work(worker)
    assert list(held) == ids[:2]
    assert broker.task_table.state_of(ids[2]) is TaskState.QUEUED  # late binding
    broker.finish(worker, {ids[0]: held[ids[0]]})
    assert list(placed(broker, worker)) == [ids[2]]


def test_placed_attempts_run_beside_the_window(broker: WiredBroker) -> None:
    client = broker.client()
    worker = host(broker, "w", [service("s", [model("m", slots=4)])], slots=1)
    broker.submit(client, 4, "agent_action")
    assert len(placed(broker, worker)) == 4
    broker.work(worker)
    echo = broker.submit(client, 2, "echo")
    assert list(broker.work(worker)) == echo[:1]


def test_two_workers_of_one_service_share_its_slots(broker: WiredBroker) -> None:
    client = broker.client()
    offered = [service("s", [model("m", slots=2)])]
    one, two = host(broker, "a", offered), host(broker, "b", offered)
    broker.submit(client, 5, "agent_action")
    assert len(placed(broker, one)) + len(placed(broker, two)) == 2
    broker.work(one)
    broker.say(one, m.Goodbye("done"))  # what it had waits again, and its slots are free
    assert len(placed(broker, two)) == 2
    offer(broker, two, [])
    assert not broker.state.services.types
