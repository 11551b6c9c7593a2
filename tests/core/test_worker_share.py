"""Windows: slots, prefetch by measured time, and fairness among orchestrators."""

from __future__ import annotations

from d8mesh.core.worker_line import Line
from d8mesh.core.worker_share import MAX_PREFETCH, PREFETCH_S, STARVED_S, Share


def line(name: str, *, held: int = 0) -> Line:
    made = Line(name, is_up=True, is_welcome=True)
    made.open = {f"{name}-{n}": b"" for n in range(held)}
    return made


def test_a_fresh_worker_wants_as_much_as_it_has_slots() -> None:
    share, one = Share(4), line("a")
    assert share.window(one, [one], 0.0) == 4


def test_quick_tasks_are_fetched_ahead_up_to_a_bound_and_slow_ones_are_not() -> None:
    share = Share(2)
    for _ in range(30):
        share.measure(0.001, 100)
    assert share.prefetch == MAX_PREFETCH
    one = line("a", held=2)
    assert share.window(one, [one], 0.0) == 2 + MAX_PREFETCH
    share.measure(5.0, 1)
    assert share.prefetch == 0
    share.measure(0.0, 0)
    share.measure(PREFETCH_S, 1)
    assert share.prefetch == 0


def test_the_prefetch_grows_by_doubling() -> None:
    share = Share(2)
    grown = []
    for _ in range(5):
        share.measure(0.0001, 100)
        grown.append(share.prefetch)
    assert grown == [2, 4, 8, 16, 32]


def test_when_the_last_slot_is_taken_the_others_are_offered_nothing() -> None:
    share, busy, other = Share(2), line("a", held=2), line("b")
    lines = [busy, other]
    assert share.window(other, lines, 1.0) == 0
    assert share.window(other, lines, 1.0 + STARVED_S) == 1  # but not for ever
    busy.open.popitem()
    assert share.window(other, lines, 2.0) == 1
    assert other.starved_since == 0.0


def test_each_is_offered_all_that_is_free() -> None:
    share, one, two = Share(3), line("a"), line("b")
    assert [share.window(each, [one, two], 0.0) for each in (one, two)] == [3, 3]
    one.open = {"t": b""}
    assert share.window(one, [one, two], 0.0) == 3
    assert share.window(two, [one, two], 0.0) == 2


def test_stuck_slots_and_a_full_outbox_take_room_away() -> None:
    share, one = Share(2), line("a")
    share.stuck = 1
    assert share.window(one, [one], 0.0) == 1
    share.is_closed = True
    assert share.window(one, [one], 0.0) == 0
