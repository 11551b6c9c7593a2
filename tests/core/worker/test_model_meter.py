"""What is measured of a model at a service, and when it is trusted no longer."""

from __future__ import annotations

import pytest

from d8mesh.core.worker.model_meter import (
    FIRST_PAUSE_S,
    LATE_SILENCE_S,
    MODEL_PAUSE_MOST_S,
    NO_ROOM_PAUSE_S,
    ModelMeter,
    RunEnd,
    Spent,
)

TOLD = Spent(prompt_tokens=100, output_tokens=50, load_s=2.0, prompt_s=0.5, output_s=1.0)


def answered(meter: ModelMeter, now: float, spent: Spent, *, first_s: float = 1.0) -> None:
    run = meter.began(now)
    meter.first_token(run, now + first_s)
    meter.ended(run, now + first_s + 2, RunEnd.ANSWERED, spent=spent)


def failed(meter: ModelMeter, now: float, why: str = "HTTP 500") -> None:
    meter.ended(meter.began(now), now, RunEnd.FAILED, why=why)


def test_speeds_and_load_are_what_the_service_tells() -> None:
    meter = ModelMeter()
    assert (meter.load_s, meter.prompt_tokens_per_s, meter.output_tokens_per_s) == (0, 0, 0)
    answered(meter, 0, TOLD)
    assert (meter.load_s, meter.prompt_tokens_per_s, meter.output_tokens_per_s) == (2, 200, 50)
    assert (meter.requests, meter.prompt_tokens, meter.output_tokens) == (1, 100, 50)
    answered(meter, 9, Spent(prompt_tokens=100, output_tokens=50, load_s=4, prompt_s=1, output_s=2))
    assert meter.load_s == 3
    assert 25 < meter.output_tokens_per_s < 50
    answered(meter, 20, Spent(prompt_tokens=1, output_tokens=1, load_s=0.01))
    assert meter.load_s == 3


def test_where_it_tells_nothing_the_clock_does() -> None:
    meter = ModelMeter()
    answered(meter, 0, Spent(prompt_tokens=100, output_tokens=50, load_s=0.5))
    assert (meter.prompt_tokens_per_s, meter.output_tokens_per_s) == (200, 25)
    whole = meter.began(10, is_streamed=False)
    meter.ended(whole, 14, RunEnd.ANSWERED, spent=Spent(prompt_tokens=400))
    assert 100 < meter.prompt_tokens_per_s < 200
    silent = meter.began(20)
    meter.ended(silent, 21, RunEnd.ANSWERED)
    assert meter.requests == 3


def test_a_request_beside_others_is_no_measure_of_reading() -> None:
    meter = ModelMeter()
    first = meter.began(0)
    meter.first_token(first, 1)
    second = meter.began(1)
    meter.first_token(second, 9)
    meter.ended(second, 10, RunEnd.ANSWERED, spent=Spent(prompt_tokens=100, output_tokens=10))
    assert (meter.prompt_tokens_per_s, meter.output_tokens_per_s) == (0, 10)


def slots_after_waiting(meter: ModelMeter, *, prompt_tokens: int) -> int:
    """Let requests of that length get their first tokens late beside others."""
    slots = 0
    for turn in range(2):
        start = 100.0 * (turn + 1)
        first = meter.began(start)
        meter.first_token(first, start + 1)
        second = meter.began(start + 1, prompt_tokens=prompt_tokens)
        meter.ended(first, start + 5, RunEnd.ANSWERED, spent=Spent(output_tokens=10))
        meter.first_token(second, start + 6)
        slots = meter.slots(start + 7)
        meter.ended(second, start + 8, RunEnd.OURS)
    return slots


@pytest.mark.parametrize(("prompt_tokens", "slots"), [(10, 1), (900, 2)])
def test_a_long_question_gets_its_time_before_it_counts_as_waiting(
    prompt_tokens: int, slots: int
) -> None:
    meter = ModelMeter()
    answered(meter, 0, Spent(prompt_tokens=100, output_tokens=50))  # 100 tokens/s
    assert slots_after_waiting(meter, prompt_tokens=prompt_tokens) == slots


def test_without_the_speed_of_reading_the_usual_time_counts() -> None:
    meter = ModelMeter()
    answered(meter, 0, Spent(output_tokens=50))
    assert slots_after_waiting(meter, prompt_tokens=9000) == 1


def test_before_anything_is_known_waiting_shows_nothing() -> None:
    meter = ModelMeter()
    first = meter.began(0)
    second = meter.began(0)
    meter.first_token(first, 0)
    meter.ended(first, 1, RunEnd.OURS)
    meter.first_token(second, 2)
    assert meter.slots(2) == 2


@pytest.mark.parametrize(
    ("first_s", "whole_s", "is_short"), [(0.3, 0.31, True), (0.1, 0.5, False), (3.0, 3.01, False)]
)
def test_answers_that_hardly_generate_are_known(
    first_s: float, whole_s: float, is_short: bool
) -> None:
    meter = ModelMeter()
    for start in (0.0, 10.0):
        run = meter.began(start)
        assert meter.slots(start) == (2 if start else 1)  # then it has answered
        meter.first_token(run, start + first_s)
        meter.ended(run, start + whole_s, RunEnd.ANSWERED, spent=Spent(output_tokens=1))
    assert meter.gauge.is_short is is_short


def test_answers_of_milliseconds_go_several_at_once_until_one_takes_long() -> None:
    meter = ModelMeter()
    for at, whole_s in enumerate((0.5, 0.004, 0.009)):
        run = meter.began(at)
        meter.first_token(run, at + whole_s / 2)
        meter.ended(run, at + whole_s, RunEnd.ANSWERED)
    assert meter.slots(5) == 4  # the quickest counts the most, and not alone
    first, second = meter.began(5), meter.began(5)
    meter.ended(second, 5.5, RunEnd.ANSWERED)
    assert meter.slots(5.5) == 2  # one is known, and one to try
    meter.ended(first, 5.5, RunEnd.ANSWERED)
    assert meter.slots(6) == 1


def test_one_slow_start_is_not_taken_for_what_is_usual() -> None:
    meter = ModelMeter()
    answered(meter, 0, Spent(output_tokens=5), first_s=30)
    answered(meter, 40, Spent(output_tokens=5), first_s=1)
    assert slots_after_waiting(meter, prompt_tokens=0) == 1
    answered(meter, 500, Spent(output_tokens=5), first_s=2)


def test_whole_answers_are_measured_alone_and_judged_together() -> None:
    meter = ModelMeter()
    meter.ended(meter.began(0, is_streamed=False), 1, RunEnd.ANSWERED)
    both = [meter.began(2, is_streamed=False) for _ in range(2)]
    for turn, run in enumerate(both):
        meter.ended(run, 3 + turn, RunEnd.ANSWERED)
    assert meter.slots(5) == 1
    meter.began(5, is_streamed=False)
    assert meter.slots(5) == 1


@pytest.mark.parametrize("end", [RunEnd.FAILED, RunEnd.NO_ROOM])
def test_a_failure_pauses_at_once_until_a_probe_succeeds(end: RunEnd) -> None:
    meter = ModelMeter()
    assert (meter.paused, meter.probe_due(0), meter.next_change(0)) == ("", False, None)
    meter.ended(meter.began(0), 0, end, why="HTTP 500")
    due = FIRST_PAUSE_S if end is RunEnd.FAILED else NO_ROOM_PAUSE_S
    assert (meter.paused, meter.next_change(0)) == ("HTTP 500", due)
    assert not meter.probe_due(due - 0.1)
    assert meter.probe_due(due)
    meter.probed(due)
    assert (meter.paused, meter.probe_due(due)) == ("", False)


def test_probes_that_fail_come_ever_more_seldom() -> None:
    meter = ModelMeter()
    now, pause_s = 0.0, FIRST_PAUSE_S
    failed(meter, now)
    for turn in range(9):
        now += pause_s
        assert meter.probe_due(now)
        assert not meter.probe_due(now - 0.01)
        meter.probed(now, f"again {turn}")
        assert meter.paused == f"again {turn}"
        pause_s = min(2 * pause_s, MODEL_PAUSE_MOST_S)
    meter.probed(now, "out of memory", is_long=True)
    assert meter.next_change(now) == now + NO_ROOM_PAUSE_S


def test_only_a_real_answer_makes_the_next_pause_short_again() -> None:
    meter = ModelMeter()
    failed(meter, 0)
    meter.probed(1)
    failed(meter, 2)
    assert meter.next_change(2) == 2 + 2 * FIRST_PAUSE_S
    meter.probed(4)
    answered(meter, 5, TOLD)
    failed(meter, 9, why="")
    assert (meter.paused, meter.next_change(9)) == ("it failed", 9 + FIRST_PAUSE_S)


def test_an_answer_beside_a_failure_lets_the_probe_be_asked_at_once() -> None:
    meter = ModelMeter()
    first = meter.began(0)
    meter.first_token(first, 1)
    failed(meter, 2)
    meter.ended(first, 2.5, RunEnd.ANSWERED, spent=TOLD)
    assert meter.paused
    assert meter.probe_due(2.5)


def test_what_is_the_callers_own_pauses_nothing() -> None:
    meter = ModelMeter()
    for end in (RunEnd.OURS, RunEnd.LATE):
        meter.ended(meter.began(0), 1, end, why="cancelled")
    assert meter.paused == ""


def test_a_deadline_over_dead_silence_is_looked_into_at_once() -> None:
    meter = ModelMeter()
    run = meter.began(0)
    meter.ended(run, LATE_SILENCE_S, RunEnd.LATE)
    assert meter.paused == f"it sent nothing for {LATE_SILENCE_S:.0f} s"
    assert meter.probe_due(LATE_SILENCE_S)


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_deadline_while_others_are_answered_is_no_silence(is_streamed: bool) -> None:
    meter = ModelMeter()
    run = meter.began(0, is_streamed=is_streamed)
    if is_streamed:
        other = meter.began(1)
        meter.first_token(other, 2)
    meter.ended(run, 2 * LATE_SILENCE_S, RunEnd.LATE)
    assert meter.paused == ""


def test_a_full_service_is_no_failure_but_has_fewer_slots() -> None:
    meter = ModelMeter()
    meter.ended(meter.began(0), 0, RunEnd.FULL)
    assert (meter.paused, meter.slots(0)) == ("", 0)
    at = meter.next_change(0)
    assert at is not None
    assert meter.slots(at) == 1


def test_requests_that_fail_together_are_one_failure() -> None:
    meter = ModelMeter()
    for run in [meter.began(0) for _ in range(8)]:
        meter.ended(run, 1, RunEnd.FAILED, why="it crashed")
    assert meter.next_change(1) == 1 + FIRST_PAUSE_S
    meter.ended(meter.began(1), 1, RunEnd.NO_ROOM, why="no room")
    assert meter.next_change(1) == 1 + NO_ROOM_PAUSE_S


def test_while_it_is_being_asked_it_is_not_asked_again() -> None:
    meter = ModelMeter()
    failed(meter, 0)
    meter.probe_begins()
    assert (meter.probe_due(99), meter.next_change(99)) == (False, None)
    meter.probed(99, "still broken")
    assert meter.next_change(99) == 99 + 2 * FIRST_PAUSE_S


def test_a_short_question_that_waited_for_a_long_one_proves_no_slot() -> None:
    meter = ModelMeter()
    alone = meter.began(0, prompt_tokens=1000, is_streamed=False)
    meter.ended(alone, 1.0, RunEnd.ANSWERED)
    long = meter.began(10, prompt_tokens=1000, is_streamed=False)
    short = meter.began(10.3, prompt_tokens=10, is_streamed=False)
    meter.ended(long, 11, RunEnd.ANSWERED)
    meter.ended(short, 11.01, RunEnd.ANSWERED)
    assert meter.gauge.proved == 1


def test_the_first_token_is_expected_as_soon_as_it_usually_comes() -> None:
    meter = ModelMeter()
    assert meter.expected_first_s(100) == 0  # it has not answered yet
    answered(meter, 0, Spent(prompt_tokens=100, output_tokens=50, prompt_s=0.5, output_s=1))
    assert meter.expected_first_s(100) == 1
    assert meter.expected_first_s(10_000) == 50  # there is more to read
    for _ in range(meter.gauge.proved):
        meter.began(40)
    assert meter.expected_first_s(100) == 0  # it may have to wait for a slot
