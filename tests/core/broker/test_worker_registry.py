"""Workers and their indexes."""

from __future__ import annotations

from d8mesh.core.broker.effects import Peer
from d8mesh.core.broker.records import Batch, TaskRecord
from d8mesh.core.broker.worker_registry import (
    STREAK_BEFORE_HALVING,
    Dialect,
    Poll,
    WorkerRegistry,
    WorkerState,
)
from d8mesh.core.protocol.task import Spec
from tests.core.invariants import check_registry


def worker(name: str = "w", window: int = 4) -> WorkerState:
    made = WorkerState(name, Dialect.MESH, Peer(name.encode()), slots=4, window=window)
    made.types = frozenset({"echo"})
    return made


def test_free_is_the_window_less_what_is_outstanding() -> None:
    registry, made = WorkerRegistry(), worker()
    registry.add(made)
    batch = Batch("s" * 16, 0, 9, Spec("echo", 5, 3), 0.0, 9, 1)
    for index in range(4):
        task = TaskRecord(batch, batch.task_id(index), b"")
        made.outstanding[task.id] = task
    registry.refresh(made)
    assert made.free == 0
    assert "echo" not in registry.free
    assert made.is_busy
    check_registry(registry)


def test_a_streak_of_failures_halves_the_share_but_never_to_nothing() -> None:
    made = worker()
    shares = []
    for failures in range(STREAK_BEFORE_HALVING + 4):
        made.failures_in_a_row = failures
        shares.append(made.free)
    assert shares == [4, 4, 4, 2, 1, 1, 1]


def test_a_polling_worker_is_free_while_it_asks() -> None:
    made = WorkerState("p", Dialect.POLLING)
    assert made.free == 0
    made.poll = Poll(Peer(b"web"), 1, 0.0)
    assert made.free == 1
    made.is_live = False
    assert made.free == 0


def test_workers_are_found_by_their_connection_until_they_leave() -> None:
    registry, made = WorkerRegistry(), worker()
    registry.add(made)
    assert registry.by_peer(Peer(b"w")) is made
    registry.move(made, Peer(b"moved"))
    assert registry.by_peer(Peer(b"w")) is None
    assert registry.by_peer(Peer(b"moved")) is made
    registry.offer(made, ["other"], ["m"])
    assert set(registry.serving) == {"other"}
    assert set(registry.offering) == {"m:latest"}
    registry.leave(made)
    assert registry.serving == registry.offering == registry.free == {}
    registry.rejoin(made)
    check_registry(registry)
    registry.remove(made)
    assert registry.workers == {}


def test_free_workers_take_turns() -> None:
    registry = WorkerRegistry()
    for name in "abc":
        registry.add(worker(name))
    registry.to_the_end(registry.workers["a"], "echo")
    registry.to_the_end(registry.workers["a"], "nothing")
    assert list(registry.free["echo"]) == ["b", "c", "a"]


def test_a_new_worker_takes_the_place_of_an_old_one() -> None:
    registry, old, new = WorkerRegistry(), worker(), worker()
    registry.add(old)
    registry.add(new)
    assert registry.workers["w"] is new
    assert not old.is_live
    check_registry(registry)
