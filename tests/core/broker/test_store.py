"""What a start goes on from."""

from __future__ import annotations

from d8mesh.core.broker.dispatcher import Dispatcher
from d8mesh.core.broker.state import Policy
from d8mesh.core.broker.store import Restored


def test_an_empty_journal_is_a_start_from_nothing() -> None:
    brain = Dispatcher(
        Policy(broker_id="o", mesh="m"), Restored(epoch=1, secret=bytes(32)), lambda: 0.5
    )
    brain.check()
    assert not list(brain.state.task_table.batches())


def test_two_starts_share_nothing() -> None:
    first, second = (Restored(epoch=n, secret=bytes(32)) for n in (1, 2))
    first.accepted["0" * 16] = [(0, 1)]
    first.totals.completed += 1
    assert (second.accepted, second.totals.completed) == ({}, 0)
