"""A model of a service: how many attempts have room there, and when none has."""

from __future__ import annotations

import pytest

from d8mesh.core.broker.service_states import (
    MAX_OWN_PAUSE_S,
    MAX_PLACED_OF_WORKER,
    OWN_PAUSE_S,
    SHORTEST_SAMPLE_S,
    UNPROVEN_SLOTS,
    AnswerTokens,
)
from d8mesh.core.broker.services import ServiceTable
from d8mesh.core.protocol.messages import Measured
from tests.core.llm_services import model, service
from tests.core.service_tables import fly, only, tell, worker


def test_a_worker_that_is_full_or_mute_is_not_asked() -> None:
    table, who = ServiceTable(), worker("a")
    tell(table, who, service("s"))
    who.placed = MAX_PLACED_OF_WORKER
    assert only(table).worker() is None
    who.placed, who.is_mute = 0, True
    assert only(table).worker() is None


def test_slots_are_those_of_the_model_the_service_and_what_is_proved() -> None:
    table, who = ServiceTable(), worker("a")
    tell(table, who, service("s", [model(slots=8), model("n", slots=8)], slots=6))
    assert only(table).bound(0.0) == 6
    for number in range(5):
        fly(table, str(number), who)
    assert only(table, name="n").room(0.0) == 1
    tell(table, who, service("s", [model(slots=8, requests=0), model("n", slots=8)]))
    assert only(table).bound(0.0) == UNPROVEN_SLOTS
    table.end("0", 1.0, is_success=True)
    assert only(table).bound(0.0) == 8
    tell(table, who, service("s", [model(slots=8, is_loaded=False)]))
    assert only(table).bound(0.0) == 1  # until it is loaded
    tell(table, who, service("s", [model(slots=8, is_loaded=False)], is_cloud=True))
    assert only(table).bound(0.0) == 8


def test_what_is_being_loaded_gets_nothing_until_it_is_there_or_long_overdue() -> None:
    table, who = ServiceTable(), worker("a")
    tell(table, who, service("s", [model(is_loaded=False)]))
    only(table).load(10.0, 0.0)
    assert only(table).is_loading(1.0)
    assert only(table).room(1.0) == 0
    assert only(table).room(100.0) == 1
    table.measured(who, Measured("s", [model()]), 5.0)
    assert not only(table).is_loading(5.0)


def test_three_failures_in_a_row_pause_a_model_until_one_request_shows_that_it_is_well() -> None:
    table, who = ServiceTable(), worker("a")
    tell(table, who, service("s", [model(slots=8)]))

    def fail(now: float) -> None:
        fly(table, "t", who, now)
        table.end("t", now, is_success=False)

    fail(1.0)
    fail(2.0)
    assert only(table).room(2.0) == 8
    fail(3.0)
    assert only(table).room(3.0) == 0
    assert only(table).room(3.0 + OWN_PAUSE_S) == 1
    fail(20.0)  # still ill: twice as long
    assert only(table).room(20.0 + OWN_PAUSE_S) == 0
    for _ in range(10):
        fail(30.0)
    assert only(table).own_pause_until == 30.0 + MAX_OWN_PAUSE_S
    table.measured(who, Measured("s", [model(slots=8)]), 40.0)  # that means nothing
    assert only(table).room(40.0) == 0
    table.measured(who, Measured("s", [model(slots=8, paused="it fails")]), 40.0)
    table.measured(who, Measured("s", [model(slots=8)]), 40.0)  # the worker's probe succeeded
    assert only(table).room(40.0) == 8
    for _ in range(3):
        fail(50.0)
    fly(table, "t", who, 70.0)
    table.end("t", 71.0, is_success=True)
    assert only(table).room(71.0) == 8


def test_how_long_requests_really_take_is_learnt_but_not_from_loading() -> None:
    table, who = ServiceTable(), worker("a")
    tell(table, who, service("s"))
    for number, (took_s, is_cold) in enumerate(((2.0, False), (4.0, False), (50.0, True))):
        fly(table, str(number), who, 0.0, raw_s=1.0, is_measured=True, is_cold=is_cold)
        table.end(str(number), took_s, is_success=True)
    assert only(table).pace == pytest.approx(2.4)


@pytest.mark.parametrize("words", [100, 1000])
def test_how_quick_a_machine_is_does_not_depend_on_how_long_its_answers_were(words: int) -> None:
    table, who = ServiceTable(), worker("a")
    tell(table, who, service("s"))  # 100 tokens a second
    taken_s = words / 100.0
    for number in range(5):
        fly(table, str(number), who, 0.0, raw_s=3.0, is_measured=True)
        tokens = AnswerTokens(completion_tokens=words)
        table.end(str(number), taken_s * 1.2, is_success=True, tokens=tokens)
    assert only(table).pace == pytest.approx(1.2)


def test_of_a_short_answer_nothing_is_learnt() -> None:
    table, who = ServiceTable(), worker("a")
    tell(table, who, service("s"))
    fly(table, "0", who, 0.0, raw_s=3.0, is_measured=True)
    short = AnswerTokens(completion_tokens=3)
    table.end("0", SHORTEST_SAMPLE_S / 2, is_success=True, tokens=short)
    assert only(table).pace == 0.0
