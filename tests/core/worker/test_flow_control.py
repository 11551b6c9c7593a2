"""Windows: slots, prefetch by measured time, and fairness among orchestrators."""

from __future__ import annotations

from d8mesh.core.worker.broker_session import BrokerSession
from d8mesh.core.worker.flow_control import MAX_PREFETCH, PREFETCH_S, STARVED_S, FlowControl


def broker(name: str, *, held: int = 0) -> BrokerSession:
    made = BrokerSession(name, is_up=True, is_welcome=True)
    made.open = {f"{name}-{n}": b"" for n in range(held)}
    return made


def test_a_fresh_worker_wants_as_much_as_it_has_slots() -> None:
    flow_control, one = FlowControl(4), broker("a")
    assert flow_control.window(one, [one], 0.0) == 4


def test_quick_tasks_are_fetched_ahead_up_to_a_bound_and_slow_ones_are_not() -> None:
    flow_control = FlowControl(2)
    for _ in range(30):
        flow_control.measure(0.001, 100)
    assert flow_control.prefetch == MAX_PREFETCH
    one = broker("a", held=2)
    assert flow_control.window(one, [one], 0.0) == 2 + MAX_PREFETCH
    flow_control.measure(5.0, 1)
    assert flow_control.prefetch == 0
    flow_control.measure(0.0, 0)
    flow_control.measure(PREFETCH_S, 1)
    assert flow_control.prefetch == 0


def test_the_prefetch_grows_by_doubling() -> None:
    flow_control = FlowControl(2)
    grown = []
    for _ in range(5):
        flow_control.measure(0.0001, 100)
        grown.append(flow_control.prefetch)
    assert grown == [2, 4, 8, 16, 32]


def test_when_the_last_slot_is_taken_the_others_are_offered_nothing() -> None:
    flow_control, busy, other = FlowControl(2), broker("a", held=2), broker("b")
    brokers = [busy, other]
    assert flow_control.window(other, brokers, 1.0) == 0
    assert flow_control.window(other, brokers, 1.0 + STARVED_S) == 1  # but not for ever
    busy.open.popitem()
    assert flow_control.window(other, brokers, 2.0) == 1
    assert other.starved_since == 0.0


def test_each_is_offered_all_that_is_free() -> None:
    flow_control, one, two = FlowControl(3), broker("a"), broker("b")
    assert [flow_control.window(each, [one, two], 0.0) for each in (one, two)] == [3, 3]
    one.open = {"t": b""}
    assert flow_control.window(one, [one, two], 0.0) == 3
    assert flow_control.window(two, [one, two], 0.0) == 2


def test_stuck_slots_and_a_full_outbox_take_room_away() -> None:
    flow_control, one = FlowControl(2), broker("a")
    flow_control.stuck = 1
    assert flow_control.window(one, [one], 0.0) == 1
    flow_control.is_closed = True
    assert flow_control.window(one, [one], 0.0) == 0
