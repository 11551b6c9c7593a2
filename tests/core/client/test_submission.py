"""Submissions: ids, outcomes, what is still awaited."""

from __future__ import annotations

import pytest

from d8mesh.core.client.submission import Submission, TaskOutcome, awaiting
from d8mesh.core.protocol.messages import COMPLETED_STATE, FAILED_STATE, Group, Refused
from d8mesh.errors import InvalidTaskError, QueueFullError

SESSION = "0123456789abcdef"
OTHER = "v" * 16


def submission(count: int = 3, first: int = 10) -> Submission:
    return Submission(SESSION, first, [Group("echo", 5, [b"\x80"] * count)])


def test_ids_count_on_from_the_first() -> None:
    tasks = submission()
    assert [tasks.task_id(n) for n in range(3)] == [f"{SESSION}-{n}" for n in (10, 11, 12)]
    assert [tasks.index_of(tasks.task_id(n)) for n in range(3)] == [0, 1, 2]


def test_a_submission_that_grows_has_a_place_for_each_outcome() -> None:
    tasks = submission(1)
    tasks.grow(b"\x81")
    assert tasks.groups[0].payloads == [b"\x80", b"\x81"]
    assert tasks.note(1, COMPLETED_STATE, b"second")
    assert not tasks.is_known(0)
    assert tasks.is_known(1)
    assert (tasks.count, tasks.missing, len(tasks.payloads)) == (2, 1, 2)


def test_the_outcome_of_anybodys_task_has_a_place() -> None:
    task = awaiting(f"{OTHER}-7")
    assert (task.task_id(0), task.count, task.missing) == (f"{OTHER}-7", 1, 1)
    assert task.is_accepted


def test_an_acceptance_frees_the_data() -> None:
    tasks = submission()
    tasks.accept(SESSION, 10, is_repeat=False)
    assert tasks.is_settled
    assert tasks.groups == []
    assert tasks.accepted_as is None


def test_a_repeated_key_gives_the_ids_of_the_first_time() -> None:
    tasks = submission()
    tasks.accept(OTHER, 7, is_repeat=True)
    assert tasks.task_id(1) == f"{OTHER}-8"
    assert tasks.index_of(f"{OTHER}-9") == 2
    assert tasks.is_repeat


def test_a_refusal_settles_without_accepting() -> None:
    tasks = submission()
    tasks.refuse(Refused(1, "queue.full", "full"))
    assert tasks.is_settled
    assert not tasks.is_accepted


def test_the_first_outcome_stands() -> None:
    tasks = submission()
    assert tasks.note(1, COMPLETED_STATE, b"first")
    assert not tasks.note(1, FAILED_STATE, b"second")
    assert tasks.outcome(1) == TaskOutcome(COMPLETED_STATE, b"first")
    assert tasks.missing == 2
    assert list(tasks.awaited()) == [f"{SESSION}-10", f"{SESSION}-12"]


def test_a_refusal_is_raised_to_who_looks_and_an_acceptance_is_not() -> None:
    tasks = submission()
    tasks.raise_refusal()
    assert not tasks.is_told
    tasks.refuse(Refused(1, "queue.full", "the queue is full"))
    with pytest.raises(QueueFullError, match="the queue is full"):
        tasks.raise_refusal()
    assert tasks.is_told


def test_who_looks_at_what_is_new_is_told_of_each_outcome_once() -> None:
    tasks = submission()
    assert tasks.note(0, COMPLETED_STATE, b"\x80")
    tasks.fresh = []
    assert tasks.note(2, FAILED_STATE, b"\x80")
    assert not tasks.note(2, FAILED_STATE, b"\x80")
    assert tasks.fresh == [2]


def test_an_id_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidTaskError, match="task id: saw 7, expected a text"):
        awaiting(7)  # type: ignore[arg-type]
