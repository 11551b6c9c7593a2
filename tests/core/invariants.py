"""What must hold between the collections of the broker's brain; the checks walk everything."""

from __future__ import annotations

from d8mesh.core.broker.dispatcher import Dispatcher
from d8mesh.core.broker.records import NO_ATTEMPT
from d8mesh.core.broker.task_table import TaskTable
from d8mesh.core.broker.worker_registry import WorkerRegistry
from d8mesh.core.protocol.task import TaskState
from tests.core.plain_state import batches_of


def check(brain: Dispatcher) -> None:
    """Assert what must hold in a brain."""
    state = brain.state
    check_table(state.task_table)
    check_registry(state.registry)
    for worker in state.registry.workers.values():
        for task_id, task in worker.outstanding.items():
            assert state.task_table.tasks.get(task_id) is task, task_id
            assert task.worker_id == worker.worker_id, task_id
            assert task.attempt is not NO_ATTEMPT, task_id
    known = set(state.clients)
    assert all(client.session == session for session, client in state.clients.items())
    for sessions in (*state.task_watchers.values(), *state.listeners.values()):
        assert sessions
        assert sessions <= known, sessions


def check_table(table: TaskTable) -> None:
    """Assert what must hold in a task table."""
    running = sum(task.state is TaskState.RUNNING for task in table.tasks.values())
    unfinished = sum(batch.unfinished for batch in batches_of(table))
    assert running == table.running, (running, table.running)
    assert unfinished == table.queued + table.running, (unfinished, table.queued, table.running)
    loaded = sum(sum(map(len, batch.payloads or ())) for batch in batches_of(table))
    assert loaded == table.loaded_bytes, (loaded, table.loaded_bytes)
    for batch in batches_of(table):
        assert 0 < batch.unfinished <= batch.count
        assert all(index >= batch.fresh for index in batch.gone), (batch.fresh, batch.gone)
    for task_id, task in table.tasks.items():
        assert task.id == task_id
        assert not task.state.is_final
        assert (task.state is TaskState.RUNNING) == bool(task.worker_id), task_id


def check_registry(registry: WorkerRegistry) -> None:
    """Assert that the indexes agree with the workers."""
    for kind, line in registry.free.items():
        assert line, kind
        for worker in line.values():
            assert worker.is_live, worker.worker_id
            assert kind in worker.types, worker.worker_id
            assert worker.free > 0, worker.worker_id
    for worker in registry.workers.values():
        assert worker.is_free == (worker.free > 0), worker.worker_id
        for kind in worker.types if worker.free else ():
            assert registry.free[kind][worker.worker_id] is worker
