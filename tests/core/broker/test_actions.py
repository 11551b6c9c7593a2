"""What the parts of the brain can do."""

from __future__ import annotations

import pytest

from d8mesh.core.broker.actions import Actions
from d8mesh.core.broker.effects import Load, Peer, Record, Send
from d8mesh.core.broker.state import BrokerState, PageIn, Policy
from d8mesh.core.broker.store import PayloadsOf
from d8mesh.core.protocol.messages import Answer, Beat
from d8mesh.core.protocol.task import Spec, Submitted
from d8mesh.core.protocol.tokens import TokenSigner
from d8mesh.errors import UnknownTaskError

PEER = Peer(b"x")


@pytest.fixture
def state() -> BrokerState:
    return BrokerState(Policy(broker_id="o", mesh="m"), 1)


@pytest.fixture
def actions(state: BrokerState) -> Actions:
    return Actions(state, TokenSigner(bytes(32), 1), lambda: 0.5)


def test_a_recorded_fact_happens_in_memory_and_is_asked_to_be_committed(
    actions: Actions, state: BrokerState
) -> None:
    fact = Submitted("0123456789abcdef", 0, Spec("echo", 5, 3), [b"x"], 0.0)
    actions.record(fact)
    assert state.task_table.queued == 1
    assert actions.take() == [Record(fact)]
    assert actions.take() == []


def test_answers_and_refusals_go_to_who_asked(actions: Actions) -> None:
    actions.send(PEER, Beat(1))
    actions.answer(PEER, 7, {"a": 1}, waits=True)
    actions.refuse(PEER, 8, UnknownTaskError(), more=2)
    assert actions.take() == [
        Send(PEER, Beat(1), False),
        Send(PEER, Answer(7, "", {"a": 1}), True),
        Send(PEER, Answer(8, "task.unknown", {"error": "Task not found", "more": 2}), False),
    ]


def test_a_question_is_numbered_and_what_goes_on_is_kept_as_data(
    actions: Actions, state: BrokerState
) -> None:
    question, then = PayloadsOf("0123456789abcdef", 0), PageIn("0123456789abcdef", 0)
    actions.ask(question, then)
    assert actions.take() == [Load(1, question)]
    assert state.loads == {1: (then, "")}
