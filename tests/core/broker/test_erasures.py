"""What was delivered is erased: at once, when it is due, or when it has finished."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from d8mesh.core.broker.effects import Peer
from d8mesh.core.broker.erasures import UNFINISHED_S, rest_of
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.task import Erased, ErasureSet
from tests.core.wired_broker import S, WiredBroker, result

REST = msgspec.msgpack.encode({"success": True, "worker_id": "w"})
KEPT = {"success": True, "worker_id": "w", "erased": True}
ASKED = msgspec.msgpack.encode({"prompt": "asked"})


def chat(broker: WiredBroker, *, ends: bool = True) -> tuple[Peer, str]:
    """Let a client of a door submit a task, and a worker finish it."""
    client, worker = broker.client(S), broker.worker("w")
    (task_id,) = ask(broker, client)
    if ends:
        broker.finish(worker, broker.work(worker))
    return client, task_id


def ask(broker: WiredBroker, client: Peer, count: int = 1) -> list[str]:
    source = "ollama 10.0.0.9 curl/8.5"
    return broker.submit(client, count, payloads=[ASKED] * count, source=source)


def deliver(broker: WiredBroker, client: Peer, *ids: str, keep_s: float = 0.0) -> None:
    broker.say(client, m.Delivered(7, list(ids), [REST] * len(ids), keep_s))


def status(broker: WiredBroker, client: Peer, task_id: str, **more: Any) -> dict[str, Any]:
    answer = broker.ask(client, "status", id=task_id, **more)
    assert answer.code == "", answer.body
    return answer.body


def test_what_was_delivered_is_erased_before_that_is_acknowledged(broker: WiredBroker) -> None:
    client, task_id = chat(broker)
    assert status(broker, client, task_id)["erased"] is False
    broker.sent.clear()
    deliver(broker, client, task_id)
    assert [sent[1:] for sent in broker.sent] == [(m.Received(7), True)]
    body = status(broker, client, task_id, full=True)
    assert msgspec.msgpack.decode(body["result"]) == KEPT
    assert (body["erased"], body["data"], body["state"]) == (True, None, "completed")
    assert (body["door"], body["caller"]) == ("ollama", "10.0.0.9 curl/8.5")


def test_what_another_client_asked_is_erased_for_nobody_but_a_door(broker: WiredBroker) -> None:
    client, task_id = chat(broker)
    stranger = broker.client("0123456789abcde1", key=b"s" * 32)
    deliver(broker, stranger, task_id)
    body = status(broker, client, task_id, full=True)
    assert (body["erased"], msgspec.msgpack.decode(body["data"])) == (False, {"prompt": "asked"})
    assert broker.state.metrics.rejected == {"access.forbidden": 1}
    broker.dispatcher.state.members.own.add(b"d" * 32)
    door = broker.client("0123456789abcde2", key=b"d" * 32)
    deliver(broker, door, task_id)
    assert status(broker, client, task_id)["erased"] is True


def test_to_say_it_again_changes_nothing(broker: WiredBroker) -> None:
    client, task_id = chat(broker)
    for _ in range(2):
        deliver(broker, client, task_id)
        assert broker.got(client, m.Received) == [m.Received(7)]
    for _ in range(2):
        deliver(broker, client, task_id, keep_s=5.0)
    assert [type(each) for each in broker.facts].count(ErasureSet) == 1
    broker.pass_time(6.0)
    assert msgspec.msgpack.decode(status(broker, client, task_id)["result"]) == KEPT


def test_what_is_kept_for_a_time_is_erased_when_that_is_over(broker: WiredBroker) -> None:
    client, task_id = chat(broker)
    deliver(broker, client, task_id, keep_s=600.0)
    broker.pass_time(599.0, step=20.0)
    assert status(broker, client, task_id)["erased"] is False
    broker.pass_time(2.0)
    assert status(broker, client, task_id)["erased"] is True
    assert broker.task_table.erasures == {}


def test_what_is_due_is_erased_after_a_restart_too(broker: WiredBroker) -> None:
    client, task_id = chat(broker)
    deliver(broker, client, task_id, keep_s=600.0)
    broker.restart()
    client = broker.client(S)
    broker.pass_time(300.0, step=20.0)
    assert status(broker, client, task_id)["erased"] is False
    broker.restart()
    broker.now += 400.0
    broker.at += 400.0
    broker.restart()
    client = broker.client(S)
    broker.pass_time(1.0)
    assert status(broker, client, task_id)["erased"] is True


def test_what_comes_due_together_is_one_fact(broker: WiredBroker) -> None:
    client, first = chat(broker)
    (second,) = ask(broker, client)
    (worker,) = [each.peer for each in broker.state.registry.workers.values()]
    broker.finish(worker, broker.work(worker))
    deliver(broker, client, first, second, keep_s=5.0)
    broker.pass_time(6.0)
    assert [each for each in broker.facts if isinstance(each, Erased)] == [
        Erased([first, second], [b"", b""])
    ]


def test_a_task_that_is_not_finished_is_erased_when_it_is(broker: WiredBroker) -> None:
    """Its cancel may have been overtaken."""
    client, task_id = chat(broker, ends=False)
    deliver(broker, client, task_id)
    broker.pass_time(3 * UNFINISHED_S)
    assert status(broker, client, task_id)["erased"] is False
    assert broker.ask(client, "cancel", id=task_id).body["state"] == "cancelled"
    broker.pass_time(2 * UNFINISHED_S)
    body = status(broker, client, task_id, full=True)
    assert (body["erased"], body["data"], body["state"]) == (True, None, "cancelled")


def test_what_is_no_task_is_acknowledged_and_passed_over(broker: WiredBroker) -> None:
    client, _ = chat(broker)
    facts = len(broker.facts)
    deliver(broker, client, f"{S}-99", f"{S}-no-number", "v" * 16 + "-0", "not-a-task-id-of-ours")
    assert broker.got(client, m.Received) == [m.Received(7)]
    assert len(broker.facts) == facts


def test_a_task_that_is_pruned_is_not_to_be_erased_any_more(broker: WiredBroker) -> None:
    client, task_id = chat(broker)
    (other,) = broker.submit(client, kind="nobody's", source="ollama")
    deliver(broker, client, task_id, other, keep_s=9 * 86_400.0)
    broker.pass_time(8 * 86_400.0, step=86_400.0)
    broker.pass_time(60.0, step=1.0)
    client = broker.client(S)
    assert broker.ask(client, "status", id=task_id).code == "task.pruned"
    assert broker.task_table.erasures.keys() == {other}
    broker.pass_time(3 * 86_400.0, step=86_400.0)


def test_what_was_erased_cannot_be_replayed_and_says_why(broker: WiredBroker) -> None:
    client, task_id = chat(broker, ends=False)
    broker.ask(client, "cancel", id=task_id)
    deliver(broker, client, task_id)
    answer = broker.ask(client, "replay", id=task_id, session=S, n=50)
    assert answer.code == "task.invalid"
    assert "erased when it was delivered" in str(answer.body["error"])


def test_a_late_result_of_a_task_that_was_erased_is_acknowledged_and_not_kept(
    broker: WiredBroker,
) -> None:
    client, task_id = chat(broker, ends=False)
    (worker,) = [worker.peer for worker in broker.state.registry.workers.values()]
    (token,) = broker.work(worker).values()
    broker.ask(client, "cancel", id=task_id)
    deliver(broker, client, task_id)
    broker.say(worker, m.Results(3, 1, [task_id], [token], b"\1", [result("late")]))
    broker.pass_time(1.0)
    assert m.Received(3) in broker.got(worker, m.Received)
    assert msgspec.msgpack.decode(status(broker, client, task_id)["result"]) == KEPT


def test_clocks_of_what_is_erased_or_pruned_are_let_go(
    broker: WiredBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d8mesh.core.broker.dispatcher.FEW_TIMERS", 0)
    client, first = chat(broker)
    (second,) = ask(broker, client)
    (worker,) = [each.peer for each in broker.state.registry.workers.values()]
    broker.finish(worker, broker.work(worker))
    deliver(broker, client, first, second, keep_s=600.0)
    broker.state.task_table.apply(Erased([first], [b""]))
    broker.pass_time(1.0)
    assert len(broker.state.timers) == 1


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x01", b"\x91" * 5000])
def test_a_rest_that_is_no_object_is_none(payload: bytes) -> None:
    assert msgspec.msgpack.decode(rest_of(payload)) == {"erased": True}


def test_a_listing_may_be_of_one_door(broker: WiredBroker) -> None:
    client, task_id = chat(broker)
    broker.submit(client)
    listed = broker.ask(client, "tasks", door="ollama").body["tasks"]
    assert isinstance(listed, list)
    assert [each["task_id"] for each in listed] == [task_id]
    assert broker.ask(client, "tasks", door="openai").body["tasks"] == []
    assert broker.ask(client, "tasks", door=5).code == "task.invalid"
