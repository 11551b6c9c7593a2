"""Ranges of used counters behave as a set does."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from d8mesh.core.broker.records import Batch, Ranges, TaskRecord, WorkerRecord, registration
from d8mesh.core.protocol.task import Spec

PIECES = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), max_size=25)


@given(PIECES, st.integers(0, 70), st.integers(1, 20))
def test_ranges_are_a_set(pieces: list[tuple[int, int]], first: int, count: int) -> None:
    ranges, numbers = Ranges(), set[int]()
    for start, size in pieces:
        ranges.add(start, size)
        numbers |= set(range(start, start + size))
    assert ranges.overlap(first, count) == len(numbers & set(range(first, first + count)))


def test_an_empty_set_overlaps_nothing() -> None:
    assert Ranges().overlap(0, 10) == 0


def test_a_batch_counts_its_fresh_tasks() -> None:
    batch = Batch("s" * 16, 10, 5, Spec("echo", 5, 3), 0.0, 5, 1, fresh=1, gone={3})
    assert batch.fresh_count == 3
    assert batch.task_id(2) == "s" * 16 + "-12"


def test_a_history_is_made_when_something_happens() -> None:
    batch = Batch("s" * 16, 0, 1, Spec("echo", 5, 3), 0.0, 5, 1)
    task = TaskRecord(batch, batch.task_id(0), b"")
    assert task.history is None
    assert task.remember() is task.remember()


def test_a_registration_is_read_as_it_was_made_and_older_ones_too() -> None:
    stored = registration({"slots": 2}, 5.5)
    assert WorkerRecord(capabilities=stored).registered() == ({"slots": 2}, 5.5)
    older = msgspec.msgpack.encode({"slots": 3})
    assert WorkerRecord(capabilities=older).registered() == ({"slots": 3}, 0.0)
    assert WorkerRecord(capabilities=registration([], 1.0)).registered() == ({}, 1.0)
