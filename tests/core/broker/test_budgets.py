"""What accounts allow: any minute, the day, and what workers tell of both."""

from __future__ import annotations

from d8mesh.core.broker.budgets import BUDGET_MARGIN_S, MINUTE_S, SENT_MARGIN_S, BudgetBook
from d8mesh.core.broker.standings import BudgetLeft
from d8mesh.core.protocol.messages import Budget

DAY_S = 86_400.0


def book(**bounds: int) -> BudgetBook:
    found = BudgetBook()
    found.tell("w", Budget(**bounds, day_left_s=DAY_S), 0.0)
    return found


def test_what_is_placed_counts_for_a_minute_and_the_way_there() -> None:
    budget = book(minute_requests=2)
    assert budget.free_in_s(10, 0.0) == 0.0
    budget.place("w", 10, 1.0)
    budget.place("other", 10, 2.0)
    wait_s = 1.0 + MINUTE_S + BUDGET_MARGIN_S
    assert budget.free_in_s(10, 2.0) == wait_s - 2.0
    assert budget.free_in_s(10, wait_s) == 0.0
    budget.place("w", 10, wait_s)
    assert budget.left(wait_s) == BudgetLeft(minute_requests=0)


def test_what_a_worker_tells_that_it_sent_takes_the_place_of_what_was_placed() -> None:
    budget = book(minute_requests=3, minute_tokens=10_000)
    budget.place("w", 4000, 1.0)
    budget.place("w", 4000, 1.5)
    assert budget.left(2.0).minute_tokens == 2000
    told = Budget(minute_requests=3, minute_tokens=10_000, recent=[(0.5, 100)], day_requests=1)
    budget.tell("w", told, 2.0)  # the first was sent, and was shorter than it might have been
    assert budget.left(2.0) == BudgetLeft(minute_requests=1, minute_tokens=10_000 - 4100)
    told = Budget(minute_requests=3, minute_tokens=10_000, recent=[(0.5, 100), (0.1, 50)])
    budget.tell("w", told, 2.1)  # a new day: it counts anew
    assert budget.left(2.1).minute_requests == 0  # in doubt that is another one
    budget.tell("w", told, 2.2)
    assert budget.free_in_s(1, 2.2) > 0.0


def test_a_worker_that_counts_no_days_is_understood_by_what_is_new_in_its_last_minute() -> None:
    budget = book(minute_requests=3)
    budget.place("w", 10, 1.0)
    budget.place("w", 10, 1.0)
    budget.tell("w", Budget(minute_requests=3, recent=[(0.1, 10)]), 1.2)
    assert budget.left(1.2).minute_requests == 1
    budget.tell("w", Budget(minute_requests=3, recent=[(0.3, 10), (0.2, 10)]), 1.4)
    assert budget.left(1.4).minute_requests == 1
    later = 1.4 + MINUTE_S + SENT_MARGIN_S
    assert budget.left(later).minute_requests == 3


def test_what_others_and_an_earlier_start_have_sent_counts() -> None:
    budget = BudgetBook()
    budget.tell("a", Budget(minute_requests=30, recent=[(10.0, 5)] * 20), 100.0)
    budget.tell("b", Budget(minute_requests=30, recent=[(20.0, 5)] * 10), 100.0)
    assert budget.free_in_s(5, 100.0) == MINUTE_S + SENT_MARGIN_S - 20.0


def test_tokens_of_a_minute_are_waited_for_until_enough_are_free() -> None:
    budget = book(minute_tokens=1000)
    budget.place("w", 600, 0.0)
    budget.place("w", 300, 10.0)
    span_s = MINUTE_S + BUDGET_MARGIN_S
    assert budget.free_in_s(100, 11.0) == 0.0
    assert budget.free_in_s(200, 11.0) == span_s - 11.0
    assert budget.free_in_s(900, 11.0) == span_s - 1.0
    assert budget.fits(1000)
    assert not budget.fits(1001)
    assert BudgetBook().fits(10**9)


def test_a_days_bound_holds_until_the_day_is_over() -> None:
    budget = BudgetBook()
    told = Budget(day_requests_bound=2, day_tokens_bound=100, day_requests=1, day_left_s=500.0)
    budget.tell("w", told, 0.0)
    assert budget.free_in_s(10, 1.0) == 0.0
    assert budget.free_in_s(200, 1.0) == 499.0
    budget.place("w", 10, 1.0)
    assert budget.free_in_s(10, 2.0) == 498.0
    assert budget.left(2.0) == BudgetLeft(day_requests=0, day_tokens=90)
    assert budget.free_in_s(10, 501.0) == 0.0
    budget.place("w", 10, 501.0)
    budget.place("w", 10, 502.0)
    assert budget.free_in_s(10, 503.0) == MINUTE_S  # nobody has told yet when the new one ends


def test_who_is_told_to_wait_waits_and_says_why() -> None:
    budget = book()
    assert budget.why(1.0) == ""
    budget.tell("w", Budget(blocked_s=30.0, blocked_why="too many requests"), 1.0)
    assert budget.free_in_s(1, 11.0) == 20.0
    assert budget.why(11.0) == "too many requests"
    assert budget.left(11.0) == BudgetLeft(blocked_s=20.0, blocked_why="too many requests")
    assert budget.free_in_s(1, 31.0) == 0.0
    assert budget.why(31.0) == ""
