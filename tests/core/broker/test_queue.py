"""Lanes and turns."""

from __future__ import annotations

import pytest

from d8mesh.core.broker import queue
from d8mesh.core.broker.queue import AGEING_PERIOD, KEPT_LANES, UNLIMITED, LaneKey, ReadyQueue
from d8mesh.core.broker.task_table import TaskTable
from d8mesh.core.protocol.task import Cancelled, Spec, Submitted

S = "0123456789abcdef"


def filled(*batches: tuple[str, int, int]) -> tuple[TaskTable, ReadyQueue]:
    task_table, queue, first = TaskTable(), ReadyQueue(), 0
    for kind, priority, count in batches:
        task_table.apply(Submitted(S, first, Spec(kind, priority, 3), [b"x"] * count, 0.0))
        batch = task_table.batch_at(S, first)
        assert batch is not None
        queue.put_batch(batch)
        first += count
    return task_table, queue


def test_without_lower_priorities_there_is_no_limit() -> None:
    _, queue = filled(("a", 5, 3))
    turn = queue.choose(list(queue.lanes.values()))
    assert turn is not None
    assert (turn.priority, turn.limit, turn.is_aged) == (5, UNLIMITED, False)


def test_the_oldest_of_a_priority_comes_first_whatever_its_lane() -> None:
    _, queue = filled(("a", 5, 1), ("b", 5, 1))
    turn = queue.choose(list(queue.lanes.values()))
    assert turn is not None
    assert turn.lane.key.type == "a"


def test_a_priority_that_has_emptied_meanwhile_loses_no_turn() -> None:
    task_table, queue = filled(("a", 9, 1), ("a", 2, 1))
    task_table.apply(Cancelled([f"{S}-0"], [0], [b""], 0.0))
    turn = queue.choose(list(queue.lanes.values()))
    assert turn is not None
    assert turn.priority == 2


def test_lanes_without_tasks_are_dropped_when_there_are_many() -> None:
    kinds = [(f"t{number}", 5, 1) for number in range(KEPT_LANES + 1)]
    task_table, queue = filled(*kinds)
    full, *emptied = queue.lanes.values()
    for lane in emptied:
        head = lane.head(5)
        assert head is not None
        assert len(task_table.draw(head, 10)) == 1
        assert lane.head(5) is None
        assert queue.choose([lane]) is None
    queue.drop_empty()
    assert list(queue.lanes.values()) == [full]


def test_a_lane_is_kept_for_the_next_task_of_its_type() -> None:
    task_table, queue = filled(("a", 5, 1))
    (lane,) = queue.lanes.values()
    head = lane.head(5)
    assert head is not None
    task_table.draw(head, 1)
    assert lane.head(5) is None
    queue.drop_empty()
    assert queue.lanes == {lane.key: lane}
    assert queue.choose([lane]) is None
    task_table.apply(Submitted(S, 1, head.spec, [b"x"], 0.0))
    again = task_table.batch_at(S, 1)
    assert again is not None
    queue.put_batch(again)
    assert queue.choose(list(queue.lanes.values())) is not None
    assert lane.head(5) is again


def test_single_tasks_go_before_fresh_ones_and_gone_ones_are_skipped() -> None:
    task_table, queue = filled(("a", 5, 3))
    (lane,) = queue.lanes.values()
    for task_id in (f"{S}-1", f"{S}-2"):
        task = task_table.open_task(task_id)
        assert task is not None
        queue.put_task(task)
    task_table.apply(Cancelled([f"{S}-1"], [0], [b""], 0.0))
    (waiting,) = lane.retried(5, 10)
    assert waiting.id == f"{S}-2"
    assert lane.oldest_order(5) == 1
    lane.take_retried(waiting)
    assert lane.retried(5, 10) == []
    assert [batch.first for batch in lane.upcoming(5)] == [0]


def test_the_turn_of_the_old_goes_to_the_highest_if_the_low_ones_have_gone() -> None:
    task_table, queue = filled(("echo", 2, 1), ("echo", 9, 40))
    queue.handed_out(AGEING_PERIOD - 1, is_aged=False)
    task_table.apply(Cancelled([f"{S}-0"], [0], [b""], 0.0))
    turn = queue.choose(list(queue.lanes.values()))
    assert turn is not None
    assert (turn.priority, turn.is_aged) == (9, False)


def test_retried_tasks_go_before_fresh_ones_and_the_look_at_them_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task_table, waiting = filled(("a", 5, 1), ("a", 5, 2), ("a", 5, 1))
    first, second, third = (task_table.batch_at(S, n) for n in (0, 1, 3))
    assert first is not None
    assert second is not None
    assert third is not None
    for task in task_table.draw(second, 2):
        waiting.put_task(task)
    assert waiting.ahead_of(second, 1) == (1, False)
    assert waiting.ahead_of(third, 0) == (3, False)
    monkeypatch.setattr(queue, "AHEAD_BATCHES", 2)
    assert waiting.ahead_of(third, 0) == (2, True)
    monkeypatch.setattr(queue, "AHEAD_BATCHES", 3)
    assert waiting.ahead_of(third, 0) == (3, True)
    _, other = filled(("a", 5, 1))
    assert other.ahead_of(third, 0) == (1, False)  # not in the lane: the deadline may have passed
    _, empty = filled()
    assert empty.ahead_of(third, 0) == (0, False)


def test_what_only_helps_to_choose_makes_no_lane_of_its_own() -> None:
    task_table, queue = TaskTable(), ReadyQueue()
    wishes = [f"=m:1b;needs=tools{hints}" for hints in ("", "#0123.10.0", "#fedc.900.64")]
    for first, wish in enumerate(wishes):
        task_table.apply(Submitted(S, first, Spec("a", 5, 3, wish), [b"x"], 0.0))
        batch = task_table.batch_at(S, first)
        assert batch is not None
        queue.put_batch(batch)
        assert queue.ahead_of(batch, 0) == (first, False)
    assert list(queue.lanes) == [LaneKey("a", "=m:1b;needs=tools")]
