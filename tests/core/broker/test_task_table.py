"""The fold of the facts."""

from __future__ import annotations

import pytest

from d8mesh.core.broker.task_table import TaskTable
from d8mesh.core.protocol.task import (
    Adopted,
    Assigned,
    Cancelled,
    Completed,
    Due,
    Fact,
    Failed,
    Recounted,
    Requeued,
    Spec,
    Submitted,
    TaskState,
)
from d8mesh.errors import D8Error, IllegalTransitionError, UnknownTaskError
from tests.core.invariants import check_table
from tests.core.plain_state import batches_of

S = "0123456789abcdef"
SPEC = Spec("echo", 5, 3)


def submitted(first: int, count: int, **spec: object) -> Submitted:
    return Submitted(S, first, Spec("echo", 5, 3, **spec), [b"x"] * count, 0.0)  # type: ignore[arg-type]


@pytest.fixture
def task_table() -> TaskTable:
    made = TaskTable()
    made.apply(submitted(0, 4))
    return made


def test_waiting_tasks_are_numbers_until_they_are_drawn(task_table: TaskTable) -> None:
    assert task_table.tasks == {}
    assert task_table.state_of(f"{S}-3") is TaskState.QUEUED
    (batch,) = batches_of(task_table)
    drawn = task_table.draw(batch, 2)
    assert [task.id for task in drawn] == [f"{S}-0", f"{S}-1"]
    assert task_table.queued == 4
    check_table(task_table)


def test_a_finished_task_cannot_be_finished_again(task_table: TaskTable) -> None:
    done = Completed("w", [f"{S}-0"], [1], [b"r"], 1.0)
    task_table.apply(done)
    with pytest.raises(UnknownTaskError):
        task_table.apply(done)
    with pytest.raises(UnknownTaskError):
        task_table.apply(Cancelled([f"{S}-9"], [0], [b""], 1.0))
    assert (task_table.queued, task_table.totals.completed) == (3, 1)


def test_a_task_cannot_be_handed_out_twice(task_table: TaskTable) -> None:
    fact = Assigned(1, "w", [f"{S}-0"], [1], 0.0)
    task_table.apply(fact)
    with pytest.raises(IllegalTransitionError):
        task_table.apply(fact)


def test_cancelled_ones_are_passed_over_when_drawing(task_table: TaskTable) -> None:
    ids = [f"{S}-0", f"{S}-2", f"{S}-3"]
    task_table.apply(Cancelled(ids, [0] * 3, [b""] * 3, 0.0))
    (batch,) = batches_of(task_table)
    assert batch.fresh_count == 1
    assert [task.id for task in task_table.draw(batch, 9)] == [f"{S}-1"]
    assert batch.fresh_count == 0
    check_table(task_table)


def test_an_emptied_batch_is_told_once(task_table: TaskTable) -> None:
    ids = [f"{S}-{n}" for n in range(4)]
    task_table.apply(Failed("", ids, [0] * 4, [b""] * 4, 0.0, "why"))
    assert [batch.first for batch in task_table.take_emptied()] == [0]
    assert task_table.take_emptied() == []
    assert list(batches_of(task_table)) == []
    assert task_table.find(ids[0]) is None
    assert task_table.unfinished_bytes == task_table.loaded_bytes == 0


def test_a_requeued_task_waits_with_its_history(task_table: TaskTable) -> None:
    task_table.apply(Assigned(1, "w", [f"{S}-0"], [1], 0.0))
    task_table.apply(Requeued("w", [f"{S}-0"], [1], "broke", 0.0, is_counted=True, is_loss=True))
    history = task_table.tasks[f"{S}-0"].history
    assert history is not None
    assert (history.errors, history.losses, history.failed_on) == (1, {("w", 1)}, {"w": 1})
    check_table(task_table)


def test_whether_an_attempt_was_lost_may_turn_out_later(task_table: TaskTable) -> None:
    task_table.apply(Assigned(1, "w", [f"{S}-0"], [1], 0.0))
    task_table.apply(Requeued("w", [f"{S}-0"], [1], "nobody was heard", 0.0))
    task_table.apply(Recounted("w", [f"{S}-0"], [1], is_loss=True))
    history = task_table.tasks[f"{S}-0"].remember()
    assert (history.errors, history.losses, history.failed_on) == (1, {("w", 1)}, {"w": 1})
    task_table.apply(Recounted("w", [f"{S}-0"], [1], is_loss=False))
    assert (history.errors, history.losses, list(history.failed_on)) == (0, set(), [])
    assert task_table.state_of(f"{S}-0") is TaskState.QUEUED
    check_table(task_table)


def test_batches_are_found_among_others_of_the_session() -> None:
    task_table = TaskTable()
    for first in (10, 0, 30):
        task_table.apply(submitted(first, 5))
    assert task_table.state_of(f"{S}-7") is None
    assert task_table.state_of(f"{S}-12") is TaskState.QUEUED
    assert task_table.batch_at(S, 30) is not None
    assert task_table.batch_at(S, 31) is None
    assert task_table.find(f"{'f' * 16}-0") is None
    assert task_table.open_task(f"{S}-7") is None


def test_payloads_beyond_the_memory_are_left_on_disk_and_loaded_back() -> None:
    task_table = TaskTable(payload_memory_bytes=3)
    task_table.apply(submitted(0, 3))
    task_table.apply(submitted(3, 3))
    first, second = sorted(batches_of(task_table), key=lambda batch: batch.first)
    assert second.payloads is None
    task = task_table.open_task(f"{S}-4")
    assert task is not None
    before = task.payload
    task_table.load(second, [b"a", b"b", b"c"])
    assert (before, task.payload) == (None, b"b")
    task_table.load(second, [b"?"] * 3)  # already there
    assert [each.payload for each in task_table.draw(second, 9)] == [b"a", b"c"]
    assert first.payloads is not None
    check_table(task_table)


def test_a_batch_that_ended_before_its_time_is_not_due_any_more(task_table: TaskTable) -> None:
    task_table.apply(Due([], [("f" * 16, 0)]))
    with pytest.raises(UnknownTaskError):
        task_table.apply(Due([f"{'f' * 16}-0"], []))


def test_a_task_whose_payload_is_on_disk_only_can_be_cancelled() -> None:
    task_table = TaskTable(payload_memory_bytes=0)
    task_table.apply(submitted(0, 2))
    task_table.apply(Cancelled([f"{S}-0"], [0], [b""], 1.0))
    check_table(task_table)
    assert task_table.queued == 1


def _raising() -> list[tuple[Fact, type[D8Error]]]:
    known, unknown = f"{S}-0", f"{S}-9"
    ids, ns, nothing = [known, unknown], [1, 1], [b"", b""]
    twice = [f"{S}-2"] * 2
    return [
        (Completed("w", ids, ns, nothing, 1.0), UnknownTaskError),
        (Completed("w", [known, known], ns, nothing, 1.0), UnknownTaskError),
        (Failed("", twice, ns, nothing, 1.0, "why"), UnknownTaskError),
        (Cancelled(["nonsense", known], ns, nothing, 1.0), UnknownTaskError),
        (Requeued("w", ids, ns, "why", 1.0), UnknownTaskError),
        (Requeued("w", [known, known], ns, "why", 1.0), IllegalTransitionError),
        (Assigned(2, "v", [f"{S}-1", known], ns, 1.0), IllegalTransitionError),
        (Assigned(2, "v", [f"{S}-1", f"{S}-1"], ns, 1.0), IllegalTransitionError),
        (Adopted("w", ids, ns), UnknownTaskError),
        (Recounted("w", ids, ns, is_loss=True), UnknownTaskError),
        (Due([f"{S}-1", known], []), IllegalTransitionError),
    ]


@pytest.mark.parametrize(("fact", "error"), _raising())
def test_a_fact_that_raises_leaves_the_state_as_it_was(
    task_table: TaskTable, fact: Fact, error: type[D8Error]
) -> None:
    (batch,) = batches_of(task_table)
    task_table.draw(batch, 2)
    task_table.apply(Assigned(1, "w", [f"{S}-0"], [1], 0.0))

    def seen() -> object:
        tasks = {
            task.id: (task.state, task.n, task.worker_id) for task in task_table.tasks.values()
        }
        counts = (task_table.queued, task_table.running, task_table.loaded_bytes)
        return tasks, counts, task_table.totals.completed, batch.unfinished, set(batch.gone)

    before = seen()
    with pytest.raises(error):
        task_table.apply(fact)
    assert seen() == before
    check_table(task_table)
