"""Which assignments are written at once, later, or never."""

from __future__ import annotations

import math

import pytest

from d8mesh.core.broker.deferral import DEFERRAL_S, Deferral
from d8mesh.core.protocol.task import Assigned, Cancelled, Completed, Failed, Spec, Submitted

S = "0123456789abcdef"
IDS = [f"{S}-{n}" for n in range(4)]
NEW = Submitted(S, 0, Spec("echo", 5, 3), [b"x"] * 4, 1.0)
ENDS = (
    Completed("w", IDS[:1], [1], [b"r"], 2.0),
    Failed("w", IDS[:1], [1], [b""], 2.0, "bad"),
    Cancelled(IDS[:1], [1], [b""], 2.0),
)


def assigned(number: int, *ids: str, is_needed: bool = False) -> Assigned:
    return Assigned(number, "w", list(ids), [1] * len(ids), 1.0, is_needed)


def test_nothing_is_owed_where_nothing_was_kept_back() -> None:
    deferral = Deferral()
    assert deferral.due([NEW], 5.0) == [NEW]
    assert deferral.due([], 6.0) == []
    assert (deferral.until, deferral.rest()) == (math.inf, [])


def test_a_hand_out_of_one_task_is_written_after_once_or_twice_the_time() -> None:
    deferral, first, second = Deferral(), assigned(1, IDS[0]), assigned(2, IDS[1])
    assert deferral.due([NEW, first], 5.0) == [NEW]
    assert deferral.until == 5.0 + DEFERRAL_S
    assert deferral.due([second], deferral.until) == []  # the first has been due once
    assert deferral.until == pytest.approx(5.0 + 2 * DEFERRAL_S)
    assert deferral.due([], deferral.until - 0.01) == []
    assert deferral.due([], deferral.until) == [first, second]
    assert deferral.until == math.inf


@pytest.mark.parametrize("end", ENDS, ids=lambda end: type(end).__name__)
@pytest.mark.parametrize("turns", [0, 1])
def test_that_of_a_task_which_has_ended_by_then_is_never_written(
    end: Completed | Failed | Cancelled, turns: int
) -> None:
    deferral = Deferral()
    deferral.due([assigned(1, IDS[0])], 5.0)
    for _ in range(turns):
        assert deferral.due([], deferral.until) == []
    assert deferral.due([end], 5.0) == [end]
    assert (deferral.until, deferral.rest()) == (math.inf, [])


def test_of_two_attempts_of_a_task_the_later_counts() -> None:
    deferral, again = Deferral(), assigned(2, IDS[0])
    deferral.due([assigned(1, IDS[0])], 5.0)
    deferral.due([again], 5.05)
    assert deferral.rest() == [again]


def test_that_of_several_tasks_goes_with_the_next_commit() -> None:
    """It cannot be told at a glance what became of them."""
    deferral, several = Deferral(), assigned(1, *IDS[:2])
    assert deferral.due([several], 5.0) == []
    assert deferral.until == 5.0 + DEFERRAL_S  # and without one soon
    end = Completed("w", IDS[:2], [1, 1], [b""] * 2, 2.0)
    assert deferral.due([end], 5.01) == [several, end]
    assert deferral.until == math.inf


def test_that_to_a_polling_worker_is_written_at_once() -> None:
    needed = assigned(1, IDS[0], is_needed=True)
    assert Deferral().due([needed], 5.0) == [needed]


def test_a_stop_writes_all_that_is_kept_back() -> None:
    deferral, facts = Deferral(), [assigned(n, IDS[n]) for n in range(2)]
    several = assigned(2, *IDS[2:])
    deferral.due(facts[:1], 5.0)
    deferral.due(facts[1:], deferral.until)
    deferral.due([several], 5.1)
    assert deferral.rest() == [several, *facts]
