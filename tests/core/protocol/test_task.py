"""States, transitions and task ids."""

from __future__ import annotations

import pytest

from d8mesh.core.protocol.task import (
    TRANSITIONS,
    Assigned,
    Cancelled,
    Completed,
    Due,
    Requeued,
    TaskState,
    next_state,
    parse_id,
)
from d8mesh.errors import IllegalTransitionError, UnknownTaskError


def test_final_states_have_no_way_out() -> None:
    assert {state for state, _ in TRANSITIONS} == {s for s in TaskState if not s.is_final}


def test_every_unfinished_state_can_be_completed_and_cancelled() -> None:
    for state in (TaskState.QUEUED, TaskState.DELAYED, TaskState.RUNNING):
        assert next_state(state, Completed) is TaskState.COMPLETED
        assert next_state(state, Cancelled) is TaskState.CANCELLED


def test_a_missing_pair_is_an_error_that_names_what_is_allowed() -> None:
    with pytest.raises(IllegalTransitionError, match=r"a queued task cannot be Requeued.*Assigned"):
        next_state(TaskState.QUEUED, Requeued)
    with pytest.raises(IllegalTransitionError):
        next_state(TaskState.COMPLETED, Assigned)
    assert next_state(TaskState.DELAYED, Due) is TaskState.QUEUED


def test_the_documented_word_of_a_cancelled_task_is_failed() -> None:
    assert TaskState.CANCELLED.documented == "failed"
    assert TaskState.DELAYED.documented == "pending"


@pytest.mark.parametrize(
    "text",
    ["", "x", "0123456789abcdef", "0123456789abcdef-", "0123456789abcdef-01", "0123456789abcdef--1",
     "0123456789ABCDEF-1", "0123456789abcdez-1", "0123456789abcdef-1\n", "0123456789abcdef-٣",
     "../../etc/passwd"],
)  # fmt: skip
def test_an_odd_id_is_unknown(text: str) -> None:
    with pytest.raises(UnknownTaskError):
        parse_id(text)


def test_an_id_has_a_session_and_a_counter() -> None:
    assert parse_id("0123456789abcdef-42") == ("0123456789abcdef", 42)
