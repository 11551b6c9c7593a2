"""One service, two ids: its own worker names it by its machine, another by its address."""

from __future__ import annotations

import pytest

from d8mesh.core.broker.effects import Peer
from d8mesh.core.broker.service_names import ServiceNames
from d8mesh.core.protocol import messages as m
from tests.core.llm_services import host, model, offer, placed, service
from tests.core.wired_broker import WiredBroker

NEAR, FAR = "machine-a:11434", "10.0.0.1:11434"
TOLD = {
    "near": service(NEAR, [model(slots=2)], url="http://127.0.0.1:11434"),
    "far": service(FAR, [model(slots=2)], url="http://10.0.0.1:11434"),
}


def joined(broker: WiredBroker, name: str) -> Peer:
    address = "10.0.0.1" if name == "near" else "10.0.0.2"
    return host(broker, name, [TOLD[name]], address=address)


@pytest.mark.parametrize("order", [("near", "far"), ("far", "near")])
def test_whoever_joins_first_both_share_one_set_of_slots(
    broker: WiredBroker, order: tuple[str, str]
) -> None:
    client = broker.client()
    first = joined(broker, order[0])
    broker.submit(client, 5, "agent_action")
    held = broker.work(first)
    assert len(held) == 2
    second = joined(broker, order[1])
    assert broker.work(second) == {}  # not one more than it has slots
    (found,) = broker.state.services.services.values()
    assert set(found.told) == {"near", "far"}
    broker.finish(first, held)
    by_name = dict(zip(order, (first, second), strict=True))
    for name, peer in by_name.items():  # each is told its own word for it
        assert {where for where, _ in placed(broker, peer).values()} <= {TOLD[name].id}
    assert len(found.flights) == 2
    assert broker.work(by_name["far"])  # of two the first by its name
    broker.say(by_name["far"], m.Measured(FAR, [model(slots=3)]))
    assert len(found.flights) == 3


@pytest.mark.parametrize("order", [("near", "far"), ("far", "near")])
def test_what_a_worker_says_to_run_there_is_known_by_its_own_word(
    broker: WiredBroker, order: tuple[str, str]
) -> None:
    client = broker.client()
    peers = {name: joined(broker, name) for name in order}
    (task_id,) = broker.submit(client, 1, "agent_action")
    held = broker.work(peers["far"])
    broker.restart()
    far = broker.worker("far", held=held, address="10.0.0.2")
    joined(broker, "near")
    offer(broker, far, [TOLD["far"]], held=[(task_id, FAR, "m")])
    (found,) = broker.state.services.services.values()
    assert list(found.flights) == [task_id]
    assert found.models["m"].in_flight == 1


def test_an_address_means_a_worker_s_own_service_only_while_it_is_there() -> None:
    names = ServiceNames()
    near, far = [TOLD["near"]], [TOLD["far"]]
    names.tell("near", "10.0.0.1", near, ())
    names.tell("far", "10.0.0.2", far, {NEAR})
    assert names.kept("far", FAR) == NEAR
    names.tell("near", "10.0.0.7", near, {NEAR})  # it has moved, another is there now
    names.tell("far", "10.0.0.2", far, {NEAR})
    assert names.kept("far", FAR) == FAR
    names.tell("far", "10.0.0.2", [], {NEAR})
    assert names.kept("far", FAR) == FAR


@pytest.mark.parametrize(
    ("address", "url", "is_cloud"),
    [
        ("127.0.0.1", "http://127.0.0.1:11434", False),  # the orchestrator's own machine
        ("", "http://127.0.0.1:11434", False),
        ("10.0.0.1", "http://10.0.0.9:11434", False),
        ("10.0.0.1", "http://127.0.0.1", False),
        ("10.0.0.1", "http://127.0.0.1:none", False),
        ("10.0.0.1", "", False),
        ("10.0.0.1", "http://127.0.0.1:11434", True),
    ],
)
def test_no_address_is_known_of_what_is_not_proved_to_be_there(
    address: str, url: str, is_cloud: bool
) -> None:
    names = ServiceNames()
    names.tell("near", address, [service(NEAR, url=url, is_cloud=is_cloud)], ())
    names.tell("far", "10.0.0.2", [TOLD["far"]], {NEAR})
    assert names.kept("far", FAR) == FAR
