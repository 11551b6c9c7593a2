"""Which worker gets which task: pure policy over a lane's key and the worker registry.

- A worker runs the types that it offers.
- A wished model is a preference: while some live worker offers it and may have room again, its
  tasks go only there; if none does, any worker of the type runs them on a model of its own.
- A strict wish waits for the workers that offer the model, with or without room, and for those
  that have just gone. If there is none, a mesh worker gets the task and refuses it, naming what
  it has; a polling one would not know that.
- A wish for a machine is a must: only who is there, or reaches a service there, gets the task.
- ``evolution_crossover`` goes to mesh workers while there are any: polling workers of the
  older system take it and fail at once.
- A retry goes to a worker that has not failed the task, if a live one is left that may have
  room again: stuck or full ones are not waited for. Of the free ones those go first that have
  not given it back.
- Free workers share what waits evenly; none gets more than its window.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice
from typing import Final

from d8mesh.core.broker.queue import LaneKey
from d8mesh.core.broker.records import TaskRecord
from d8mesh.core.broker.worker_registry import Dialect, WorkerRegistry, WorkerState
from d8mesh.core.protocol.model_names import plain_name, wish_in
from d8mesh.core.protocol.wish import SERVICE_TYPES, parse_wish

#: Types that older polling workers accept but cannot run.
MESH_FIRST_TYPES: Final = frozenset({"evolution_crossover"})
#: What a polling worker that lists no ``task_types`` gets.
DOCUMENTED_TYPES: Final = (
    "agent_action",
    "code_generation",
    "evolution_crossover",
    "evolution_mutation",
)
#: Types that a misspelt one is compared with, and the longest that is: the comparison takes a
#: tenth of a millisecond for each at that length, and grows with its square.
MAX_COMPARED: Final = 200
MAX_COMPARED_CHARS: Final = 40
#: Misspelt types whose nearest is kept until the next change of what is offered.
MAX_NEAREST: Final = 200
#: How far a line of free workers is searched for one that fits better than the first.
SEARCH_WORKERS: Final = 64
#: Workers that are told of with a task that waits, and types of each.
MAX_TOLD: Final = 3


def can_run(worker: WorkerState, key: LaneKey, registry: WorkerRegistry) -> bool:
    """Return whether `worker` may be given tasks of this lane now."""
    if key.type not in worker.own_types:
        return False
    if key.model and not _suits_wish(worker, key, registry):
        return False
    if key.type in MESH_FIRST_TYPES and worker.dialect is Dialect.POLLING:
        others: Iterable[WorkerState] = registry.serving.get(key.type, {}).values()
        return all(other.dialect is Dialect.POLLING for other in others)
    return True


def _suits_wish(worker: WorkerState, key: LaneKey, registry: WorkerRegistry) -> bool:
    machine = parse_wish(key.model).machine
    if machine and not worker.is_at(machine):
        return False
    if key.type in SERVICE_TYPES:
        return True
    name, is_strict = wish_in(key.model)
    offering = registry.offering.get(name, {})
    if worker.worker_id in offering:
        return True
    if is_strict and (worker.dialect is Dialect.POLLING or registry.is_expected(name)):
        return False
    return not any(
        other.answers(key.type)
        and (is_strict or other.may_have_room)
        and (not machine or other.is_at(machine))
        for other in offering.values()
    )


def is_offered_elsewhere(worker_id: str, key: LaneKey, registry: WorkerRegistry) -> bool:
    """Return whether another worker has the model that this lane must have."""
    name, is_strict = wish_in(key.model) if key.model else ("", False)
    return is_strict and any(
        other.answers(key.type) and other.worker_id != worker_id
        for other in registry.offering.get(name, {}).values()
    )


def is_offered_by_slots(key: LaneKey, registry: WorkerRegistry) -> bool:
    """Return whether a worker that runs tasks of this type in its own slots has the model."""
    names = [plain_name(name) for name in parse_wish(key.model).models]
    offering = [registry.offering.get(name, {}).values() for name in names] or [
        registry.serving.get(key.type, {}).values()
    ]
    return any(key.type in worker.own_types for workers in offering for worker in workers)


def choose_worker(
    key: LaneKey, registry: WorkerRegistry, task: TaskRecord | None = None
) -> WorkerState | None:
    """Return the free worker that is next in line for this lane (and for a retried `task`)."""
    line = registry.free.get(key.type)
    if not line:
        return None
    second: WorkerState | None = None
    gave_back = () if task is None or task.history is None else task.history.returned_by
    for count, worker in enumerate(line.values()):
        if count >= SEARCH_WORKERS:
            break
        if can_run(worker, key, registry) and (task is None or suits_retry(worker, task, registry)):
            if worker.worker_id not in gave_back:
                return worker
            second = second or worker
    return second


def choose_workers(key: LaneKey, registry: WorkerRegistry, most: int) -> list[WorkerState]:
    """Return up to `most` free workers for fresh tasks of this lane, each once, next in line first.

    For lanes whose workers must be searched for it is one at a time; an empty list means that there
    is none.
    """
    if not key.model and key.type not in MESH_FIRST_TYPES:  # all who are in line will do
        return list(islice(registry.free.get(key.type, {}).values(), most))
    worker = choose_worker(key, registry)
    return [] if worker is None else [worker]


def suits_retry(worker: WorkerState, task: TaskRecord, registry: WorkerRegistry) -> bool:
    """Return whether `worker` may retry `task`: it has not failed it, or nobody else is left."""
    if task.history is None or worker.worker_id not in task.history.failed_on:
        return True
    failed_on = task.history.failed_on
    key = LaneKey.of(task.batch.spec)
    return not any(
        other.may_have_room and other.worker_id not in failed_on and can_run(other, key, registry)
        for other in registry.serving.get(key.type, {}).values()
    )


def share(waiting: int, kind: str, registry: WorkerRegistry) -> int:
    """Return how many of `waiting` tasks each free worker of a type should get at once."""
    workers = len(registry.free.get(kind, ())) or 1
    return max(1, -(-waiting // workers))


def why_waiting(key: LaneKey, registry: WorkerRegistry, *, is_one_of_many: bool = False) -> str:
    """Return why tasks of this lane are not being handed out, for people.

    Args:
        is_one_of_many: a type that nobody offers is not compared with those that are.
    """
    serving = registry.serving.get(key.type)
    if not serving:
        told = why_nobody(key.type, registry, is_compared=not is_one_of_many)
        return told + _who_is_there(registry)
    if key.model:
        name, _ = wish_in(key.model)
        machine = parse_wish(key.model).machine
        if machine and not any(worker.is_at(machine) for worker in serving.values()):
            return f"no worker that offers {key.type!r} reaches {machine!r}"
        serving = {i: s for i, s in serving.items() if _suits_wish(s, key, registry)}
        if not serving:
            if registry.is_expected(name):
                return f"no worker has the model {name!r} now; one may come back any moment"
            return f"only polling workers are there, and none has the model {name!r}"
    if any(worker.is_free for worker in serving.values()):
        return ""
    count = len(serving)
    who = "the one worker that offers it is" if count == 1 else f"all {count} workers are"
    if all(worker.is_busy for worker in serving.values()):
        return f"{who} busy"
    return f"{who} busy, or {'does' if count == 1 else 'do'} not ask for tasks now"


def is_offered(kind: str, registry: WorkerRegistry) -> bool:
    """Return whether a live worker offers a type."""
    return bool(registry.serving.get(kind))


def why_nobody(kind: str, registry: WorkerRegistry, *, is_compared: bool = True) -> str:
    """Return that no live worker offers a type, and the nearest that there is; empty: one does.

    Args:
        is_compared: look for the nearest if it is not known; that takes milliseconds.
    """
    if registry.serving.get(kind):
        return ""
    told = f"no worker in the mesh offers {kind!r}"
    if not registry.serving:
        return f"{told}: no worker is there"
    near = registry.nearest.get(kind)
    if near is None and is_compared:
        near = _nearest(kind, registry)
    return f"{told}; did you mean {near!r}?" if near else told


def _nearest(kind: str, registry: WorkerRegistry) -> str:
    """Return the offered type that is most like `kind`, and keep it; empty: none is."""
    found: list[str] = []
    if len(kind) <= MAX_COMPARED_CHARS:
        offered = (each for each in registry.serving if len(each) <= MAX_COMPARED_CHARS)
        found = get_close_matches(kind, islice(offered, MAX_COMPARED), n=1)
    near = found[0] if found else ""
    if len(registry.nearest) < MAX_NEAREST:
        registry.nearest[kind] = near
    return near


def _who_is_there(registry: WorkerRegistry) -> str:
    """Say which live workers are there for tasks of other types only, and why, if they tell."""
    live = [worker for worker in registry.workers.values() if worker.is_live]
    if not live:
        return ""
    live.sort(key=lambda worker: not worker.trouble)
    told = [
        f"{worker.worker_id}: {worker.trouble or _offer_of(worker)}" for worker in live[:MAX_TOLD]
    ]
    more = f"; and {len(live) - MAX_TOLD} more" if len(live) > MAX_TOLD else ""
    count = f"{len(live)} worker{'' if len(live) == 1 else 's'}"
    return f" ({count} there; {'; '.join(told)}{more})"


def _offer_of(worker: WorkerState) -> str:
    types = sorted(worker.types | worker.placed_types)
    more = ", …" if len(types) > MAX_TOLD else ""
    return f"offers {', '.join(types[:MAX_TOLD]) or 'nothing'}{more}"
