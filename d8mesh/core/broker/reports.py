"""What is told about tasks and workers: the documented bodies, made from memory.

Payloads stay msgpack bytes; the asker decodes them.
"""

from __future__ import annotations

from typing import Final

from d8mesh.core.broker import placement
from d8mesh.core.broker.queue import LaneKey
from d8mesh.core.broker.records import Batch, History
from d8mesh.core.broker.state import BrokerState
from d8mesh.core.broker.worker_registry import Dialect, WorkerState
from d8mesh.core.protocol.task import TaskState

Body = dict[str, object]

#: How the journal stores final states, beside the names they have here.
FINAL_STATES: Final = {1: TaskState.COMPLETED, 2: TaskState.FAILED, 3: TaskState.CANCELLED}


def unfinished(broker: BrokerState, task_id: str, *, is_single: bool = False) -> Body | None:
    """Return the status body of an unfinished task, or None if it is finished or unknown.

    Args:
        is_single: tell how many go before it too, and which type is the nearest to one that
            nobody offers; both take a look at much.
    """
    state = broker.task_table.state_of(task_id)
    found = broker.task_table.find(task_id)
    if state is None or found is None:
        return None
    batch, index = found
    task = broker.task_table.tasks.get(task_id)
    body = _body(task_id, batch, state)
    if task is not None:
        body["attempts"] = task.n
        body["assigned_to"] = task.worker_id or None
    reason = _reason(broker, batch, task_id, state, is_single=is_single)
    if (
        is_single
        and state is TaskState.QUEUED
        and placement.is_offered(batch.spec.type, broker.registry)
    ):
        count, is_more = broker.queue.ahead_of(batch, index)
        ahead = f"{'more than ' if is_more else ''}{count} waiting before it" if count else ""
        reason = "; ".join(part for part in (reason, ahead) if part) or None
    body["reason"] = reason
    return body


def _body(task_id: str, batch: Batch, state: TaskState) -> Body:
    return {
        "task_id": task_id,
        "type": batch.spec.type,
        "status": state.documented,
        "state": state.value,
        "priority": batch.spec.priority,
        "assigned_to": None,
        "created_at": batch.at,
        "completed_at": None,
        "result": None,
        "attempts": 0,
        "reason": None,
        "replay_of": batch.spec.replay_of or None,
    }


def _reason(
    broker: BrokerState, batch: Batch, task_id: str, state: TaskState, *, is_single: bool
) -> str | None:
    """Say why a task is not further than it is."""
    task = broker.task_table.tasks.get(task_id)
    history = None if task is None else task.history
    if state is TaskState.RUNNING and task is not None:
        worker_state = broker.registry.worker_states.get(task.worker_id)
        if worker_state is None or task_id not in worker_state.outstanding:
            return f"waiting for worker {task.worker_id!r} to come back"
        return None if history is None else _trouble(history) or None
    if state is TaskState.DELAYED:
        if history is not None and _trouble(history):
            left_s = max(0.0, history.not_before_at - broker.at)
            return f"waiting to be tried again in {left_s:.1f} s; {_trouble(history)}"
        return f"to be run at {batch.spec.run_at}"
    key = LaneKey(batch.spec.type, batch.spec.model)
    why = placement.why_waiting(key, broker.registry, is_one_of_many=not is_single)
    if history is not None and _trouble(history):
        why = "; ".join(part for part in (why, _trouble(history)) if part)
    return why or None


def _trouble(history: History) -> str:
    """Return what went wrong last; empty if nothing did."""
    if not history.last_return:
        return f"last error: {history.last_error}" if history.errors else ""
    if history.returns < 2:
        return f"given back: {history.last_return}"
    return f"given back {history.returns} times, the last time: {history.last_return}"


def finished(row: tuple[object, ...]) -> Body:
    """Return the status body of a finished task from the journal's row.

    Args:
        row: id, type, priority, created_at, state (1 completed, 2 failed, 3 cancelled),
            attempts, worker id or None, completed_at, result (msgpack) or None, reason or
            None, replay_of or "", history (a list of dicts).
    """
    (task_id, kind, priority, created_at, code, n, worker_id, at, payload, why, origin, past) = row
    assert isinstance(code, int)
    state = FINAL_STATES[code]
    return {
        "task_id": task_id,
        "type": kind,
        "status": state.documented,
        "state": state.value,
        "priority": priority,
        "assigned_to": worker_id,
        "created_at": created_at,
        "completed_at": at,
        "result": payload,
        "attempts": n,
        "reason": why,
        "replay_of": origin or None,
        "history": past,
    }


def health(broker: BrokerState) -> Body:
    """Return the body of the ``health`` question."""
    worker_states = broker.registry.worker_states.values()
    reason = None
    if broker.is_draining:
        reason = "shutting down"
    elif broker.is_disk_low:
        reason = "the disk is nearly full"
    return {
        "workers_online": sum(worker_state.is_live for worker_state in worker_states),
        "tasks_pending": broker.task_table.queued,
        "tasks_in_progress": broker.task_table.running,
        "is_accepting": reason is None,
        "reason": reason,
        "epoch": broker.epoch,
        "broker_id": broker.policy.broker_id,
        "broker_port": broker.policy.broker_port,
        "mesh": broker.policy.mesh,
        "version": broker.policy.version,
        "rejected": dict(broker.rejected),
        "duplicates": broker.duplicates,
    }


def stats(broker: BrokerState) -> Body:
    """Return the documented body of ``/api/stats``; the counts are lifetime counts."""
    worker_states = list(broker.registry.worker_states.values())
    by_type: dict[str, int] = {}
    for worker_state in worker_states:
        by_type[worker_state.worker_type] = by_type.get(worker_state.worker_type, 0) + 1
    totals, task_table = broker.task_table.totals, broker.task_table
    tried = totals.completed + totals.failed
    return {
        "workers": {
            "total": len(worker_states),
            "online": sum(worker_state.is_live for worker_state in worker_states),
            "busy": sum(
                worker_state.is_live and worker_state.is_busy for worker_state in worker_states
            ),
            "by_type": by_type,
        },
        "tasks": {
            "total": tried + totals.cancelled + task_table.queued + task_table.running,
            "pending": task_table.queued,
            "assigned": task_table.running,
            "completed": totals.completed,
            "failed": totals.failed,
            "cancelled": totals.cancelled,
        },
        "performance": {
            "total_completed": totals.completed,
            "total_failed": totals.failed,
            "success_rate": 100.0 * totals.completed / tried if tried else 0,
        },
    }


def workers(broker: BrokerState) -> Body:
    """Return the documented body of ``/api/workers/list``."""
    listed = [
        _worker(broker, worker_state) for worker_state in broker.registry.worker_states.values()
    ]
    return {"workers": listed, "total": len(listed)}


def _worker(broker: BrokerState, worker_state: WorkerState) -> Body:
    record = broker.task_table.workers.get(worker_state.worker_id)
    capabilities: object = {
        "task_types": sorted(worker_state.types),
        "models": sorted(worker_state.models),
    }
    if worker_state.dialect is Dialect.POLLING and record is not None and record.capabilities:
        capabilities, _ = record.registered()
    status = "offline" if not worker_state.is_live else "busy" if worker_state.is_busy else "online"
    return {
        "worker_id": worker_state.worker_id,
        "worker_type": worker_state.worker_type,
        "status": status,
        "last_heartbeat": worker_state.last_heard_at,
        "tasks_completed": 0 if record is None else record.completed,
        "tasks_failed": 0 if record is None else record.failed,
        "capabilities": capabilities,
        "dialect": worker_state.dialect.value,
        "host": worker_state.host,
        "address": worker_state.peer.address,
        "status_port": worker_state.status_port or None,
        "slots": worker_state.slots,
        "running": min(len(worker_state.outstanding), worker_state.slots),
        "stuck": worker_state.stuck,
        "reason": (worker_state.is_live and worker_state.trouble) or None,
    }
