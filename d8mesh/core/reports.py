"""What is told about tasks and workers: the documented bodies, made from memory.

Payloads stay msgpack bytes; the asker decodes them.
"""

from __future__ import annotations

from typing import Final

from d8mesh.core import placement
from d8mesh.core.pool import Pool
from d8mesh.core.queue import LaneKey
from d8mesh.core.records import Batch, History
from d8mesh.core.roster import Dialect, Seat
from d8mesh.core.task import TaskState

Body = dict[str, object]

#: How the journal stores final states, beside the names they have here.
FINAL_STATES: Final = {
    1: TaskState.COMPLETED,
    2: TaskState.FAILED,
    3: TaskState.CANCELLED,
}


def unfinished(pool: Pool, task_id: str, *, is_single: bool = False) -> Body | None:
    """Return the status body of an unfinished task, or None if it is finished or unknown.

    Args:
        is_single: tell how many go before it too, and which type is the nearest to one that
            nobody offers; both take a look at much.
    """
    state = pool.ledger.state_of(task_id)
    found = pool.ledger.find(task_id)
    if state is None or found is None:
        return None
    batch, index = found
    task = pool.ledger.tasks.get(task_id)
    body = _body(task_id, batch, state)
    if task is not None:
        body["attempts"] = task.n
        body["assigned_to"] = task.worker_id or None
    reason = _reason(pool, batch, task_id, state, is_single=is_single)
    if (
        is_single
        and state is TaskState.QUEUED
        and placement.is_offered(batch.spec.type, pool.roster)
    ):
        count, is_more = pool.queue.ahead_of(batch, index)
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
    pool: Pool, batch: Batch, task_id: str, state: TaskState, *, is_single: bool
) -> str | None:
    """Say why a task is not further than it is."""
    task = pool.ledger.tasks.get(task_id)
    history = None if task is None else task.history
    if state is TaskState.RUNNING and task is not None:
        seat = pool.roster.seats.get(task.worker_id)
        if seat is None or task_id not in seat.outstanding:
            return f"waiting for worker {task.worker_id!r} to come back"
        return None if history is None else _trouble(history) or None
    if state is TaskState.DELAYED:
        if history is not None and _trouble(history):
            left_s = max(0.0, history.not_before_at - pool.at)
            return f"waiting to be tried again in {left_s:.1f} s; {_trouble(history)}"
        return f"to be run at {batch.spec.run_at}"
    key = LaneKey(batch.spec.type, batch.spec.model)
    why = placement.why_waiting(key, pool.roster, is_one_of_many=not is_single)
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


def health(pool: Pool) -> Body:
    """Return the body of the ``health`` question."""
    seats = pool.roster.seats.values()
    reason = None
    if pool.is_draining:
        reason = "shutting down"
    elif pool.is_disk_low:
        reason = "the disk is nearly full"
    return {
        "workers_online": sum(seat.is_live for seat in seats),
        "tasks_pending": pool.ledger.queued,
        "tasks_in_progress": pool.ledger.running,
        "is_accepting": reason is None,
        "reason": reason,
        "epoch": pool.epoch,
        "broker_id": pool.policy.broker_id,
        "broker_port": pool.policy.broker_port,
        "mesh": pool.policy.mesh,
        "version": pool.policy.version,
        "rejected": dict(pool.rejected),
        "duplicates": pool.duplicates,
    }


def stats(pool: Pool) -> Body:
    """Return the documented body of ``/api/stats``; the counts are lifetime counts."""
    seats = list(pool.roster.seats.values())
    by_type: dict[str, int] = {}
    for seat in seats:
        by_type[seat.worker_type] = by_type.get(seat.worker_type, 0) + 1
    totals, ledger = pool.ledger.totals, pool.ledger
    tried = totals.completed + totals.failed
    return {
        "workers": {
            "total": len(seats),
            "online": sum(seat.is_live for seat in seats),
            "busy": sum(seat.is_live and seat.is_busy for seat in seats),
            "by_type": by_type,
        },
        "tasks": {
            "total": tried + totals.cancelled + ledger.queued + ledger.running,
            "pending": ledger.queued,
            "assigned": ledger.running,
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


def workers(pool: Pool) -> Body:
    """Return the documented body of ``/api/workers/list``."""
    listed = [_worker(pool, seat) for seat in pool.roster.seats.values()]
    return {"workers": listed, "total": len(listed)}


def _worker(pool: Pool, seat: Seat) -> Body:
    record = pool.ledger.workers.get(seat.worker_id)
    capabilities: object = {"task_types": sorted(seat.types), "models": sorted(seat.models)}
    if seat.dialect is Dialect.POLLING and record is not None and record.capabilities:
        capabilities, _ = record.registered()
    status = "offline" if not seat.is_live else "busy" if seat.is_busy else "online"
    return {
        "worker_id": seat.worker_id,
        "worker_type": seat.worker_type,
        "status": status,
        "last_heartbeat": seat.last_heard_at,
        "tasks_completed": 0 if record is None else record.completed,
        "tasks_failed": 0 if record is None else record.failed,
        "capabilities": capabilities,
        "dialect": seat.dialect.value,
        "host": seat.host,
        "address": seat.peer.address,
        "status_port": seat.status_port or None,
        "slots": seat.slots,
        "running": min(len(seat.outstanding), seat.slots),
        "stuck": seat.stuck,
        "reason": (seat.is_live and seat.trouble) or None,
    }
