"""A worker whose connection has ended loses its placed attempts soon, and at no cost."""

from __future__ import annotations

from d8mesh.core.broker.effects import Peer
from d8mesh.core.broker.vanishing import BACK_S
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.task import Requeued
from tests.core.llm_services import host, model, service
from tests.core.wired_broker import WiredBroker, beat


def sweep(broker: WiredBroker, gone: Peer, seconds: float) -> None:
    """Let time pass in which nothing can be sent to a worker."""
    until = broker.now + seconds
    while broker.now < until:
        broker.pass_time(0.5)
        for _ in broker.got(gone, m.Beat):
            broker.perform(broker.dispatcher.undelivered(gone, m.Beat(1)))


def test_a_placed_attempt_moves_two_seconds_after_its_workers_connection_has_ended(
    broker: WiredBroker,
) -> None:
    client, first = broker.client(), host(broker, "a", [service("s", [model("m")])])
    (task_id,) = broker.submit(client, kind="agent_action", model="=m")
    held = broker.work(first)
    assert list(held) == [task_id]
    second = host(broker, "b", [service("t", [model("m")])])
    sweep(broker, first, 2.0)
    assert list(broker.work(second)) == [task_id]
    (fact,) = [each for each in broker.facts if isinstance(each, Requeued)]
    assert (fact.is_counted, fact.why) == (False, "its connection has ended")


def test_one_that_is_heard_again_keeps_what_it_has(broker: WiredBroker) -> None:
    client, worker = broker.client(), host(broker, "a", [service("s", [model("m")])])
    (task_id,) = broker.submit(client, kind="agent_action", model="=m")
    held = broker.work(worker)
    host(broker, "b", [service("t", [model("m")])])
    for _ in range(5):
        sweep(broker, worker, BACK_S - 0.2)
        broker.say(worker, beat([task_id], 1))
    assert not [each for each in broker.facts if isinstance(each, Requeued)]
    broker.finish(worker, held)
    assert broker.task_table.totals.completed == 1


def test_who_runs_nothing_that_is_placed_is_not_asked(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    broker.submit(client)
    broker.got(worker, m.Beat)
    broker.pass_time(2.0)
    assert not broker.got(worker, m.Beat)
