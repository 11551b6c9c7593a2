"""The fold of the facts."""

from __future__ import annotations

import pytest

from d8mesh.core.ledger import Ledger
from d8mesh.core.task import (
    Cancelled,
    Completed,
    Due,
    Failed,
    HandedOut,
    Recounted,
    Requeued,
    Spec,
    Submitted,
    TaskState,
)
from d8mesh.errors import IllegalTransitionError, UnknownTaskError

S = "0123456789abcdef"
SPEC = Spec("echo", 5, 3)


def submitted(first: int, count: int, **spec: object) -> Submitted:
    return Submitted(S, first, Spec("echo", 5, 3, **spec), [b"x"] * count, 0.0)  # type: ignore[arg-type]


@pytest.fixture
def ledger() -> Ledger:
    made = Ledger()
    made.apply(submitted(0, 4))
    return made


def test_waiting_tasks_are_numbers_until_they_are_drawn(ledger: Ledger) -> None:
    assert ledger.tasks == {}
    assert ledger.state_of(f"{S}-3") is TaskState.QUEUED
    (batch,) = ledger.batches()
    drawn = ledger.draw(batch, 2)
    assert [task.id for task in drawn] == [f"{S}-0", f"{S}-1"]
    assert ledger.queued == 4
    ledger.check()


def test_a_finished_task_cannot_be_finished_again(ledger: Ledger) -> None:
    done = Completed("w", [f"{S}-0"], [1], [b"r"], 1.0)
    ledger.apply(done)
    with pytest.raises(UnknownTaskError):
        ledger.apply(done)
    with pytest.raises(UnknownTaskError):
        ledger.apply(Cancelled([f"{S}-9"], [0], [b""], 1.0))
    assert (ledger.queued, ledger.totals.completed) == (3, 1)


def test_a_task_cannot_be_handed_out_twice(ledger: Ledger) -> None:
    fact = HandedOut(1, "w", [f"{S}-0"], [1], 0.0)
    ledger.apply(fact)
    with pytest.raises(IllegalTransitionError):
        ledger.apply(fact)


def test_cancelled_ones_are_passed_over_when_drawing(ledger: Ledger) -> None:
    ids = [f"{S}-0", f"{S}-2", f"{S}-3"]
    ledger.apply(Cancelled(ids, [0] * 3, [b""] * 3, 0.0))
    (batch,) = ledger.batches()
    assert batch.fresh_count == 1
    assert [task.id for task in ledger.draw(batch, 9)] == [f"{S}-1"]
    assert batch.fresh_count == 0
    ledger.check()


def test_an_emptied_batch_is_told_once(ledger: Ledger) -> None:
    ids = [f"{S}-{n}" for n in range(4)]
    ledger.apply(Failed("", ids, [0] * 4, [b""] * 4, 0.0, "why"))
    assert [batch.first for batch in ledger.take_emptied()] == [0]
    assert ledger.take_emptied() == []
    assert list(ledger.batches()) == []
    assert ledger.find(ids[0]) is None
    assert ledger.unfinished_bytes == ledger.loaded_bytes == 0


def test_a_requeued_task_waits_with_its_history(ledger: Ledger) -> None:
    ledger.apply(HandedOut(1, "w", [f"{S}-0"], [1], 0.0))
    ledger.apply(Requeued("w", [f"{S}-0"], [1], "broke", 0.0, is_counted=True, is_loss=True))
    history = ledger.tasks[f"{S}-0"].history
    assert history is not None
    assert (history.errors, history.losses, history.failed_on) == (1, {("w", 1)}, {"w": 1})
    ledger.check()


def test_whether_an_attempt_was_lost_may_turn_out_later(ledger: Ledger) -> None:
    ledger.apply(HandedOut(1, "w", [f"{S}-0"], [1], 0.0))
    ledger.apply(Requeued("w", [f"{S}-0"], [1], "nobody was heard", 0.0))
    ledger.apply(Recounted("w", [f"{S}-0"], [1], is_loss=True))
    history = ledger.tasks[f"{S}-0"].remember()
    assert (history.errors, history.losses, history.failed_on) == (1, {("w", 1)}, {"w": 1})
    ledger.apply(Recounted("w", [f"{S}-0"], [1], is_loss=False))
    assert (history.errors, history.losses, list(history.failed_on)) == (0, set(), [])
    assert ledger.state_of(f"{S}-0") is TaskState.QUEUED
    ledger.check()


def test_batches_are_found_among_others_of_the_session() -> None:
    ledger = Ledger()
    for first in (10, 0, 30):
        ledger.apply(submitted(first, 5))
    assert ledger.state_of(f"{S}-7") is None
    assert ledger.state_of(f"{S}-12") is TaskState.QUEUED
    assert ledger.batch_at(S, 30) is not None
    assert ledger.batch_at(S, 31) is None
    assert ledger.find(f"{'f' * 16}-0") is None
    assert ledger.open_task(f"{S}-7") is None


def test_payloads_beyond_the_memory_are_left_on_disk_and_loaded_back() -> None:
    ledger = Ledger(payload_memory_bytes=3)
    ledger.apply(submitted(0, 3))
    ledger.apply(submitted(3, 3))
    first, second = sorted(ledger.batches(), key=lambda batch: batch.first)
    assert second.payloads is None
    task = ledger.open_task(f"{S}-4")
    assert task is not None
    before = task.payload
    ledger.load(second, [b"a", b"b", b"c"])
    assert (before, task.payload) == (None, b"b")
    ledger.load(second, [b"?"] * 3)  # already there
    assert [each.payload for each in ledger.draw(second, 9)] == [b"a", b"c"]
    assert first.payloads is not None
    ledger.check()


def test_a_batch_that_ended_before_its_time_is_not_due_any_more(ledger: Ledger) -> None:
    ledger.apply(Due([], [("f" * 16, 0)]))
    with pytest.raises(UnknownTaskError):
        ledger.apply(Due([f"{'f' * 16}-0"], []))


def test_a_task_whose_payload_is_on_disk_only_can_be_cancelled() -> None:
    ledger = Ledger(payload_memory_bytes=0)
    ledger.apply(submitted(0, 2))
    ledger.apply(Cancelled([f"{S}-0"], [0], [b""], 1.0))
    ledger.check()
    assert ledger.queued == 1
