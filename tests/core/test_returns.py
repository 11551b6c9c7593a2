"""What is given back: it costs nothing by chance, and does not go round for ever."""

from __future__ import annotations

import msgspec
import pytest

from d8mesh.core import messages as m
from d8mesh.core.effects import Peer
from d8mesh.core.returns import (
    FREE_RETURNS,
    LEAVING,
    MAX_LEFT,
    MAX_RETURN_PAUSE_S,
    MAX_RETURNS,
    MAX_UNSTARTED,
)
from d8mesh.core.task import Requeued, TaskState
from tests.core.desktop import Desktop, beat


def taken(desk: Desktop, worker: Peer) -> dict[str, bytes]:
    """Wait until the worker is handed something, while all say that they live."""
    for _ in range(200):
        if held := desk.work(worker):
            return held
        desk.say(worker, beat([], 0))
        for client in list(desk.pool.clients.values()):
            desk.say(client.peer, m.Watch([]))
        desk.pass_time(0.5)
    return {}


def given_back(desk: Desktop, worker: Peer, reason: str) -> bool:
    """Have the worker give back what it is handed next; False if that is nothing."""
    held = taken(desk, worker)
    if held:
        desk.say(worker, m.Release(1, list(held), list(held.values()), reason))
    return bool(held)


def pauses(desk: Desktop) -> list[float]:
    facts = [fact for fact in desk.facts if isinstance(fact, Requeued) and not fact.is_counted]
    return [max(0.0, fact.not_before_at - fact.at) for fact in facts]


def test_what_cannot_be_run_waits_longer_each_time_says_why_and_fails_in_the_end(
    desk: Desktop,
) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client, max_attempts=2)
    for _ in range(MAX_RETURNS - 1):
        assert given_back(desk, worker, "ollama: HTTP 503")
        reason = str(desk.ask(client, "status", id=task_id).body["reason"])
        assert "worker 'w' could not run it: ollama: HTTP 503" in reason
    found = pauses(desk)
    assert found == sorted(found)
    assert found[0] == pytest.approx(0.75)
    assert found[-1] == pytest.approx(MAX_RETURN_PAUSE_S * 0.75)
    assert desk.ledger.tasks[task_id].remember().errors == 0
    assert given_back(desk, worker, "ollama: HTTP 503")
    assert desk.ledger.tasks[task_id].remember().errors == 1
    for _ in range(MAX_RETURNS):
        assert given_back(desk, worker, "ollama: HTTP 503")
    assert not given_back(desk, worker, "")
    outcomes = desk.got(client, m.Outcomes)
    (result,) = [msgspec.msgpack.decode(each.payloads[0]) for each in outcomes]
    assert result["error"] == (
        f"given back {MAX_RETURNS} times, the last time: worker 'w' could not run it: "
        "ollama: HTTP 503"
    )
    assert desk.ledger.totals.failed == 1


def test_one_that_gave_it_back_has_its_turn_after_the_others(desk: Desktop) -> None:
    client, first = desk.client(), desk.worker("a")
    (task_id,) = desk.submit(client)
    assert given_back(desk, first, "busy")
    second = desk.worker("b")
    desk.pass_time(2)
    assert list(desk.work(second)) == [task_id]
    assert desk.work(first) == {}


def test_orderly_workers_may_leave_a_thousand_times_at_no_cost(desk: Desktop) -> None:
    client = desk.client()
    (task_id,) = desk.submit(client)
    for number in range(MAX_RETURNS * 2):
        worker = desk.worker("w", boot=f"b{number}")
        held = taken(desk, worker)
        assert list(held) == [task_id]
        if number % 2:
            desk.say(worker, m.Release(0, list(held), list(held.values())))
        desk.say(worker, m.Goodbye("stopped"))
    history = desk.ledger.tasks[task_id].remember()
    assert (history.errors, history.returns) == (0, MAX_RETURNS * 2)
    assert "w' gave it back" in str(desk.ask(client, "status", id=task_id).body["reason"])
    assert pauses(desk)[:FREE_RETURNS] == [0.0] * FREE_RETURNS
    assert pauses(desk)[-1] == pytest.approx(MAX_RETURN_PAUSE_S * 0.75)


def test_one_that_leaves_again_and_again_is_an_error_in_the_end(
    desk: Desktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LEAVING.most == MAX_LEFT
    monkeypatch.setattr("d8mesh.core.attendance.LEAVING", LEAVING._replace(most=12))
    client = desk.client()
    (task_id,) = desk.submit(client, max_attempts=1)
    for number in range(12):
        assert desk.ledger.state_of(task_id) is not None
        worker = desk.worker("w", boot=f"b{number}")
        assert taken(desk, worker)
        desk.say(worker, m.Goodbye("stopped"))
    assert desk.ledger.totals.failed == 1


def test_a_worker_that_starts_nothing_is_bounded_too(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client, max_attempts=1)
    for _ in range(MAX_UNSTARTED):
        assert desk.ledger.state_of(task_id) is not None
        assert given_back(desk, worker, "")
    assert desk.ledger.totals.failed == 1


def test_what_a_worker_loses_again_and_again_fails(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client, max_attempts=1)
    count = 0
    for _ in range(1000):
        if desk.ledger.state_of(task_id) is None:
            break
        count += bool(desk.work(worker))
        desk.say(worker, beat([], 10**6))  # it holds nothing of what it was given
        desk.say(client, m.Watch([]))
        desk.pass_time(0.5)
    assert count == MAX_RETURNS
    assert desk.ledger.totals.failed == 1


def test_what_was_called_back_for_another_costs_nothing_and_does_not_wait(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("a", window=3)
    ids = desk.submit(client, 3)
    held = desk.work(worker)
    desk.worker("b")
    desk.say(worker, beat(ids, 1, window=3))
    desk.pass_time(2)
    assert desk.got(worker, m.Recall)[0] == m.Recall(2)
    last = ids[2]
    desk.say(worker, m.Release(3, [last], [held[last]]))
    history = desk.ledger.tasks[last].remember()
    assert (history.returns, history.errors) == (0, 0)
    assert desk.ledger.state_of(last) is TaskState.RUNNING


def test_a_restart_forgets_neither_the_count_nor_the_pause(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client)
    for _ in range(5):
        assert given_back(desk, worker, "busy")
    history = desk.ledger.tasks[task_id].remember()
    before = (history.returns, history.suspect_returns, history.returned_by, history.last_return)
    left_s = history.not_before_at - desk.at
    assert left_s > 1
    desk.restart()
    client, worker = desk.client(), desk.worker("w")
    history = desk.ledger.tasks[task_id].remember()
    after = (history.returns, history.suspect_returns, history.returned_by, history.last_return)
    assert after == before
    assert desk.ledger.state_of(task_id) is TaskState.DELAYED
    assert "busy" in str(desk.ask(client, "status", id=task_id).body["reason"])
    assert desk.work(worker) == {}
    until = desk.now + left_s
    assert list(taken(desk, worker)) == [task_id]
    assert desk.now >= until


def test_a_clock_that_was_set_back_makes_no_pause_longer(desk: Desktop) -> None:
    client, worker = desk.client(), desk.worker("w")
    (task_id,) = desk.submit(client)
    for _ in range(3):
        assert given_back(desk, worker, "busy")
    desk.at -= 86_400
    desk.restart()
    worker, started = desk.worker("w"), desk.now
    assert list(taken(desk, worker)) == [task_id]
    assert desk.now < started + 5
