"""What is given back: it costs nothing by chance, and does not go round for ever."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from d8mesh.core.broker.effects import Peer
from d8mesh.core.broker.patience import HOPELESS_S
from d8mesh.core.broker.returns import (
    FREE_RETURNS,
    LEAVING,
    MAX_LEFT,
    MAX_RETURN_PAUSE_S,
    MAX_RETURNS,
    MAX_UNSTARTED,
)
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.task import Requeued, TaskState
from tests.core.llm_services import host, model, service
from tests.core.wired_broker import WiredBroker, beat, result


def taken(broker: WiredBroker, worker: Peer) -> dict[str, bytes]:
    """Wait until the worker is handed something, while all say that they live."""
    for _ in range(1000):
        if held := broker.work(worker):
            return held
        broker.say(worker, beat([], 0))
        for client in list(broker.state.clients.values()):
            broker.say(client.peer, m.Watch([]))
        broker.pass_time(0.5)
    return {}


def given_back(broker: WiredBroker, worker: Peer, reason: str) -> bool:
    """Have the worker give back what it is handed next; False if that is nothing."""
    held = taken(broker, worker)
    if held:
        broker.say(worker, m.Release(1, list(held), list(held.values()), reason))
    return bool(held)


def pauses(broker: WiredBroker) -> list[float]:
    facts = [fact for fact in broker.facts if isinstance(fact, Requeued) and not fact.is_counted]
    return [max(0.0, fact.not_before_at - fact.at) for fact in facts]


def test_what_cannot_be_run_waits_longer_each_time_says_why_and_fails_in_the_end(
    broker: WiredBroker,
) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client, max_attempts=2)
    for _ in range(MAX_RETURNS - 1):
        assert given_back(broker, worker, "ollama: HTTP 503")
        reason = str(broker.ask(client, "status", id=task_id).body["reason"])
        assert "worker 'w' could not run it: ollama: HTTP 503" in reason
    found = pauses(broker)
    assert found == sorted(found)
    assert found[0] == pytest.approx(0.75)
    assert found[-1] == pytest.approx(MAX_RETURN_PAUSE_S * 0.75)
    assert broker.task_table.tasks[task_id].remember().errors == 0
    assert given_back(broker, worker, "ollama: HTTP 503")
    assert broker.task_table.tasks[task_id].remember().errors == 1
    for _ in range(MAX_RETURNS):
        assert given_back(broker, worker, "ollama: HTTP 503")
    assert not given_back(broker, worker, "")
    outcomes = broker.got(client, m.Outcomes)
    (result,) = [msgspec.msgpack.decode(each.payloads[0]) for each in outcomes]
    assert result["error"] == (
        f"given back {MAX_RETURNS} times, the last time: worker 'w' could not run it: "
        "ollama: HTTP 503"
    )
    assert broker.task_table.totals.failed == 1


def test_one_that_gave_it_back_has_its_turn_after_the_others(broker: WiredBroker) -> None:
    client, first = broker.client(), broker.worker("a")
    (task_id,) = broker.submit(client)
    assert given_back(broker, first, "busy")
    second = broker.worker("b")
    broker.pass_time(2)
    assert list(broker.work(second)) == [task_id]
    assert broker.work(first) == {}


def test_orderly_workers_may_leave_a_thousand_times_at_no_cost(broker: WiredBroker) -> None:
    client = broker.client()
    (task_id,) = broker.submit(client)
    for number in range(MAX_RETURNS * 2):
        worker = broker.worker("w", boot=f"b{number}")
        held = taken(broker, worker)
        assert list(held) == [task_id]
        if number % 2:
            broker.say(worker, m.Release(0, list(held), list(held.values())))
        broker.say(worker, m.Goodbye("stopped"))
    history = broker.task_table.tasks[task_id].remember()
    assert (history.errors, history.returns) == (0, MAX_RETURNS * 2)
    assert "w' gave it back" in str(broker.ask(client, "status", id=task_id).body["reason"])
    assert pauses(broker)[:FREE_RETURNS] == [0.0] * FREE_RETURNS
    assert pauses(broker)[-1] == pytest.approx(MAX_RETURN_PAUSE_S * 0.75)


def test_one_that_leaves_again_and_again_is_an_error_in_the_end(
    broker: WiredBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LEAVING.most == MAX_LEFT
    monkeypatch.setattr("d8mesh.core.broker.worker_sessions.LEAVING", LEAVING._replace(most=12))
    client = broker.client()
    (task_id,) = broker.submit(client, max_attempts=1)
    for number in range(12):
        assert broker.task_table.state_of(task_id) is not None
        worker = broker.worker("w", boot=f"b{number}")
        assert taken(broker, worker)
        broker.say(worker, m.Goodbye("stopped"))
    assert broker.task_table.totals.failed == 1


def test_a_worker_that_starts_nothing_is_bounded_too(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client, max_attempts=1)
    for _ in range(MAX_UNSTARTED):
        assert broker.task_table.state_of(task_id) is not None
        assert given_back(broker, worker, "")
    assert broker.task_table.totals.failed == 1


def test_what_a_worker_loses_again_and_again_fails(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client, max_attempts=1)
    count = 0
    for _ in range(1000):
        if broker.task_table.state_of(task_id) is None:
            break
        count += bool(broker.work(worker))
        broker.say(worker, beat([], 10**6))  # it holds nothing of what it was given
        broker.say(client, m.Watch([]))
        broker.pass_time(0.5)
    assert count == MAX_RETURNS
    assert broker.task_table.totals.failed == 1


def test_what_was_called_back_for_another_costs_nothing_and_does_not_wait(
    broker: WiredBroker,
) -> None:
    client, worker = broker.client(), broker.worker("a", window=3)
    ids = broker.submit(client, 3)
    held = broker.work(worker)
    broker.worker("b")
    broker.say(worker, beat(ids, 1, window=3))
    broker.pass_time(2)
    assert broker.got(worker, m.Recall)[0] == m.Recall(2)
    last = ids[2]
    broker.say(worker, m.Release(3, [last], [held[last]]))
    history = broker.task_table.tasks[last].remember()
    assert (history.returns, history.errors) == (0, 0)
    assert broker.task_table.state_of(last) is TaskState.RUNNING


def test_a_restart_forgets_neither_the_count_nor_the_pause(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    for _ in range(5):
        assert given_back(broker, worker, "busy")
    history = broker.task_table.tasks[task_id].remember()
    before = (history.returns, history.suspect_returns, history.returned_by, history.last_return)
    left_s = history.not_before_at - broker.at
    assert left_s > 1
    broker.restart()
    client, worker = broker.client(), broker.worker("w")
    history = broker.task_table.tasks[task_id].remember()
    after = (history.returns, history.suspect_returns, history.returned_by, history.last_return)
    assert after == before
    assert broker.task_table.state_of(task_id) is TaskState.DELAYED
    assert "busy" in str(broker.ask(client, "status", id=task_id).body["reason"])
    assert broker.work(worker) == {}
    until = broker.now + left_s
    assert list(taken(broker, worker)) == [task_id]
    assert broker.now >= until


def test_a_clock_that_was_set_back_makes_no_pause_longer(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    (task_id,) = broker.submit(client)
    for _ in range(3):
        assert given_back(broker, worker, "busy")
    broker.at -= 86_400
    broker.restart()
    worker, started = broker.worker("w"), broker.now
    assert list(taken(broker, worker)) == [task_id]
    assert broker.now < started + 5


def _placed_back(broker: WiredBroker, worker: Peer, reason: str, **given: Any) -> bool:
    """Have a worker say how its model is, then give back what was placed there."""
    held = taken(broker, worker)
    broker.say(worker, m.Measured("s", [model(**given)]))
    broker.say(worker, m.Release(1, list(held), list(held.values()), reason))
    return bool(held)


def test_what_an_account_does_not_allow_costs_no_attempt_however_often(
    broker: WiredBroker,
) -> None:
    client = broker.client()
    worker = host(broker, "w", [service("s", [model(budget=m.Budget())], is_cloud=True)])
    (task_id,) = broker.submit(client, kind="agent_action", model=";cloud=yes", max_attempts=1)
    blocked = m.Budget(blocked_s=3.0, blocked_why="quota of the minute")
    for _ in range(MAX_RETURNS * 3):
        assert _placed_back(broker, worker, "HTTP 429", budget=blocked)
    task = broker.task_table.tasks[task_id]
    assert (task.remember().errors, task.remember().returns, task.failed_at) == (0, 0, frozenset())
    found = broker.state.services.model("s", "m")
    assert found is not None
    assert (found.streak, found.pauses) == (0, 0)
    reason = str(broker.ask(client, "status", id=task_id).body["reason"])
    assert f"given back {MAX_RETURNS * 3} times, the last time: worker 'w' could not" in reason
    told = broker.ask(client, "explain", id=task_id).body
    assert "HTTP 429" in str(told["summary"])
    broker.restart()
    assert broker.task_table.tasks[task_id].remember().excused_returns == MAX_RETURNS * 3


def test_what_others_fill_costs_no_attempt_and_what_is_down_does_in_the_end(
    broker: WiredBroker,
) -> None:
    client = broker.client()
    worker = host(broker, "w", [service("s")])
    (task_id,) = broker.submit(client, kind="agent_action", max_attempts=1)
    for _ in range(MAX_RETURNS + 2):
        assert _placed_back(broker, worker, "HTTP 503")
    assert broker.task_table.tasks[task_id].remember().errors == 0
    found = broker.state.services.model("s", "m")
    assert found is not None
    assert found.pauses  # nor is a service asked in vain again and again
    for _ in range(MAX_RETURNS):
        broker.say(worker, m.Measured("s", [model()]))
        assert _placed_back(broker, worker, "connection refused", paused="connection refused")
    assert broker.task_table.state_of(task_id) is None


def test_a_service_that_says_that_it_is_full_is_not_to_blame(broker: WiredBroker) -> None:
    client = broker.client()
    worker = host(broker, "w", [service("s", [model(slots=3)])])
    ids = broker.submit(client, 3, "agent_action")
    held = broker.work(worker)
    broker.say(worker, m.Measured("s", [model(slots=0)]))
    broker.say(worker, m.Release(1, ids, [held[each] for each in ids], "HTTP 503"))
    found = broker.state.services.model("s", "m")
    assert found is not None
    assert (found.streak, found.pauses) == (0, 0)
    assert all(broker.task_table.state_of(each) is TaskState.QUEUED for each in ids)
    broker.say(worker, m.Measured("s", [model(slots=3)]))
    assert list(broker.work(worker)) == ids


SOURCE = "openai 127.0.0.1 program"


def test_who_waits_at_a_door_is_tried_at_once_where_it_has_not_failed(broker: WiredBroker) -> None:
    client = broker.client()
    workers = [host(broker, name, [service(name, [model("m")])]) for name in ("a", "b")]
    broker.submit(client, kind="agent_action", model="=m", priority=8, source=SOURCE)
    held = [broker.work(each) for each in workers]
    first, second = workers if held[0] else workers[::-1]
    ((task_id, token),) = (held[0] or held[1]).items()
    broker.say(first, m.Results(1, 4, [task_id], [token], bytes([m.FAILED]), [b"\x80"]))
    ((again, token),) = broker.work(second).items()
    assert again == task_id
    broker.say(second, m.Results(1, 4, [task_id], [token], bytes([m.FAILED]), [b"\x80"]))
    assert broker.work(first) == broker.work(second) == {}  # both have failed it: after a pause
    assert taken(broker, first) or taken(broker, second)


def test_who_waits_at_a_door_is_not_failed_once_another_machine_has_answered(
    broker: WiredBroker,
) -> None:
    client = broker.client()
    workers = [host(broker, name, [service(name, [model("m")])]) for name in ("a", "b")]
    (task_id,) = broker.submit(client, kind="agent_action", model="=m", priority=8, source=SOURCE)
    held = [broker.work(each) for each in workers]
    first, second = workers if held[0] else workers[::-1]
    token = (held[0] or held[1])[task_id]
    broker.say(first, m.Results(1, 4, [task_id], [token], bytes([m.FAILED]), [b"\x80"]))
    broker.finish(second, broker.work(second))
    broker.pass_time(HOPELESS_S + 1)
    outcomes = [each for each in broker.got(client, m.Outcomes) if each.ids == [task_id]]
    assert [each.payloads for each in outcomes] == [[result()]]
