"""The state of the brain as plain data."""

from __future__ import annotations

import msgspec
import pytest

from d8mesh.core.protocol import messages as m
from tests.core.plain_state import dump
from tests.core.wired_broker import WiredBroker


def test_the_state_is_plain_data_and_says_where_each_task_is(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    running, waiting = broker.submit(client, 2)
    broker.say(client, m.Listen(running, True))
    told = msgspec.msgpack.decode(msgspec.msgpack.encode(dump(broker.dispatcher)))
    assert told["tasks"][running]["state"] == "RUNNING"
    assert told["tasks"][running]["attempt"]["token"] == broker.work(worker)[running]
    assert waiting not in told["tasks"]  # a number in its batch
    assert told["batches"][0]["unfinished"] == 2
    assert told["workers"][0]["outstanding"] == [[running, running]]


def test_what_is_told_changes_the_state_and_nothing_else_does(broker: WiredBroker) -> None:
    client = broker.client()
    before = dump(broker.dispatcher)
    assert dump(broker.dispatcher) == before
    broker.submit(client)
    assert dump(broker.dispatcher) != before


def test_code_is_no_state(broker: WiredBroker) -> None:
    broker.state.batch_watchers[1] = lambda: "later"  # type: ignore[assignment]
    with pytest.raises(TypeError, match="is no data"):
        dump(broker.dispatcher)
