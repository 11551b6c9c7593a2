"""Who has no session: how long it may stay, and how many may."""

from __future__ import annotations

from d8mesh.core.broker.effects import Peer
from d8mesh.core.broker.unwelcome import (
    MAX_UNWELCOME,
    MAX_UNWELCOME_PER_ADDRESS,
    UNWELCOME_S,
    Unwelcome,
)


def peer(n: int, address: str = "10.0.0.1") -> Peer:
    return Peer(n.to_bytes(5, "big"), address)


def test_one_is_due_when_its_time_is_over_and_once() -> None:
    unwelcome = Unwelcome()
    unwelcome.note(peer(1), 10.0)
    unwelcome.note(peer(2), 15.0)
    assert unwelcome.due(10.0 + UNWELCOME_S - 0.1) == []
    assert unwelcome.due(10.0 + UNWELCOME_S) == [peer(1)]
    assert unwelcome.due(15.0 + UNWELCOME_S) == [peer(2)]
    assert unwelcome.due(1000.0) == []


def test_what_it_says_meanwhile_gives_it_no_more_time() -> None:
    unwelcome = Unwelcome()
    unwelcome.note(peer(1), 10.0)
    unwelcome.note(peer(1), 25.0)
    assert unwelcome.due(10.0 + UNWELCOME_S) == [peer(1)]


def test_who_has_a_session_by_then_is_not_due() -> None:
    unwelcome = Unwelcome()
    unwelcome.note(peer(1), 10.0)
    unwelcome.forget(peer(1))
    unwelcome.forget(peer(2))
    assert unwelcome.due(1000.0) == []


def test_an_address_has_some_and_others_are_not_concerned() -> None:
    unwelcome = Unwelcome()
    for n in range(MAX_UNWELCOME_PER_ADDRESS):
        unwelcome.note(peer(n), 0.0)
    unwelcome.note(peer(0), 0.0)  # is known
    assert not unwelcome.are_many("10.0.0.1")
    unwelcome.note(peer(MAX_UNWELCOME_PER_ADDRESS), 0.0)
    assert unwelcome.are_many("10.0.0.1")
    assert not unwelcome.are_many("10.0.0.2")
    unwelcome.due(UNWELCOME_S)
    assert not unwelcome.are_many("10.0.0.1")


def test_of_more_than_are_remembered_the_oldest_are_due() -> None:
    unwelcome = Unwelcome()
    for n in range(MAX_UNWELCOME + 2):
        unwelcome.note(peer(n), 0.0)
    assert unwelcome.due(1.0) == [peer(0), peer(1)]
    assert unwelcome.due(1.0) == []
