"""What the parts share."""

from __future__ import annotations

from d8mesh.core.broker.effects import Load, Peer, Record, Send
from d8mesh.core.broker.state import BrokerState, Policy
from d8mesh.core.protocol.messages import Answer, Beat
from d8mesh.core.protocol.task import Spec, Submitted
from d8mesh.core.protocol.tokens import TokenSigner
from d8mesh.errors import UnknownTaskError

PEER = Peer(b"x")


def broker() -> BrokerState:
    return BrokerState(Policy(broker_id="o", mesh="m"), TokenSigner(bytes(32), 1), 1, lambda: 0.5)


def test_a_recorded_fact_happens_in_memory_and_is_asked_to_be_committed() -> None:
    made = broker()
    fact = Submitted("0123456789abcdef", 0, Spec("echo", 5, 3), [b"x"], 0.0)
    made.record(fact)
    assert made.task_table.queued == 1
    assert made.take_effects() == [Record(fact)]
    assert made.take_effects() == []


def test_answers_and_refusals_go_to_who_asked() -> None:
    made = broker()
    made.send(PEER, Beat(1))
    made.answer(PEER, 7, {"a": 1}, waits=True)
    made.refuse(PEER, 8, UnknownTaskError(), more=2)
    assert made.take_effects() == [
        Send(PEER, Beat(1), False),
        Send(PEER, Answer(7, "", {"a": 1}), True),
        Send(PEER, Answer(8, "task.unknown", {"error": "Task not found", "more": 2}), False),
    ]


def test_questions_are_numbered_and_answered_once() -> None:
    made, heard = broker(), list[object]()
    made.load("task", ("id",), lambda rows, error: heard.append((rows, error)))
    assert made.take_effects() == [Load(1, "task", ("id",))]
    made.loaded(1, [(5,)], "")
    made.loaded(1, [(6,)], "")
    assert heard == [([(5,)], "")]


def test_refusals_are_counted_by_reason() -> None:
    made = broker()
    for reason in ("a", "b", "a"):
        made.reject(reason)
    assert made.rejected == {"a": 2, "b": 1}
