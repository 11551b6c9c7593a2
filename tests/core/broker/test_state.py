"""What the parts share."""

from __future__ import annotations

import pytest

from d8mesh.core.broker.effects import Load, Peer, Record, Send
from d8mesh.core.broker.state import BrokerState, CatchUp, Policy, Retry, TellOutcomes
from d8mesh.core.broker.store import PayloadsOf
from d8mesh.core.protocol.membership import welcome_proof
from d8mesh.core.protocol.messages import Answer, Beat
from d8mesh.core.protocol.task import Spec, Submitted
from d8mesh.core.protocol.tokens import TokenSigner
from d8mesh.errors import UnknownTaskError

PEER = Peer(b"x")


@pytest.fixture
def state() -> BrokerState:
    policy = Policy(broker_id="o", mesh="m")
    return BrokerState(policy, 1, TokenSigner(bytes(32), 1), lambda: 0.5, now=10.0)


def test_a_welcome_proves_the_mesh_key_to_the_key_that_it_goes_to() -> None:
    secret, ours, theirs = b"s" * 32, b"o" * 32, b"p" * 32
    policy = Policy(broker_id="o", mesh="m", server_key=ours, mesh_secret=secret)
    state = BrokerState(policy, 1, TokenSigner(bytes(32), 1), lambda: 0.5, now=10.0)
    told = state.welcome(Peer(b"x", "10.0.0.1", theirs), 1, [])
    assert told.proof == welcome_proof(secret, ours, theirs)
    assert state.welcome(PEER, 1, []).proof == b""
    assert repr(secret) not in repr(policy)


def test_timers_of_one_moment_keep_their_order(state: BrokerState) -> None:
    state.after(2.0, Retry("b"))
    state.after(1.0, CatchUp())
    state.after(2.0, Retry("a"))
    assert sorted(state.timers) == [
        (11.0, 2, CatchUp()),
        (12.0, 1, Retry("b")),
        (12.0, 3, Retry("a")),
    ]


def test_a_recorded_fact_happens_in_memory_and_is_asked_to_be_committed(state: BrokerState) -> None:
    fact = Submitted("0123456789abcdef", 0, Spec("echo", 5, 3), [b"x"], 0.0)
    state.record(fact)
    assert state.task_table.queued == 1
    assert state.take() == [Record(fact)]
    assert state.take() == []


def test_answers_and_refusals_go_to_who_asked(state: BrokerState) -> None:
    state.send(PEER, Beat(1))
    state.answer(PEER, 7, {"a": 1}, waits=True)
    state.refuse(PEER, 8, UnknownTaskError(), more=2)
    assert state.take() == [
        Send(PEER, Beat(1), False),
        Send(PEER, Answer(7, "", {"a": 1}), True),
        Send(PEER, Answer(8, "task.unknown", {"error": "Task not found", "more": 2}), False),
    ]


def test_a_question_is_numbered_and_what_goes_on_is_kept_as_data(state: BrokerState) -> None:
    question, then = PayloadsOf("0123456789abcdef", 0), TellOutcomes("0123456789abcdef", [])
    state.ask(question, then)
    assert state.take() == [Load(1, question)]
    assert state.loads == {1: (then, "")}
