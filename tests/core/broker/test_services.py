"""The table of services: what workers tell, merged; what runs; pauses."""

from __future__ import annotations

from typing import Any

import pytest

from d8mesh.core.broker import services as module
from d8mesh.core.broker.service_states import (
    MAX_OWN_PAUSE_S,
    MAX_PLACED_OF_WORKER,
    OWN_PAUSE_S,
    UNPROVEN_SLOTS,
    Flight,
    ModelState,
)
from d8mesh.core.broker.services import ServiceTable
from d8mesh.core.broker.standings import Decision
from d8mesh.core.broker.worker_registry import Dialect, WorkerState
from d8mesh.core.protocol.messages import Budget, Measured, OfferedService, Services
from tests.core.llm_services import KINDS, model, service


def worker(name: str) -> WorkerState:
    return WorkerState(name, Dialect.MESH)


def tell(table: ServiceTable, who: WorkerState, *offered: OfferedService, now: float = 0.0) -> None:
    table.tell(who, Services(list(KINDS), list(offered), [], [], []), now)


def only(table: ServiceTable, service_id: str = "s", name: str = "m") -> ModelState:
    found = table.model(service_id, name)
    assert found is not None
    return found


def fly(table: ServiceTable, task_id: str, who: WorkerState, now: float = 0.0, **more: Any) -> None:
    table.begin(task_id, Flight(who, "s", "m", now, **more))


def test_workers_that_reach_the_same_service_are_merged_and_it_goes_with_the_last() -> None:
    table, one, two = ServiceTable(), worker("a"), worker("b")
    tell(table, two, service("s", [model(slots=2, requests=5, load_s=3.0)]))
    tell(table, one, service("s", [model(slots=4, requests=1, output_tokens_per_s=0.0)]))
    found = only(table)
    assert (found.info.slots, found.info.requests, found.info.load_s) == (4, 6, 3.0)
    assert found.info.output_tokens_per_s == 100.0
    assert found.worker() is one  # always the same while it lives
    assert table.answers(KINDS[0])
    table.leave(one, 1.0)
    assert only(table).worker() is two
    table.leave(two, 2.0)
    assert not table.services
    assert not table.answers(KINDS[0])
    assert table.gone == {"m:latest": 2.0}
    table.forget_gone(3.0)
    assert not table.gone


def test_a_model_that_was_removed_is_not_expected_back_one_of_a_service_that_went_is() -> None:
    table, who = ServiceTable(), worker("a")
    tell(table, who, service("s", [model("m"), model("n")]))
    tell(table, who, service("s", [model("n")]))
    assert not table.gone
    tell(table, who, service("s", [], why="connection refused"))
    assert list(table.gone) == ["n:latest"]
    assert table.services["s"].why == "connection refused"
    tell(table, who, service("s", [model("n")]))
    assert not table.gone


def test_measured_changes_one_model_and_of_an_unknown_service_nothing() -> None:
    table, who = ServiceTable(), worker("a")
    tell(table, who, service("s", [model("m"), model("n")]))
    table.measured(who, Measured("other", [model("m", slots=9)]), 1.0)
    table.measured(worker("stranger"), Measured("s", [model("m", slots=9)]), 1.0)
    assert only(table).info.slots == 1
    table.measured(who, Measured("s", [model("m", slots=3)]), 1.0)
    assert only(table).info.slots == 3
    table.measured(who, Measured("s", [model("new")]), 1.0)
    assert [each.name for each in table.by_name["new:latest"]] == ["new"]


def test_a_pause_told_by_one_worker_leaves_the_way_through_another() -> None:
    table, one, two = ServiceTable(), worker("a"), worker("b")
    tell(table, one, service("s"))
    tell(table, two, service("s"))
    table.measured(one, Measured("s", [model(paused="no way there")]), 5.0)
    assert only(table).worker() is two
    assert only(table).paused == ""
    table.measured(two, Measured("s", [model(paused="it fails")]), 6.0)
    assert (only(table).paused, only(table).paused_since) == ("it fails", 6.0)
    assert only(table).room(7.0) == 0
    assert only(table).worker() is None


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


def test_what_an_account_allows_is_no_fault_of_its_service() -> None:
    table, who = ServiceTable(), worker("a")
    tell(table, who, service("s", [model(budget=Budget(minute_requests=1))], is_cloud=True))
    for _ in range(5):
        fly(table, "t", who)
        table.end("t", 1.0, is_success=False)
    assert only(table).room(1.0) == 1


def test_how_long_requests_really_take_is_learnt_but_not_from_loading() -> None:
    table, who = ServiceTable(), worker("a")
    tell(table, who, service("s"))
    for number, (took_s, is_cold) in enumerate(((2.0, False), (4.0, False), (50.0, True))):
        fly(table, str(number), who, 0.0, raw_s=1.0, is_measured=True, is_cold=is_cold)
        table.end(str(number), took_s, is_success=True)
    assert only(table).pace == pytest.approx(2.4)


def test_a_service_that_went_stays_until_what_runs_there_has_ended() -> None:
    table, who, other = ServiceTable(), worker("a"), worker("b")
    tell(table, who, service("s"))
    fly(table, "t", who)
    fly(table, "u", who)
    table.leave(who, 1.0)
    tell(table, other, service("s"))
    assert only(table).in_flight == 2
    table.leave(other, 2.0)
    table.end("t", 3.0, is_success=True)
    assert list(table.services) == ["s"]
    table.end("u", 3.0, is_success=True)
    table.end("unknown", 3.0)
    assert not table.services


def test_that_a_service_is_full_is_seen_when_one_model_goes_as_another_comes() -> None:
    table, who = ServiceTable(), worker("a")

    def loaded(*names: str) -> OfferedService:
        return service("s", [model(name, is_loaded=name in names) for name in ("k", "m", "n")])

    tell(table, who, loaded("k"))
    tell(table, who, loaded("k", "m"), now=10.0)
    found = table.services["s"]
    assert (found.most_loaded, found.was_full) == (2, float("-inf"))
    tell(table, who, loaded("m"), now=100.0)  # it was idle for long
    assert found.was_full == float("-inf")
    only(table, name="n").load(5.0, 200.0)
    tell(table, who, loaded(), now=201.0)
    assert (found.most_loaded, found.was_full) == (1, 201.0)
    tell(table, who, loaded("n"), now=205.0)
    assert found.was_full == 201.0


def test_conversations_and_decisions_are_remembered_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_CONVERSATIONS", 2)
    monkeypatch.setattr(module, "MAX_DECISIONS", 2)
    table, who = ServiceTable(), worker("a")
    tell(table, who, service("s"))
    for name in ("", "a", "b", "a", "c"):
        table.note_conversation(name, only(table))
    assert list(table.conversations) == ["a", "c"]
    for task_id in ("1", "1", "2", "3"):
        table.note_decision(
            Decision(task_id=task_id, attempt=1, service="s", model="m", at=0.0, waited_s=0.0)
        )
    assert [len(table.decisions_of(task_id)) for task_id in ("1", "2", "3")] == [0, 1, 1]
