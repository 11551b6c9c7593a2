"""The state of the brain as plain data, to be looked at, kept and compared."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import Enum

from d8mesh.core.broker.dispatcher import Dispatcher
from d8mesh.core.broker.records import Batch, TaskRecord
from d8mesh.core.broker.service_states import (
    ModelState,
)
from d8mesh.core.broker.state import BrokerState, ClientState
from d8mesh.core.broker.task_table import TaskTable
from d8mesh.core.broker.worker_registry import WorkerState


def batches_of(table: TaskTable) -> Iterator[Batch]:
    """Yield the open batches, in no particular order."""
    for held in table._batches.values():
        for _, batch in held:
            yield batch


#: What the state has to work with and is no data.
NO_DATA = ("signer", "draw")


def dump(brain: Dispatcher) -> dict[str, object]:
    """Return all that the brain and its parts know, as what msgpack can encode.

    Raises:
        TypeError: something is no data.
    """
    state = brain.state
    parts = {name: part for name, part in vars(brain).items() if hasattr(part, "_state")}
    own = {
        name: {key: _plain(each) for key, each in vars(part).items() if not _is_shared(each)}
        for name, part in (parts | {"brain": brain}).items()
    }
    table = state.task_table
    return own | {
        "state": _fields(state, without=NO_DATA),
        "tasks": {task_id: _fields(task) for task_id, task in table.tasks.items()},
        "batches": [_fields(batch) for batch in batches_of(table)],
        "models": [
            _fields(model, without=("service",))
            for service in state.services.services.values()
            for model in service.models.values()
        ],
        "workers": [_fields(worker) for worker in state.registry.workers.values()],
        "clients": [_fields(client) for client in state.clients.values()],
    }


def _is_shared(value: object) -> bool:
    return isinstance(value, BrokerState) or hasattr(value, "_state")


def _plain(value: object) -> object:
    """Return a value as data: tasks, batches, workers and clients by their names."""
    match value:
        case None | bool() | int() | float() | str() | bytes():
            return value
        case Enum():
            return value.name
        case TaskRecord():
            return value.id
        case Batch():
            return value.task_id(0)
        case WorkerState():
            return value.worker_id
        case ClientState():
            return value.session
        case ModelState():
            return [value.service.id, value.name]
        case dict():  # the order counts: of who is next
            return [[_plain(key), _plain(each)] for key, each in value.items()]
        case list() | tuple() | deque():
            return [_plain(each) for each in value]
        case set() | frozenset():
            return sorted(map(repr, map(_plain, value)))
        case _:
            return _fields(value)


def _fields(value: object, without: tuple[str, ...] = ()) -> dict[str, object]:
    if callable(value):
        raise TypeError(f"{value!r} is no data")
    names = getattr(value, "__struct_fields__", getattr(value, "__slots__", None))
    names = vars(value) if names is None else names
    return {name: _plain(getattr(value, name)) for name in names if name not in without}
