"""What the broker counts and measures."""

from __future__ import annotations

import msgspec

from d8mesh.core.broker.metrics import BOUNDS_S, MAX_TYPES, OTHER_TYPES, Metrics
from d8mesh.core.broker.records import Totals
from d8mesh.core.broker.reports import snapshot
from d8mesh.core.protocol import messages as m
from tests.core.wired_broker import WiredBroker


def test_a_histogram_counts_each_time_in_the_first_bucket_that_holds_it() -> None:
    metrics = Metrics(totals=Totals())
    metrics.commit_s.fresh += [(BOUNDS_S[0], 2), (0.3, 1), (1e9, 3), (-1.0, 1)]
    metrics.fold()
    assert metrics.commit_s.counts == [3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 3]
    assert metrics.commit_s.total_s == 2 * BOUNDS_S[0] + 0.3 + 3e9
    assert metrics.commit_s.fresh == []


def test_types_beyond_a_number_are_measured_together() -> None:
    metrics = Metrics(totals=Totals())
    for n in range(MAX_TYPES + 5):
        metrics.runs_of(f"type {n}").fresh.append((1.0, 1))
    assert len(metrics.run_s) == MAX_TYPES + 1
    assert len(metrics.run_s[OTHER_TYPES].fresh) == 5


def test_a_snapshot_holds_what_was_counted_and_stays_as_it_is(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w", window=1)
    broker.submit(client, 2)
    broker.pass_time(3.0)
    broker.finish(worker, broker.work(worker), window=1)
    broker.dispatcher.reject("some.code")
    broker.dispatcher.undelivered(client, m.Beat(1))
    broker.dispatcher.committed(0.01)
    told = snapshot(broker.state)
    assert (told.queued, told.running, told.workers_online, told.clients) == (0, 1, 1, 1)
    counted = told.counted
    assert (counted.assigned, counted.totals.completed, counted.undelivered) == (2, 1, 1)
    assert counted.rejected == {"some.code": 1}
    assert sum(counted.queue_wait_s.counts) == 2
    assert counted.run_s["echo"].total_s == 3.0
    assert counted.commit_s.total_s == 0.01
    msgspec.msgpack.encode(told)
    broker.dispatcher.reject("some.code")
    assert counted.rejected == {"some.code": 1}


def test_what_comes_back_is_counted_by_its_cause(broker: WiredBroker) -> None:
    client, worker = broker.client(), broker.worker("w")
    broker.submit(client, 1, max_attempts=9)
    broker.finish(worker, broker.work(worker), m.FAILED)
    broker.pass_time(2.0)
    held = broker.work(worker)
    broker.say(worker, m.Release(1, list(held), list(held.values()), "busy"))
    counted = snapshot(broker.state).counted
    assert (counted.errors, counted.returned, counted.losses) == (1, 1, 0)
    broker.pass_time(3.0)
    broker.say(client, m.Watch([]))  # who is heard here shows that the worker is lost
    broker.pass_time(10.0, step=2.0)
    assert snapshot(broker.state).counted.assigned == 3


def test_the_runs_of_a_type_are_measured_in_one_place() -> None:
    metrics = Metrics(totals=Totals())
    assert metrics.runs_of("echo") is metrics.runs_of("echo")
