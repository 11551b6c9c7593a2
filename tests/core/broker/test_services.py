"""The table of services: what workers tell, merged; what runs; pauses."""

from __future__ import annotations

import pytest

from d8mesh.core.broker import services as module
from d8mesh.core.broker.services import ServiceTable
from d8mesh.core.broker.standings import Decision
from d8mesh.core.protocol.messages import Budget, Measured, OfferedService
from tests.core.llm_services import KINDS, model, service
from tests.core.service_tables import fly, only, tell, worker


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
    table.forget_gone(3.0, 3.0)
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
    for attempt in range(module.MAX_DECISIONS_OF_TASK + 2):
        table.note_decision(
            Decision(task_id="3", attempt=attempt, service="s", model="m", at=0.0, waited_s=0.0)
        )
    assert table.decisions_of("3")[0].attempt == 2


def test_who_finds_a_service_down_does_not_spoil_what_others_tell_of_it() -> None:
    table, one, two = ServiceTable(), worker("a"), worker("b")
    tell(table, one, service("s", slots=2))
    tell(table, two, service("s", [], why="no route", slots=9))
    found = table.services["s"]
    assert (found.default, found.slots, found.why) == ("m", 2, "")
    assert list(only(table).reach) == ["a"]


def test_a_service_that_one_of_its_workers_has_in_the_cloud_is_there() -> None:
    table = ServiceTable()
    tell(table, worker("a"), service("s", is_cloud=True))
    tell(table, worker("b"), service("s"))
    assert table.services["s"].is_cloud


def test_a_pause_of_ours_ends_when_no_worker_has_the_model_paused() -> None:
    table, one, two = ServiceTable(), worker("a"), worker("b")
    tell(table, one, service("s", [model(paused="it failed")]))
    tell(table, two, service("s"))
    only(table).own_pause_until = 50.0
    table.measured(two, Measured("s", [model()]), 1.0)  # it does not know better
    assert only(table).own_pause_until == 50.0
    table.measured(one, Measured("s", [model()]), 2.0)
    assert only(table).own_pause_until == 0.0


def test_a_worker_tells_of_so_many_models_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MODELS_OF_WORKER", 3)
    monkeypatch.setattr(module, "MAX_NAMES", 3)
    table, who = ServiceTable(), worker("a")
    tell(table, who, service("s", [model("k"), model("m")]), service("t", [model("m"), model("n")]))
    assert [list(each.models) for each in table.services.values()] == [["k", "m"], ["m"]]
    for number in range(5):
        table.measured(who, Measured("s", [model(f"new{number}"), model("m", slots=4)]), 1.0)
    assert list(table.services["s"].models) == ["k", "m", "new0"]
    assert only(table).info.slots == 4


def test_slots_that_a_removed_model_held_are_free_for_the_others_when_it_ends() -> None:
    table, who = ServiceTable(), worker("a")
    tell(table, who, service("s", [model("m"), model("n")], slots=1))
    fly(table, "t", who)
    tell(table, who, service("s", [model("n")], slots=1))
    table.stirred.clear()
    table.end("t", 1.0)
    assert table.stirred == {only(table, name="n")}


def test_nobody_waits_for_a_load_whose_request_has_ended() -> None:
    table, who = ServiceTable(), worker("a")
    tell(table, who, service("s", [model(is_loaded=False)]))
    fly(table, "t", who, is_cold=True)
    only(table).load(60.0, 0.0)
    table.end("t", 1.0)  # cancelled
    assert only(table).room(1.0) == 1


def test_what_an_account_allows_is_as_those_tell_it_who_are_there() -> None:
    table, one, two = ServiceTable(), worker("a"), worker("b")
    strict = Budget(minute_requests=1, blocked_s=1e9, recent=[(0.0, 5)])
    tell(table, one, service("s", [model(budget=strict)], is_cloud=True))
    tell(table, two, service("s", [model(budget=Budget(minute_requests=2))], is_cloud=True))
    book = only(table).budget
    assert book is not None
    assert book.free_in_s(5, 10.0) > 1e6
    table.leave(one, 10.0)
    assert book.free_in_s(5, 10.0) == 0.0
    assert book.left(10.0).minute_requests == 1  # what it sent counts
    table.leave(two, 70.0)
    table.forget_gone(0.0, 70.0)
    tell(table, one, service("s", [model(budget=strict)], is_cloud=True), now=80.0)
    assert only(table).budget is not book
