"""How many requests a model answers at once is found out, not assumed."""

from __future__ import annotations

import heapq
import random

import pytest

from d8mesh.core.worker.slot_gauge import (
    BRIEF_MOST,
    BRIEF_S,
    BRIEF_TIMES,
    BUSY_MOST_S,
    BUSY_S,
    JITTER_S,
    LEAST_WAIT_S,
    PROVED_FOR_ONE,
    SETTLED_S,
    SlotGauge,
    SlotRun,
)

USUAL_S = 0.4


class Requests:
    """Requests at a gauge, by number."""

    def __init__(self, usual_s: float = USUAL_S) -> None:
        self.gauge, self.usual_s = SlotGauge(self.usual), usual_s
        self.count = 0

    def begin(self, now: float, *, is_streamed: bool = True) -> int:
        self.count += 1
        self.gauge.begin(self.count, now, prompt_tokens=10, is_streamed=is_streamed)
        return self.count

    def generating(self, now: float) -> int:
        number = self.begin(now)
        self.gauge.first_token(number, now + 0.1)
        return number

    def end(self, number: int, now: float, *, is_answered: bool = True) -> None:
        self.gauge.end(number, now, is_answered=is_answered)

    def usual(self, run: SlotRun) -> float:
        return self.usual_s


def test_one_more_is_offered_while_all_known_slots_generate() -> None:
    asked = Requests()
    assert asked.gauge.slots(0) == 1
    first = asked.begin(0)
    assert asked.gauge.slots(0.1) == 1  # it may still be loading
    asked.gauge.first_token(first, 0.2)
    assert asked.gauge.slots(0.3) == 2
    second = asked.begin(0.3)
    assert asked.gauge.slots(0.4) == 2  # one at a time is tried
    asked.gauge.first_token(second, 0.6)
    assert (asked.gauge.proved, asked.gauge.slots(0.7)) == (2, 3)
    asked.end(first, 1)
    assert asked.gauge.slots(1.1) == 2


def test_two_hundred_slots_are_found_in_some_dozen_first_tokens() -> None:
    asked, turns = Requests(), 0
    while asked.gauge.proved < 200:
        turns += 1
        for _ in range(asked.gauge.slots(turns) - asked.gauge.in_flight):
            asked.gauge.first_token(asked.begin(turns), turns + 0.5)
    assert turns <= 24


def test_of_a_few_slots_no_more_than_one_is_tried_and_so_it_is_of_many_whose_bound_was_seen() -> (
    None
):
    asked = Requests()
    for _ in range(2 * PROVED_FOR_ONE - 1):
        asked.generating(0)
        assert asked.gauge.slots(0.2) == asked.gauge.in_flight + 1
    asked.generating(0)
    assert asked.gauge.slots(0.2) == asked.gauge.in_flight + 2
    asked = Requests()
    asked.end(waited_in_vain(asked, 0), 5)
    asked.end(waited_in_vain(asked, 10), 15)
    for _ in range(2 * PROVED_FOR_ONE):
        asked.generating(16)
    later = 1 + 2 * SETTLED_S
    assert asked.gauge.slots(later) == asked.gauge.proved + 1
    asked.gauge.reloaded()
    assert asked.gauge.slots(later) == asked.gauge.proved + 2


def test_what_has_answered_once_is_offered_one_more_while_all_slots_are_taken() -> None:
    asked = Requests()
    asked.gauge.is_known = True
    assert asked.gauge.slots(0) == 1
    asked.begin(0)
    assert asked.gauge.slots(0) == 2
    asked.begin(0)
    assert asked.gauge.slots(0) == 2


def waited_in_vain(asked: Requests, now: float, *, waited_s: float = 1.0) -> int:
    """Let one wait for the end of another; return the one that runs on."""
    first = asked.generating(now)
    second = asked.begin(now + 0.2)
    asked.end(first, now + 0.2 + waited_s)
    asked.gauge.first_token(second, now + 0.2 + waited_s + USUAL_S)
    return second


def test_first_tokens_that_a_busy_machine_delays_for_some_ten_milliseconds_show_no_bound() -> None:
    usual_s = 0.02
    for waited_s, is_bound in ((LEAST_WAIT_S / 2, False), (2 * LEAST_WAIT_S, True)):
        asked = Requests(usual_s)
        assert waited_s > max(usual_s, JITTER_S)
        for turn in (0, 10):
            first, second = asked.generating(turn), asked.begin(turn + 0.2)
            asked.end(first, turn + 0.2 + waited_s)
            asked.gauge.first_token(second, turn + 0.2 + waited_s + usual_s)
            if not turn:
                asked.end(second, 1)
        assert (asked.gauge.slots(11) == 1) is is_bound


def test_who_waits_in_vain_twice_shows_the_bound_for_a_while() -> None:
    asked = Requests()
    asked.end(waited_in_vain(asked, 0), 3)
    assert asked.gauge.slots(3) == 1
    last = waited_in_vain(asked, 3)
    assert (asked.gauge.proved, asked.gauge.slots(5)) == (1, 1)
    assert asked.gauge.slots(5 + SETTLED_S) == 2
    asked.gauge.reloaded()
    assert asked.gauge.slots(5) == 2
    asked.end(last, 6)


def test_a_proof_in_between_makes_it_begin_anew() -> None:
    asked = Requests()
    running = waited_in_vain(asked, 0)
    second = asked.generating(3)
    assert asked.gauge.proved == 2
    asked.end(second, 3.5)
    asked.end(running, 4)
    asked.end(waited_in_vain(asked, 5), 7)
    assert asked.gauge.proved == 2


@pytest.mark.parametrize(("usual_s", "waited_s"), [(USUAL_S, 0.3), (0.0, 1.0), (3.0, 1.0)])
def test_an_end_that_came_too_soon_shows_nothing(usual_s: float, waited_s: float) -> None:
    asked = Requests(usual_s)
    for turn in range(5):
        last = waited_in_vain(asked, 10 * turn, waited_s=waited_s)
        assert asked.gauge.slots(10 * turn + 3) == 2
        asked.end(last, 10 * turn + 4)


def test_a_machine_that_came_back_with_fewer_slots_is_noticed() -> None:
    asked = Requests()
    running = [asked.generating(0.1 * turn) for turn in range(4)]
    assert asked.gauge.proved == 4
    for number in running:
        asked.end(number, 5)
    first = asked.generating(10)
    waiting = [asked.begin(10.2) for _ in range(3)]
    asked.end(first, 20)
    asked.gauge.first_token(waiting[0], 20 + USUAL_S)
    asked.end(waiting[0], 30)
    asked.gauge.first_token(waiting[1], 30 + USUAL_S)
    assert (asked.gauge.proved, asked.gauge.slots(31)) == (1, 1)


def test_the_end_of_what_had_no_slot_shows_nothing() -> None:
    asked = Requests()
    first = asked.begin(0)
    second = asked.begin(0)
    asked.end(first, 100, is_answered=False)
    asked.gauge.first_token(second, 200)
    assert (asked.gauge.proved, asked.gauge.slots(200)) == (1, 2)


def test_a_full_service_gets_no_more_for_a_moment_that_grows() -> None:
    asked = Requests()
    running = [asked.generating(0.1 * turn) for turn in range(3)]
    assert asked.gauge.next_change(1) is None
    asked.gauge.full(asked.begin(1), 1)
    assert (asked.gauge.proved, asked.gauge.slots(1)) == (3, 3)
    for number in running:
        asked.end(number, 1, is_answered=False)
    now = 1 + BUSY_S
    assert asked.gauge.next_change(1.5) == now
    for turn in range(9):  # others fill it
        asked.gauge.full(asked.begin(now), now)
        assert (asked.gauge.proved, asked.gauge.slots(now)) == (1, 0)
        now += min(BUSY_S * 2 ** (turn + 1), BUSY_MOST_S)
        assert asked.gauge.slots(now) == 1
    asked.end(asked.generating(now), now + 1)
    asked.gauge.full(asked.begin(now), now)
    assert asked.gauge.slots(now + BUSY_S) == 1


def test_answers_that_come_whole_show_it_by_how_long_they_take() -> None:
    asked = Requests(usual_s=1.0)
    first = asked.begin(0, is_streamed=False)
    assert asked.gauge.slots(0) == 2  # nothing will show that it has begun
    second = asked.begin(0, is_streamed=False)
    asked.end(first, 1.1)
    asked.end(second, 1.2)
    assert asked.gauge.proved == 2
    three = [asked.begin(2, is_streamed=False) for _ in range(3)]
    for turn, number in enumerate(three):
        asked.end(number, 3 + turn)
    assert asked.gauge.proved == 2
    asked.begin(7, is_streamed=False)
    asked.begin(7, is_streamed=False)
    assert asked.gauge.slots(7) == 2
    assert asked.gauge.slots(5 + SETTLED_S) == 3


def test_whole_answers_that_hardly_ran_side_by_side_show_nothing() -> None:
    asked = Requests(usual_s=1.0)
    first = asked.begin(0, is_streamed=False)
    second = asked.begin(0.9, is_streamed=False)
    asked.end(first, 1)
    asked.end(second, 2)
    assert asked.gauge.proved == 1
    asked = Requests(usual_s=0.0)
    both = [asked.begin(0, is_streamed=False) for _ in range(2)]
    asked.end(both[1], 1)
    asked.end(both[0], 1)
    assert asked.gauge.proved == 1


@pytest.mark.parametrize("truth", [1, 2, 4, 7])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("is_short", [True, False])
def test_the_slots_of_a_service_are_found(truth: int, seed: int, is_short: bool) -> None:
    """A service with so many slots and a line before them, kept as full as the gauge says."""
    draw, asked = random.Random(seed), Requests(usual_s=0.3)
    asked.gauge.is_known, asked.gauge.is_short = True, is_short
    output_s = (0.0, 0.01) if is_short else (1.0, 3.0)
    events: list[tuple[float, int, str]] = []
    line: list[int] = []
    busy, now, done = 0, 0.0, 0
    while done < (200 if is_short else 60):
        while asked.gauge.in_flight < asked.gauge.slots(now):
            line.append(asked.begin(now))
        while line and busy < truth:
            number, busy = line.pop(0), busy + 1
            speaks = now + 0.3 * draw.uniform(0.9, 1.1)
            heapq.heappush(events, (speaks, number, "speaks"))
            heapq.heappush(events, (speaks + draw.uniform(*output_s), number, "ends"))
        now, number, what = heapq.heappop(events)
        if what == "speaks":
            asked.gauge.first_token(number, now)
        else:
            asked.end(number, now)
            busy, done = busy - 1, done + 1
    # Of many one or the other ends so soon that it is no proof; of short ones some are too many.
    most = truth + 2 * (is_short and truth > 1)
    assert truth - (truth > 4) <= asked.gauge.proved <= most
    assert asked.gauge.slots(now) <= most + 1


@pytest.mark.parametrize(
    ("alone_s", "slots"), [(0.0, BRIEF_MOST), (0.001, BRIEF_MOST), (0.005, 4), (0.03, 1)]
)
def test_of_brief_answers_so_many_are_there_at_once_that_none_waits_long(
    alone_s: float, slots: int
) -> None:
    asked = Requests(alone_s)
    asked.gauge.took(alone_s, alone_s, is_alone=True)
    assert asked.gauge.slots(0) == slots
    assert slots * alone_s <= max(BRIEF_S, alone_s)


def test_answers_that_are_brief_no_longer_get_no_more_beside_them() -> None:
    asked = Requests(0.001)
    asked.gauge.took(0.001, 0.001, is_alone=True)
    running = [asked.begin(0) for _ in range(3)]
    assert asked.gauge.slots(BRIEF_S) == BRIEF_MOST
    too_long_s = (BRIEF_TIMES + 1) * BRIEF_S
    assert asked.gauge.slots(too_long_s) == 1
    for number in running:
        asked.end(number, too_long_s)
    assert asked.gauge.slots(too_long_s) == BRIEF_MOST
    asked.gauge.took(too_long_s, 0.001, is_alone=False)
    assert asked.gauge.slots(too_long_s) == 1
    asked.gauge.took(0.001, 0.001, is_alone=True)
    assert asked.gauge.slots(too_long_s) == BRIEF_MOST


def test_of_times_too_short_to_tell_no_bound_is_concluded() -> None:
    asked = Requests(0.001)
    for turn in range(5):
        first = asked.generating(turn)
        second = asked.begin(turn + 0.1)
        asked.end(first, turn + 0.102)
        asked.gauge.first_token(second, turn + 0.105)
        asked.end(second, turn + 0.106)
    asked.gauge.is_known = True
    asked.begin(10)
    assert asked.gauge.slots(10) == 2
