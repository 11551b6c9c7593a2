"""What is awaited: found by its counter, forgotten once it is there, asked for in rounds."""

from __future__ import annotations

import pytest

from d8mesh.core.client.awaited import REWATCH_S, Awaited
from d8mesh.core.client.submission import Submission, awaiting
from d8mesh.core.protocol.messages import COMPLETED_STATE, MAX_BATCH_TASKS, Group, Outcomes
from d8mesh.errors import ProtocolError

SESSION = "0123456789abcdef"
OTHER = "v" * 16


def submission(first: int, count: int) -> Submission:
    made = Submission(SESSION, first, [Group("echo", 5, [b"\x80"] * count)])
    made.accept(SESSION, first, is_repeat=False)
    return made


def outcomes(*ids: str) -> Outcomes:
    return Outcomes(list(ids), bytes([COMPLETED_STATE]) * len(ids), [b"\x80"] * len(ids))


def test_outcomes_find_their_submission_and_what_is_complete_is_awaited_no_longer() -> None:
    awaited, early, late = Awaited(SESSION), submission(0, 2), submission(2, 1)
    for each in (late, early):
        awaited.add(each)
    assert awaited.note(outcomes(f"{SESSION}-2", f"{SESSION}-1")) == [late, early]
    awaited.check()
    assert list(awaited.all_parts(0.0)) == [[f"{SESSION}-0"]]
    assert awaited.note(outcomes(f"{SESSION}-1")) == []


def test_the_last_who_awaits_a_single_task_is_told_its_id() -> None:
    awaited, one, two = Awaited(SESSION), awaiting(f"{OTHER}-0"), awaiting(f"{OTHER}-0")
    assert awaited.add_singles(one) == awaited.add_singles(two) == [f"{OTHER}-0"]
    assert awaited.remove_single(one) == ""
    assert awaited.remove_single(two) == f"{OTHER}-0"
    assert awaited.remove_single(two) == ""


def test_all_is_asked_for_in_rounds_and_the_next_round_waits_its_time() -> None:
    awaited = Awaited(SESSION)
    awaited.add(submission(0, MAX_BATCH_TASKS + 1))
    parts = [awaited.next_part(now) for now in (0.0, 1.0, 2.0, REWATCH_S)]
    assert [len(part) for part in parts] == [MAX_BATCH_TASKS, 1, 0, MAX_BATCH_TASKS]


def test_an_outcome_without_a_state_is_an_error() -> None:
    with pytest.raises(ProtocolError):
        Awaited(SESSION).note(Outcomes([f"{SESSION}-0"], b"\0", [b""]))
