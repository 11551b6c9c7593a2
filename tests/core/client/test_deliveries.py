"""What was delivered is told until it is acknowledged, many tasks at once."""

from __future__ import annotations

import pytest

from d8mesh.core.client import deliveries as module
from d8mesh.core.client.deliveries import Deliveries
from d8mesh.core.protocol.messages import MAX_BATCH_TASKS, SOFT_FRAME_BYTES, Delivered


def ids(count: int) -> list[str]:
    return [f"{'0' * 16}-{n}" for n in range(count)]


def told(*wanted: tuple[str, float], book: Deliveries | None = None) -> Deliveries:
    book = book or Deliveries()
    for task_id, keep_s in wanted:
        book.add(task_id, b"\x80", keep_s)
    return book


def test_what_comes_together_is_one_message_for_each_time_that_it_is_kept() -> None:
    a, b, c = ids(3)
    book = told((a, 0.0), (b, 600.0), (c, 0.0))
    assert book.take(1.0) == [
        Delivered(1, [a, c], [b"\x80"] * 2),
        Delivered(2, [b], [b"\x80"], 600.0),
    ]
    assert book.take(1.0) == []


def test_a_message_is_said_again_until_it_is_acknowledged() -> None:
    book = told((ids(1)[0], 0.0))
    sent = book.take(1.0)
    assert book.resent(5.0, 10.0) == []
    assert book.resent(11.0, 10.0) == sent
    assert book.resent(12.0, 10.0) == []
    assert book
    book.acknowledge(1)
    book.acknowledge(7)  # never said
    assert not book
    assert book.resent(99.0, 0.0) == []


def test_messages_are_cut_to_what_a_frame_holds() -> None:
    book = told(*((task_id, 0.0) for task_id in ids(MAX_BATCH_TASKS + 1)))
    assert [len(each.ids) for each in book.take(1.0)] == [MAX_BATCH_TASKS, 1]
    book = Deliveries()
    for task_id in ids(3):
        book.add(task_id, bytes(SOFT_FRAME_BYTES - 1), 0.0)
    assert [len(each.ids) for each in book.take(1.0)] == [1, 1, 1]


def test_while_no_orchestrator_answers_the_oldest_are_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_DELIVERIES", 2)
    a, b, c, d = ids(4)
    book = told((a, 0.0), (b, 0.0), (c, 0.0))
    assert [each.ids for each in book.take(1.0)] == [[b, c]]
    told((d, 0.0), book=book)
    assert [each.ids for each in book.resent(2.0, 0.0) + book.take(2.0)] == [[d]]
