"""One thread looks at all clocks, as long as there are any."""

from __future__ import annotations

import threading
import time

import pytest

from d8mesh.backends import answer_clocks
from d8mesh.backends.answer_clocks import AnswerClocks

PATIENCE_S = 20.0


def test_each_clock_is_looked_at_again_and_again_by_one_thread() -> None:
    clocks, seen = AnswerClocks(), [list[str](), list[str]()]
    enough = threading.Event()

    def look(number: int) -> None:
        seen[number].append(threading.current_thread().name)
        if min(map(len, seen)) >= 3:
            enough.set()

    looks = [lambda now, number=number: look(number) for number in range(2)]
    for each in looks:
        clocks.watch(each)
    assert enough.wait(PATIENCE_S)
    assert {*seen[0], *seen[1]} == {"answer-clocks"}
    for each in looks:
        clocks.forget(each)
    clocks.forget(looks[0])


def test_the_thread_ends_when_there_is_nothing_to_look_at_and_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answer_clocks, "CLOCK_KEPT_S", 0.01)
    clocks = AnswerClocks()
    for _ in range(2):
        looked, threads = threading.Event(), list[threading.Thread]()

        def look(now: float, looked: threading.Event = looked) -> None:
            threads.append(threading.current_thread())  # noqa: B023 of this turn alone
            looked.set()

        clocks.watch(look)
        assert looked.wait(PATIENCE_S)
        clocks.forget(look)
        threads[0].join(PATIENCE_S)
        assert not threads[0].is_alive()


def test_a_time_is_told_that_goes_on() -> None:
    clocks, times, enough = AnswerClocks(), list[float](), threading.Event()

    def look(now: float) -> None:
        times.append(now)
        if len(times) >= 2:
            enough.set()

    began = time.monotonic()
    clocks.watch(look)
    assert enough.wait(PATIENCE_S)
    clocks.forget(look)
    assert began <= times[0] < times[1]
