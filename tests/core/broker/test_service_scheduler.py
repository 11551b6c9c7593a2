"""Placed tasks: they wait until a service has a slot, and every way of ending frees it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from d8mesh.core.broker import routing, scheduler
from d8mesh.core.broker.budgets import SETTLE_S
from d8mesh.core.broker.effects import Peer
from d8mesh.core.broker.routing import Ask
from d8mesh.core.broker.services import ServiceTable
from d8mesh.core.protocol import messages as m
from d8mesh.core.protocol.task import TaskState
from d8mesh.core.protocol.wish import Cloud
from tests.core.llm_services import KINDS, host, model, offer, placed, service
from tests.core.wired_broker import WiredBroker, beat, hello


def test_a_worker_is_told_the_place_before_the_work(broker: WiredBroker) -> None:
    client = broker.client()
    worker = host(broker, "w", [service("s", [model("m", slots=2)])])
    ids = broker.submit(client, 3, "agent_action", model="m")
    said = [message for peer, message, _ in broker.sent if peer == worker]
    kinds = [type(message) for message in said if isinstance(message, (m.Placed, m.Work))]
    assert kinds == [m.Placed, m.Work]
    assert placed(broker, worker) == {ids[0]: ("s", "m"), ids[1]: ("s", "m")}
    held = broker.work(worker)
    assert list(held) == ids[:2]
    assert broker.task_table.state_of(ids[2]) is TaskState.QUEUED  # late binding
    broker.finish(worker, {ids[0]: held[ids[0]]})
    assert list(placed(broker, worker)) == [ids[2]]


def test_placed_attempts_run_beside_the_window(broker: WiredBroker) -> None:
    client = broker.client()
    worker = host(broker, "w", [service("s", [model("m", slots=4)])], slots=1)
    broker.submit(client, 4, "agent_action")
    assert len(placed(broker, worker)) == 4
    broker.work(worker)
    echo = broker.submit(client, 2, "echo")
    assert list(broker.work(worker)) == echo[:1]


def test_two_workers_of_one_service_share_its_slots(broker: WiredBroker) -> None:
    client = broker.client()
    offered = [service("s", [model("m", slots=2)])]
    one, two = host(broker, "a", offered), host(broker, "b", offered)
    broker.submit(client, 5, "agent_action")
    assert len(placed(broker, one)) + len(placed(broker, two)) == 2
    broker.work(one)
    broker.say(one, m.Goodbye("done"))  # what it had waits again, and its slots are free
    assert len(placed(broker, two)) == 2
    offer(broker, two, [])
    assert not broker.state.services.types


def one(broker: WiredBroker, *names: str, **given: Any) -> dict[str, Peer]:
    """Let workers join that reach one service each, named like them."""
    return {name: host(broker, name, [service(name, [model(**given)])]) for name in names}


def in_flight(broker: WiredBroker) -> dict[str, int]:
    """Return how many placed attempts run at each service."""
    return {each.id: len(each.flights) for each in broker.state.services.services.values()}


def fail(broker: WiredBroker, peer: Peer, held: dict[str, bytes], **given: Any) -> None:
    broker.seq += 1
    payload = msgspec.msgpack.encode({"success": False, "error": "broken"} | given)
    kinds = bytes([m.FAILED]) * len(held)
    results = m.Results(broker.seq, 1, list(held), list(held.values()), kinds, [payload])
    broker.say(peer, results)


def test_a_cancelled_attempt_frees_its_slot_at_once(broker: WiredBroker) -> None:
    client = broker.client()
    peers = one(broker, "a")
    first, second = broker.submit(client, 2, "agent_action")
    assert list(broker.work(peers["a"])) == [first]
    broker.ask(client, "cancel", id=first)
    assert [stop.ids for stop in broker.got(peers["a"], m.Stop)] == [[first]]
    assert list(broker.work(peers["a"])) == [second]


def test_a_failed_attempt_is_tried_at_another_service(broker: WiredBroker) -> None:
    client = broker.client()
    peers = one(broker, "a", "b")
    (task_id,) = broker.submit(client, 1, "agent_action")
    fail(broker, peers["a"], broker.work(peers["a"]))
    broker.pass_time(1)
    assert list(broker.work(peers["b"])) == [task_id]
    assert broker.task_table.tasks[task_id].failed_at == {"a"}
    assert broker.state.registry.workers["a"].failures_in_a_row == 0  # its slots are well


def test_what_a_service_cannot_take_goes_to_another_at_once_and_then_after_a_pause(
    broker: WiredBroker,
) -> None:
    client = broker.client()
    peers = one(broker, "a", "b")
    (task_id,) = broker.submit(client, 1, "agent_action")
    for name in ("a", "b"):
        held = broker.work(peers[name])
        assert list(held) == [task_id], name
        broker.say(peers[name], m.Release(1, list(held), list(held.values()), "it is down"))
    held = broker.work(peers["a"])  # both have failed it: the first again, once
    assert list(held) == [task_id]
    broker.say(peers["a"], m.Release(1, list(held), list(held.values()), "it is down"))
    assert broker.task_table.state_of(task_id) is TaskState.DELAYED


def test_twenty_tasks_succeed_though_one_machine_fails_at_once(broker: WiredBroker) -> None:
    client = broker.client()
    peers = one(broker, "bad", "good")
    ids = broker.submit(client, 20, "agent_action")
    drawn = 0
    while any(broker.task_table.state_of(each) for each in ids):
        if held := broker.work(peers["bad"]):
            drawn += len(held)
            fail(broker, peers["bad"], held)
        if held := broker.work(peers["good"]):
            broker.finish(peers["good"], held)
        broker.pass_time(0.5)
    assert broker.task_table.totals.completed == 20
    assert drawn <= 5


def test_what_ran_at_services_is_known_again_after_a_restart_of_the_broker(
    broker: WiredBroker,
) -> None:
    client = broker.client()
    peers = one(broker, "a", slots=2)
    first, second, third = broker.submit(client, 3, "agent_action")
    held = broker.work(peers["a"])
    assert list(held) == [first, second]
    broker.restart()
    peer = Peer(b"r-a-again", "10.0.0.1")
    broker.say(peer, hello("a", ("echo",), held=held))
    rows = [(first, "a", "m"), (second, "a", "m"), ("0123456789abcdef-99", "a", "m")]
    offer(broker, peer, [service("a", [model(slots=2)])], held=rows)
    assert in_flight(broker) == {"a": 2}
    assert broker.work(peer) == {}
    broker.finish(peer, {first: held[first]})
    assert list(broker.work(peer)) == [third]


def test_what_runs_counts_while_its_worker_comes_back_in_a_new_connection(
    broker: WiredBroker,
) -> None:
    client = broker.client()
    peers = one(broker, "a", slots=2)
    first, second = broker.submit(client, 2, "agent_action")
    held = broker.work(peers["a"])
    again = Peer(b"r-a-again", "10.0.0.1")
    broker.say(again, hello("a", ("echo", *KINDS), held={first: held[first]}))
    assert list(broker.work(again)) == [second]  # that had got lost on the way
    offer(broker, again, [service("a", [model(slots=2)])], held=[(first, "a", "m")])
    assert in_flight(broker) == {"a": 2}


def test_what_a_worker_holds_that_was_started_again_still_counts(broker: WiredBroker) -> None:
    client = broker.client()
    peers = one(broker, "a", "b")
    first, second = broker.submit(client, 2, "agent_action")
    held = broker.work(peers["a"]) | broker.work(peers["b"])
    again = Peer(b"r-a-again", "10.0.0.1")
    broker.say(again, hello("a", ("echo",), boot="b2", held={first: held[first]}))
    assert in_flight(broker) == {"a": 1, "b": 1}
    assert broker.task_table.tasks[first].attempt.service == "a"
    broker.finish(again, {first: held[first]})
    assert in_flight(broker) == {"b": 1}
    assert broker.task_table.state_of(second) is TaskState.RUNNING


def test_what_another_worker_turns_out_to_hold_runs_nowhere_else(broker: WiredBroker) -> None:
    """The task was taken from a silent worker and given to another; the first comes back."""
    client = broker.client()
    peers = one(broker, "a")
    (task_id,) = broker.submit(client, 1, "agent_action")
    held = broker.work(peers["a"])
    broker.pass_time(11)
    assert in_flight(broker) == {}
    assert broker.task_table.state_of(task_id) is TaskState.QUEUED
    again = Peer(b"r-a-again", "10.0.0.1")
    broker.say(again, hello("a", ("echo",), held=held))
    assert broker.task_table.state_of(task_id) is TaskState.RUNNING
    assert in_flight(broker) == {}
    offer(broker, again, [service("a")], held=[(task_id, "a", "m")])
    assert in_flight(broker) == {"a": 1}


def test_all_placed_attempts_of_a_lost_worker_can_have_been_running(broker: WiredBroker) -> None:
    client = broker.client()
    peers = one(broker, "a", slots=3)
    other = broker.worker("other")
    ids = broker.submit(client, 3, "agent_action", max_attempts=1)
    broker.work(peers["a"])
    broker.pass_time(8)
    broker.say(other, beat([], 0))
    broker.pass_time(3)
    assert [broker.task_table.state_of(each) for each in ids] == [None] * 3
    assert broker.task_table.totals.failed == 3


def test_an_attempt_at_a_service_may_go_on_for_longer_than_others_may(broker: WiredBroker) -> None:
    client = broker.client()
    peers = one(broker, "a", "b")
    (task_id,) = broker.submit(client, 1, "agent_action")
    held = broker.work(peers["a"])
    broker.pass_time(5.0, step=5.0)  # the broker was stopped: what runs gets its time back
    end = broker.now + 2 * broker.dispatcher.state.policy.full_time_s
    while broker.now < end:
        for name in peers:
            broker.say(peers[name], beat([task_id] if name == "a" else [], 1))
        broker.pass_time(2.0)
    assert broker.work(peers["b"]) == {}
    broker.finish(peers["a"], held)
    assert broker.task_table.totals.completed == 1


def test_an_attempt_that_is_overdue_is_tried_elsewhere(
    broker: WiredBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "PLACED_TIME_S", 60.0)
    client = broker.client()
    peers = one(broker, "a", "b")
    (task_id,) = broker.submit(client, 1, "agent_action")
    broker.work(peers["a"])
    until = broker.task_table.tasks[task_id].attempt.until
    while broker.now < until + 1.0:
        for name in peers:
            broker.say(peers[name], beat([task_id] if name == "a" else [], 1))
        broker.pass_time(2.0)
    assert list(broker.work(peers["b"])) == [task_id]


def test_who_could_not_be_sent_a_task_gets_none_until_it_speaks(broker: WiredBroker) -> None:
    client = broker.client()
    peers = one(broker, "a", "b")
    (first,) = broker.submit(client, 1, "agent_action", model=";on=a")
    work = broker.got(peers["a"], m.Work)[0]
    broker.perform(broker.dispatcher.undelivered(peers["a"], work))
    broker.pass_time(5)
    assert broker.work(peers["a"]) == {}
    broker.say(peers["a"], beat([], 1))
    broker.pass_time(1)
    assert list(broker.work(peers["a"])) == [first]


def test_tasks_whose_data_is_on_disk_are_placed_once_it_is_read(broker: WiredBroker) -> None:
    client = broker.client()
    broker.task_table._payload_memory_bytes = 0
    ids = broker.submit(client, 2, "agent_action")
    broker.submit(client, 1, "agent_action")
    peers = one(broker, "a")
    held = broker.work(peers["a"])
    assert list(held) == ids[:1]
    broker.restart()
    peer = Peer(b"r-a-again", "10.0.0.1")
    broker.say(peer, hello("a", ("echo",), held={}))
    offer(broker, peer, [service("a")])
    assert list(broker.work(peer)) in (ids[:1], ids[1:])  # its data is read again


def test_higher_priorities_go_first_and_every_16th_to_the_oldest_below(
    broker: WiredBroker,
) -> None:
    client = broker.client()
    low = broker.submit(client, 3, "agent_action", priority=1)
    high = broker.submit(client, 40, "agent_action", priority=7)
    peer = host(broker, "a", [service("a", [model(slots=100)])])
    order = list(broker.work(peer))
    assert order[:16] == [*high[:15], low[0]]
    assert sorted(order) == sorted(low + high)


def test_who_waits_at_a_screen_goes_on_though_what_is_due_by_its_age_has_no_place(
    broker: WiredBroker,
) -> None:
    client = broker.client()
    peer = host(broker, "a", [service("a", [model(slots=20)])])
    broker.submit(client, 17, "agent_action", priority=9)
    broker.submit(client, 5, "agent_action", priority=3)
    broker.work(peer)
    assert in_flight(broker) == {"a": 18}  # two slots are kept
    talk = broker.submit(client, 1, "agent_action", priority=9)
    assert list(broker.work(peer)) == talk


def test_a_must_that_no_account_takes_fails_with_a_sentence_and_holds_nobody_up(
    broker: WiredBroker,
) -> None:
    client = broker.client()
    broker.pass_time(11)
    bound = m.Budget(minute_requests=9, minute_tokens=5000)
    host(broker, "sky", [service("sky", [model("big", budget=bound)], is_cloud=True)])
    broker.pass_time(SETTLE_S + 1)
    (large,) = broker.submit(client, 1, "agent_action", model="=big;cloud=yes#.9000.100")
    (small,) = broker.submit(client, 1, "agent_action", model="=big;cloud=yes#.900.100")
    assert broker.task_table.state_of(large) is None
    reason = str(broker.ask(client, "status", id=large).body["reason"])
    assert reason.startswith("model_strict: about 9100 tokens")
    assert broker.task_table.state_of(small) is TaskState.RUNNING


def test_a_must_that_nobody_has_fails_with_a_sentence_unless_it_may_be_back(
    broker: WiredBroker,
) -> None:
    client = broker.client()
    broker.pass_time(11)
    peers = one(broker, "a")
    ids = broker.submit(client, 3, "agent_action", model="=x")
    assert [broker.task_table.state_of(each) for each in ids] == [None] * 3
    reason = str(broker.ask(client, "status", id=ids[0]).body["reason"])
    assert reason.startswith("model_strict: the model 'x' is not installed here")
    broker.say(peers["a"], m.Goodbye("done"))
    peer = one(broker, "b", name="other")["b"]
    (task_id,) = broker.submit(client, 1, "agent_action", model="=m")
    assert broker.task_table.state_of(task_id) is TaskState.QUEUED  # `a` has just left
    for _ in range(22):
        broker.say(peer, beat([], 0))
        broker.pass_time(1)
    assert broker.task_table.state_of(task_id) is None


def test_a_must_waits_while_the_service_that_had_its_model_is_down(broker: WiredBroker) -> None:
    client = broker.client()
    broker.pass_time(11)
    peers = one(broker, "a") | one(broker, "b", name="other")

    def live_on() -> None:
        for _ in range(60):
            for peer in peers.values():
                broker.say(peer, beat([], 0))
            broker.pass_time(1)

    offer(broker, peers["a"], [service("a", [], why="connection refused")])
    (task_id,) = broker.submit(client, 1, "agent_action", model="=m")
    live_on()
    client = broker.client()
    assert broker.task_table.state_of(task_id) is TaskState.QUEUED
    assert "connection refused" in str(broker.ask(client, "status", id=task_id).body["reason"])
    offer(broker, peers["a"], [service("a")])
    assert list(broker.work(peers["a"])) == [task_id]

    offer(broker, peers["a"], [service("a", [], why="connection refused")])
    (task_id,) = broker.submit(client, 1, "agent_action", model="=m")
    broker.say(peers.pop("a"), m.Goodbye("done"))  # nobody looks for it any more
    live_on()
    assert broker.task_table.state_of(task_id) is None


def test_a_must_that_a_worker_s_own_slots_run_is_left_to_those(broker: WiredBroker) -> None:
    client = broker.client()
    broker.pass_time(11)
    one(broker, "a")
    own = broker.worker("own", types=("agent_action",), models=["x"])
    ids = broker.submit(client, 1, "agent_action", model="=x")
    assert list(broker.work(own)) == ids


def test_just_after_the_brokers_start_a_must_is_waited_for(broker: WiredBroker) -> None:
    client = broker.client()
    broker.restart()
    peer = host(broker, "a", [service("a")])
    client = broker.client()
    (task_id,) = broker.submit(client, 1, "agent_action", model="=x")
    assert broker.task_table.state_of(task_id) is TaskState.QUEUED
    assert broker.work(peer) == {}


def test_a_model_is_loaded_ahead_while_the_line_is_long_and_with_the_options_of_all(
    broker: WiredBroker,
) -> None:
    broker.state.policy.load_options["m"] = {"num_ctx": 8192}
    client = broker.client()
    hot = host(broker, "hot", [service("hot", [model(output_tokens=10_000)])])
    cold = host(broker, "cold", [service("cold", [model(is_loaded=False, load_s=30.0)])])
    broker.submit(client, 50, "agent_action", model="m")
    (placed_,) = broker.got(hot, m.Placed)
    assert placed_.placements[0].options == {"num_ctx": 8192}
    assert placed_.placements[0].waiting == 49
    (warm,) = broker.got(cold, m.Warm)
    assert (warm.placement.service, warm.placement.model) == ("cold", "m")
    assert warm.placement.options == {"num_ctx": 8192}
    assert broker.work(cold) == {}
    broker.say(cold, m.Measured("cold", [model()]))
    assert len(broker.work(cold)) == 1


def test_a_model_that_nobody_has_loaded_is_loaded_by_the_task(broker: WiredBroker) -> None:
    client = broker.client()
    peer = host(broker, "a", [service("a", [model(is_loaded=False, slots=4)])])
    ids = broker.submit(client, 4, "agent_action")
    assert list(broker.work(peer)) == ids[:1]
    broker.say(peer, m.Measured("a", [model(slots=4)]))
    assert list(broker.work(peer)) == ids[1:]


def test_a_budget_is_kept_and_where_attempts_went_is_remembered(broker: WiredBroker) -> None:
    client = broker.client()
    account = model(slots=9, budget=m.Budget(minute_requests=2))
    peer = host(broker, "sky", [service("sky", [account], is_cloud=True)])
    broker.pass_time(SETTLE_S)
    ids = broker.submit(client, 3, "agent_action", model="m;cloud=yes#talk.10.20")
    assert list(broker.work(peer)) == ids[:2]
    (decision,) = broker.state.services.decisions_of(ids[0])
    assert (decision.service, decision.attempt, len(decision.candidates)) == ("sky", 1, 1)
    assert broker.state.services.conversations["talk"] == ("sky", "m")
    for _ in range(70):
        broker.say(peer, beat(ids[:2], 1))
        broker.pass_time(1)
    assert list(broker.work(peer)) == ids[2:]


def test_nothing_is_placed_by_a_broker_that_shuts_down(broker: WiredBroker) -> None:
    client = broker.client()
    peers = one(broker, "a")
    broker.perform(broker.dispatcher.drain())
    broker.state.services.is_stirred = True
    broker.perform(broker.dispatcher.tick(broker.now, broker.at))
    broker.submit(client, 1, "agent_action")
    assert broker.work(peers["a"]) == {}


def test_a_worker_without_services_runs_the_same_types_in_its_slots(broker: WiredBroker) -> None:
    client = broker.client()
    peers = one(broker, "a")
    own = broker.worker("own", types=("agent_action",), slots=2)
    ids = broker.submit(client, 3, "agent_action")
    assert list(broker.work(peers["a"])) == ids[:1]
    assert list(broker.work(own)) == ids[1:]


def test_what_only_some_models_can_do_is_waited_for_while_those_may_come_back(
    broker: WiredBroker,
) -> None:
    client = broker.client()
    embedder = [service("e", [model("e", can=["embedding"])])]
    broker.pass_time(11)
    peer = host(broker, "e", embedder)
    host(broker, "a", [service("a")])
    offer(broker, peer, [service("e", [], why="connection refused")])
    (task_id,) = broker.submit(client, 1, "agent_action", model=";needs=embedding")
    broker.pass_time(1)
    assert broker.task_table.state_of(task_id) is TaskState.QUEUED
    broker.restart()
    host(broker, "a", [service("a")])  # the first that is back has no such model
    assert broker.task_table.state_of(task_id) is TaskState.QUEUED
    peer = host(broker, "e", embedder)
    assert list(broker.work(peer)) == [task_id]


def test_a_worker_takes_what_it_finds_down_along_when_it_goes(broker: WiredBroker) -> None:
    peer = broker.worker("a")
    offer(broker, peer, [service("s", [], why="connection refused")], kinds=())
    assert in_flight(broker) == {"s": 0}
    broker.say(peer, m.Goodbye("done"))
    assert in_flight(broker) == {}


def test_lines_that_the_same_models_run_are_looked_at_once_while_those_are_full(
    broker: WiredBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Ask] = []
    real = routing.has_room

    def has_room(table: ServiceTable, ask: Ask, cloud: Cloud, now: float) -> bool:
        looked.append(ask)
        return real(table, ask, cloud, now)

    client = broker.client()
    broker.pass_time(11)
    peers = one(broker, "a")
    ids = [broker.submit(client, 1, "agent_action", model=f"x{n}")[0] for n in range(20)]
    must = broker.submit(client, 1, "agent_action", model="=m")
    monkeypatch.setattr(routing, "has_room", has_room)
    for task_id in [*ids, *must]:  # each in its turn
        held = broker.work(peers["a"])
        assert list(held) == [task_id]
        looked.clear()
        broker.finish(peers["a"], held)
        assert len(looked) <= 3  # who gets the slot; then one, and one whose wish is a must
