"""What must hold between the collections of the broker's brain; the checks walk everything."""

from __future__ import annotations

from collections import Counter

from d8mesh.core.broker.dispatcher import Dispatcher
from d8mesh.core.broker.records import NO_ATTEMPT
from d8mesh.core.broker.state import BrokerState
from d8mesh.core.broker.task_table import TaskTable
from d8mesh.core.broker.worker_registry import WorkerRegistry
from d8mesh.core.protocol.messages import Placed
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
    check_services(state)
    known = set(state.clients)
    assert all(client.session == session for session, client in state.clients.items())
    for sessions in (*state.task_watchers.values(), *state.listeners.values()):
        assert sessions
        assert sessions <= known, sessions


def check_services(state: BrokerState) -> None:
    """Assert that what is in flight at services are the placed attempts that run."""
    table, tasks = state.services, state.task_table.tasks
    placed = {
        task_id: (task.attempt.service, task.attempt.model, task.worker_id)
        for task_id, task in tasks.items()
        if task.attempt.service
    }
    flights = {i: (f.service, f.model, f.worker.worker_id) for i, f in table.flights.items()}
    assert flights == placed, (flights, placed)
    per_worker = Counter(flight.worker.worker_id for flight in table.flights.values())
    for worker in state.registry.workers.values():
        assert worker.placed == per_worker[worker.worker_id], worker.worker_id
    assert sum(len(service.flights) for service in table.services.values()) == len(flights)
    for service in table.services.values():
        assert service.told or service.flights, service.id
        for model in service.models.values():
            mine = [f for f in service.flights.values() if f.model == model.name]
            assert len(mine) == model.in_flight, (service.id, model.name)
            assert all(worker.is_live for worker in model.reach.values()), service.id
    kinds = Counter(kind for types in table._types_of.values() for kind in types)
    assert dict(kinds) == table.types


def check_placed(state: BrokerState, message: Placed) -> None:
    """Assert that what has just been placed is within the slots that are told, and a budget."""
    for placement in message.placements:
        model = next(
            (
                found
                for kept in {placement.service, *state.services.services}
                if (service := state.services.services.get(kept)) is not None
                and placement.service in {service.id, *(t.id for _, t in service.told.values())}
                and (found := service.models.get(placement.model)) is not None
            ),
            None,
        )
        if model is None:
            continue  # the last word of its worker came with the same wake-up
        bound = min(model.info.slots, model.service.slots or model.info.slots)
        assert model.in_flight <= bound, (placement.service, placement.model, model.in_flight)
        left = None if model.budget is None else model.budget.left(state.now).minute_requests
        assert left is None or left >= 0, (placement.service, placement.model)


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
            assert kind in worker.own_types, worker.worker_id
            assert worker.free > 0, worker.worker_id
    for worker in registry.workers.values():
        assert worker.is_free == (worker.free > 0), worker.worker_id
        for kind in worker.own_types if worker.free else ():
            assert registry.free[kind][worker.worker_id] is worker
